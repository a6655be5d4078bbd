"""The merged bits do not depend on how the work is cut, and only what changed is merged again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bank_in_process import LocalBank
from mergebench_ray.bank import Layout, shard_statistics, shard_weights
from mergebench_ray.bank.layout import shard_range
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from mergebench_ray.kernels import Pass
from mergebench_ray.methods import Solver, get_method, method_names, parse_parameters
from mergebench_ray.steps import STEP_SECONDS, Step
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

Models = tuple[Checkpoint, dict[str, Checkpoint]]

PARAMETERS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scaling_coef": {"a": [0.1, 0.7], "b": 0.4, "c": [0.9, -0.3]}},
    "ties": {"density": 0.6, "merge_func": "mean"},
    "dare": {"p": 0.7, "seed": 11},
    "ram_plus": {"epsilon": 0.004},
    "sce": {"select_topk": 0.3},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1, "rescale": True},
    "consensus": {"mu": 0.5},
    "localize_and_stitch": {"sparsity": 0.4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """An untied base with two full specialists and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", tied=False)
    specialists = {name: resolve(str(tiny_specialist(folder / name, base, seed=i))) for i, name in enumerate("ab")}
    specialists["c"] = resolve(f"{base}+{tiny_adapter(folder / 'c', base, seed=9)}")
    return resolve(str(base)), specialists


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.int16), second[name].view(torch.int16)) for name in first
    )


def test_a_shard_that_hangs_in_whatever_it_does_shows_it(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    one = LocalBank(*models)
    [shard] = one.bank._shards._shards  # type: ignore[attr-defined]
    seen: dict[str, list[Step]] = {}

    def watch(owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(shard._steps.present())
            return before(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    class Watched(Solver):
        groups, system_key, key = ((one.bank.layout.merged[0].name,),), "", "k"

        def solve(self, group: Sequence[str], system: Any) -> list[Tensor]:
            return [torch.zeros(1)]

    watch(shard_weights, "read_in_shape_of")
    watch(shard_statistics, "magnitude_histogram")
    watch(shard_statistics, "inner_products")
    watch(Pass, "run")
    watch(Pass, "total")
    watch(Watched, "solve")
    shard._read_all()
    for method in ("ties", "consensus", "model_stock", "task_arithmetic"):
        one.merge(method, PARAMETERS.get(method, {}))
    one.merge("task_arithmetic", {"scaling_coef": 0.3})
    assert len(list(shard._solutions.of(Watched(), Watched.groups, 1))) == 1
    expected = {"read_in_shape_of", "magnitude_histogram", "inner_products", "run", "total", "solve"}
    assert set(seen) == expected
    assert all(began > 0.0 for steps in seen.values() for began, _ in steps), "it was at none of its steps"
    first, again = seen["run"][-2][1], seen["run"][-1][1]
    assert 60.0 < again < 70.0 < STEP_SECONDS <= first, "the first pass may compile"
    assert shard._steps.present() == (0.0, 0.0)


DATA_FREE = [name for name in method_names() if not get_method(name).calibration_samples(parse_parameters(name, {}))]


@pytest.mark.parametrize("method", DATA_FREE)
def test_bits_do_not_depend_on_shards_or_threads(models: Models, method: str) -> None:
    parameters, (base, specialists) = PARAMETERS.get(method, {}), models
    some = {name: specialists[name] for name in get_method(method).Parameters.as_many(sorted(specialists))}
    one = LocalBank(base, some).merge(method, parameters)
    for shards, threads in [(1, 3), (2, 1), (3, 2), (7, 1)]:
        cut = LocalBank(base, some, shards=shards, threads=threads).merge(method, parameters)
        assert same_bits(one, cut), f"{shards} shards, {threads} threads"


def test_bits_do_not_depend_on_the_order_in_which_specialists_are_given(models: Models) -> None:
    base, specialists = models
    backwards = dict(reversed(specialists.items()))
    parameters = PARAMETERS["task_arithmetic"]
    assert same_bits(
        LocalBank(base, specialists).merge("task_arithmetic", parameters),
        LocalBank(base, backwards).merge("task_arithmetic", parameters),
    )


def test_bits_do_not_depend_on_what_was_merged_before(models: Models) -> None:
    bank = LocalBank(*models, shards=2)
    first = bank.merge("ties", {"density": 0.5})
    bank.merge("dare", {})
    bank.merge("ties", {"density": 0.9})
    assert same_bits(bank.merge("ties", {"density": 0.5}), first)


def test_the_same_recipe_again_moves_nothing(models: Models) -> None:
    bank = LocalBank(*models)
    bank.merge("task_arithmetic", {"scaling_coef": 0.3})
    assert bank.moved == bank.bank.layout.size * (3 + 2) * 2
    bank.merge("task_arithmetic", {"scaling_coef": {"a": 0.3, "b": [0.3, 0.3], "c": 0.3}})
    assert bank.moved == 0


def test_only_the_layers_whose_coefficients_changed_are_merged(models: Models) -> None:
    bank = LocalBank(*models)
    bank.merge("task_arithmetic", {"scaling_coef": {"a": [0.3, 0.3], "b": 0.1, "c": 0.2}})
    bank.merge("task_arithmetic", {"scaling_coef": {"a": [0.5, 0.3], "b": 0.1, "c": 0.2}})
    first_layer = sum(tensor.count for tensor in bank.bank.layout.merged if tensor.layer == 0)
    assert bank.moved == first_layer * (3 + 2) * 2


def test_a_merge_that_failed_leaves_no_tensor_marked_as_done(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = LocalBank(*models)
    expected = bank.merge("task_arithmetic", {"scaling_coef": 0.3})
    with monkeypatch.context() as patch:
        patch.setattr("mergebench_ray.kernels.Pass.run", _fail)
        with pytest.raises(RuntimeError, match="no memory"):
            bank.merge("task_arithmetic", {"scaling_coef": 0.9})
    assert same_bits(bank.merge("task_arithmetic", {"scaling_coef": 0.3}), expected)
    assert bank.moved > 0


def _fail(*_: object) -> None:
    raise RuntimeError("no memory")


def test_layout_orders_by_layer_and_shards_cut_it_without_gaps(models: Models) -> None:
    layout = Layout.of(models[0])
    layers = [tensor.layer for tensor in layout.merged]
    assert layers == sorted(layers, key=lambda layer: (layer is None, layer or 0))
    assert [tensor.start for tensor in layout.merged[1:]] == [tensor.stop for tensor in layout.merged[:-1]]
    assert layout.size == layout.merged[-1].stop
    for shards in (1, 2, 3, 7):
        ranges = [shard_range(layout.size, shards, index) for index in range(shards)]
        covered = [overlap for cut in ranges for overlap in layout.overlaps(*cut)]
        assert sum(overlap.stop - overlap.start for overlap in covered) == layout.size
        assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(models: Models, tmp_path: Path, value: float) -> None:
    base, specialists = models
    broken = tiny_specialist(tmp_path / "broken", base.folder, seed=3)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"broken.*model\.layers\.1\.mlp\.up_proj\.weight.*NaN or infinity"):
        LocalBank(base, {**specialists, "b": resolve(str(broken))}, shards=2)
