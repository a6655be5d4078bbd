"""Every method against its naive reference, on real files: a Llama with an output head of its own, and a Gemma-2."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import naive_methods as naive
from bank_in_process import LocalBank
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.methods import complete_parameters, get_method, method_names, parse_parameters
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

SPECIALISTS = ["coding", "instruction", "math", "multilingual", "safety"]


@dataclass
class Models:
    base: Checkpoint
    specialists: dict[str, Checkpoint]

    def weights(self) -> tuple[naive.Model, dict[str, naive.Model]]:
        return _weights(self.base), {name: _weights(checkpoint) for name, checkpoint in self.specialists.items()}


def _weights(checkpoint: Checkpoint) -> naive.Model:
    return {name: checkpoint.read(name).view(info.shape) for name, info in checkpoint.tensors.items()}


@pytest.fixture(scope="module", params=["llama, untied head, further vocabulary", "gemma-2"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    gemma = request.param == "gemma-2"
    base = tiny_gemma2(folder / "base") if gemma else tiny_llama(folder / "base", tied=False)
    specialists = {
        name: resolve(str(tiny_specialist(folder / name, base, seed=seed, extra_vocabulary=0 if gemma else 64)))
        for seed, name in enumerate(reversed(SPECIALISTS))
    }
    return Models(resolve(str(base)), specialists)


DATA_FREE = [name for name in method_names() if not get_method(name).calibration_samples(parse_parameters(name, {}))]
DENSITIES = dict(zip(SPECIALISTS, [0.7, 0.9, 0.3, 1.0, 0.6]))
SPREADS = dict(zip(SPECIALISTS, [0.3, 0.1, 0.0, 0.2, 0.3]))
WEIGHTS = dict(zip(SPECIALISTS, [0.71, 0.93, 0.34, 1.27, 0.59]))
SPECTRAL = [name for name in DATA_FREE if "spectral" in get_method(name).statistics]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DATA_FREE),
    ("task_arithmetic", {"scaling_coef": dict(zip(SPECIALISTS, [0.1, 0.9, -0.3, 1.5, 0.2]))}),
    ("task_arithmetic", {"scaling_coef": 1.1, "weight": WEIGHTS, "normalize": True}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": DENSITIES, "trim": "tensor", "rescale": True, "merge_func": "mean", "weight": WEIGHTS}),
    ("ties", {"density": DENSITIES}),
    ("dare_linear", {"density": DENSITIES, "weight": WEIGHTS, "normalize": True}),
    ("ties", {"density": 0.7, "merge_func": "mean", "scaling_coef": 1.0}),
    ("ties", {"density": 0.5, "merge_func": "max", "scaling_coef": dict(zip(SPECIALISTS, [0.7, 0.9, 0.3, 1.2, 0.6]))}),
    ("ties", {"density": 0.5, "trim": "tensor", "weight": WEIGHTS}),
    ("ties", {"density": 0.4, "weight": dict(zip(SPECIALISTS, [0.71, 0.93, -0.31, 1.27, 0.59])), "merge_func": "mean"}),
    ("dare_ties", {"density": DENSITIES, "normalize": True, "seed": 3}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.1, "rescale": True, "normalize": True}),
    (
        "breadcrumbs_ties",
        {"density": 0.6, "gamma": dict(zip(SPECIALISTS, [0.5, 0.1, 0.0, 0.2, 0.3])), "weight": WEIGHTS},
    ),
    (
        "della",
        {"density": 0.6, "epsilon": dict(zip(SPECIALISTS, [0.3, 0.1, 0.0, 0.2, 0.3])), "weight": WEIGHTS, "seed": 3},
    ),
    ("sce", {"select_topk": 0.3, "scaling_coef": 0.7}),
    ("ram", {"epsilon": 0.004}),
    ("ram_plus", {"epsilon": 0.004, "r": 0.7, "alpha": 5.0}),
    ("lines", {"alpha": WEIGHTS, "beta": -0.3}),
    ("tsv_m", {"scaling_coef": WEIGHTS}),
    ("iso_cts", {"common_space_fraction": 0.5, "scaling_coef": 0.7}),
    ("dare", {"p": 0.8, "seed": 3}),
    ("dare", {"p": 0.0}),
    ("consensus", {"mu": 0.6, "k": 3, "scaling_coef": 1.1}),
    ("localize_and_stitch", {"sparsity": 0.3, "overlap": "mergebench"}),
    ("linear", {"weight": dict(zip(SPECIALISTS, [0.1, 0.9, 0.3, 0.5, 0.2])), "base_weight": 0.5}),
    ("linear", {"weight": 0.3, "base_weight": 0.1, "normalize": False}),
    ("slerp", {"t": 0.3}),
    ("nuslerp", {"weight": dict(zip(SPECIALISTS[:2], [0.2, 0.7])), "around": "zero"}),
    ("multislerp", {"weight": dict(zip(SPECIALISTS, [0.1, 0.9, 0.3, 0.5, 0.2])), "around": "zero"}),
    ("multislerp", {"weight": 0.3, "normalize": False}),
    ("karcher", {"weight": dict(zip(SPECIALISTS, [0.1, 0.9, 0.3, 0.5, 0.2])), "around": "base"}),
]


def reference_of(method: str) -> Callable[..., naive.Model]:
    """The naive form of a method; those that see data have theirs in test_methods_calibrated.py."""
    reference = getattr(naive, method, None)
    if reference is None:
        pytest.fail(
            f"method {method!r} has no reference: add a function {method}(base, specialists, **hyper_parameters) "
            "that reads as its definition to tests/support/naive_methods.py",
            pytrace=False,
        )
    return reference


@pytest.mark.parametrize("method", DATA_FREE)
def test_every_method_has_a_reference(method: str) -> None:
    assert reference_of(method).__module__ == naive.__name__


def test_a_method_without_a_reference_is_told_where_it_goes() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"'no_such' has no reference.*tests/support/naive_methods\.py"):
        reference_of("no_such")


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_method_equals_its_definition(models: Models, method: str, parameters: dict[str, Any]) -> None:
    base, specialists = models.weights()
    chosen = get_method(method).Parameters.as_many(SPECIALISTS)
    completed = complete_parameters(method, parameters, chosen, layers=2)
    expected = reference_of(method)(base, {name: specialists[name] for name in chosen}, **completed)
    merged = LocalBank(models.base, {name: models.specialists[name] for name in chosen}).merge(method, parameters)
    assert set(merged) == set(expected)
    assert all("embed" not in name and "lm_head" not in name for name in merged)
    for name, tensor in expected.items():
        others = [specialists[one][name] for one in chosen]
        if method in SPECTRAL:  # what tsv_m adds is rounded to bf16, and here it is as long as the base
            assert relative_distance(merged[name], tensor) < (2e-3 if method == "tsv_m" else 1e-3), name
            continue
        assert_equal_but_for_rounding(merged[name], tensor, base[name], name, others)
        # A wrong threshold, mask or sign shows as entries that move or stay where the definition says otherwise.
        moved = merged[name] != base[name]
        assert torch.equal(moved, tensor != base[name]) or method not in ("ties", "localize_and_stitch"), name


def test_a_line_scales_each_layer_by_its_depth(models: Models) -> None:
    base, specialists = models.weights()
    low, high = (naive.task_arithmetic(base, specialists, dict.fromkeys(SPECIALISTS, c)) for c in (0.2, 0.8))
    line = {"first": 0.2, "last": 0.8}
    merged = LocalBank(models.base, models.specialists).merge(
        "task_arithmetic", {"scaling_coef": dict.fromkeys(SPECIALISTS, line)}
    )
    for name, tensor in merged.items():
        # Two layers: the ends of the line; the final norm lies outside the layers and goes with the last.
        expected = low if ".layers.0." in name else high
        assert_equal_but_for_rounding(tensor, expected[name], base[name], name)


def test_layer_groups_scale_their_own_layers(models: Models) -> None:
    base, specialists = models.weights()
    low, high = (naive.task_arithmetic(base, specialists, dict.fromkeys(SPECIALISTS, c)) for c in (0.2, 0.8))
    merged = LocalBank(models.base, models.specialists).merge(
        "task_arithmetic", {"scaling_coef": {name: [0.2, 0.8] for name in SPECIALISTS}}
    )
    for name, tensor in merged.items():
        # Two layers, two groups; the final norm lies outside the layers and joins the last group.
        expected = low if ".layers.0." in name else high
        assert_equal_but_for_rounding(tensor, expected[name], base[name], name)


def test_kinds_of_modules_are_scaled_by_their_own_numbers_however_the_model_is_cut(models: Models) -> None:
    base, specialists = models.weights()
    numbers = {"attention": 0.2, "mlp": 0.8, "norm": -0.5}
    alone = {
        kind: naive.ties(base, specialists, dict.fromkeys(SPECIALISTS, number), 0.4, "sum")
        for kind, number in numbers.items()
    }
    parameters = {"density": 0.4, "scaling_coef": dict.fromkeys(SPECIALISTS, numbers)}
    merged = LocalBank(models.base, models.specialists).merge("ties", parameters)
    for name, tensor in merged.items():
        kind = "norm" if "norm" in name.split(".")[-2] else "attention" if "self_attn" in name else "mlp"
        assert_equal_but_for_rounding(tensor, alone[kind][name], base[name], name)
    cut = LocalBank(models.base, models.specialists, shards=3, threads=2).merge("ties", parameters)
    assert [name for name in merged if not torch.equal(cut[name], merged[name])] == []


def test_recipes_that_are_one_by_definition_have_one_digest(models: Models) -> None:
    bank = LocalBank(models.base, models.specialists).bank
    for method, first, second in [
        ("task_arithmetic", {"scaling_coef": 0.0}, {"scaling_coef": -0.0}),
        ("ties", {"scaling_coef": 0.3}, {"scaling_coef": {name: [0.3, 0.3] for name in SPECIALISTS}}),
        ("dare", {"p": 0.0, "seed": 1}, {"p": 0.0, "seed": 2}),
    ]:
        assert bank.recipe(method, first).digest == bank.recipe(method, second).digest


def test_untied_head_counts_for_the_threshold(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tied=False)
    models = {n: resolve(str(tiny_specialist(tmp_path / n, base, seed=i))) for i, n in enumerate("ab")}
    bank = LocalBank(resolve(str(base)), models)
    weights = {name: _weights(checkpoint) for name, checkpoint in models.items()}
    vectors = naive.task_vectors(_weights(resolve(str(base))), weights)
    assert any(tensor.name == "lm_head.weight" for tensor in bank.bank.layout.streamed)
    assert bank.bank.statistics.magnitude_histograms().sum(1).tolist() == [
        len(naive.flat(vector)) for vector in vectors
    ]


def assert_equal_but_for_rounding(
    merged: Tensor, expected: Tensor, base: Tensor, name: str, others: Iterable[Tensor] = ()
) -> None:
    """At most one bf16 number apart; where terms nearly cancel out, a few float32 roundings of them."""
    distance = (bf16_order(merged) - bf16_order(expected)).abs()
    terms = base.float().abs() + sum((other[: len(base)].float() - base.float()).abs() for other in others)
    cancelled = (merged.float() - expected.float()).abs() <= 2**-22 * terms
    assert bool(((distance <= 1) | cancelled).all()), f"{name}: {int(distance.max())} bf16 numbers apart"


def relative_distance(one: Tensor, other: Tensor) -> float:
    """Of what is more than a rounding apart."""
    apart = (bf16_order(one) - bf16_order(other)).abs() > 1
    return float(((one.double() - other.double()) * apart).norm() / other.double().norm())


def bf16_order(tensor: Tensor) -> Tensor:
    """Rank of each number among all bf16 numbers, zero at 0."""
    bits = tensor.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
