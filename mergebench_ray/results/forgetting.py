"""What a merge forgot: scores that `evaluate --tasks forgetting` wrote into a run's folder, against the base's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError
from mergebench_ray.results.trials import DomainResult, Trial, as_scores
from mergebench_ray.scores import recovered, retained_average

FORGETTING_FOLDER = "forgetting"
BASE = "base"


@dataclass(frozen=True)
class Forgetting:
    """A model's scores on what should not be forgotten.

    Attributes:
        split: which items were scored.
        results: by task of the suite's forgetting section.
        retained: mean of what is kept of the base's scores, 1.0 for nothing lost; None where the base was not
            scored, or scored nothing in one of them.
        retained_error: its standard error.
    """

    split: str
    results: Mapping[str, DomainResult]
    retained: float | None
    retained_error: float | None


def read_forgetting(folder: Path, trials: Sequence[Trial]) -> dict[str, Forgetting]:
    """Read ``forgetting/NAME.json`` of a run: NAME is base, another reference, or a method, for its best candidate.

    Raises:
        InputError: if a file is damaged, stands for no model of the run, or was scored on other tasks than the base.
    """
    files = sorted((folder / FORGETTING_FOLDER).glob("*.json"))
    names = {trial.method or trial.name if trial.role == "candidate" else trial.name for trial in trials}
    contents: dict[str, dict[str, Any]] = {}
    for file in files:
        if file.stem not in names:
            raise InputError(f"{file}: the run has no model of that name; call it one of {', '.join(sorted(names))}")
        contents[file.stem] = _read(file)
    own = {domain for trial in trials for domain in trial.domains}
    results = {name: _results(content, own) for name, content in contents.items()}
    found = {}
    for name, content in contents.items():
        file = folder / FORGETTING_FOLDER / f"{name}.json"
        if BASE in contents and content["split"] != contents[BASE]["split"]:
            raise InputError(f"{file}: scored on {content['split']}, the base was not; score both on the same split")
        retained, error = _retained(file, results[name], results.get(BASE))
        found[name] = Forgetting(str(content["split"]), results[name], retained, error)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for score in content["domains"].values():
            score["score"], score["standard_error"], score["items"]
        content["split"], content["tasks"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not what `evaluate --out` writes ({error}); write it again") from error
    return content


def _results(content: Mapping[str, Any], own: set[str]) -> dict[str, DomainResult]:
    tasks = content["tasks"]
    return {
        name: DomainResult(
            score["score"],
            score["standard_error"],
            score["items"],
            {name: tasks[name]["counted"]} if name in tasks else {},
            score.get("higher_is_better", True),
        )
        for name, score in content["domains"].items()
        if name not in own
    }


def _retained(
    file: Path, results: Mapping[str, DomainResult], base: Mapping[str, DomainResult] | None
) -> tuple[float | None, float | None]:
    if not results or base is None:
        return None, None
    if any(recovered(result.score, result.score) is None for result in base.values()):
        return None, None
    try:
        return retained_average(as_scores(results), as_scores(base))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
