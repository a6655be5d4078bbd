"""A suite: a base, its specialists, and the tasks that score each domain, as a data file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.errors import InputError


class Domain(BaseModel):
    """How a domain is scored: the mean of its tasks' metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, str] = Field(min_length=1, description="lm-eval task name -> metric (0 to 1, higher is better).")


class Suite(BaseModel):
    """Models and domains that belong together; the name of a domain is the name of its specialist."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    base: str | None = Field(default=None, description="Reference of the base model.")
    specialists: dict[str, str] = Field(default_factory=dict, description="Specialist name -> reference.")
    tasks_folder: str | None = Field(
        default=None,
        description="Folder of lm-eval task files, beside the suite file; None for lm-eval's own tasks.",
    )
    domains: dict[str, Domain] = Field(min_length=1)
    max_model_len: int = Field(default=2048, ge=16, description="Longest prompt plus answer, in tokens.")
    _folder: Path = PrivateAttr(default=Path())

    @property
    def tasks_path(self) -> Path | None:
        """Absolute folder of the suite's own task files, or None."""
        return None if self.tasks_folder is None else (self._folder / self.tasks_folder).resolve()

    @classmethod
    def load(cls, name_or_path: str) -> Suite:
        """Read a built-in suite by name, or a suite file by path.

        Raises:
            InputError: if there is no such suite, or the file is wrong.
        """
        path = built_in_suites().get(name_or_path) or Path(name_or_path)
        if not path.is_file():
            known = ", ".join(built_in_suites())
            raise InputError(f"suite {name_or_path!r}: neither a built-in suite ({known}) nor a file; check the name")
        suite = parse_model(cls, read_yaml(path), str(path))
        suite._folder = path.parent
        return suite


def built_in_suites() -> dict[str, Path]:
    """The suites shipped with the package, name -> file."""
    root = Path(str(resources.files("mergebench_ray"))) / "suites"
    return {file.parent.name.replace("_", "-"): file for file in sorted(root.glob("*/suite.yaml"))}
