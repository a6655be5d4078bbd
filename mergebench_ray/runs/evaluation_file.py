"""The file of `evaluate --out`: one model's scores on a suite, written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mergebench_ray.checkpoints.reproduction import RecordedAsking
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular, whole_file
from mergebench_ray.scores import DomainScore, Scores, TaskScore, average_score


class AverageEntry(BaseModel):
    """MergeBench's average over the domains."""

    score: float
    standard_error: float


class TaskEntry(BaseModel):
    """A task's score: the fields of `TaskScore`, what counts of it, and that in words, which alone is always there."""

    model_config = ConfigDict(extra="forbid")

    task: str = ""
    metric: str = ""
    value: float = math.nan
    standard_error: float = math.nan
    items: int = 0
    one_minus: bool = False
    judge_errors: int | None = None
    higher_is_better: bool = True
    domain: str = ""
    group: str = ""
    score: float = math.nan
    counted: str

    @classmethod
    def of(cls, task: TaskScore) -> TaskEntry:
        """The entry of a score."""
        return cls(**asdict(task), score=task.score, counted=task.label)


class EvaluationFile(BaseModel):
    """What the file says; what has a default here is not in files of every version.

    Attributes:
        model: reference of the model.
        digest: its content.
        suite: name of the suite.
        split: "validation" or "test".
        domains: scores by domain.
        average: their mean; None where that would say nothing.
        tasks: scores by task.
        seconds: wall time of scoring.
        engine_seconds: in which engines computed.
        tokens: tokens read and written by the engines.
        truncated: prompts that were cut to fit the context.
        judge_seconds: in which judges computed.
        judge_tokens: tokens read and written by judges.
        notes: what was scored otherwise than the suite says, a line each.
        asked: how items were put to the model and which, where it is not as the suite has it: arguments of `evaluate`.
    """

    model: str = ""
    digest: str = ""
    suite: str = ""
    split: str
    domains: dict[str, DomainScore]
    average: AverageEntry | None = None
    tasks: dict[str, TaskEntry]
    seconds: float = 0.0
    engine_seconds: float = 0.0
    tokens: int = 0
    truncated: int = 0
    judge_seconds: float = 0.0
    judge_tokens: int = 0
    notes: list[str] = []
    asked: RecordedAsking = RecordedAsking()

    @classmethod
    def of(
        cls,
        model: str,
        digest: str,
        suite: str,
        scores: Scores,
        notes: Sequence[str],
        asked: Mapping[str, Any] = MappingProxyType({}),
    ) -> EvaluationFile:
        """What to write of a model's scores."""
        average, error = average_score(scores.domains, scores.influences)
        return cls(
            model=model,
            digest=digest,
            suite=suite,
            split=scores.split,
            domains=scores.domains,
            average=None if math.isnan(average) else AverageEntry(score=average, standard_error=error),
            tasks={name: TaskEntry.of(task) for name, task in scores.tasks.items()},
            seconds=scores.seconds,
            engine_seconds=scores.engine_seconds,
            tokens=scores.tokens,
            truncated=scores.truncated,
            judge_seconds=scores.judge_seconds,
            judge_tokens=scores.judge_tokens,
            notes=list(notes),
            asked=RecordedAsking(**asked),
        )

    def write(self, path: Path) -> None:
        """Write the file, whole, where nothing is yet.

        Raises:
            InputError: there is something by now, or no room.
        """
        with whole_file(path, new=True) as temporary:
            temporary.write_text(json.dumps(self.model_dump(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> EvaluationFile:
        """Read a file.

        Raises:
            InputError: it cannot be read, or is no file of scores.
        """
        try:
            with open_regular(path) as stream:
                return cls.model_validate_json(stream.read(), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path}: not what `evaluate --out` writes ({where}: {first['msg']}); write it again"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); write it again") from error


def items_file(path: Path) -> Path:
    """Where the items go that belong to a file of scores: ``x.json`` has ``x.items.parquet`` beside it."""
    return path.with_name(f"{path.name.removesuffix('.json')}.items.parquet")
