"""Any sweep file, setting, recipe or argument is read or refused in one line; what is read can be searched."""

from __future__ import annotations

import copy
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from mergebench_ray import cli
from mergebench_ray.commands.first_checks import checked_run
from mergebench_ray.commands.merge_checks import checked_merge
from mergebench_ray.commands.terminal.options import parse_settings
from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.config.yaml_files import parse_setting, to_yaml
from mergebench_ray.config.yaml_reader import YAMLReadError, load_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.methods import complete_parameters, get_method, method_names
from mergebench_ray.search.space import Space

NAMES = ["coding", "instruction", "math", "multilingual", "safety"]
TEXTS = [
    *("", " ", "a/b", "../x", "a.b", "a\nb", "base", "no", "1e-1", "~nobody/x", "/dev/zero", "/proc/self/mem", "."),
    *("x" * 5000, "\ud83d\ude00", "\0", "\u202e", "package:os/x", "owner/name@", "a+b+c", "smollm2-mini", "mergebench"),
    *("TPESampler", "RandomSampler", "QMCSampler", "NSGAIISampler", "CmaEsSampler", "GridSampler", "BaseSampler"),
    *("sqlite://", "sqlite:////dev/null", "sqlite:///no/x.db", "postgresql://u:p@127.0.0.1:1/d", "foo://", "nccl"),
    *("specialist", "sum", "median", "items", "low", "high", "choices", "per", "value"),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(0, 1),
    st.floats(),
    st.sampled_from([10**9, 2**53 + 1, 2**63, 10**18, 10**400, -(10**309), 1e-320, 1e308]),
    st.text(max_size=12),
    st.sampled_from(TEXTS),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.sampled_from(TEXTS), inner, max_size=3)
    ),
    max_leaves=8,
)
NUMBERS = st.sampled_from([0, 0.1, 0.5, 1, 2, 3, 5, 9, 100, -1, 1e-1])
RANGES = st.fixed_dictionaries(
    {"low": NUMBERS, "high": NUMBERS},
    optional={
        "log": st.booleans(),
        "integer": st.booleans(),
        "per": st.sampled_from(["all", "specialist"]),
        "layer_groups": st.sampled_from([1, 2, 7, 100_000_000]),
        "module_kinds": st.booleans(),
        "lines": st.booleans(),
    },
)
PARAMETERS = RANGES | st.fixed_dictionaries({"choices": st.lists(SCALARS, max_size=3)}) | VALUES
FIELDS = sorted({field for name in method_names() for field in get_method(name).Parameters.model_fields})
METHODS = st.dictionaries(
    st.sampled_from(method_names()),
    st.none() | st.dictionaries(st.sampled_from(FIELDS), PARAMETERS, max_size=3),
    min_size=1,
    max_size=3,
)
SWEEP: dict[str, Any] = {
    "name": "x",
    "suite": "smollm2-mini",
    "base": ".",
    "specialists": dict.fromkeys(NAMES, "."),
    "methods": {
        "ties": {"density": {"low": 0.1, "high": 0.5}, "scaling_coef": {"low": 0, "high": 1, "per": "specialist"}},
        "consensus": {"k": {"low": 1, "high": 3, "integer": True}, "mu": {"choices": [0.1, 0.2]}},
    },
    "search": {
        "trials": 4,
        "sampler": "TPESampler",
        "sampler_options": {"n_startup_trials": 3},
        "seed": 1,
        "points_to_evaluate": [{"method": "ties", "density": 0.2, "scaling_coef": dict.fromkeys(NAMES, 0.3)}],
        "storage": "sqlite:///study.db",
    },
    "evaluation": {"domains": ["math"], "data": {"a/b": "./x"}, "judges": {"j": {"model": "./m"}}},
    "engine": {"count": 2, "kv_cache_gib": 0.5},
    "bank": {"shards": 2},
    "calibration": {"data": {"math": {"data": "./x.jsonl"}}, "dtype": "float32"},
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in nested mappings and lists something stands."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """The content with a few values replaced, removed, renamed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from([one for one in places(content) if one]))
        parent: Any = content
        for part in path[:-1]:
            parent = parent[part]
        kind = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if kind == "replace" or isinstance(parent, list):
            parent[path[-1]] = draw(VALUES)
        elif kind == "remove":
            del parent[path[-1]]
        elif kind == "rename":
            parent[draw(st.sampled_from(TEXTS))] = parent.pop(path[-1])
        else:
            parent[draw(st.text(max_size=5) | st.sampled_from(TEXTS))] = draw(VALUES)
        assume(content)
    return content


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of its own that nothing may be left in."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        yield Path(name)
        left = [file.name for file in Path(name).iterdir() if file.name not in ("sweep.yaml", "recipe.yaml")]
        assert not left


