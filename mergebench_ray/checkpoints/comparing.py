"""Two models that should be the same, compared byte for byte."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergebench_ray.checkpoints.accompanying_files import accompanying_files, is_licence
from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_BLOCK = 1 << 22  # elements of a tensor at a time
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same in two models.

    Attributes:
        name: its name.
        what: how it differs, in a few words.
    """

    name: str
    what: str


def differing_tensors(
    found: Checkpoint,
    expected: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    read: Callable[[int], None] = lambda num_bytes: None,
) -> list[TensorDifference]:
    """Tensors of which not every bit is the same, by sorted name; a block of each model is in memory at a time.

    Args:
        found: the model that is looked at.
        expected: the model that it should be.
        names: the tensors; None for all that either has.
        read: told how many bytes were compared.

    Raises:
        InputError: a file has changed since its header was read.
    """
    looked_at = sorted({*found.tensors, *expected.tensors} if names is None else names)
    differences = ((name, _difference(found, expected, name, read)) for name in looked_at)
    return [TensorDifference(name, what) for name, what in differences if what]


def _difference(found: Checkpoint, expected: Checkpoint, name: str, read: Callable[[int], None]) -> str:
    if name not in found.tensors:
        return "is missing"
    if name not in expected.tensors:
        return "is not of the merge"
    ours, theirs = found.tensors[name], expected.tensors[name]
    for what in ("shape", "dtype"):
        one, other = getattr(ours, what), getattr(theirs, what)
        if one != other:
            return f"has the {what} {one} instead of {other}"
    count, most = 0, 0.0
    for start in range(0, ours.numel, _BLOCK):
        size = min(_BLOCK, ours.numel - start)
        one, other = found.read(name, start, size), expected.read(name, start, size)
        read(one.nbytes)
        changed = _changed(one, other)
        if changed.any():
            count += int(changed.sum())
            distances = (one[changed].double() - other[changed].double()).abs().nan_to_num(torch.inf, torch.inf)
            most = max(most, float(distances.max()))
    return f"differs in {count:,} of {ours.numel:,} entries, by up to {most:.3g}" if count else ""


def _changed(one: Tensor, other: Tensor) -> Tensor:
    """Of each entry, whether a bit of it differs."""
    size = one.dtype.itemsize
    return (one.view(torch.uint8).view(-1, size) != other.view(torch.uint8).view(-1, size)).any(dim=1)


def differing_files(found: Path, expected: Path) -> list[tuple[str, str]]:
    """Files beside the weights that say what a model computes, and how each differs in two folders.

    Those are the configuration, code, and what comes along into a merge; licences may be added by whoever publishes.

    Raises:
        InputError: one of them is a pipe or device.
    """
    ours, theirs = _files_that_count(found), _files_that_count(expected)
    differences = []
    for name in sorted(ours | theirs):
        if name not in ours:
            differences.append((name, "is missing"))
        elif name not in theirs:
            differences.append((name, "is not of the merge"))
        elif not _same_bytes(found / name, expected / name):
            differences.append((name, "differs"))
    return differences


def _files_that_count(folder: Path) -> set[str]:
    names = {str(file.relative_to(folder)) for file in accompanying_files(folder) if not is_licence(file.name)}
    names |= {file.name for file in folder.glob("*.py")}
    return names | ({"config.json"} if (folder / "config.json").exists() else set())


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        with open_regular(one) as ours, open_regular(other) as theirs:
            blocks = iter(functools.partial(ours.read, _BLOCK_BYTES), b"")
            return all(block == theirs.read(len(block)) for block in blocks) and not theirs.read(1)
    except OSError as error:
        raise InputError(f"{one}: cannot be read ({error.strerror}); fetch the model again") from error
