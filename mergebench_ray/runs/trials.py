"""Trials: one row per scored model, read back from disk without loss."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from mergebench_ray.config.fields import SPLITS, Split
from mergebench_ray.config.objective import DEFAULT, ChoiceSpec
from mergebench_ray.errors import InputError
from mergebench_ray.runs.columns import flatten, table_of
from mergebench_ray.runs.parquet import read_parquet
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.scores import DomainScore, ObjectiveEstimate, ObjectiveValue

Role = Literal["base", "specialist", "average", "reference", "candidate", "stopped"]
Coefficient = float | list[float] | dict[str, float]

COMPARED_WITH: tuple[Role, ...] = ("base", "average", "reference")
"""Roles of the models that a best candidate has to beat, none of which the search found."""

SEARCHED: tuple[Role, ...] = ("candidate", "stopped")
"""Roles of what the search proposed."""

COEFFICIENTS = "scaling_coef"
"""The hyper-parameter that is the coefficient, in every method that has one."""
_COSTS = (
    *("merge_seconds", "load_seconds", "score_seconds", "engine_seconds", "tokens"),
    *("judge_seconds", "judge_tokens", "engine"),
)


@dataclass(frozen=True, repr=False)
class Trial:
    """One model, scored on one split.

    Attributes:
        role: what the model is: ``base``; ``specialist`` (on its own domain); ``average`` (plain average of the
            specialists); ``reference`` (another merge to compare with, such as task arithmetic with λ = 0.4);
            ``candidate`` (proposed by the search); ``stopped`` (a candidate that the race stopped: what it scored is
            that of some of the items, and compares with nothing).
        name: what people read, such as ``base``, ``math`` or ``task_arithmetic_0.4``; a candidate's is its method.
        number: of a candidate, counted from 0 in the order in which they were proposed, the same on all splits; else 0.
        split: ``validation`` (what the search sees) or ``test`` (scored once, at the end).
        digest: recipe digest of the merged model, content digest of a base or specialist.
        items_digest: which items were scored, and how.
        method: merging method; None for base and specialists.
        parameters: every hyper-parameter of the method, plain JSON types.
        domains: results by domain, the scored ones only.
        normalised_average: mean over domains of what is recovered of the specialist's score; None while unknown.
        normalised_standard_error: of `normalised_average`; None while unknown.
        objectives: what the search is after, by name; empty in runs of versions that knew the normalised average alone,
            and where it does not apply.
        constraints: what a winner has to keep, such as ``safety >= 0.9`` -> how far the model is from keeping it, 0 or
            less where it does.
        choice: of several objectives, what takes one model of their front; None where there is one.
        estimate: of a stopped candidate, what its objective would probably have come to; None for all others.
        estimates: the same of several objectives, by name.
        failure: of a candidate that could not be scored, why; it is a stopped one of which nothing is known.
        chosen: on the final split, whether it is the search's winner.
        tied_with: on the final split, of those that two paired errors, here and on validation together, do not tell
            from the best, labels of the others.
        differences: other model -> how far this one's objective is above that one's on the same items, and the paired
            standard error of that.
        merge_seconds: forming the merged weights.
        load_seconds: replacing the engine's weights.
        score_seconds: scoring, wall time.
        engine_seconds: in which engines computed, those of all engines added up.
        tokens: tokens that the engines read and wrote.
        judge_seconds: in which judges computed.
        judge_tokens: tokens that judges read and wrote.
        engine: name of the engine; those of several that shared the items with a plus between them.
        versions: package -> version.
        reused_from: earlier run -> how many of the items' scores are from there; what those took is not counted here.
        taken_from: of a candidate that the search began with (`search.warm_start`), the run that it is of.
        proposed_by: of a candidate, ``sampler``, ``sweep`` (one of its `points_to_evaluate`), or the rule that its
            coefficients follow from; empty in runs of versions that did not say it.
        started: UTC.
        finished: UTC.
        optuna_number: number of the trial in the Optuna study, which holds what was suggested; None where it is not
            part of one.
    """

    role: Role
    name: str
    split: Split
    digest: str
    items_digest: str
    number: int = 0
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    domains: Mapping[str, DomainScore] = field(default_factory=dict)
    normalised_average: float | None = None
    normalised_standard_error: float | None = None
    objectives: Mapping[str, ObjectiveValue] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    choice: ChoiceSpec | None = None
    estimate: ObjectiveEstimate | None = None
    estimates: Mapping[str, ObjectiveEstimate] = field(default_factory=dict)
    failure: str = ""
    chosen: bool = False
    tied_with: tuple[str, ...] = ()
    differences: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    merge_seconds: float = 0.0
    load_seconds: float = 0.0
    score_seconds: float = 0.0
    engine_seconds: float = 0.0
    tokens: int = 0
    judge_seconds: float = 0.0
    judge_tokens: int = 0
    engine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    reused_from: Mapping[str, int] = field(default_factory=dict)
    taken_from: str = ""
    proposed_by: str = ""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))
    optuna_number: int | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role) or self.split not in SPLITS:
            raise ValueError(f"role {self.role!r} or split {self.split!r} is not one of {Role}, {Split}")
        if self.started.tzinfo is None or self.finished.tzinfo is None:
            raise ValueError("started and finished need a time zone (UTC)")

    def __repr__(self) -> str:
        value, error = self.objective.value, self.objective.standard_error
        known = [f"{one:.3f}" for one in (value, error) if one is not None and math.isfinite(one)]
        reached = self.stopped_after or f"{self.objective_name} {' ± '.join(known) or 'not known'}"
        return f"<{self.label} on {self.split}: {reached}>"

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells this trial from all others of the run."""
        return self.role, self.name, self.number, self.split

    @property
    def objective_name(self) -> str:
        """What models are ranked by: what the search is after, or of several objectives the normalised average."""
        return next(iter(self.objectives)) if len(self.objectives) == 1 else DEFAULT

    @property
    def objective(self) -> ObjectiveValue:
        """Its value; the normalised average where the row says nothing else."""
        if len(self.objectives) == 1:
            return self.objectives[self.objective_name]
        if DEFAULT in self.objectives:
            return self.objectives[DEFAULT]
        return ObjectiveValue(self.normalised_average, self.normalised_standard_error)

    @property
    def is_scored(self) -> bool:
        """Whether all that the search is after is known."""
        found = self.objectives.values() if len(self.objectives) > 1 else [self.objective]
        return all(is_known(one.value) for one in found)

    @property
    def missed(self) -> list[str]:
        """The constraints that the model does not keep."""
        return [name for name, distance in self.constraints.items() if not distance <= 0]

    @property
    def coefficients(self) -> Mapping[str, Coefficient]:
        """Per specialist a number, one per layer group, or the ends of a line; empty where there is one for all."""
        found = self.parameters.get(COEFFICIENTS)
        return found if isinstance(found, Mapping) else {}

    @property
    def answering_seconds(self) -> float:
        """The part of `score_seconds` in which engines computed, on average over those that shared the items."""
        return self.engine_seconds / (self.engine.count("+") + 1)

    @property
    def stopped_after(self) -> str:
        """Of a stopped candidate, when it was or why; empty of all others."""
        if self.failure:
            return f"failed: {self.failure}"
        return "" if self.estimate is None else f"stopped after {self.estimate.answered} of {self.estimate.items} items"

    @property
    def label(self) -> str:
        """Name for people; a candidate's carries its number."""
        return f"{self.name} #{self.number}" if self.role in SEARCHED else self.name

    def to_json(self) -> str:
        """The whole trial as one JSON text; `from_json` reads it back without loss."""
        content = asdict(self)
        content["started"], content["finished"] = self.started.isoformat(), self.finished.isoformat()
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """Read what `to_json` wrote; what a later version added is left out.

        Raises:
            ValueError: if a field is missing or of another type.
        """
        return _checked_trial().validate_json(text, strict=True)

    def flat(self) -> dict[str, Any]:
        """One level of readable columns, such as ``score.math`` or ``coefficient.math.0``, for the Parquet table.

        docs/run-folder.md says what each means.
        """
        row: dict[str, Any] = {
            "role": self.role,
            "name": self.name,
            "number": self.number,
            "split": self.split,
            "method": self.method,
            **({"proposed_by": self.proposed_by} if self.proposed_by else {}),
            "normalised_average": self.normalised_average,
            "normalised_standard_error": self.normalised_standard_error,
        }
        for name, objective in self.objectives.items():
            if name != DEFAULT:  # which has columns of its own
                row |= flatten("objective", {name: objective.value})
                row |= flatten("objective_error", {name: objective.standard_error})
            row |= flatten("reference_error", {name: objective.reference_error})
        row |= flatten("missed_by", self.constraints) if self.constraints else {}
        if self.estimate is not None:
            row |= {"estimate": self.estimate.value, "estimate_error": self.estimate.standard_error}
            for name, one in self.estimates.items():
                row |= flatten("estimate", {name: one.value}) | flatten("estimate_error", {name: one.standard_error})
            row |= {"answered": self.estimate.answered}  # of all items
        row |= {"failure": self.failure} if self.failure else {}
        row |= {"chosen": self.chosen} if self.split == "final" else {}
        for name, (difference, error) in self.differences.items():
            row |= flatten("difference", {name: difference}) | flatten("difference_error", {name: error})
        for domain, result in self.domains.items():
            row[f"score.{domain}"] = result.score
            row[f"standard_error.{domain}"] = result.standard_error
            row[f"items.{domain}"] = result.items
            if result.metric:
                row[f"metric.{domain}"] = result.metric
        row |= flatten("coefficient", self.coefficients)
        # Where coefficients differ between specialists they have the columns above.
        row |= flatten(
            "parameter", {k: v for k, v in self.parameters.items() if k != COEFFICIENTS or not self.coefficients}
        )
        for name in _COSTS:
            row[name] = getattr(self, name)
        if self.reused_from:
            row |= {"reused_items": sum(self.reused_from.values()), "reused_from": ", ".join(self.reused_from)}
        row |= {"taken_from": self.taken_from} if self.taken_from else {}
        row |= flatten("version", self.versions)
        row |= {"started": self.started, "finished": self.finished, "optuna_number": self.optuna_number}
        return row | {"digest": self.digest, "items_digest": self.items_digest, "record": self.to_json()}


