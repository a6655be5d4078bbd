"""Calibration data: where each specialist's samples come from, and what of them went into a merge."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mergebench_ray.config.fields import Line, Strict
from mergebench_ray.config.names import Name
from mergebench_ray.errors import InputError


class CalibrationSource(Strict):
    """Where the samples of one specialist come from; a bare string is `data` alone."""

    data: Line = Field(
        description="A file (.jsonl, .json, .parquet, .csv), a hub data set ID[@REVISION], or SUITE:TASK for the "
        "training split of a suite's task.",
    )
    split: Line = Field(default="train", description="Split of a hub data set.")
    prompt: Line = Field(default="prompt", description="Field with the prompt.")
    response: Line = Field(default="response", description="Field with the response.")
    template: Literal["plain", "alpaca", "chat"] = Field(
        default="plain", description="What is put around a prompt: nothing, Alpaca's text, or the chat template."
    )

    @property
    def is_task(self) -> bool:
        """Whether the samples are those of a suite's task: SUITE:TASK, the suite by name or as a YAML file."""
        suite = self.data.rpartition(":")[0]
        return bool(suite) and ("/" not in suite or suite.endswith((".yaml", ".yml")))

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"data": data} if isinstance(data, str) else data


class CalibrationOptions(Strict):
    """How methods that need data see it."""

    data: dict[Name, CalibrationSource] = Field(
        default_factory=dict, description="Specialist -> its samples, instead of what the suite names."
    )
    max_length: int = Field(
        default=512, ge=2, le=1_000_000, description="Longest sample in tokens; longer ones are cut."
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type to compute in.")
    folder: Line | None = Field(
        default=None, description="Where statistics are kept, seen by all nodes; None for the package's cache."
    )


class CalibrationInput(CalibrationSource):
    """Samples that a merge depends on."""

    samples: int = Field(ge=1, description="How many there were.")
    digest: str = Field(description="SHA-256 of their texts.")


class CalibrationRecord(Strict):
    """What calibration a merge depends on."""

    max_length: int = Field(description="Longest sample in tokens.")
    dtype: str = Field(description="Type that was computed in.")
    inputs: dict[Name, CalibrationInput] = Field(description="By specialist.")

    @property
    def content(self) -> dict[str, Any]:
        """What of it determines the weights."""
        digests = {name: self.inputs[name].digest for name in sorted(self.inputs)}
        return {"max_length": self.max_length, "dtype": self.dtype, "digests": digests}


def no_calibration_data(method: str, specialist: str) -> InputError:
    """The refusal of a method that sees data, of which a specialist has none."""
    return InputError(
        f"{method}: no calibration data for specialist {specialist}; give --calibration {specialist}=SOURCE, or "
        f"calibration.data.{specialist} in the sweep"
    )
