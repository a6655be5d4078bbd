"""A checkpoint whose weights are quantised, read as plain ones in bf16."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mergebench_ray.checkpoints.accompanying_files import accompanying_files
from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.conversion import converted
from mergebench_ray.checkpoints.dequantising import find_packed, quantisation, without_quantisation
from mergebench_ray.checkpoints.dequantising.packed_weight import Found, UnreadableError
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.checkpoints.tensor_files import write_tensors
from mergebench_ray.checkpoints.writer import MAX_FILE_BYTES, output_config, write_beside, written_layout
from mergebench_ray.digests import canonical_digest
from mergebench_ray.progress import Progress, silent

_FORMAT = 1
"""Raised whenever the same stored weights are read as other plain ones, or are copied otherwise."""


class QuantisedCheckpoint(Checkpoint):
    """Another checkpoint's weights, of which those that are quantised are made plain when they are read.

    Only the rows that are asked for are made plain, so that no process holds more of a model than of a plain one.

    Args:
        stored: the checkpoint as it is stored.
        found: its quantised weights.
    """

    def __init__(self, stored: Checkpoint, found: Found) -> None:
        self.ref = stored.ref
        self.config = without_quantisation(stored.config)
        self.corrected_settings, self.merged_parts = dict(stored.corrected_settings), stored.merged_parts
        self.notes = [*stored.notes, found.note]
        self._stored = stored
        self._packed = {weight.name: weight for weight in found.weights}
        plain = {name: info for name, info in stored.tensors.items() if name not in found.stored}
        self.tensors = dict(sorted((plain | {name: one.info for name, one in self._packed.items()}).items()))

    @property
    def folder(self) -> Path:
        """Where all lies as it is stored."""
        return self._stored.folder

    @property
    def config_file(self) -> Path:
        """Where the configuration was read."""
        return self._stored.config_file

    def plain_folder(self, progress: Progress = silent) -> Path:
        """A copy in the cache with plain weights, for whoever starts from a folder; made once.

        Another one is made where any file beside the weights has changed: engines read those of the copy.

        Raises:
            InputError: as `converted`, `write_tensors` and `write_beside`.
        """

        def make(temporary: Path, folder: Path) -> None:
            progress(0.0, f"dequantising {self} into {folder} (once)")
            tensors = ((name, self.read(name)) for name in self.tensors)
            write_tensors(temporary, written_layout(self), tensors, MAX_FILE_BYTES, progress)
            write_beside(temporary, self, {})

        beside = [*accompanying_files(self.folder), *sorted(self.folder.glob("*.py"))]
        digests = {str(file.relative_to(self.folder)): file_digest(file) for file in beside}
        return converted("dequantised", canonical_digest([self.digest(), output_config(self)[0], digests]), make)

    def fetch(self, progress: Progress = silent) -> None:
        """Have the stored files on this node."""
        self._stored.fetch(progress)

    def digest(self) -> str:
        """SHA-256 of what is stored, and of the settings by which it is read."""
        return canonical_digest(["dequantised", _FORMAT, self._stored.digest(), quantisation(self._stored.config)])

    def _read_range(self, info: TensorInfo, start: int, count: int) -> Tensor:
        packed = self._packed.get(info.name)
        return self._stored.read(info.name, start, count) if packed is None else packed.read(start, count)


def as_plain(stored: Checkpoint) -> Checkpoint:
    """A checkpoint as merges read it: itself, where nothing of it is quantised in a way that is read here."""
    try:
        found = find_packed(stored.config, stored.config_file, stored.tensors)
    except UnreadableError:
        return stored  # whoever merges it says so
    return stored if found is None else QuantisedCheckpoint(stored, found)


def why_not_plain(stored: Checkpoint) -> str:
    """Why quantised weights are not read here; empty where nothing is known of them."""
    try:
        find_packed(stored.config, stored.config_file, stored.tensors)
    except UnreadableError as error:
        return str(error)
    return ""
