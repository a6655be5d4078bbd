"""What a recipe for mergekit means in words of ours, and the one line that answers a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config.yaml_files import read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.mergekit import ForeignMerge, is_mergekit, read_recipe

TIES = """models:
  - {model: org/a, parameters: {weight: 0.5, density: 0.3}}
  - {model: org/b, parameters: {weight: 0.7}}
merge_method: ties
base_model: org/base
parameters: {density: 0.6}
"""


def read(text: str, tmp_path: Path) -> ForeignMerge:
    file = tmp_path / "recipe.yml"
    file.write_text(text)
    content = read_yaml(file)
    assert is_mergekit(content)
    return read_recipe(content, file)


def parameters(method: str, models: str, tmp_path: Path, more: str = "base_model: o/base\n") -> dict[str, Any]:
    listed = "".join(f"  - {{model: o/{entry}}}\n" for entry in models.split("; "))
    return read(f"models:\n{listed}merge_method: {method}\n{more}", tmp_path).parameters


def test_a_models_own_parameters_count_before_those_of_the_merge(tmp_path: Path) -> None:
    merge = read(TIES, tmp_path)
    assert (merge.method, merge.base, merge.specialists) == ("ties", "org/base", {"a": "org/a", "b": "org/b"})
    assert merge.merged.embeddings
    assert merge.parameters == {
        "trim": "tensor",
        "weight": {"a": 0.5, "b": 0.7},
        "density": {"a": 0.3, "b": 0.6},
        "merge_func": "mean",
        "rescale": False,
        "scaling_coef": {"a": 1.0, "b": 1.0},
    }


def test_where_no_filter_of_a_model_fits_the_merges_value_counts(tmp_path: Path) -> None:
    text = TIES.replace("weight: 0.5", "weight: [{filter: mlp, value: [0, 1]}, {filter: q_proj, value: 0.2}]")
    rules = [{"filter": "mlp", "value": [0.0, 1.0]}, {"filter": "q_proj", "value": 0.2}, {"value": 0.9}]
    whole = text.replace("density: 0.6", "density: 0.6, weight: 0.9")
    assert read(whole, tmp_path).parameters["weight"] == {"a": rules, "b": 0.7}
    with pytest.raises(InputError, match="org/a: weight has no value where no filter fits"):
        read(text, tmp_path)


def test_lambda_is_in_the_coefficients_of_task_arithmetic_unless_these_are_divided(tmp_path: Path) -> None:
    models = "a, parameters: {weight: 0.5}; b, parameters: {weight: [0.2, 0.6]}"
    base = "base_model: o/base\n"
    plain = parameters("task_arithmetic", models, tmp_path, f"{base}parameters: {{lambda: 2}}\n")
    assert plain == {"scaling_coef": {"a": 1.0, "b": [{"value": [0.4, 1.2]}]}}
    divided = parameters("task_arithmetic", models, tmp_path, f"{base}parameters: {{lambda: 2, normalize: true}}\n")
    weights = {"a": 0.5, "b": [{"value": [0.2, 0.6]}]}
    assert divided == {"scaling_coef": {"a": 2.0, "b": 2.0}, "weight": weights, "normalize": True}


def test_a_base_among_the_models_of_an_average_has_its_weight_and_the_first_is_ours_where_there_is_none(
    tmp_path: Path,
) -> None:
    models = "a, parameters: {weight: 10}; b, parameters: {weight: 20}; base, parameters: {weight: 5}"
    assert parameters("linear", models, tmp_path) == {
        "weight": {"a": 1.0, "b": 2.0},
        "base_weight": 0.5,
        "normalize": True,
    }
    merge = read("models: [{model: o/a}, {model: o/b}]\nmerge_method: linear\nparameters: {weight: 1}\n", tmp_path)
    assert (merge.base, merge.specialists) == ("o/a", {"b": "o/b"})
    merge = read("models: [{model: o/a}, {model: o/b}]\nmerge_method: karcher\n", tmp_path)
    assert (merge.base, merge.specialists) == ("o/a", {"a": "o/a", "b": "o/b"})
    assert merge.parameters["around"] == "zero"
    merge = read("models: [{model: o/a}, {model: o/b}]\nmerge_method: karcher\nbase_model: o/b\n", tmp_path)
    assert (merge.base, merge.specialists) == ("o/b", {"a": "o/a", "b": "o/b"})


def test_models_of_one_name_and_odd_ones_get_names_of_their_own(tmp_path: Path) -> None:
    text = "models: [{model: o/m}, {model: p/m}, {model: o/base}, {model: 'o/x+p/l@rev'}, {model: /x/é.gguf}]\n"
    merge = read(f"{text}merge_method: karcher\n", tmp_path)
    assert [*merge.specialists] == ["m", "m-2", "base-2", "l", "é"]
    nested = "{model: {path: o/x, revision: r}, lora: {path: p/l}}"
    merge = read(f"models: [{{model: {nested}}}, {{model: o/b}}]\nmerge_method: karcher\n", tmp_path)
    assert [*merge.specialists.values()] == ["o/x@r+p/l", "o/b"]


@pytest.mark.parametrize(
    ("given", "written"),
    [("dtype: float16", "float16"), ("dtype: float32\nout_dtype: bfloat16", "bfloat16"), ("", "bfloat16")],
)
def test_what_is_written_is_out_dtype_or_dtype(given: str, written: str, tmp_path: Path) -> None:
    merge = read(f"{TIES}{given}\n", tmp_path)
    assert merge.dtype == written
    assert any("sums are made in float32" in note for note in merge.notes) == (given == "dtype: float16")


def test_what_means_nothing_is_passed_over_with_a_note(tmp_path: Path) -> None:
    text = TIES.replace("{density: 0.6}", "{density: 0.6, int8_mask: true, t: 0.5}")
    merge = read(text.replace("weight: 0.7", "weight: 0.7, normalize: true") + "name: x\n", tmp_path)
    assert merge.notes == [
        "recipe: name means nothing there; ignored",
        "recipe: parameters.int8_mask: how mergekit keeps its masks; ignored",
        "recipe: parameters.t, models.1.parameters.normalize: means nothing there to ties; ignored, as in mergekit",
    ]


def test_an_epsilon_that_mergekit_refuses_is_refused(tmp_path: Path) -> None:
    text = TIES.replace("ties", "della").replace("0.6", "0.9")
    with pytest.raises(InputError, match=r"b: density \+/- epsilon must be between 0 and 1, and epsilon is 0.15"):
        read(text, tmp_path)
    merge = read(text.replace("weight: 0.7", "weight: 0.7, epsilon: 0.05"), tmp_path)
    assert merge.parameters["epsilon"] == {"a": 0.15, "b": 0.05}
    assert "dropped at random by other numbers than mergekit's" in merge.notes[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("merge_method: ties", "merge_method: tie"), "unknown merge_method 'tie'; did you mean 'ties'"),
        (("merge_method: ties", "merge_method: nearswap"), "merge_method nearswap: is not among the methods here"),
        (("merge_method: ties\n", ""), "merge_method is missing"),
        (("base_model: org/base\n", ""), "ties needs a base_model; add it"),
        (("base_model: org/base", "base_model: 3"), "base_model = 3: expected the reference of a model"),
        (("weight: 0.7", "wieght: 0.7"), "models.1.parameters: unknown 'wieght'; did you mean 'weight'"),
        (("weight: 0.7", "weight: half"), "models.1.parameters.weight = 'half': expected a number"),
        (("weight: 0.7", "weight: .inf"), "models.1.parameters.weight = inf: expected a finite number"),
        (("{weight: 0.7}", "{}"), "org/b: weight has no value; add it under its parameters"),
        (
            ("weight: 0.7", "weight: [{filtre: a, value: 1}]"),
            "weight.0 = {'filtre': 'a', 'value': 1}: expected {filter",
        ),
        (("density: 0.3", "density: 1.3"), "density of a must be above 0 and up to 1"),
        (("org/b", "org/a"), "models.1: org/a is given twice"),
        (("models:", "model:"), "unknown key 'model'; did you mean"),
        (("parameters: {density: 0.6}", "parameters: {normalize: 3}"), "parameters.normalize = 3: expected true or"),
        (("parameters: {density: 0.6}", "modules: {text: {}}"), "modules: merges parts of a model"),
        (("parameters: {density: 0.6}", "dtype: int8"), "dtype = 'int8': known are bfloat16, float16, float32"),
        (("parameters: {density: 0.6}", "tokenizer: {source: base, pad_to_multiple_of: 8}"), "pad_to_multiple_of"),
        (("parameters: {density: 0.6}", "tokenizer_source: org/c"), "tokenizer: org/c is none of the recipe's models"),
        (("parameters: {density: 0.6}", "chat_template: llama3"), "chat_template = 'llama3': known are auto, chatml"),
        (("merge_method: ties", "merge_method: slerp"), "slerp merges two models, the base_model among them, not 3"),
    ],
)
def test_a_wrong_recipe_is_one_line_with_file_key_and_reason(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    assert change[0] in TIES
    with pytest.raises(InputError) as refused:
        read(TIES.replace(*change), tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'recipe.yml'}: ")
    assert reason in str(refused.value)
