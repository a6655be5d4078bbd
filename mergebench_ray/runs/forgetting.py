"""What a merge forgot: scores that `evaluate --tasks forgetting` wrote into a run's folder, against the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, recovered, retained_average

FORGETTING_FOLDER = "forgetting"
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
    files = sorted((folder / FORGETTING_FOLDER).glob("*.json"))
    names = {trial.method or trial.name if trial.role == "candidate" else trial.name for trial in trials}
    contents: dict[str, _Scored] = {}
    for file in files:
        if file.stem not in names:
            raise InputError(f"{file}: the run has no model of that name; call it one of {', '.join(sorted(names))}")
        contents[file.stem] = _read(file)
    own = {domain for trial in trials for domain in trial.domains}
    results = {name: _results(content, own) for name, content in contents.items()}
    found = {}
    for name, content in contents.items():
        file = folder / FORGETTING_FOLDER / f"{name}.json"
        if BASE in contents and content.split != contents[BASE].split:
            raise InputError(f"{file}: scored on {content.split}, the base was not; score both on the same split")
        retained, error = _retained(file, results[name], results.get(BASE))
        found[name] = Forgetting(content.split, results[name], retained, error)
    return found


class _Score(BaseModel):
    score: float
    standard_error: float
    items: int
    higher_is_better: bool = True


class _Task(BaseModel):
    counted: str


class _Scored(BaseModel):
    """What is read of the file that `evaluate --out` writes."""

    split: str
    domains: dict[str, _Score]
    tasks: dict[str, _Task]


def _read(file: Path) -> _Scored:
    try:
        with open_regular(file) as stream:
            return _Scored.model_validate_json(stream.read(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{file}: not what `evaluate --out` writes ({where}: {first['msg']}); write it again"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); write it again") from error


def _results(content: _Scored, own: set[str]) -> dict[str, DomainScore]:
    return {
        name: DomainScore(
            score.score,
            score.standard_error,
            score.items,
            score.higher_is_better,
            {name: content.tasks[name].counted} if name in content.tasks else {},
        )
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
    of_both = [(result, base[name]) for name, result in results.items() if name in base]
    if any(recovered(own.score, of_base.score, own.higher_is_better) is None for own, of_base in of_both):
        return None, None
    try:
        return retained_average(results, base)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
