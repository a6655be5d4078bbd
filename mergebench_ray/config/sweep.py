"""A sweep: one YAML file that says what to merge, what to search, how to score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mergebench_ray.config.calibration import CalibrationOptions
from mergebench_ray.config.reference import ModelRef
from mergebench_ray.config.suite import Suite
from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.errors import InputError

Value = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """Numbers between two bounds, searched."""

    low: float
    high: float
    log: bool = Field(default=False, description="Search the logarithm; needs low > 0.")
    integer: bool = Field(default=False, description="Whole numbers only.")
    per: Literal["all", "specialist"] = Field(default="all", description="One number for all, or one per specialist.")
    layer_groups: int = Field(default=1, ge=1, description="With per: specialist, one number per group of layers.")

    @model_validator(mode="after")
    def _check_bounds(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"needs finite low < high, got low {self.low}, high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs low > 0, got {self.low}")
        if self.layer_groups > 1 and self.per != "specialist":
            raise ValueError("layer_groups needs per: specialist")
        return self


class Choices(_Strict):
    """One of several values, searched."""

    choices: list[Value] = Field(min_length=1)


class Fixed(_Strict):
    """A value that is not searched."""

    value: Any


def _kind(value: Any) -> str:
    if isinstance(value, Range | Choices | Fixed):
        return {Range: "range", Choices: "choices", Fixed: "fixed"}[type(value)]
    if isinstance(value, dict) and "choices" in value:
        return "choices"
    if isinstance(value, dict) and {"low", "high"} & set(value):
        return "range"
    return "fixed"


def _is_bare(value: Any) -> bool:
    """Whether a value was written as it stands, not as a range, choices or an already parsed `Fixed`."""
    return (
        _kind(value) == "fixed"
        and not isinstance(value, Fixed)
        and not (isinstance(value, dict) and [*value] == ["value"])
    )


Parameter = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")] | Annotated[Fixed, Tag("fixed")],
    Discriminator(_kind),
]


class SearchOptions(_Strict):
    """How the space is searched."""

    trials: int = Field(default=20, ge=1, description="Candidates to score.")
    sampler: str = Field(default="TPESampler", description="Any Optuna sampler, by class name.")
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="Its keyword arguments.")
    seed: int = Field(default=0, ge=0)
    points_to_evaluate: list[dict[str, Any]] = Field(
        default_factory=list, description="Candidates to score first: {method: NAME, PARAMETER: value, ...}."
    )
    storage: str | None = Field(default=None, description="Optuna storage URL; None for study.db in the run's folder.")


class EvaluationOptions(_Strict):
    """What candidates are scored on. The search sees validation items only."""

    domains: list[str] | None = Field(default=None, min_length=1, description="Domains to score; None for all.")
    validation_items: int | None = Field(default=None, ge=1, description="First items a task; None for all.")
    test_items: int | None = Field(default=None, ge=1, description="First items a task at the end; None for all.")
    allow_code_execution: bool = Field(default=False, description="Run generated programs, in the sandbox.")
    data: dict[str, str] = Field(
        default_factory=dict,
        description="Data set id of the hub (or ID:CONFIG) -> local file or folder that is read instead.",
    )

    judges: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="Judge -> settings that replace the suite's, or its model alone; null scores without it.",
    )

    @field_validator("judges", mode="before")
    @classmethod
    def _accept_bare_model(cls, judges: Any) -> Any:
        if not isinstance(judges, dict):
            return judges
        return {name: {"model": one} if isinstance(one, str) else one for name, one in judges.items()}

    @field_validator("data")
    @classmethod
    def _make_absolute(cls, data: dict[str, str]) -> dict[str, str]:
        """Actors may run in another folder than the command."""
        return {name: str(Path(path).expanduser().absolute()) for name, path in data.items()}


class EngineOptions(_Strict):
    """The vLLM engines that score candidates."""

    count: int = Field(default=1, ge=1, description="Engines.")
    division: Literal["auto", "candidates", "items"] = Field(
        default="auto",
        description="Engines score a candidate each, or share the items of one; auto lets the planner choose.",
    )
    transport: Literal["shared_memory", "ipc", "nccl", "nccl_m2n"] = Field(
        default="shared_memory", description="How merged weights travel to the engine."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="What engines compute in; auto is bfloat16, but float32 on a CPU that is slow in it.",
    )
    tensor_parallel_size: int = Field(default=1, ge=1)
    max_num_seqs: int = Field(default=128, ge=1, description="Sequences that run at once.")
    kv_cache_gib: float = Field(default=1.0, gt=0, description="Memory of the key-value cache on a CPU, in GiB.")
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1, description="Share of a GPU's memory for vLLM.")
    num_gpus: float | None = Field(
        default=None,
        gt=0,
        description="GPUs that Ray sets aside for an engine; below 1 it shares one with a judge. None for "
        "tensor_parallel_size.",
    )


class BankOptions(_Strict):
    """The actors that hold base and task vectors."""

    shards: int = Field(default=1, ge=1)


class Sweep(_Strict):
    """A coefficient search, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and its folder.")
    suite: str = Field(description="Built-in suite, or path of a suite file.")
    base: str | None = Field(default=None, description="Reference of the base; None for the suite's.")
    specialists: dict[str, str] | None = Field(default=None, min_length=1, description="None for the suite's.")
    methods: dict[str, dict[str, Parameter]] = Field(
        min_length=1, description="Method -> its hyper-parameters: a value, {low, high} or {choices}."
    )
    search: SearchOptions = SearchOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    engine: EngineOptions = EngineOptions()
    bank: BankOptions = BankOptions()
    calibration: CalibrationOptions = CalibrationOptions()

    @model_validator(mode="before")
    @classmethod
    def _wrap_fixed_values(cls, data: Any) -> Any:
        """Turn bare values of hyper-parameters into `Fixed`, and `ties:` with nothing behind it into defaults."""
        if not isinstance(data, dict) or not isinstance(data.get("methods"), dict):
            return data
        methods = {
            name: {key: {"value": value} if _is_bare(value) else value for key, value in (parameters or {}).items()}
            if isinstance(parameters, dict | None)
            else parameters
            for name, parameters in data["methods"].items()
        }
        return {**data, "methods": methods}

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> Sweep:
        """Read a sweep file; `overrides` maps dotted keys to values that replace the file's.

        Raises:
            InputError: naming file, key, value and rule.
        """
        data = read_yaml(path)
        for key, value in (overrides or {}).items():
            _assign(data, key.split("."), value, key)
        return parse_model(cls, data, str(path))

    def load_suite(self) -> Suite:
        """The suite that this sweep names."""
        return Suite.load(self.suite)

    def model_references(self, suite: Suite) -> tuple[ModelRef, dict[str, ModelRef]]:
        """References of the base and, by sorted name, of the specialists.

        Raises:
            InputError: if neither the sweep nor its suite names them.
        """
        base = self.base or suite.base
        specialists = self.specialists or suite.specialists
        if base is None or not specialists:
            raise InputError(f"sweep {self.name}: suite {suite.name} names no models; add 'base' and 'specialists'")
        return ModelRef.parse(base), {name: ModelRef.parse(specialists[name]) for name in sorted(specialists)}


def _assign(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {key}: {part!r} is not a mapping; check the key")
    data[path[-1]] = value
