from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config import Choices, Fixed, Range, Recipe, SearchOptions, Suite, Sweep
from mergebench_ray.config.budget import MOST_CANDIDATES
from mergebench_ray.config.storage_url import without_secrets
from mergebench_ray.config.yaml_files import parse_model, parse_setting, read_yaml, to_yaml
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
        ("name: example", f"name: {'a' * 101}", "at most 100"),
        ("trials: 3", "trials: .inf", "search.trials = inf"),
        ("trials: 3", f"trials: {'9' * 5000}", "a number of 5000 digits"),
        ("trials: 3", "trials: 1000000000", "search.trials = 1000000000"),
        ("trials: 3", "trials: true", "search.trials = True: holds true or false, where a number is expected"),
        ("low: 0.1", "low: false", "density.low = False: holds true or false"),
        ("trials: 3", "trials: 1, points_to_evaluate: [{}, {}]", "2 points_to_evaluate are more than 1 trials"),
        ("trials: 3", "trials: 3, seed: 4294967296", "search.seed"),
        ("trials: 3", "trials: 3, sampler_options: {x: .nan}", "search.sampler_options.x = nan"),
        ("trials: 3", "trials: 3, storage: ''", "search.storage = ''"),
        ("log: true", "per: specialist, layer_groups: 100000000", "methods.ties.density.layer_groups"),
        ("log: true", "lines: true", "lines needs per: specialist"),
        ("log: true", "per: specialist, layer_groups: 2, lines: true", "without layer_groups"),
        ("log: true", "integer: true", "whole bounds"),
        ("[sum, mean]", "[sum, sum]", "'sum' is given twice"),
        ("[sum, mean]", "[.inf, 1]", "inf"),
        ("suite: smollm2-mini", "suite: smollm2-mini\nbase: ''", "base = ''"),
        ("suite: smollm2-mini", "suite: smollm2-mini\nspecialists: {math: ''}", "specialists.math = ''"),
        ("suite: smollm2-mini", "suite: smollm2-mini\nengine: {kv_cache_gib: .inf}", "engine.kv_cache_gib"),
        ("suite: smollm2-mini", "suite: smollm2-mini\nevaluation: {domains: [math, math]}", "'math' is given twice"),
        ("suite: smollm2-mini", "suite: smollm2-mini\nevaluation: {data: {a: ~nobody-here/x}}", "evaluation.data"),
        ("suite: smollm2-mini", "suite: smollm2-mini\ncalibration: {data: {math: {dat: x}}}", "did you mean 'data'"),
        ("name: example", "? [a, b]\n: c", "line 2: a key that is a list"),
        ("name: example", f"name: {'[' * 3000}{']' * 3000}", "nested deeper"),
        ("name: example", "name: &a [*a]", "an alias to what it stands in"),
        ("name: example", "name: !!timestamp x", "tag"),
        ("name: example", "name: !!int x", "not an integer"),
        ("name: example", "\tname: x", "line 2"),
        ("name: example", "name: \0", "control characters"),
        ("name: example\n", "name: x\n---\na: b\n", "another document"),
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


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "../x", "a\\b", "a\nb", "a,b", "a=b", "a:b", ".a", "-a", " a", "a ", "\u202ea", "a" * 101, "base"],
)
def test_a_name_that_files_tables_or_options_could_not_hold_is_refused(tmp_path: Path, name: str) -> None:
    """Of specialists, of a suite's domains, of judges and of calibration data alike."""
    for key in (("specialists",), ("calibration", "data"), ("evaluation", "judges")):
        content: Any = {name: "./model"}
        for part in reversed(key):
            content = {part: content}
        path = write(tmp_path, SWEEP + to_yaml(content))
        with pytest.raises(InputError) as caught:
            Sweep.from_yaml(path)
        assert ".".join(key) in str(caught.value)
        assert "\n" not in str(caught.value)
    domain = {"tasks": {"some_task": "acc"}}
    suite = write(tmp_path, to_yaml({"name": "own", "domains": {name: domain}}))
    with pytest.raises(InputError, match="name"):
        Suite.load(str(suite))
    with pytest.raises(InputError, match="specialists"):
        parse_model(Recipe, {**recipe().model_dump(), "specialists": {name: "./model"}}, "recipe")


