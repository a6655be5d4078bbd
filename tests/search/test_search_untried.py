"""Nothing is proposed for ever: a sampler goes where nobody was, and a search knows when it was everywhere."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mergebench_ray.config import Sweep
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.space import METHOD, Space
from mergebench_ray.search.untried import SAME_AS, SamplerOfUntried, Untried

RANGE = {"low": 0.0, "high": 1.0}
QUICKSTART = {
    "task_arithmetic": {"scaling_coef": {**RANGE, "per": "specialist"}},
    "ties": {"density": {"low": 0.1, "high": 0.9}},
    "model_soup": {},
}
FINITE = {
    "consensus": {"k": {"low": 1, "high": 2, "integer": True}},
    "ties": {"merge_func": {"choices": ["sum", "mean"]}},
}


def made(methods: dict[str, Any], sampler: str, options: Any = None) -> tuple[Space, SamplerOfUntried, optuna.Study]:
    search = {"sampler": sampler, "sampler_options": options or {}}
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    space = Space(sweep, ["coding", "math"], None)
    one = search_sampler(sweep.search, space)
    return space, one, optuna.create_study(direction="maximize", sampler=one)


def propose(space: Space, study: optuna.Study) -> dict[str, Any]:
    """A candidate, told to the study as a search does; one that was proposed before has failed."""
    trial = study.ask()
    space.suggest(trial)
    before = [one for one in study.trials[: trial.number] if one.params == trial.params]
    if before:
        trial.set_user_attr(SAME_AS, before[0].number)
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, sum(value for value in trial.params.values() if isinstance(value, float)))
    return trial.params


@pytest.mark.parametrize("sampler", ["auto", "TPESampler", "RandomSampler", "NSGAIISampler"])
def test_a_method_without_numbers_is_proposed_once(sampler: str) -> None:
    space, _, study = made(QUICKSTART, sampler)
    proposed = [propose(space, study)[METHOD] for _ in range(30)]
    assert proposed.count("model_soup") <= 1
    assert {"task_arithmetic", "ties"} <= set(proposed)


def test_a_method_without_numbers_that_is_under_way_is_not_proposed() -> None:
    space, _, study = made(QUICKSTART, "RandomSampler")
    study.enqueue_trial({METHOD: "model_soup"})
    trials = [study.ask() for _ in range(20)]
    methods = [space.suggest(trial)[METHOD] for trial in trials]
    assert methods.count("model_soup") == 1


@pytest.mark.parametrize("sampler", ["auto", "TPESampler", "RandomSampler"])
def test_all_of_a_small_space_is_proposed_and_then_nothing_is_left(sampler: str) -> None:
    space, one, study = made(FINITE, sampler)
    proposed = set()
    while one.all_tried(study) is None:
        proposed.add(str(propose(space, study)))
        assert len(study.trials) < 100
    assert len(proposed) == one.all_tried(study) == 4


def test_what_was_queued_comes_before_nothing_is_left() -> None:
    space, one, study = made({"ties": FINITE["ties"]}, "RandomSampler")
    while one.all_tried(study) is None:
        propose(space, study)
    study.enqueue_trial({"ties.merge_func": "sum"})
    assert one.all_tried(study) is None


def test_a_grid_is_at_its_end_with_its_last_candidate() -> None:
    grid = {"search_space": {"ties.density": [0.1, 0.3, 0.5]}}
    space, one, study = made({"ties": {"density": RANGE | {"low": 0.1}}}, "GridSampler", grid)
    for _ in range(3):
        assert one.all_tried(study) is None
        propose(space, study)
    assert one.all_tried(study) == 3


def test_after_many_repeated_proposals_another_is_drawn_the_same_in_every_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drawn = []
    for _ in range(2):
        space, _, study = made(QUICKSTART, "RandomSampler")
        for number in range(10):
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={SAME_AS: number}))
        drawn.append(propose(space, study))
    assert drawn[0] == drawn[1]
    assert [one.getMessage() for one in caplog.records if "candidate" in one.getMessage()] == [
        "candidate 10 is drawn at random of what was not tried: the sampler has proposed nothing new 10 times"
    ] * 2


def test_what_is_left_is_drawn_whatever_it_is() -> None:
    import numpy as np

    space, _, study = made(FINITE, "RandomSampler")
    random, seen = np.random.default_rng(0), []
    for _ in range(4):
        left = Untried(space, study.trials)
        study.enqueue_trial(left.draw(random))
        seen.append(propose(space, study))
    assert len({str(one) for one in seen}) == 4
    assert Untried(space, study.trials).methods == []
