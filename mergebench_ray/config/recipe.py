"""A recipe: everything that determines a merged model, bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field

from mergebench_ray.config.calibration import CalibrationRecord
from mergebench_ray.config.fields import Line, Plain, Strict
from mergebench_ray.config.names import Name
from mergebench_ray.config.yaml_files import parse_model, read_yaml, to_yaml


class Recipe(Strict):
    """Fully determines the merged weights, whatever the number of shards, nodes or threads.

    `parameters` holds every hyper-parameter of the method, defaults filled in and scalars expanded per specialist
    (`mergebench_ray.methods.complete_parameters` does both), so that equal merges have equal digests.
    """

    method: Line = Field(description="Name of the merging method.")
    parameters: dict[Line, Plain] = Field(default_factory=dict, description="Hyper-parameters, all of them.")
    base: Line = Field(description="Reference of the base model.")
    specialists: dict[Name, Line] = Field(description="References of the specialists by name.")
    base_digest: Line = Field(description="SHA-256 of the base's content.")
    specialist_digests: dict[Name, Line] = Field(description="SHA-256 of each specialist's content.")
    dtype: Line = Field(default="bfloat16", description="Type of the merged weights.")
    calibration: CalibrationRecord | None = Field(default=None, description="Data that the method was calibrated on.")

    @property
    def digest(self) -> str:
        """SHA-256 over canonical JSON of what determines the weights; references (mere locations) do not count."""
        content: dict[str, Any] = {
            "recipe": 1,
            "method": self.method,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "base": self.base_digest,
            "specialists": self.specialist_digests,
        }
        if self.calibration is not None:
            content["calibration"] = self.calibration.content
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as YAML, as `mergebench-ray merge --recipe` reads it."""
        return to_yaml(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Read a recipe file.

        Raises:
            InputError: naming file, key and rule.
        """
        return parse_model(cls, read_yaml(path), str(path))
