"""A sweep around a recipe: its models and method, ranges around its numbers, and these first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.methods import complete_parameters
from mergebench_ray.search.from_recipe import sweep_from_recipe
from mergebench_ray.search.space import Space

MERGEKIT = """models:
  - {model: org/a, parameters: {weight: 0.4, density: 0.5}}
  - {model: org/b, parameters: {weight: 0.6, density: 0.5}}
merge_method: ties
base_model: org/base
tokenizer_source: org/a
"""
SUITE = {"suite": "smollm2-mini"}


def around(tmp_path: Path, text: str, **settings: Any) -> Sweep:
    (tmp_path / "my recipe.yml").write_text(text)
    return sweep_from_recipe(tmp_path / "my recipe.yml", None, {**SUITE, **settings})[0]


def ranges(sweep: Sweep) -> dict[str, Any]:
    (parameters,) = sweep.methods.values()
    return {name: one.model_dump(exclude_defaults=True) for name, one in parameters.items()}


def test_ranges_lie_around_the_recipes_numbers_which_come_first(tmp_path: Path) -> None:
    sweep = around(tmp_path, MERGEKIT)
    assert (sweep.name, sweep.base, sweep.specialists) == ("my-recipe", "org/base", {"a": "org/a", "b": "org/b"})
    assert sweep.merged.embeddings
    found = ranges(sweep)
    assert found["weight"] == {"low": 0.1, "high": 0.9, "per": "specialist"}
    assert found["density"] == {"low": 0.25, "high": 0.75, "per": "specialist"}
    assert found["scaling_coef"] == {"low": 0.5, "high": 1.5}
    assert found["trim"] == {"value": "tensor"}
    space = Space(sweep, ["a", "b"], layers=4)
    [first] = space.points(sweep.search.points_to_evaluate)
    assert first == {
        **{"ties.weight.a": 0.4, "ties.weight.b": 0.6, "ties.density.a": 0.5, "ties.density.b": 0.5},
        "ties.scaling_coef": 1.0,
    }
    method, parameters = space.candidate(first)
    assert complete_parameters(method, parameters, ["a", "b"], 4)["scaling_coef"] == {"a": 1.0, "b": 1.0}


def test_slices_of_which_nobody_knows_whether_they_are_all_layers_are_refused(tmp_path: Path) -> None:
    sources = "[{model: org/a, layer_range: [0, 4]}, {model: org/base, layer_range: [0, 4]}]"
    text = f"slices: [{{sources: {sources}}}]\nmerge_method: slerp\nbase_model: org/base\nparameters: {{t: 0.5}}\n"
    with pytest.raises(InputError, match="slices: whether these are all layers is not looked at here"):
        around(tmp_path, text)


def test_what_a_search_does_not_write_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(MERGEKIT)
    _, notes = sweep_from_recipe(tmp_path / "r.yml", None, SUITE)
    assert any("the tokenizer of" in note and "is left out" in note for note in notes)


def test_a_gradient_stays_and_what_it_is_multiplied_with_is_searched(tmp_path: Path) -> None:
    text = MERGEKIT.replace("weight: 0.4, density: 0.5", "weight: [0.1, 0.9]").replace("ties", "task_arithmetic")
    found = ranges(around(tmp_path, text.replace(", density: 0.5", "")))
    assert found["weight"] == {"value": {"a": [{"value": [0.1, 0.9]}], "b": 0.6}}
    assert found["scaling_coef"] == {"low": 0.5, "high": 1.5}


def test_specialists_bear_the_names_that_the_sweep_gives_them(tmp_path: Path) -> None:
    sweep = around(tmp_path, MERGEKIT, **{"specialists.math": "org/b"})
    assert sweep.specialists == {"a": "org/a", "math": "org/b"}
    assert sweep.search.points_to_evaluate[0]["weight"] == {"a": 0.4, "math": 0.6}
    with pytest.raises(InputError, match="org/c is none of the recipe's models"):
        around(tmp_path, MERGEKIT, **{"specialists.math": "org/c"})
    with pytest.raises(InputError, match="a search needs a suite"):
        sweep_from_recipe(tmp_path / "my recipe.yml")


def test_what_the_sweeps_file_says_counts(tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(MERGEKIT)
    (tmp_path / "rest.yaml").write_text(
        "name: mine\nsuite: smollm2-mini\nmethods: {linear: {weight: {low: 0, high: 1}}}\nsearch: {trials: 7}\n"
    )
    sweep, _ = sweep_from_recipe(tmp_path / "recipe.yml", tmp_path / "rest.yaml")
    assert (sweep.name, [*sweep.methods], sweep.search.trials) == ("mine", ["linear"], 7)
    assert sweep.search.points_to_evaluate == []


def test_a_recipe_of_ours_begins_a_search_too(tmp_path: Path) -> None:
    recipe = Recipe(
        method="dare",
        parameters=complete_parameters("dare", {"p": 0.5, "scaling_coef": {"a": 0.2, "b": 0.4}}, ["a", "b"], 2),
        base="org/base",
        specialists={"a": "org/a", "b": "org/b"},
        base_digest="0",
        specialist_digests={"a": "0", "b": "0"},
    )
    sweep = around(tmp_path, recipe.to_yaml())
    assert not sweep.merged.embeddings
    assert ranges(sweep)["p"] == {"low": 0.25, "high": 0.75}
    assert ranges(sweep)["scaling_coef"] == {"low": 0.0, "high": 0.6, "per": "specialist"}
