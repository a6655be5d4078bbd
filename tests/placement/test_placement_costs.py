"""What a sweep takes is reckoned by rates: those that were measured here, else those that ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from added_up import holds
from mergebench_ray.config import Sweep
from mergebench_ray.methods import method_names
from mergebench_ray.placement import Cluster, Placement, find_placement
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.costs import Rates, Tokens, estimate, keep_rates, known_rates
from mergebench_ray.placement.parts import ModelSizes, calibration_kinds

GIB = 1 << 30
RATES = Rates(
    device="cpu",
    source="a test",
    merge=1e9,
    merge_start=0.05,
    load=1e9,
    load_layer=0.002,
    read=1e9,
    prompts=2e9,
    prompt_token=0.01,
    answers=1e9,
    answer_token=0.02,
    weights=1e9,
    layer=0.01,
    engine_start=10.0,
)
TOKENS = Tokens(prompt=40, answer=30, longest=60, at_once=20)
SIZES = ModelSizes(
    parameters=100_000_000,
    merged=50_000_000,
    num_layers=10,
    largest=1_000_000,
    specialists=3,
    gram=0,
    calibration={},
    heads={"num_attention_heads": 4},
)


def sweep_of(engines: int = 1, shards: int = 1) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "x",
            "suite": "smollm2-mini",
            "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
            "search": {"trials": 20},
            "engine": {"count": engines},
            "bank": {"shards": shards},
        }
    )


def placed(sweep: Sweep, cluster: Cluster) -> Placement:
    found = find_placement(sweep, SIZES, {}, cluster)
    assert found is not None
    return found


def test_a_candidate_is_merging_loading_and_answers() -> None:
    sweep = sweep_of()
    answers = [Answers(what="candidates", least=1000, most=2000)]
    found = estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), 100, answers, 1, TOKENS, RATES)
    assert found.merge_seconds == pytest.approx(0.05 + 5 * 50e6 * 2 / 1e9)
    assert found.load_seconds == pytest.approx(10 * 0.002 + 50e6 * 2 / 1e9)
    step = 10 * 0.01 + 100e6 * 2 / 1e9
    asked = 100 * (40 * 0.06 + 30 * 0.12) + 100 * 30 / 20 * step
    assert found.answer_seconds == pytest.approx(asked)
    assert found.candidate_seconds == pytest.approx(0.67 + asked)
    start = 10 + 4 * 0.2
    assert found.hours[0] * 3600 == pytest.approx(start + 20 * 0.67 + 10 * asked)
    assert found.hours[1] * 3600 == pytest.approx(start + 20 * 0.67 + 20 * asked)


def test_a_method_that_takes_more_than_a_pass_is_reckoned_with_as_much() -> None:
    sweep = sweep_of()
    rates = RATES.model_copy(update={"passes": {"ties": 2.5, "dare": 9.0}})
    found = estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), 100, [], 1, TOKENS, rates)
    assert found.merge_seconds == pytest.approx(0.05 + 2.5 * 5 * 50e6 * 2 / 1e9)


def test_a_few_items_take_as_many_steps_as_the_longest_answer() -> None:
    sweep = sweep_of()
    few, fewer = (
        estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), items, [], 1, TOKENS, RATES)
        for items in (4, 2)
    )
    assert few.answer_seconds - fewer.answer_seconds == pytest.approx(2 * (40 * 0.06 + 30 * 0.12))
    assert fewer.answer_seconds == pytest.approx(2 * (40 * 0.06 + 30 * 0.12) + 60 * 0.3)


def test_engines_on_one_nodes_processor_share_it_and_those_of_other_nodes_do_not() -> None:
    sweep = sweep_of(engines=2)
    answers = [Answers(what="candidates", least=1000, most=1000)]
    together = estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), 100, answers, 1, TOKENS, RATES)
    apart = estimate(sweep, SIZES, placed(sweep, Cluster.alike(2, 8 * GIB)), 100, answers, 1, TOKENS, RATES)
    assert together.answer_seconds == pytest.approx(2 * apart.answer_seconds)
    assert together.hours[0] > 1.9 * apart.hours[0]
    # The bank's one shard is with one of them, so the other's weights come from there.
    assert apart.load_seconds > together.load_seconds


def test_nodes_that_are_one_machine_share_its_processor() -> None:
    sweep = sweep_of(engines=2, shards=2)
    apart = Cluster.alike(2, 8 * GIB)
    one = Cluster(nodes=tuple(node.model_copy(update={"host": "10.0.0.1"}) for node in apart.nodes))
    two, shared = (
        estimate(sweep, SIZES, one_of_each_kind_a_node(placed(sweep, some)), 100, [], 1, TOKENS, RATES)
        for some in (apart, one)
    )
    assert shared.answer_seconds == pytest.approx(2 * two.answer_seconds)
    assert shared.merge_seconds - 0.05 == pytest.approx(2 * (two.merge_seconds - 0.05))


def one_of_each_kind_a_node(placement: Placement) -> Placement:
    parts = [one.model_copy(update={"node": one.part.index}) for one in placement.placed]
    return placement.model_copy(update={"placed": tuple(parts)})


def test_rates_that_were_measured_here_take_the_place_of_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path))
    assert "as shipped" in known_rates("cpu").source
    keep_rates(RATES)
    assert known_rates("cpu") == RATES
    (tmp_path / "costs" / "cpu.json").write_text("{")
    assert "as shipped" in known_rates("cpu").source


def test_task_vectors_that_do_not_fit_beside_an_engine_that_reads_from_its_gpu_stay_in_host_memory() -> None:
    large = replace(SIZES, parameters=8_000_000_000, merged=7_000_000_000, specialists=5, largest=500_000_000)
    cluster = Cluster.alike(1, 256 * GIB, 1, 80 * GIB, cores=8)
    by_host = find_placement(sweep_of(), large, {}, cluster)
    assert by_host is not None
    assert not by_host.bank_on_gpu
    sweep = sweep_of()
    engine = sweep.engine.model_copy(update={"transport": "gpu"})
    found = find_placement(sweep.model_copy(update={"engine": engine}), large, {}, cluster)
    assert found is not None
    assert found.bank_on_gpu
    assert found.bank_streams
    assert holds(found.placed, cluster)
    [shard], [one] = found.of("shard"), found.of("engine")
    assert shard.devices == one.devices
    merged = 2 * large.merged
    assert merged < shard.part.gpu_memory < 2 * merged
    assert shard.part.host_memory > 7 * merged  # base, five task vectors, and where the best model is read from
    assert 0.5 < found.utilization(one) < 1 - shard.part.gpu_memory / (80 * GIB)
    small = find_placement(sweep.model_copy(update={"engine": engine}), SIZES, {}, cluster)
    assert small is not None
    assert (small.bank_on_gpu, small.bank_streams) == (True, False)


@pytest.mark.parametrize("method", method_names())
def test_a_search_of_every_method_is_placed(method: str) -> None:
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": {method: {}}})
    kinds = dict.fromkeys(calibration_kinds(sweep), 1 << 20)
    found = find_placement(sweep, replace(SIZES, calibration=kinds), {}, Cluster.alike(1, 64 << 30))
    assert found is not None
