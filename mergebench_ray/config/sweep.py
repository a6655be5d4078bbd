"""A sweep: one YAML file that says what to merge, what to search, how to score."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field, field_serializer, field_validator, model_validator

from mergebench_ray.config.budget import MOST_CANDIDATES, BudgetOptions
from mergebench_ray.config.calibration import CalibrationOptions
from mergebench_ray.config.constraints import Conditions
from mergebench_ray.config.engine import EngineOptions
from mergebench_ray.config.evaluation import EvaluationOptions, SearchEvaluationOptions
from mergebench_ray.config.fields import Line, Plain, Strict, expanded
from mergebench_ray.config.hyper_parameters import Parameter, with_fixed_values
from mergebench_ray.config.merged_parts import DEFAULT_PARTS, MergedParts
from mergebench_ray.config.names import Name
from mergebench_ray.config.objective import DEFAULT, FORGETTING, ChoiceSpec, ObjectiveSpec, each_objective
from mergebench_ray.config.race import RaceOptions, RaceSpec
from mergebench_ray.config.reference import ModelRef, reference_text
from mergebench_ray.config.storage_url import hide_password
from mergebench_ray.config.suite import Suite
from mergebench_ray.config.tracking import TrackerName
from mergebench_ray.config.yaml_files import parse_model, parse_yaml, read_yaml, to_yaml
from mergebench_ray.config.yaml_reader import MAX_BYTES
from mergebench_ray.errors import InputError, nearest

DEFAULT_TRIALS = 20
MAX_SEED = 2**32 - 1  # what samplers take


class SearchOptions(Strict):
    """How the space is searched."""

    trials: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CANDIDATES,
        description=f"Candidates to try; None for {DEFAULT_TRIALS}, and with a budget for as many as it pays.",
    )
    budget: BudgetOptions | None = Field(
        default=None, description="What the search may cost; None for whatever its trials take."
    )
    objective: ObjectiveSpec = Field(
        default=DEFAULT,
        description="What is searched for: normalised_average, worst_domain, a domain by its name, weights of domains "
        "({math: 2, coding: 1}), forgetting (what is kept of the base), or another package's; a domain counts by what "
        "it reaches of its specialist's score. A list of at least two searches for all models of which none is better "
        "in everything.",
    )
    choice: ChoiceSpec | None = Field(
        default=None,
        description="With several objectives, which of those models is taken: knee (the default: nearest to the best "
        "of everything), {weights: {math: 2, safety: 1}}, or {floors: {safety: 0.9}} (the largest sum of the others "
        "among those that keep the floors).",
    )
    constraints: dict[Line, Conditions] = Field(
        default_factory=dict,
        description="Domain or objective -> what a winner keeps there: '>= 0.9' of the specialist's score, or "
        "'score >= 0.4', the score itself; <= is an upper bound, 'and' joins several, a number alone is a lower bound.",
    )
    race: RaceSpec = Field(
        default=RaceOptions(),
        description="Which candidates are scored on all items, and which are stopped before: a kind, or its settings.",
    )
    sampler: Line = Field(
        default="auto", description="auto chooses by the space; else any Optuna sampler, by class name."
    )
    sampler_options: dict[Line, Plain] = Field(default_factory=dict, description="Keyword arguments of the sampler.")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Seed of the sampler.")
    points_to_evaluate: list[dict[Line, Plain]] = Field(
        default_factory=list, description="Candidates to score first: {method: NAME, PARAMETER: value, ...}."
    )
    free_proposals: bool = Field(
        default=True,
        description="Score after those, at most one candidate in five, coefficients that follow from the weights.",
    )
    warm_start: list[Line] = Field(
        default_factory=list,
        description="Folders of earlier runs, or patterns such as runs/*: their candidates of the same models, items "
        "and objective that lie in this space are known from the start, beside those that trials counts.",
    )
    storage: Line | None = Field(
        default=None, repr=False, description="Optuna storage URL; None for study.db in the run's folder."
    )

    @field_validator("warm_start", mode="before")
    @classmethod
    def _accept_one_folder(cls, folders: Any) -> Any:
        return [folders] if isinstance(folders, str) else folders

    @field_validator("warm_start")
    @classmethod
    def _check_users(cls, folders: list[str]) -> list[str]:
        for folder in folders:
            expanded(folder)
        return folders

    @model_validator(mode="after")
    def _check_points(self) -> SearchOptions:
        if len(self.points_to_evaluate) > (most := self.most_candidates):
            raise ValueError(
                f"{len(self.points_to_evaluate)} points_to_evaluate are more than {most} trials; raise trials"
            )
        return self

    @property
    def most_candidates(self) -> int:
        """How many candidates are tried, unless another limit of the budget ends the search before."""
        if self.budget is None:
            return self.trials or DEFAULT_TRIALS
        return min(one for one in (self.trials, self.budget.candidates, MOST_CANDIDATES) if one is not None)

    @field_serializer("storage", when_used="json")
    def _hide_password(self, storage: str | None) -> str | None:
        """A run's folder, its log and its report are read by others."""
        return None if storage is None else hide_password(storage)


