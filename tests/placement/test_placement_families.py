"""MergeBench's families, planned without any network: what is said to fit holds, and what is said to help does."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from added_up import holds
from command_line import CommandLine
from mergebench_ray.checkpoints.headers import resolve_headers
from mergebench_ray.commands.models import Models
from mergebench_ray.commands.sweep_models import resolve_headers_of
from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.placement import Cluster, Plan, find_placement, make_plan
from mergebench_ray.placement.changes import NODES_TO_COME
from mergebench_ray.placement.parts import ModelSizes
from mergebench_ray.search.checks import read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps" / "mergebench").glob("*.yaml"))
GIB = 1 << 30
MACHINES = [
    Cluster.alike(1, 256 * GIB, 1, 80 * GIB),
    Cluster.alike(1, 2048 * GIB, 8, 80 * GIB),
    Cluster.alike(2, 2048 * GIB, 8, 80 * GIB),
    Cluster.alike(8, 2048 * GIB, 8, 80 * GIB),
    Cluster.alike(4, 64 * GIB),
    Cluster.alike(1, 256 * GIB),
    Cluster.alike(4, 256 * GIB),
]
DATA_FREE = ("task_arithmetic", "ties", "dare", "consensus", "model_soup")


@functools.cache
def models_of(path: Path) -> tuple[Sweep, Models]:
    sweep = read_sweep(path)
    return sweep, resolve_headers_of(sweep, sweep.load_suite())


def planned(path: Path, cluster: Cluster, *, data: bool = True) -> Plan:
    sweep, models = models_of(path)
    changed = sweep if data else without_data(sweep)
    return make_plan(changed, models.base, models.specialists, cluster, judges=models.judges)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("MergeBench/Llama-3.2-3B_math", 3_212_749_824 + 64 * 3072),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("google/gemma-2-2b", 2_614_341_888),
        ("MergeBench/gemma-2-9b-it_safety", 9_241_705_984),
        ("allenai/wildguard", 7_248_023_552),
    ],
)
def test_shapes_that_ship_have_the_published_number_of_parameters(model: str, parameters: int) -> None:
    checkpoint = resolve_headers(model)
    assert sum(info.numel for info in checkpoint.tensors.values()) == parameters
    with pytest.raises(InputError, match="not on this machine"):
        checkpoint.read(next(iter(checkpoint.tensors)), 0, 1)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_family_that_fits_holds_on_every_machine(path: Path) -> None:
    sweep, models = models_of(path)
    sizes = ModelSizes.of(sweep, models.base, models.specialists)
    judge = models.judges["wildguard"]
    judges = {"wildguard": (judge.judge, sum(info.numel for info in judge.checkpoint.tensors.values()))}
    found = [find_placement(changed, sizes, judges, c) for c in MACHINES for changed in (sweep, without_data(sweep))]
    assert sum(one is not None for one in found) >= 8
    assert all(one is None or holds(one.placed, one.cluster) for one in found)


def without_data(sweep: Sweep) -> Sweep:
    methods = {name: one for name, one in sweep.methods.items() if name in DATA_FREE}
    return sweep.model_copy(update={"methods": methods})


def test_nine_billion_parameters_fit_four_nodes_of_64_gib_without_methods_that_see_data() -> None:
    [path] = [path for path in SWEEPS if path.stem == "gemma-2-9b"]
    nodes = Cluster.alike(4, 64 * GIB)
    assert str(planned(path, nodes).problem).endswith(
        "use no methods that see data (fisher, regmean, regmean_plusplus, localize_and_stitch)"
    )
    plan = planned(path, nodes, data=False)
    assert plan.placement is not None
    assert holds(plan.placement.placed, nodes)
    # The bank alone is more than half of what they have.
    assert sum(one.part.host_memory for one in plan.placement.of("shard")) > 0.4 * 4 * 64 * GIB


def test_plans_of_hub_models_need_no_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CommandLine(capsys, monkeypatch)
    [path] = [path for path in SWEEPS if path.stem == "llama-3.2-3b"]
    finished = run("plan", path, "--gpus-per-node", "8", "--host-memory", "1024")
    assert finished.status == 0, finished.err
    assert "What sits where" in finished.out
    assert finished.out.splitlines()[-1] == "fits"
    finished = run("plan", path, "--nodes", "1", "--host-memory", "48")
    assert finished.status == 2
    [line] = finished.err.splitlines()
    assert line.startswith("error: sweep Llama-3.2-3B: bank shard takes 128.")
    assert "GiB of host memory, a node has 48.0 GiB" in line
    assert line.endswith(": use --nodes 5 and bank.shards: 3")


def test_of_a_running_cluster_it_is_said_too_that_nodes_on_demand_have_to_be_there_first() -> None:
    cluster = Cluster.alike(1, 24 * GIB).model_copy(update={"has_own_store": True})
    problem = planned(SWEEPS[0], cluster).problem
    assert problem is not None
    assert f": {NODES_TO_COME}, or use " in problem


@pytest.mark.parametrize("path", SWEEPS[::2], ids=lambda path: path.stem)
def test_the_change_that_is_named_makes_it_fit(path: Path) -> None:
    sweep, models = models_of(path)
    for cluster in [*MACHINES, Cluster.alike(1, 24 * GIB), Cluster.alike(2, 512 * GIB, 1, 24 * GIB)]:
        problem = planned(path, cluster).problem
        if problem is not None and ": use " in problem:
            changed, judges, nodes = after(problem.rpartition(": use ")[2], sweep, models.judges, cluster)
            plan = make_plan(changed, models.base, models.specialists, nodes, judges=judges)
            assert plan.placement is not None, problem
            assert holds(plan.placement.placed, nodes)


def after(
    change: str, sweep: Sweep, judges: dict[str, FoundJudge], cluster: Cluster
) -> tuple[Sweep, dict[str, FoundJudge], Cluster]:
    """What a plan's problem says would fit."""
    for one in change.split(" and "):
        key, _, value = one.partition(": ")
        if key == "bank.shards":
            sweep = sweep.model_copy(update={"bank": sweep.bank.model_copy(update={"shards": int(value)})})
        elif key.startswith("engine."):
            changed = {key.removeprefix("engine."): float(value) if "." in value else int(value)}
            sweep = sweep.model_copy(update={"engine": sweep.engine.model_copy(update=changed)})
        elif key == "evaluation.judges.wildguard":
            assert value == "null"
            judges = {}
        elif key == "evaluation.judges.wildguard.gpu_memory_utilization":
            judge = judges["wildguard"].judge.model_copy(update={"gpu_memory_utilization": float(value)})
            judges = {"wildguard": replace(judges["wildguard"], judge=judge)}
        elif one.startswith("--nodes "):
            more = int(one.removeprefix("--nodes "))
            cluster = cluster.model_copy(update={"nodes": (cluster.nodes * more)[:more]})
        elif one.startswith("no methods that see data"):
            sweep = without_data(sweep)
        else:
            size = int(one.removeprefix("--host-memory ")) * GIB
            nodes = tuple(node.model_copy(update={"host_memory": size}) for node in cluster.nodes)
            cluster = cluster.model_copy(update={"nodes": nodes})
    return sweep, judges, cluster