@pytest.mark.parametrize(
    "name", ["math.v2", "Math", "math (8B)", "数学", "हिन्दी", "no", "on", "1", "2024-01-01", "1e5", "~x"]
)
def test_a_name_as_people_write_it_works(tmp_path: Path, name: str) -> None:
    name = name.replace("~", "")
    sweep = Sweep.from_yaml(write(tmp_path, f"{SWEEP}\nspecialists: {{{name}: ./a}}"))
    assert sweep.specialists == {name: "./a"}
    again = Sweep.from_yaml(write(tmp_path, to_yaml(sweep.model_dump(mode="json", exclude_none=True))))
    assert again == sweep


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffa: &a {low: 1e-1, high: 2E+3}\nb: {<<: *a, high: .5}\nc: {<<: [*a, {x: 1}]}\n"
        "d: [2e-1, no, 12:30, 2024-01-01, 0x1f, 1_000, true]\n7: seven\n",
    )
    assert read_yaml(path) == {
        "a": {"low": 0.1, "high": 2000.0},
        "b": {"low": 0.1, "high": 0.5},
        "c": {"low": 0.1, "high": 2000.0, "x": 1},
        "d": [0.2, "no", "12:30", "2024-01-01", 31, "1_000", True],
        "7": "seven",
    }


def test_text_that_looks_like_something_else_survives_being_written(tmp_path: Path) -> None:
    for text in ("1e-1", "0o17", "no", "~", "", "<<", "2024-01-01", "a\nb", "12:30", "é😀", "=", "- x", "#"):
        assert read_yaml(write(tmp_path, to_yaml({text: [text]}))) == {text: [text]}


