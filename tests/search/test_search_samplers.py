"""What a search asks of every Optuna sampler that a sweep may name."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.search.gaussian_process import GaussianProcessSampler
from mergebench_ray.search.samplers import auto_fallback, make_sampler, random_draws, search_sampler, try_sampler
from mergebench_ray.search.space import Space

FINITE = {"consensus": {"k": {"low": 1, "high": 2, "integer": True}, "scaling_coef": {"choices": [0.2, 0.4, 0.6]}}}
METHODS = {
    "task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.0, "per": "specialist"}},
    "ties": {"density": {"low": 0.1, "high": 0.9, "log": True}, "merge_func": {"choices": ["sum", "mean"]}},
}
COEFFICIENT = {"low": 0.0, "high": 1.0, "per": "specialist"}
GRID = {"consensus.k": [1, 2], "consensus.scaling_coef": [0.2, 0.4, 0.6]}
OPTIONS: dict[str, dict[str, Any]] = {"GridSampler": {"search_space": GRID}, "GPSampler": {"n_startup_trials": 3}}
ENUMERATING = ("GridSampler", "BruteForceSampler")
UNUSABLE = ("BaseSampler", "BaseGASampler", "PartialFixedSampler")  # abstract, or made from another sampler
SAMPLERS = [name for name in optuna.samplers.__all__ if name.endswith("Sampler") and name not in UNUSABLE]
TRIALS = 5

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def space_for(sampler: str) -> tuple[Sweep, Space]:
    methods = FINITE if sampler in ENUMERATING else METHODS
    search = {"sampler": sampler, "sampler_options": OPTIONS.get(sampler, {})}
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    return sweep, Space(sweep, ["coding", "math"], None)


def candidates(sampler: str, seed: int, told: list[float | None]) -> list[tuple[str, dict[str, Any]]]:
    """Methods and hyper-parameters that are proposed when these values, None for a failure, are told of them."""
    _, space = space_for(sampler)
    study = optuna.create_study(
        direction="maximize", sampler=make_sampler(sampler, seed, copy.deepcopy(OPTIONS.get(sampler, {})))
    )
    found = []
    for value in told:
        trial = study.ask()
        found.append(space.candidate({**space.suggest(trial), **trial.params}))
        study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_accepted_by_the_check_before_a_run(sampler: str) -> None:
    try_sampler(*space_for(sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_candidate_is_inside_the_space(sampler: str) -> None:
    for method, parameters in candidates(sampler, 0, [0.1 * number for number in range(TRIALS)]):
        coefficients = parameters.get("scaling_coef", 0.5)
        values = coefficients.values() if isinstance(coefficients, dict) else [coefficients]
        assert all(0.0 <= value <= 1.0 for value in values)
        if method == "ties":
            assert 0.1 <= parameters["density"] <= 0.9
            assert parameters["merge_func"] in ("sum", "mean")
        elif method == "consensus":
            assert parameters["k"] in (1, 2)
            assert isinstance(parameters["k"], int)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_seeds_and_scores_give_equal_candidates(sampler: str) -> None:
    scores = [0.3, 0.5, 0.4, 0.6, 0.2]
    assert candidates(sampler, 3, scores) == candidates(sampler, 3, scores)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_failed_candidates_do_not_stop_a_search(sampler: str) -> None:
    assert len(candidates(sampler, 0, [None, 0.4, None, 0.2, 0.3])) == TRIALS


@pytest.mark.parametrize("sampler", UNUSABLE)
def test_a_sampler_that_cannot_work_alone_is_refused(sampler: str) -> None:
    with pytest.raises(InputError, match=r"search\.sampler_options"):
        try_sampler(*space_for(sampler))


def made_of(methods: dict[str, Any], **search: Any) -> optuna.samplers.BaseSampler:
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    space = Space(sweep, ["coding", "math"], None)
    try_sampler(sweep, space)
    return search_sampler(sweep.search, space).made_of


@pytest.mark.parametrize(
    ("methods", "search", "kind"),
    [
        ({"task_arithmetic": {"scaling_coef": {**COEFFICIENT, "layer_groups": 10}}}, {}, GaussianProcessSampler),
        (FINITE, {}, GaussianProcessSampler),
        ({"task_arithmetic": {"scaling_coef": {**COEFFICIENT, "layer_groups": 11}}}, {}, optuna.samplers.TPESampler),
        (METHODS, {}, GaussianProcessSampler),
        (METHODS, {"constraints": {"math": ">= 0.5"}}, optuna.samplers.TPESampler),
        (FINITE, {"constraints": {"math": ">= 0.5"}}, optuna.samplers.TPESampler),
        (FINITE, {"sampler": "RandomSampler"}, optuna.samplers.RandomSampler),
    ],
)
def test_auto_takes_a_gaussian_process_where_it_fits(
    methods: dict[str, Any], search: dict[str, Any], kind: Any
) -> None:
    assert isinstance(made_of(methods, **search), kind)


@pytest.mark.parametrize(
    ("methods", "search", "why"),
    [
        ({"task_arithmetic": {"scaling_coef": {**COEFFICIENT, "layer_groups": 11}}}, {}, "and there are 22"),
        (FINITE, {"constraints": {"math": ">= 0.5"}}, "nothing of search.constraints"),
        (METHODS, {"objective": ["math", "coding"]}, "one method where there are several objectives"),
        (METHODS, {}, None),
        (FINITE, {"objective": ["math", "coding"]}, None),
        (METHODS, {"sampler": "TPESampler", "constraints": {"math": ">= 0.5"}}, None),
    ],
)
def test_that_auto_is_another_sampler_than_elsewhere_is_said_in_a_line(
    methods: dict[str, Any], search: dict[str, Any], why: str | None
) -> None:
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    notes = auto_fallback(sweep.search, Space(sweep, ["coding", "math"], None))
    assert len(notes) == (why is not None)
    assert all(str(why) in note for note in notes)


def test_auto_has_no_options() -> None:
    with pytest.raises(InputError, match="auto has none; name the sampler"):
        made_of(FINITE, sampler_options={"multivariate": True})


def notes(methods: dict[str, Any], sampler: str) -> list[str]:
    content = {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": {"sampler": sampler}}
    sweep = Sweep.model_validate(content)
    return random_draws(sweep.search, Space(sweep, ["coding", "math"], None))


@pytest.mark.parametrize("sampler", ["CmaEsSampler", "GPSampler", "QMCSampler", "NSGAIISampler"])
def test_a_sampler_that_draws_at_random_says_so_in_one_line(sampler: str) -> None:
    (note,) = notes(METHODS, sampler)
    assert "at random where there are several methods" in note
    assert "\n" not in note


def test_choices_that_are_drawn_at_random_are_named() -> None:
    (note,) = notes({"ties": METHODS["ties"]}, "CmaEsSampler")
    assert "draws ties.merge_func at random" in note


@pytest.mark.parametrize("sampler", ["auto", "TPESampler", "RandomSampler"])
def test_a_sampler_that_searches_everything_says_nothing(sampler: str) -> None:
    assert notes(METHODS, sampler) == []


def test_a_sampler_of_the_hub_needs_its_package() -> None:
    with pytest.raises(InputError, match="optunahub is not installed; pip install optunahub"):
        make_sampler("optunahub:auto_sampler.AutoSampler", 0, {})


def test_a_sampler_of_the_hub_is_seeded_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(package: str) -> Any:
        assert package == "samplers/of_mine"
        return SimpleNamespace(Mine=optuna.samplers.RandomSampler)

    monkeypatch.setitem(sys.modules, "optunahub", SimpleNamespace(load_module=load))
    drawn = [
        optuna.create_study(sampler=make_sampler("optunahub:of_mine.Mine", 5, {})).ask().suggest_float("x", 0, 1)
        for _ in "ab"
    ]
    assert drawn[0] == drawn[1]
    for wrong in ("optunahub:of_mine.Other", "optunahub:elsewhere.Mine"):
        with pytest.raises(InputError, match=r"cannot be loaded .*write optunahub:FOLDER\.CLASS"):
            make_sampler(wrong, 0, {})
