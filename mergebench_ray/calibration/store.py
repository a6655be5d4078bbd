"""Statistics on disk: a folder each, named by a digest of all that determines its content."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mergebench_ray.calibration.jobs import CalibrationJob, Statistic
from mergebench_ray.calibration.samples import samples_digest
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_folder
from mergebench_ray.methods import Calibrated

_FORMAT = 1
_TENSORS, _MANIFEST = "statistics.safetensors", "manifest.json"


@dataclass(frozen=True)
class StatisticStore:
    """A folder of statistics, seen by all nodes of the cluster."""

    folder: Path

    def find(self, job: CalibrationJob) -> Calibrated | None:
        """The statistic that a job would compute, if it is there and whole."""
        path = self._path(job)
        try:
            manifest = read_json_object(path / _MANIFEST)
            if manifest["of"] != identity(job) or file_digest(path / _TENSORS) != manifest["digest"]:
                return None
            groups = tuple((entry, tuple(names)) for entry, names in manifest["groups"].items())
        except (InputError, LookupError, TypeError, AttributeError):
            return None
        return Calibrated(path / _TENSORS, key(job), groups)

    def write(self, job: CalibrationJob, statistic: Statistic, seconds: float) -> None:
        """Write a statistic with its manifest, whole or not at all, in place of a damaged one."""
        path = self._path(job)
        if self.find(job) is not None:  # another run was quicker, with the same result
            return
        if path.is_dir():
            shutil.rmtree(path)
        try:
            with whole_folder(path) as folder:
                _fill(folder, job, statistic, seconds)
        except InputError:
            if self.find(job) is None:
                raise

    def manifest(self, job: CalibrationJob) -> dict[str, Any]:
        """What `write` noted."""
        return read_json_object(self._path(job) / _MANIFEST)

    def _path(self, job: CalibrationJob) -> Path:
        return self.folder / f"{job.kind}-{key(job)[:24]}"


def identity(job: CalibrationJob) -> dict[str, Any]:
    """All that determines a statistic, by digests."""
    return {
        "format": _FORMAT,
        "kind": job.kind,
        "options": dict(sorted(job.options.items())),
        "base": job.base.digest(),
        "specialists": [checkpoint.digest() for checkpoint in job.specialists.values()],
        "samples": [samples_digest(job.samples[name]) for name in job.specialists],
        "max_length": job.max_length,
        "dtype": job.dtype,
    }


def key(job: CalibrationJob) -> str:
    """Digest of all that determines a statistic."""
    return canonical_digest(identity(job))


def _fill(folder: Path, job: CalibrationJob, statistic: Statistic, seconds: float) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in statistic.tensors.items()}
    save_file(tensors, folder / _TENSORS)
    manifest = {
        "of": identity(job),
        "digest": file_digest(folder / _TENSORS),
        "groups": statistic.groups,
        "samples": {name: len(samples) for name, samples in job.samples.items()},
        "samples_cut": statistic.cut,
        "tokens": statistic.tokens,
        "seconds": round(seconds, 3),
        "version": version("mergebench_ray"),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
