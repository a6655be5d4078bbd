from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config import Choices, Fixed, ModelRef, Range, Recipe, Suite, Sweep
from mergebench_ray.config.yaml_files import read_yaml, to_yaml
from mergebench_ray.errors import InputError

SWEEP = """
name: example
suite: smollm2-mini
methods:
  ties:
    density: {low: 0.1, high: 0.5, log: true}
    merge_func: {choices: [sum, mean]}
    scaling_coef: {math: 0.3, coding: 0.1}
  model_soup:
search: {trials: 3}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "owner/name",
        "owner/name@main",
        "./folder",
        "/a/b",
        "package:p/x.gguf",
        "owner/name@v1+./adapter",
        "base+package:p/a",
    ],
)
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(ModelRef.parse(text)) == text


def test_an_at_sign_in_a_path_is_not_a_revision() -> None:
    assert ModelRef.parse("./models@home").revision is None


def test_plus_and_at_may_be_part_of_paths_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "base@1", "a", "c+d@e", "owner/m@v"):
        (tmp_path / name).mkdir(parents=True)
    for text, expected in [
        ("a+b", ("a+b", None, None)),
        (f"{tmp_path}/a+b", (f"{tmp_path}/a+b", None, None)),
        ("base@1", ("base@1", None, None)),
        ("owner/m@v", ("owner/m@v", None, None)),
        ("owner/m@w", ("owner/m", "w", None)),
        ("a+b+c+d@e", ("a+b", None, "c+d@e")),
        ("a+c+d@e", ("a", None, "c+d@e")),
        ("owner/hub@main+c+d@e", ("owner/hub", "main", "c+d@e")),
        ("a+b+./nowhere", ("a+b", None, "./nowhere")),
    ]:
        ref = ModelRef.parse(text)
        assert (ref.source, ref.revision, ref.adapter and ref.adapter.source) == expected
        assert ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["~nobody-here/x", "x" * 5000, "./" + "a+" * 5000 + "b", "a\0b"])
def test_what_cannot_be_a_path_is_no_traceback(text: str) -> None:
    with contextlib.suppress(InputError):
        ModelRef.parse(text)


@pytest.mark.parametrize("text", ["", "+", "a+", "+b", "a+b+c", "@x", "owner/name@"])
def test_a_reference_with_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="model reference"):
        ModelRef.parse(text)


def test_a_sweep_reads_ranges_choices_and_bare_values(tmp_path: Path) -> None:
    sweep = Sweep.from_yaml(write(tmp_path, SWEEP))
    ties = sweep.methods["ties"]
    assert ties["density"] == Range(low=0.1, high=0.5, log=True)
    assert ties["merge_func"] == Choices(choices=["sum", "mean"])
    assert ties["scaling_coef"] == Fixed(value={"math": 0.3, "coding": 0.1})
    assert sweep.methods["model_soup"] == {}


def test_a_sweep_survives_being_written_and_read_again(tmp_path: Path) -> None:
    sweep = Sweep.from_yaml(write(tmp_path, SWEEP))
    again = Sweep.from_yaml(write(tmp_path, to_yaml(sweep.model_dump(mode="json", exclude_none=True))))
    assert again == sweep


def test_set_replaces_a_value_of_the_file(tmp_path: Path) -> None:
    sweep = Sweep.from_yaml(write(tmp_path, SWEEP), {"search.trials": 7, "methods.ties.density": 0.2})
    assert sweep.search.trials == 7
    assert sweep.methods["ties"]["density"] == Fixed(value=0.2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("search:", "serch:", "unknown key 'serch'; did you mean 'search'"),
        ("trials: 3", "trial: 3", "did you mean 'trials'"),
        ("trials: 3", "trials: 0", "search.trials = 0"),
        ("low: 0.1", "low: 0.9", "low < high"),
        ("low: 0.1", "low: 0", "log: true needs low > 0"),
        ("low: 0.1", "low: .nan", "finite low < high"),
        ("name: example", "name: ../x", "name = '../x'"),
        ("suite: smollm2-mini\n", "", "key 'suite' is missing"),
        ("name: example", "name: a\nname: b", "key 'name' is given twice"),
        ("name: example", "name: [", "line"),
    ],
)
def test_a_wrong_sweep_gets_one_line_that_names_file_key_and_rule(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = write(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        Sweep.from_yaml(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_file_cannot_make_python_objects(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not determine a constructor"):
        read_yaml(write(tmp_path, "name: !!python/object/apply:os.getcwd []"))


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "method": "task_arithmetic",
        "parameters": {"scaling_coef": {"math": 0.4}},
        "base": "./base",
        "specialists": {"math": "./math"},
        "base_digest": "a",
        "specialist_digests": {"math": "b"},
    }
    return Recipe(**{**values, **changes})


def test_a_recipes_digest_depends_on_content_not_on_where_models_lie() -> None:
    assert recipe().digest == recipe(base="./elsewhere", specialists={"math": "owner/math"}).digest
    for change in (
        {"method": "ties"},
        {"parameters": {"scaling_coef": {"math": 0.5}}},
        {"base_digest": "x"},
        {"specialist_digests": {"math": "x"}},
        {"dtype": "float32"},
    ):
        assert recipe(**change).digest != recipe().digest


def test_a_recipe_file_gives_the_same_recipe_back(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml())
    assert Recipe.from_yaml(path) == recipe()


def test_an_unknown_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="smollm2-mini"):
        Suite.load("no-such-suite")
