"""What a run's folder holds: every file name of it is here, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular, whole_file

if TYPE_CHECKING:  # a wrong --out is refused before these are imported
    from mergebench_ray.config import Sweep
    from mergebench_ray.placement import Plan

_ID = re.compile(r"[0-9a-f]{32}")


class RunFolder:
    """Paths inside a run's folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def sweep_file(self) -> Path:
        """The sweep as it was run, `--set` values included."""
        return self.path / "sweep.yaml"

    @property
    def methods_folder(self) -> Path:
        """The files of methods of the user's own, as they were when the search began."""
        return self.path / "methods"

    @property
    def plan_file(self) -> Path:
        """What the run takes, and notes about its models."""
        return self.path / "plan.json"

    @property
    def study_file(self) -> Path:
        """The Optuna study, unless the sweep names another storage."""
        return self.path / "study.db"

    @property
    def trials_file(self) -> Path:
        """A row per scored model."""
        return self.path / "trials.parquet"

    @property
    def items_folder(self) -> Path:
        """What the models answered, and what they were asked."""
        return self.path / "items"

    def items_file(self, digest: str, split: str) -> Path:
        """The scored items of a model on a split."""
        return self.items_folder / f"{digest}-{split}.parquet"

    def questions_file(self, split: str) -> Path:
        """What the items of a split ask, once for all models."""
        return self.items_folder / f"questions-{split}.parquet"

    @property
    def warm_start_file(self) -> Path:
        """The candidates of other runs that its search begins with, a line of JSON each."""
        return self.path / "warm_start.jsonl"

    @property
    def decisions_file(self) -> Path:
        """Every decision of the race, a line of JSON each."""
        return self.path / "decisions.jsonl"

    @property
    def sittings_file(self) -> Path:
        """When the run was worked on, and whether its budget has ended the search, a line of JSON each."""
        return self.path / "sittings.jsonl"

    @property
    def losses_file(self) -> Path:
        """Engines that were lost, and which model they were scoring, a line of JSON each."""
        return self.path / "losses.jsonl"

    @property
    def race_folder(self) -> Path:
        """What candidates have answered that were stopped, or wait to be scored on."""
        return self.path / "race"

    def answered_file(self, number: int) -> Path:
        """What the candidate of a number has answered so far, a line of JSON for each item."""
        return self.race_folder / f"{number}.jsonl"

    @property
    def forgetting_folder(self) -> Path:
        """What models scored on tasks of no domain: NAME.json, as `evaluate --out` writes it."""
        return self.path / "forgetting"

    @property
    def best_folder(self) -> Path:
        """The best candidate."""
        return self.path / "best"

    @property
    def recipe_file(self) -> Path:
        """The best candidate's recipe."""
        return self.best_folder / "recipe.yaml"

    @property
    def model_folder(self) -> Path:
        """The best candidate as a model."""
        return self.best_folder / "model"

    @property
    def front_folder(self) -> Path:
        """Recipes of all models of the front, where there are several objectives."""
        return self.path / "front"

    def front_recipe_file(self, method: str, number: int) -> Path:
        """How to make the front's candidate of a method and number."""
        return self.front_folder / f"{method}-{number}.yaml"

    @property
    def report_file(self) -> Path:
        """The report's page."""
        return self.path / "report.html"

    @property
    def log_file(self) -> Path:
        """Tracebacks and what libraries say."""
        return self.path / "run.log"

    def engine_log(self, index: int) -> Path:
        """What vLLM says in one of the engines."""
        return self.path / f"engine-{index}.log"

    def judge_log(self, name: str) -> Path:
        """What vLLM says in a judge's engine."""
        return self.path / f"judge-{name}.log"

    @property
    def lock_file(self) -> Path:
        """Held by the process that works in the folder."""
        return self.path / ".lock"

    @property
    def id_file(self) -> Path:
        """What makes the run's study its own in a storage that runs of the same name share."""
        return self.path / "run_id"

    @property
    def tracked_file(self) -> Path:
        """How many rows the run's tracker has been told."""
        return self.path / "tracked.json"

    def holds(self, path: Path) -> bool:
        """Whether a path is one of the run's own, which nothing else may write; the report is not.

        Args:
            path: it, resolved.
        """
        root = self.path.resolve()
        if path == root or not path.is_relative_to(root):
            return False
        first, *others = path.relative_to(root).parts
        folders = (
            *(self.items_folder, self.race_folder, self.forgetting_folder),
            *(self.best_folder, self.front_folder),
        )
        if first in {folder.name for folder in folders}:
            return True
        files = (
            *(self.sweep_file, self.plan_file, self.trials_file, self.warm_start_file, self.decisions_file),
            *(self.sittings_file, self.losses_file, self.tracked_file, self.log_file, self.lock_file, self.id_file),
        )
        # SQLite has files of its own beside the study.
        beginnings = (self.study_file.name, "engine-", "judge-", "tensorboard", "wandb")
        return not others and (first in {file.name for file in files} or first.startswith(beginnings))

    def study_name(self, sweep: Sweep) -> str:
        """Name of the run's study; runs of before there was an id have the sweep's name alone.

        Raises:
            InputError: the id is damaged.
        """
        run_id = self.read_id()
        return sweep.name if run_id is None else f"{sweep.name}-{run_id}"

    def read_id(self) -> str | None:
        """What is the run's alone, 32 hexadecimal digits; None of a run of before there was one.

        Raises:
            InputError: it is damaged.
        """
        try:
            with open_regular(self.id_file) as stream:
                run_id = stream.read(100).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        if not _ID.fullmatch(run_id):
            raise InputError(f"{self.id_file}: damaged; start a new run with another --out")
        return run_id

    def write_plan(self, plan: Plan) -> None:
        """Keep the plan beside the results."""
        with whole_file(self.plan_file) as temporary:
            temporary.write_text(plan.model_dump_json(indent=2) + "\n")

    def read_notes(self) -> tuple[str, ...]:
        """Notes of the plan: rules that were applied where models differ, and judges that were missing.

        Raises:
            InputError: the plan is damaged.
        """
        path = self.plan_file
        try:
            with open_regular(path) as stream:
                return tuple(_PlanNotes.model_validate_json(stream.read(), strict=True).notes)
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
            raise InputError(
                f"{path}: damaged, cannot be read as a plan ({reason}); restore it, or remove it"
            ) from error


def best_of_run(model: Path | str) -> str:
    """The best model of a run, where a run's folder is given; else what is given."""
    best = RunFolder(Path(model)).model_folder
    return str(best if best.is_dir() else model)


class _PlanNotes(BaseModel):
    """What is read of a plan."""

    notes: list[str] = []