class BankOptions(Strict):
    """The actors that hold base and task vectors."""

    shards: int = Field(
        default=1, ge=1, le=10_000, description="Actors that share the weights; merged weights do not depend on it."
    )


class Sweep(Strict):
    """A coefficient search, whole."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run, and of its folder.",
    )
    suite: Line = Field(description="Built-in suite, or path of a suite file.")
    base: Line | None = Field(default=None, description="Reference of the base; None for the suite's.")
    specialists: dict[Name, Line] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Domain that a specialist is for -> its reference; None for the suite's.",
    )
    methods: dict[Line, dict[Line, Parameter]] = Field(
        min_length=1, description="Method -> its hyper-parameters: a value, {low, high} or {choices}."
    )
    methods_folder: Line | None = Field(
        default=None,
        description="Folder whose *.py define methods of your own; they run as your own code does. None for none.",
    )
    merged: MergedParts = Field(
        default=DEFAULT_PARTS, description="Which parts of the models are merged; the rest is the base's."
    )
    search: SearchOptions = Field(default=SearchOptions(), description="How the space is searched.")
    evaluation: SearchEvaluationOptions = Field(
        default=SearchEvaluationOptions(), description="What candidates are scored on."
    )
    engine: EngineOptions = Field(default=EngineOptions(), description="The vLLM engines that score candidates.")
    bank: BankOptions = Field(default=BankOptions(), description="The actors that hold base and task vectors.")
    allow: list[str] = Field(
        default_factory=list,
        description="Settings of config.json that specialists may have otherwise than the base although they change "
        "what the model computes, such as rope_parameters.",
    )
    calibration: CalibrationOptions = Field(
        default=CalibrationOptions(), description="How methods that need data see it."
    )
    tracking: TrackerName | None = Field(
        default=None,
        description="Also follow the run with this service's own client, as its environment variables say; None for no "
        "service.",
    )

    @field_validator("methods_folder")
    @classmethod
    def _make_absolute(cls, folder: str | None) -> str | None:
        return None if folder is None else str(expanded(folder).absolute())

    @model_validator(mode="before")
    @classmethod
    def _wrap_fixed_values(cls, data: Any) -> Any:
        """Turn bare values of hyper-parameters into `Fixed`, and `ties:` with nothing behind it into defaults."""
        if not isinstance(data, dict) or not isinstance(data.get("methods"), dict):
            return data
        methods = {name: with_fixed_values(parameters) for name, parameters in data["methods"].items()}
        return {**data, "methods": methods}

    @classmethod
    def from_yaml(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Sweep:
        """Read a sweep by its file, or by its name where it ships; `overrides` maps dotted keys to values instead.

        Raises:
            InputError: naming file, key, value and rule.
        """
        return cls.from_data(read_yaml(sweep_file(path)), path, overrides)

    @classmethod
    def from_stream(cls, stream: BinaryIO, overrides: Mapping[str, Any] | None = None) -> Sweep:
        """Read a sweep that comes without a file, such as on standard input.

        Raises:
            InputError: as `from_yaml`.
        """
        return cls.from_data(parse_yaml(stream.read(MAX_BYTES + 1), "standard input"), "standard input", overrides)

    @classmethod
    def from_data(
        cls,
        data: dict[str, Any],
        where: Path | str,
        overrides: Mapping[str, Any] | None = None,
        fill_in: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Sweep:
        """A sweep of the content of a file.

        Args:
            data: the content.
            where: its file, for messages.
            overrides: dotted keys and values that replace the file's.
            fill_in: gives the content with what neither says.

        Raises:
            InputError: naming file, key, value and rule.
        """
        check_settings(overrides or {})
        for key, value in (overrides or {}).items():
            value = reference_text(value) if isinstance(value, Path) else value
            data = _assigned(data, key, value, f"--set {key!r:.80}")
        return parse_model(cls, fill_in(data), str(where))

    def to_yaml(self) -> str:
        """The sweep as a file that reads as the same, a storage's password included."""
        return to_yaml(self.model_dump(exclude_none=True))

    def load_suite(self) -> Suite:
        """The suite that this sweep names."""
        return Suite.load(self.suite)

    def scoring(self, suite: Suite) -> EvaluationOptions:
        """What candidates are scored on: the suite's forgetting section, too, where the search is after it."""
        if FORGETTING not in (*each_objective(self.search.objective), *self.search.constraints):
            return self.evaluation
        domains = [*(self.evaluation.domains or suite.domains), *suite.forgetting]
        return self.evaluation.model_copy(update={"domains": domains})

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


