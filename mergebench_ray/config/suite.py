"""A suite: a base, its specialists, and the tasks that score each domain, as a data file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from mergebench_ray.config.calibration import CalibrationSource
from mergebench_ray.config.fields import Line, Split, Strict
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.names import Name
from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.errors import InputError


class Decoding(Strict):
    """How answers are generated, where a suite asks for something else than the task file."""

    temperature: float | None = Field(default=None, ge=0, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Sample from the likeliest tokens of this mass.")
    max_answer_tokens: int | None = Field(default=None, ge=1, description="Longest answer.")
    max_total_tokens: int | None = Field(default=None, ge=2, description="Longest prompt plus answer.")
    samples: int | None = Field(default=None, ge=1, description="Answers to each item.")


class TaskSettings(Strict):
    """How a suite asks and counts an lm-eval task; in YAML a bare string is the metric. None keeps the task file's."""

    metric: str = Field(
        min_length=1, description="Metric, or METRIC,FILTER where the task file has several answer filters."
    )
    one_minus: bool = Field(
        default=False, description="Count 1 - metric, for metrics from 0 to 1 where lower is better."
    )
    higher_is_better: bool | None = Field(default=None, description="Which way the metric counts.")
    without_judge: str | None = Field(
        default=None, description="Metric that is counted as it stands where the task's judge is not at hand."
    )
    num_fewshot: int | None = Field(default=None, ge=0, description="Worked examples before each item.")
    decoding: Decoding = Field(default=Decoding(), description="How answers are generated.")
    test_split: str | None = Field(default=None, description="Split of the data that test items come from.")
    validation_split: str | None = Field(default=None, description="Split of the data that validation items come from.")
    held_out_by: str | None = Field(
        default=None,
        description="Validation and test divide the test split by a stable hash of this field, so items that share "
        "its value stay together; the share is the suite's held_out_share.",
    )
    cluster_by: tuple[str, ...] | None = Field(
        default=None,
        description="Fields that items share which are not independent, such as translations of one question or "
        "questions about one passage, also across a domain's tasks; None for held_out_by.",
    )
    try_grading: bool = Field(
        default=False,
        description="Grade a made-up answer to every item before anything starts: shows what scoring lacks.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_metric(cls, data: Any) -> Any:
        return {"metric": data} if isinstance(data, str) else data

    @field_validator("cluster_by", mode="before")
    @classmethod
    def _accept_one_field(cls, fields: Any) -> Any:
        return (fields,) if isinstance(fields, str) else fields

    @model_validator(mode="after")
    def _check_together(self) -> TaskSettings:
        if self.held_out_by and self.validation_split:
            raise ValueError("held_out_by and validation_split exclude each other; keep one")
        if self.one_minus and self.higher_is_better:
            raise ValueError("one_minus is for metrics where lower is better; leave it out, or higher_is_better")
        return self

    @property
    def cluster_fields(self) -> tuple[str, ...]:
        """Fields that tell which items are not independent; none where each is on its own."""
        if self.cluster_by is not None:
            return self.cluster_by
        return () if self.held_out_by is None else (self.held_out_by,)


Tasks = dict[Line, TaskSettings]


class Domain(Strict):
    """How a domain is scored: the mean of its tasks' metrics."""

    tasks: Tasks = Field(min_length=1, description="lm-eval task, group or tag -> metric, or settings.")
    validation_tasks: Tasks | None = Field(
        default=None, min_length=1, description="Tasks that stand in for these on validation; None for the same."
    )

    def tasks_of(self, split: str) -> Tasks:
        """The tasks that are asked on a split."""
        return self.validation_tasks if split != "test" and self.validation_tasks else self.tasks


_ITS_OWN = frozenset({"name", "description", "extends", "tasks_folder"})  # not taken over from an extended suite
_BY_ENTRY = ("specialists", "calibration", "domains", "forgetting", "judges")
_ADDED_TO = ("lm_eval_folders", "gated_data")


class Suite(Strict):
    """Models and domains that belong together; the name of a domain is the name of its specialist."""

    model_config = ConfigDict(frozen=False)

    name: Name = Field(description="Name of the suite, as tables show it.")
    description: str = Field(default="", description="One line for `mergebench-ray suites`.")
    extends: Line | None = Field(
        default=None,
        description="Built-in suite, or file of one beside this file, of which everything holds that this one does not "
        "say otherwise. Specialists, calibration, domains, forgetting and judges are taken over one by one (null "
        "leaves one out), lm_eval_folders and gated_data are added to, and its task files are found beside this one's.",
    )
    base: Line | None = Field(default=None, description="Reference of the base model.")
    specialists: dict[Name, Line] = Field(default_factory=dict, description="Specialist name -> reference.")
    calibration: dict[Name, CalibrationSource] = Field(
        default_factory=dict, description="Specialist -> samples for methods that see data."
    )
    tasks_folder: Line | None = Field(
        default=None,
        description="Folder of lm-eval task files, beside the suite file; None for lm-eval's own tasks.",
    )
    lm_eval_folders: list[Line] = Field(
        default_factory=list,
        description="Folders of lm-eval's own tasks that are used too; reading all of them takes seconds.",
    )
    domains: dict[Name, Domain] = Field(min_length=1, description="Domain -> the tasks that score it.")
    forgetting: dict[Name, Domain] = Field(
        default_factory=dict, description="What a merge should not lose against the base; scored only when asked for."
    )
    held_out_share: float = Field(default=0.2, gt=0, lt=1, description="Share of items that held_out_by validates on.")
    judges: dict[Name, Judge] = Field(
        default_factory=dict, description="Judges that its tasks name; in YAML settings, or a file of them."
    )
    gated_data: list[Line] = Field(default_factory=list, description="Data sets whose licence must be accepted first.")
    max_model_len: int = Field(default=2048, ge=16, description="Longest prompt plus answer, in tokens.")
    _folder: Path = PrivateAttr(default=Path())
    _extended_tasks: tuple[Path, ...] = PrivateAttr(default=())

    @field_validator("lm_eval_folders")
    @classmethod
    def _check_folders(cls, folders: list[str]) -> list[str]:
        if any(Path(folder).is_absolute() or ".." in Path(folder).parts for folder in folders):
            raise ValueError("name folders inside lm-eval's own tasks, as in okapi/arc_multilingual")
        return folders

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        if both := sorted(set(self.domains) & set(self.forgetting)):
            raise ValueError(f"{both[0]!r} is both a domain and in forgetting; rename one")
        return self

    @property
    def tasks_paths(self) -> tuple[Path, ...]:
        """Absolute folders of task files: of the suites that this one extends, then its own, which come first."""
        own = () if self.tasks_folder is None else ((self._folder / self.tasks_folder).resolve(),)
        return tuple(dict.fromkeys([*self._extended_tasks, *own]))

    @property
    def scored(self) -> dict[str, Domain]:
        """Everything that can be scored: the domains, then what must not be forgotten."""
        return {**self.domains, **self.forgetting}

    def only_tasks(self, names: list[str], split: Split) -> Suite:
        """The suite with only some of its tasks, as domains.

        Args:
            names: tasks or domains of the suite, or "forgetting" for all of that section.
            split: the split to be scored.

        Raises:
            InputError: if the suite has none of that name on that split.
        """
        known = {task for domain in self.scored.values() for task in domain.tasks_of(split)}
        unknown = [name for name in names if name not in {*known, *self.scored, "forgetting"}]
        if unknown:
            raise InputError(
                f"suite {self.name} has no task {unknown[0]!r}; it has {', '.join(sorted(known))}, "
                f"and the domains {', '.join(self.scored)}"
            )
        domains = {}
        for name, domain in self.scored.items():
            whole = name in names or (name in self.forgetting and "forgetting" in names)
            kept = {task: how for task, how in domain.tasks_of(split).items() if whole or task in names}
            if kept:
                domains[name] = Domain(tasks=kept)
        return self.model_copy(update={"domains": domains, "forgetting": {}})

    @classmethod
    def load(cls, name_or_path: Path | str) -> Suite:
        """Read a built-in suite by name, or a suite file by path.

        Raises:
            InputError: if there is no such suite, or the file is wrong.
        """
        return cls._load(str(name_or_path), Path(), ())

    @classmethod
    def _load(cls, name_or_path: str, folder: Path, extending: tuple[Path, ...]) -> Suite:
        """Read a suite that a command names, or, from `folder`, that others do: `extending`, the last for this one."""
        path = built_in_suites().get(name_or_path) or folder / name_or_path
        what = f"{extending[-1]}: extends {name_or_path!r:.300}" if extending else f"suite {name_or_path!r:.300}"
        if not os.path.isfile(path):  # also false for a name that no file can have
            known = ", ".join(built_in_suites())
            raise InputError(f"{what}: neither a built-in suite ({known}) nor a file; check the name")
        if any(path.samefile(one) for one in extending):
            raise InputError(f"{what}: that suite extends this one; name another")
        content = read_yaml(path)
        if isinstance(judges := content.get("judges"), dict):
            content["judges"] = {
                name: _read_judge(path.parent / judge) if isinstance(judge, str) else judge
                for name, judge in judges.items()
            }
        extended = content.get("extends")
        other = cls._load(extended, path.parent, (*extending, path)) if isinstance(extended, str) else None
        suite = parse_model(cls, content if other is None else _over(other, content), str(path))
        suite._folder = path.parent.absolute()  # workers on a cluster start in folders of their own
        suite._extended_tasks = other.tasks_paths if other is not None else ()
        return suite


def _over(other: Suite, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a suite file laid over the suite that it extends."""
    inherited = {key: getattr(other, key) for key in other.model_fields_set - _ITS_OWN}
    merged = {**inherited, **content}
    for key in _BY_ENTRY:
        before, here = inherited.get(key), content.get(key)
        if before and isinstance(here, dict):
            entries = {**before, **here}
            merged[key] = {name: one for name, one in entries.items() if one is not None or name not in before}
    for key in _ADDED_TO:
        here = content.get(key)
        if isinstance(here, list):
            merged[key] = [*inherited.get(key, []), *(one for one in here if one not in inherited.get(key, []))]
    return merged


def _read_judge(file: Path) -> Judge:
    return parse_model(Judge, read_yaml(file), str(file))


def built_in_suites() -> dict[str, Path]:
    """The suites shipped with the package, name -> file."""
    root = Path(str(resources.files("mergebench_ray"))) / "suites"
    return {file.parent.name.replace("_", "-"): file for file in sorted(root.glob("*/suite.yaml"))}