def one_line(error: InputError) -> None:
    assert str(error).strip()
    assert str(error).isprintable(), str(error)
    assert len(str(error)) < 6000


def dumped(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def read(path: Path, settings: dict[str, Any] | None = None) -> Sweep | None:
    """As `tune` does before it reads models."""
    try:
        sweep, _ = checked_run(path, settings, None, resume=False)
    except InputError as error:
        one_line(error)
        return None
    again = path.with_name("recipe.yaml")
    again.write_text(to_yaml(sweep.model_dump(mode="json", exclude_none=True)))
    assert Sweep.from_yaml(again).model_dump(mode="json") == sweep.model_dump(mode="json")
    return sweep


def search(sweep: Sweep) -> None:
    """Every candidate of a sweep that was read is one that its method takes."""
    specialists = [*(sweep.specialists or NAMES)]
    space = Space(sweep, specialists, None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in space.points(sweep.search.points_to_evaluate)[:3]:
        study.enqueue_trial(point)
    for _ in range(4):
        trial = study.ask()
        constants = space.suggest(trial)
        method, parameters = space.candidate({**trial.params, **constants})
        recipe = complete_parameters(method, parameters, specialists, 1000)
        assert complete_parameters(method, recipe, specialists, 1000) == recipe


def test_the_sweep_that_is_changed_below_is_a_valid_one() -> None:
    with folder() as here:
        (here / "sweep.yaml").write_text(dumped(SWEEP))
        sweep = read(here / "sweep.yaml")
        assert sweep is not None
        search(sweep)


@given(content=changed(SWEEP))
def test_a_changed_sweep(content: dict[str, Any]) -> None:
    with folder() as here:
        (here / "sweep.yaml").write_text(dumped(content))
        if sweep := read(here / "sweep.yaml"):
            search(sweep)


@given(methods=METHODS, points=st.lists(st.dictionaries(st.sampled_from([*FIELDS, "method"]), VALUES), max_size=2))
def test_made_up_methods_and_points(methods: dict[str, Any], points: list[dict[str, Any]]) -> None:
    content = {**SWEEP, "methods": methods, "search": {"trials": 5, "points_to_evaluate": points}}
    with folder() as here:
        (here / "sweep.yaml").write_text(dumped(content))
        if sweep := read(here / "sweep.yaml"):
            search(sweep)


@given(
    sampler=st.sampled_from([*optuna.samplers.__all__, "", "TPE"]).filter(lambda name: name != "GPSampler"),
    options=st.dictionaries(
        st.sampled_from(
            ["seed", "n_startup_trials", "n_ei_candidates", "popsize", "search_space", "sigma0", "qmc_type"]
        )
        | st.sampled_from(["population_size", "mutation_prob", "multivariate", "group", "prior_weight", "weights"]),
        VALUES,
        max_size=3,
    ),
)
def test_made_up_sampler_options(sampler: str, options: dict[str, Any]) -> None:
    content = {**SWEEP, "search": {"trials": 5, "sampler": sampler, "sampler_options": options}}
    with folder() as here:
        (here / "sweep.yaml").write_text(dumped(content))
        read(here / "sweep.yaml")


PIECES = [
    *(
        "a",
        "name",
        ": ",
        "- ",
        "? ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!python/x ",
    ),
    *("'", '"', "\\", "|\n", ">\n", "#", "---\n", "...\n", "%YAML 1.2\n", "\t", "1e-1", ".inf", "~", "0x", "\x85", "é"),
]
TOKENS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(content=st.binary(max_size=200) | TOKENS.map(str.encode) | TOKENS.map(lambda text: text.encode("utf-16")))
def test_any_bytes_as_a_sweep(content: bytes) -> None:
    with folder() as here:
        (here / "sweep.yaml").write_bytes(content)
        assert read(here / "sweep.yaml") is None


@given(text=TOKENS)
def test_any_text_is_plain_values_that_can_be_written_again(text: str) -> None:
    try:
        value = load_yaml(text)
    except YAMLReadError:
        return
    if value == value:  # no nan
        assert repr(load_yaml(to_yaml({"a": value}))) == repr({"a": value})


KEYS = st.sampled_from([".".join(map(str, path)) for path in places(SWEEP) if path]) | st.text(max_size=10)


@given(settings=st.lists(st.tuples(KEYS, TOKENS | VALUES.map(repr) | VALUES.map(dumped)), max_size=3))
def test_any_settings(settings: list[tuple[str, str]]) -> None:
    with folder() as here:
        (here / "sweep.yaml").write_text(dumped(SWEEP))
        try:
            overrides = parse_settings([f"{key}={value}" for key, value in settings])
        except InputError as error:
            one_line(error)
            return
        read(here / "sweep.yaml", overrides)


def made_recipe() -> dict[str, Any]:
    recipe = Recipe(
        method="ties",
        parameters=complete_parameters("ties", {}, ["a", "b"], 4),
        base=".",
        specialists={"a": ".", "b": "."},
        base_digest="0",
        specialist_digests={"a": "1", "b": "2"},
    )
    return dict(load_yaml(recipe.to_yaml()))


@given(content=changed(made_recipe()), accept=st.booleans())
def test_a_changed_recipe(content: dict[str, Any], accept: bool) -> None:
    with folder() as here:
        (here / "recipe.yaml").write_text(dumped(content))
        try:
            request = checked_merge(
                "out", None, None, None, None, Path("recipe.yaml"), None, None, accept_changes=accept
            )
        except InputError as error:
            one_line(error)
            return
        assert request.recipe is not None
        unchanged = request.recipe.digest == made_recipe()["digest"]
        assert accept or unchanged or "digest" not in content


OPTIONS = [
    *("--set", "--out", "--method", "--specialist", "--calibration", "--suite", "--tasks", "--items", "--recipe"),
    *("--data", "--judge", "--engines", "--nodes", "--shards", "--resume", "--base", "check", "--split", "--json"),
]
ARGUMENT = (
    st.text(max_size=12) | st.sampled_from(TEXTS) | st.sampled_from(["--set", "--out", "x=y", "=", "a=b=c", "--"])
)


@given(
    command=st.sampled_from(["tune", "plan", "merge", "evaluate", "data", "report", "nope"]),
    options=st.lists(
        st.tuples(
            st.sampled_from(OPTIONS),
            ARGUMENT,
        ),
        max_size=4,
    ),
)
def test_any_arguments_that_name_nothing_that_is_there(command: str, options: list[tuple[str, str]]) -> None:
    """The sweep, suite and base that they name do not exist, so every command is refused; in one line."""
    arguments = [part for option in options for part in option]
    assume(not any(one.startswith("--h") or "\0" in one for one in arguments))
    # What is given last counts: no model, suite or sweep of these names is there.
    last = {"merge": ["--base", "./nowhere"], "evaluate": ["./nowhere", "--suite", "nope"]}.get(command, ["./nowhere"])
    with folder(), pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["mergebench-ray", command, *arguments, *last])
        with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2, said.getvalue()
    assert said.getvalue().count("\n") == 1, said.getvalue()
    assert said.getvalue().startswith("error: ")


@given(text=st.text(max_size=30))
def test_a_setting_is_a_value_or_refused(text: str) -> None:
    try:
        parse_setting(text, f"--set a={text}")
    except InputError as error:
        one_line(error)
