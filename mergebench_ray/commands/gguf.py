"""A model as a GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergebench_ray.checkpoints import resolve
from mergebench_ray.checkpoints.gguf_writer import KINDS, write_gguf
from mergebench_ray.checkpoints.sources import locate
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.files import check_new_file


@dataclass(frozen=True)
class GgufResult:
    """A GGUF file that was written.

    Attributes:
        file: where it is.
        notes: what in it is not the model's, or not the other file's, a line each.
    """

    file: Path
    notes: list[str]


def gguf(model: str, *, like: str, out: Path | str, kind: str = "bf16", show_progress: bool = False) -> GgufResult:
    """Write a model as a GGUF file, with tokenizer and settings of a GGUF file of its base.

    Args:
        model: reference of a merge, or of any other model.
        like: a GGUF file of its base, quantised or not: a path, or `package:NAME/PATH`.
        out: file to write; must not exist.
        kind: what its matrices are written in: bf16, f16, f32 or q8_0.
        show_progress: print what is happening.

    Raises:
        InputError: wrong input, or files that do not fit together; nothing is written.
    """
    target = Path(out)
    check_new_file(target)
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: {nearest(kind, KINDS)}")
    template = locate(ModelRef.parse(like))
    if not template.is_file():
        raise InputError(f"{like}: not a GGUF file of this machine; give the path of one of the model's base")
    found = resolve(model)
    with progress_line(show_progress) as report:
        found.fetch(report)
        notes = write_gguf(target, found, template, kind, report)
    return GgufResult(target, [*found.notes, *notes])