def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    """A few aliases of aliases stand for 10 ** 9 entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match="more than 100000 entries"):
        read_yaml(write(tmp_path, "\n".join(lines)))


def test_a_file_that_is_no_sweep_by_its_size_or_kind_is_refused_at_once(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as stream:
        stream.truncate(100 << 20)
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, expected in ((large, "larger than"), (pipe, "not a regular file"), (Path("/dev/zero"), "regular")):
        with pytest.raises(InputError, match=expected):
            read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / ("x" * 5000))
    with pytest.raises(InputError, match="neither a built-in suite"):
        Suite.load("x" * 5000)


def test_settings_that_replace_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SWEEP)
    with pytest.raises(InputError, match=r"'search' and --set 'search\.trials'"):
        Sweep.from_yaml(path, {"search": {"trials": 2}, "search.trials": 3})
    with pytest.raises(InputError, match="a part of the key is empty"):
        Sweep.from_yaml(path, {"search..trials": 3})


def test_a_setting_reaches_names_with_dots_and_only_what_it_names(tmp_path: Path) -> None:
    text = "methods: {ties: {density: &d {low: 0.1, high: 0.5}}, dare: {p: *d}}\nspecialists: {math.v2: ./a, b: ./b}"
    path = write(tmp_path, f"name: x\nsuite: smollm2-mini\n{text}")
    sweep = Sweep.from_yaml(path, {"specialists.math.v2": "./c", "methods.ties.density.high": 0.9})
    assert sweep.specialists == {"math.v2": "./c", "b": "./b"}
    assert sweep.methods["ties"]["density"] == Range(low=0.1, high=0.9)
    assert sweep.methods["dare"]["p"] == Range(low=0.1, high=0.5)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/db",
        "postgresql+psycopg2://user:hunter2@host:5432/db?sslmode=require",
        "mysql://user:hun@ter2@host/db",
        "postgresql://host/db?user=x&password=hunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2",
    ],
)
def test_a_storages_password_is_neither_shown_nor_written(tmp_path: Path, url: str) -> None:
    sweep = Sweep.from_yaml(write(tmp_path, SWEEP), {"search.storage": url})
    assert sweep.search.storage == url
    for text in (repr(sweep), to_yaml(sweep.model_dump(mode="json")), sweep.model_dump_json()):
        assert "ter2" not in text
    assert "***" in sweep.model_dump_json()
    for wrong in (
        {"storage": url, "trials": 0},
        {"storage": url, "points_to_evaluate": [{}] * 50},
        {"storage": [url]},
        [url],
    ):
        with pytest.raises(InputError) as caught:
            Sweep.from_yaml(write(tmp_path, SWEEP), {"search": wrong})
        assert "ter2" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        parse_setting(f"[{url}", f"--set search.storage=[{url}")
    assert "ter2" not in str(caught.value)
    assert "ter2" not in without_secrets(f"cannot connect with {url}", url)


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
        {"merged": {"embeddings": True}},
    ):
        assert recipe(**change).digest != recipe().digest


@pytest.mark.parametrize("merged", [{}, {"embeddings": True}, {"towers": False}])
def test_a_recipe_file_gives_the_same_recipe_back(tmp_path: Path, merged: dict[str, bool]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(merged=merged).to_yaml())
    assert Recipe.from_yaml(path) == recipe(merged=merged)
    assert (recipe(merged=merged).digest == recipe().digest) == (not merged)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("math: 0.4", "math: 0.5", "parameters.scaling_coef.math"),
        ("method: task_arithmetic", "method: model_soup", "method"),
        ("base_digest: a", "base_digest: b", "base"),
        ("  math: b", "  math: c", "specialists.math"),
        ("    math: 0.4", "    math: 0.4\n  density: 0.1", "parameters.density"),
    ],
)
def test_a_recipe_that_was_changed_says_where(tmp_path: Path, old: str, new: str, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    text = recipe().to_yaml()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=rf"{key} changed.*--accept-changes") as caught:
        Recipe.from_yaml(path)
    assert str(path) in str(caught.value)
    notes: list[str] = []
    accepted = Recipe.from_yaml(path, accept_changes=True, note=notes.append)
    assert accepted.digest != recipe().digest
    assert key in notes[0]


def test_moving_the_models_of_a_recipe_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().to_yaml().replace("./base", "./elsewhere").replace("./math", "owner/math"))
    assert Recipe.from_yaml(path).base == "./elsewhere"


def test_a_recipe_without_a_digest_is_read_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe().model_dump(mode="json", exclude_none=True)))
    notes: list[str] = []
    assert Recipe.from_yaml(path, note=notes.append) == recipe()
    assert "holds no digest" in notes[0]


@pytest.mark.parametrize("digest", ["x", "5", "[1]", "{a: b}"])
def test_a_recipe_with_another_digest_is_refused(tmp_path: Path, digest: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{to_yaml(recipe().model_dump(mode='json', exclude_none=True))}digest: {digest}\n")
    with pytest.raises(InputError, match="was changed since it was written"):
        Recipe.from_yaml(path)


def test_the_digest_of_a_recipe_stays_what_it_was() -> None:
    """It is stored in runs, in caches and on cards."""
    assert recipe().digest == "68205b256de526ff1fcda39e182924ef2eeec5931eb9f94ee04c0cb4f20b9194"


def test_an_unknown_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="smollm2-mini"):
        Suite.load("no-such-suite")


@pytest.mark.parametrize(
    ("search", "most"),
    [
        ({}, 20),
        ({"trials": 7}, 7),
        ({"budget": {"candidates": 9}}, 9),
        ({"trials": 7, "budget": {"candidates": 9}}, 7),
        ({"trials": 7, "budget": {"tokens": 1}}, 7),
        ({"budget": {"minutes": 1.5, "gpu_hours": 2}}, MOST_CANDIDATES),
    ],
)
def test_a_budget_takes_the_place_of_the_default_of_trials(search: dict[str, Any], most: int) -> None:
    assert SearchOptions.model_validate(search).most_candidates == most


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({}, "says nothing; give candidates, tokens, minutes or gpu_hours"),
        ({"tokens": 0}, "search.budget.tokens = 0"),
        ({"minutes": -1}, "search.budget.minutes = -1"),
        ({"hours": 1}, "search.budget.hours"),
        ({"gpu_hours": float("nan")}, "search.budget.gpu_hours"),
    ],
)
def test_a_wrong_budget_is_refused(tmp_path: Path, budget: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Sweep.from_yaml(write(tmp_path, SWEEP), {"search.budget": budget})
