"""A recipe of ours as mergekit reads it, held against what mergekit makes of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergebench_ray.config import MergedParts, Recipe
from mergebench_ray.mergekit import CannotSayError, mergekit_recipe, read_recipe
from mergebench_ray.methods import TensorPlace, complete_parameters, per_specialist

LAYERS = 4
NAMES = ["a", "b"]
PLACES = [
    *(
        TensorPlace(f"model.layers.{layer}.{part}.weight", layer, LAYERS, kind=kind)  # type: ignore[arg-type]
        for layer in range(LAYERS)
        for part, kind in (("self_attn.q_proj", "attention"), ("mlp.up_proj", "mlp"), ("mlp_norm", "norm"))
    ),
    TensorPlace("model.norm.weight", None, LAYERS, kind="norm"),
]
UNMERGED = ["lm_head.weight", "model.embed_tokens.weight"]


def recipe(method: str, parameters: dict[str, Any], **fields: Any) -> Recipe:
    names = NAMES[:1] if method == "slerp" else NAMES
    return Recipe(
        method=method,
        parameters=complete_parameters(method, parameters, names, LAYERS),
        base="o/base",
        specialists={name: f"o/{name}" for name in names},
        base_digest="0",
        specialist_digests=dict.fromkeys(names, "0"),
        **fields,
    )


def evaluated(setting: Any, name: str, layer: int | None) -> float:
    """As mergekit does it; outside the layers a gradient begins."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = next(one["value"] for one in setting if one.get("filter", "") in name)
    if not isinstance(setting, list):
        return float(setting)
    scaled = (0 if layer is None else layer / (LAYERS - 1)) * (len(setting) - 1)
    rest = scaled - int(scaled)
    return (1 - rest) * setting[int(scaled)] + rest * setting[min(int(scaled) + 1, len(setting) - 1)]


@pytest.mark.parametrize(
    "coefficient",
    [
        0.5,
        [0.1, 0.9],
        {"first": 0.2, "last": 0.8},
        {"attention": [0.1, 0.2, 0.3, 0.4], "mlp": 0.5, "norm": {"first": 0.3, "last": 0.6}},
        [{"filter": "mlp", "value": 0.5}, {"value": [0.1, 0.4]}],
    ],
)
def test_every_tensor_has_its_coefficient_and_what_is_not_merged_none(coefficient: Any) -> None:
    ours = recipe("task_arithmetic", {"scaling_coef": {"a": coefficient, "b": 0.7}})
    theirs = yaml.safe_load(mergekit_recipe(ours, PLACES, UNMERGED))
    weights = {one["model"]: one["parameters"]["weight"] for one in theirs["models"]}
    for place in PLACES:
        expected = per_specialist(ours.parameters["scaling_coef"], place, NAMES)
        found = [evaluated(weights[f"o/{name}"], place.name, place.layer) for name in NAMES]
        assert found == pytest.approx(expected, abs=1e-12)
    assert {evaluated(weight, name, None) for weight in weights.values() for name in UNMERGED} == {0.0}


def test_what_goes_out_comes_in_again(tmp_path: Path) -> None:
    for method, parameters in [
        ("ties", {"trim": "tensor", "density": {"a": 0.3, "b": 0.4}, "merge_func": "mean", "weight": 0.5}),
        ("breadcrumbs", {"gamma": {"a": 0.1, "b": 0.2}, "weight": {"a": 1, "b": 0.3}}),
        ("dare_linear", {"density": 1.0, "normalize": True}),
        ("linear", {"weight": {"a": 1.0, "b": 0.5}, "base_weight": 0.2}),
        ("sce", {"select_topk": 0.5, "alike_below": 1e-6}),
        ("ram_plus", {"r": 0.3}),
        ("slerp", {"t": 0.3}),
        ("nuslerp", {"weight": {"a": 1.0, "b": 0.5}}),
        ("karcher", {"steps": 5}),
    ]:
        ours = recipe(method, parameters, merged=MergedParts(embeddings=True), dtype="float16")
        text = mergekit_recipe(ours, PLACES, [])
        again = read_recipe(yaml.safe_load(text), tmp_path / "recipe.yml")
        specialists = [*again.specialists]
        completed = complete_parameters(again.method, again.parameters, specialists, LAYERS)
        assert (again.method, completed, again.dtype) == (method, ours.parameters, "float16"), text


def test_averages_keep_the_base_where_it_is_not_merged() -> None:
    for ours in (recipe("model_soup", {}), recipe("linear", {"weight": 0.5})):
        theirs = yaml.safe_load(mergekit_recipe(ours, PLACES, UNMERGED))
        first, *others = [one["parameters"]["weight"] for one in theirs["models"]]
        assert [evaluated(first, name, None) for name in UNMERGED] == [1.0, 1.0]
        assert [evaluated(weight, name, None) for weight in others for name in UNMERGED] == [0.0] * 4
        assert evaluated(first, "model.norm.weight", None) == 0.0


@pytest.mark.parametrize(
    ("method", "parameters", "why"),
    [
        ("dare", {"p": 0.5}, "mergekit would draw other random masks"),
        ("della", {"density": 0.5}, "mergekit would draw other random masks"),
        ("ties", {}, "this recipe whole task vectors"),
        ("ties", {"trim": "tensor", "merge_func": "max"}, "no merge_func: max"),
        ("ties", {"trim": "tensor", "scaling_coef": {"a": 1.0, "b": 0.5}}, "one lambda for all models"),
        ("sce", {}, "alike_below: 1e-6"),
        ("consensus", {}, "mergekit has no such method"),
        ("model_stock", {}, "no weights to leave them out by"),
    ],
)
def test_what_mergekit_cannot_say_is_said_why(method: str, parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(CannotSayError, match=why):
        mergekit_recipe(recipe(method, parameters), PLACES, UNMERGED)


@pytest.mark.parametrize("reference", ["s3://bucket/a", "package:x/y", "./a.gguf"])
def test_models_that_mergekit_cannot_read_are_named(reference: str) -> None:
    ours = recipe("task_arithmetic", {}).model_copy(update={"specialists": {"a": reference, "b": "o/b"}})
    with pytest.raises(CannotSayError, match="mergekit does not read"):
        mergekit_recipe(ours, PLACES, UNMERGED)