@functools.cache
def _checked_trial() -> TypeAdapter[Trial]:
    return TypeAdapter(Trial)


def engine_names(indices: Sequence[int]) -> str:
    """What `Trial.engine` says of the engines with these indices."""
    return "+".join(f"vllm-{index}" for index in indices)


def is_known(value: float | None) -> bool:
    """Whether a score is there and finite."""
    return value is not None and math.isfinite(value)


def searched(trials: Iterable[Trial]) -> list[Trial]:
    """What the search has scored on validation, stopped candidates included, in the order in which they ended."""
    return [trial for trial in trials if trial.role in SEARCHED and trial.split == "validation"]


def proposed(trials: Iterable[Trial]) -> list[Trial]:
    """What `searched` gives, without what other runs have scored and the search began with."""
    return [trial for trial in searched(trials) if not trial.taken_from]


def unusable_specialists(trials: Iterable[Trial]) -> list[Trial]:
    """Specialists on validation that nothing can be measured against; none once the search has begun."""
    found = list(trials)
    if any(trial.role in SEARCHED for trial in found):
        return []
    own = [trial for trial in found if (trial.role, trial.split) == ("specialist", "validation")]
    return [one for one in own if not 0 < one.domains[one.name].score < math.inf]


def trials_table(trials: Sequence[Trial]) -> pa.Table:
    """A row per trial, flat readable columns; ``record`` holds each trial whole, as JSON."""
    return table_of([trial.flat() for trial in trials])


def read_trials(folder: Path | str) -> list[Trial]:
    """The trials of a run, in the order they were scored; changes nothing, so it is safe while a search writes.

    Raises:
        InputError: if the run has no trials file, or it is damaged.
    """
    path = RunFolder(folder).trials_file
    try:
        records = read_parquet(path, {"record": pa.string()})["record"].to_pylist()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run that has scored at least one model") from None
    try:
        return [Trial.from_json(str(text)) for text in records]
    except ValueError as error:
        reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"{path}: damaged, or written by another version: a record cannot be read as a trial ({reason}); "
            "restore it from a copy, or start again in another folder"
        ) from error
