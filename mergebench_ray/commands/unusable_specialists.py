"""Specialists that score nothing in their own domains end a run before its search: what they answered shows why."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from mergebench_ray.errors import InputError
from mergebench_ray.runs.items import read_items, read_questions
from mergebench_ray.runs.leaderboard import with_error
from mergebench_ray.runs.trials import Trial, unusable_specialists

_SHOWN_ITEMS = 3
_SHOWN_CHARACTERS = 160


def explanation(folder: Path, trials: Iterable[Trial]) -> list[str]:
    """Each specialist's score, and of those that cannot be used three answers beside what was expected, in lines.

    Args:
        folder: the run's.
        trials: the run's.
    """
    found = list(trials)
    scores = [
        f"{one.name} {with_error(one.domains[one.name].score, one.domains[one.name].standard_error)} "
        f"({one.domains[one.name].items} items)"
        for one in found
        if (one.role, one.split) == ("specialist", "validation")
    ]
    lines = [f"each specialist in its own domain, on validation: {', '.join(scores)}"]
    for trial in unusable_specialists(found):
        try:
            lines += _answers(folder, trial)
        except FileNotFoundError:
            lines.append(f"{trial.name}: its answers are not on disk")
        except InputError as error:
            lines.append(f"{trial.name}: its answers cannot be shown ({error})")
    return lines


def _answers(folder: Path, trial: Trial) -> list[str]:
    questions = read_questions(folder, trial.split)
    asked = {} if questions is None else {(row["task"], row["item"]): row for row in questions.to_pylist()}
    lines = []
    for row in islice(read_items(folder, trial).to_pylist(), _SHOWN_ITEMS):
        question = asked.get((row["task"], row["item"]), {})
        lines += [
            f"{trial.name}, task {row['task']}, item {row['item']}, scores {with_error(row['score'], None)}:",
            f"    asked:    {_end(question.get('prompt') or '')}",
            f"    answered: {_start(row['answer'] or '')}",
            f"    expected: {_start(question.get('expected') or '')}",
        ]
    return lines


def _start(text: str) -> str:
    shown = repr(text[:_SHOWN_CHARACTERS])
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown} ..."


def _end(text: str) -> str:
    shown = repr(text[-_SHOWN_CHARACTERS:])
    return shown if len(text) <= _SHOWN_CHARACTERS else f"... {shown}"