def built_in_sweeps() -> dict[str, Path]:
    """The sweeps shipped with the package, name -> file."""
    root = Path(str(resources.files("mergebench_ray"))) / "sweeps"
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.glob("**/*.yaml"))}


def sweep_file(sweep: Path | str) -> Path:
    """The file of a sweep that is given by its path, or by its name where it ships; a file that is there goes first.

    Raises:
        InputError: a name, rather than a file's, that none has.
    """
    path = Path(sweep)
    if os.path.isfile(path):
        return path
    ships = built_in_sweeps()
    if str(path) in ships:
        return ships[str(path)]
    if path.suffix not in (".yaml", ".yml") and not os.path.lexists(path):
        raise InputError(
            f"sweep {str(path)!r:.300}: neither a file nor a sweep that ships; {nearest(str(path), ships)}"
        )
    return path


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of which one replaces another, whichever comes last.

    Raises:
        InputError: naming both.
    """
    for key in settings:
        if not all(key.split(".")):
            raise InputError(f"--set {key!r:.80}: a part of the key is empty; check the key")
        for other in settings:
            if key.startswith(f"{other}."):
                raise InputError(f"--set {other!r:.80} and --set {key!r:.80} set the same key: give one of them")


def _assigned(data: dict[str, Any], key: str, value: Any, option: str) -> dict[str, Any]:
    """A copy with the value under a dotted key; what the original shares with others (YAML's aliases) stays."""
    part, rest = _first_part(data, key)
    if not rest:
        return {**data, part: value}
    below = data.get(part)
    if not isinstance(below, dict | None):
        raise InputError(f"{option}: {part!r:.80} is not a mapping; check the key")
    return {**data, part: _assigned(below or {}, rest, value, option)}


def _first_part(data: dict[str, Any], key: str) -> tuple[str, str]:
    """What stands before the first dot of a key, and what is left; a name with dots that is there counts as one."""
    parts = key.split(".")
    for count in range(len(parts), 1, -1):
        if ".".join(parts[:count]) in data:
            return ".".join(parts[:count]), ".".join(parts[count:])
    return parts[0], ".".join(parts[1:])
