"""What a merge forgot: scores that `evaluate --tasks forgetting` wrote into a run's folder, against the base's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergebench_ray.errors import InputError
from mergebench_ray.runs.evaluation_file import EvaluationFile
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, error_of_sum, exact_sum, recovered, slopes_of_recovered

BASE = "base"


@dataclass(frozen=True)
class Forgetting:
    """A model's scores on what should not be forgotten.

    Attributes:
        split: which items were scored.
        results: by task of the suite's forgetting section.
        retained: mean of what is kept of the base's scores, 1.0 for nothing lost; None where the base was not
            scored or scored nothing in one of them, or the model scored 0 where lower is better.
        retained_error: its standard error.
    """

    split: str
    results: Mapping[str, DomainScore]
    retained: float | None
    retained_error: float | None


def read_forgetting(folder: Path, trials: Sequence[Trial]) -> dict[str, Forgetting]:
    """Read ``forgetting/NAME.json`` of a run: NAME is base, another reference, or a method, for its best candidate.

    Raises:
        InputError: if a file is damaged, stands for no model of the run, or was scored on other tasks, or by other
            metrics, than the base.
    """
    files = sorted(RunFolder(folder).forgetting_folder.glob("*.json"))
    names = {trial.method or trial.name if trial.role == "candidate" else trial.name for trial in trials}
    contents: dict[Path, EvaluationFile] = {}
    for file in files:
        if file.stem not in names:
            raise InputError(f"{file}: the run has no model of that name; call it one of {', '.join(sorted(names))}")
        contents[file] = EvaluationFile.read(file)
    own = {domain for trial in trials for domain in trial.domains}
    results = {file.stem: _results(content, own) for file, content in contents.items()}
    split_of_base = next((content.split for file, content in contents.items() if file.stem == BASE), None)
    found = {}
    for file, content in contents.items():
        if split_of_base is not None and content.split != split_of_base:
            raise InputError(f"{file}: scored on {content.split}, the base was not; score both on the same split")
        retained, error = _retained(file, results[file.stem], results.get(BASE))
        found[file.stem] = Forgetting(content.split, results[file.stem], retained, error)
    return found


def _results(content: EvaluationFile, own: set[str]) -> dict[str, DomainScore]:
    """Scores of what is no domain of the run."""
    return {
        name: replace(score, counted={name: content.tasks[name].counted} if name in content.tasks else {})
        for name, score in content.domains.items()
        if name not in own
    }


def _retained(
    file: Path, results: Mapping[str, DomainScore], base: Mapping[str, DomainScore] | None
) -> tuple[float | None, float | None]:
    if not results or base is None:
        return None, None
    for name, result in results.items():
        counted, of_base = result.metric, base[name].metric if name in base else ""
        if counted and of_base and counted != of_base:
            raise InputError(f"{file}: {name} counts {counted}, the base's {of_base}; score both with one suite")
    missing = sorted(set(results) - set(base))
    if missing:
        raise InputError(f"{file}: {missing[0]!r} was not scored for the base; score the base on the same tasks")
    return retained_average(results, base)


def retained_average(
    scores: Mapping[str, DomainScore], base: Mapping[str, DomainScore]
) -> tuple[float, float] | tuple[None, None]:
    """What of the base's scores is kept, averaged over what should not be forgotten (1.0: nothing lost, above: gained).

    Args:
        scores: scores of a model on the suite's `forgetting` section.
        base: the base's scores there.

    Returns:
        the average and its standard error, from those of both models as if independent; since both answer the same
        items, the true one is rather smaller. None where a score cannot be measured against the base's.
    """
    by_score, by_base, shares = {}, {}, []
    for name, result in scores.items():
        share = recovered(result.score, base[name].score, result.higher_is_better)
        if share is None:
            return None, None
        slopes = slopes_of_recovered(share, result.score, base[name].score, result.higher_is_better)
        by_score[name], by_base[name] = (slope / len(scores) for slope in slopes)
        shares.append(share)
    error = math.hypot(error_of_sum(scores, by_score, None), error_of_sum(base, by_base, None))
    return exact_sum(shares) / len(shares), error
