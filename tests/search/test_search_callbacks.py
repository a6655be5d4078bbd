"""Callbacks of a search: what they are told, and what becomes of one that fails."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from made_up_search import MadeUpScorer, MadeUpSearch
from made_up_trials import made_up_trials
from mergebench_ray.errors import InputError
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.callbacks import Callback, Callbacks, check_callbacks
from mergebench_ray.search.race.decision import Decision

TRIAL = made_up_trials()[9]
DECISION = Decision(3, 15, "stop", 15)


class Kept(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Trial | Decision] = []

    def on_trial(self, trial: Trial) -> None:
        self.told.append(trial)

    def on_decision(self, decision: Decision) -> None:
        self.told.append(decision)


class Fails(Callback):
    """Cannot be called."""

    def on_trial(self, trial: Trial) -> None:
        raise OSError("no such\nservice")


def test_every_decision_on_disk_is_told_once_in_its_order(tmp_path: Path) -> None:
    options = {"trials": 14, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 4}}
    search = MadeUpSearch(tmp_path, MadeUpScorer(), options)
    search.drive()
    on_disk = [line for line in JsonLines(tmp_path / "decisions.jsonl").read() if "candidate" in line]
    assert [one.record() for one in search.decided] == on_disk
    assert {one.action for one in search.decided} == {"go on", "stop", "done", "pause"}


def test_all_are_told_in_their_order() -> None:
    first, second, notes = Kept(), Kept(), list[str]()
    callbacks = Callbacks([first, second], notes.append)
    callbacks.on_decision(DECISION)
    callbacks.on_trial(TRIAL)
    assert first.told == second.told == [DECISION, TRIAL]
    assert notes == []


def test_one_that_fails_is_named_in_a_line_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    kept, notes = Kept(), list[str]()
    callbacks = Callbacks([Fails(), kept], notes.append)
    with caplog.at_level(logging.WARNING):
        callbacks.on_trial(TRIAL)
        callbacks.on_trial(TRIAL)
    assert notes == [
        "callback Fails.on_trial failed (OSError: no such service); the search goes on, and it is called again"
    ]
    assert caplog.text.count("Traceback") == 2
    assert kept.told == [TRIAL, TRIAL]


def test_an_interrupt_in_one_ends_the_search() -> None:
    class Enough(Callback):
        def on_trial(self, trial: Trial) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Enough()], print).on_trial(TRIAL)


def test_one_method_is_enough_and_a_class_or_nothing_is_refused() -> None:
    class Half:
        def __init__(self) -> None:
            self.told: list[Trial] = []

        def on_trial(self, trial: Trial) -> None:
            self.told.append(trial)

    half = Half()
    check_callbacks([half])  # type: ignore[list-item]
    callbacks = Callbacks([half], print)  # type: ignore[list-item]
    callbacks.on_decision(DECISION)
    callbacks.on_trial(TRIAL)
    assert half.told == [TRIAL]
    with pytest.raises(InputError, match=r"callbacks\[0\]: Kept is a class; give an object of it"):
        check_callbacks([Kept])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"callbacks\[1\]: a function has neither on_trial nor on_decision"):
        check_callbacks([Kept(), lambda trial: None])  # type: ignore[list-item]


def test_one_that_would_never_do_anything_is_refused() -> None:
    class Misspelt(Callback):
        def on_trail(self, trial: Trial) -> None:
            raise AssertionError

    check_callbacks([Fails()])
    with pytest.raises(InputError, match=r"callbacks\[0\]: a Misspelt has neither on_trial nor on_decision of its own"):
        check_callbacks([Misspelt()])


@pytest.mark.parametrize("callbacks", [Kept(), None, iter([Kept()])])
def test_what_is_no_list_of_callbacks_is_refused(callbacks: Any) -> None:
    with pytest.raises(InputError, match="callbacks: must be a list of objects, not of type"):
        check_callbacks(callbacks)
