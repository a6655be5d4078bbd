"""A merge, or any fine-tuned model, as a LoRA adapter of its base."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mergebench_ray.checkpoints.adapter_writer import AdapterErrors, check_adapter_output, write_adapter
from mergebench_ray.commands.models import resolve_models
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_folder

_MODEL = "model"


@dataclass(frozen=True)
class AdapterResult:
    """An adapter that was written.

    Attributes:
        folder: where it is.
        errors: what it leaves out.
        notes: rules that were applied where model and base differ, and tensors that are left out, a line each.
    """

    folder: Path
    errors: AdapterErrors
    notes: list[str]


def adapter(
    model: str,
    base: str,
    *,
    out: Path | str,
    rank: int = 32,
    allow: Collection[str] = (),
    show_progress: bool = False,
) -> AdapterResult:
    """Write what a model has learned as a LoRA adapter of its base, as peft does.

    Args:
        model: reference of a merge, or of any model that was fine-tuned from the base.
        base: reference of the base.
        out: folder of the adapter; must not exist, or be empty.
        rank: of its factors.
        allow: settings that may differ, as in `merge`.
        show_progress: print what is happening.

    Raises:
        InputError: wrong input; nothing is written.
    """
    folder = Path(out)
    check_new_folder(folder)
    if rank < 1:
        raise InputError(f"rank {rank}: must be at least 1")
    models = resolve_models(base, {_MODEL: model}, allow)
    check_adapter_output(models.base)
    with progress_line(show_progress) as report:
        models.fetch(report)
        errors = write_adapter(folder, models.specialists[_MODEL], models.base, rank, report)
    left_out = [f"{name} differs from the base's, and is not in the adapter" for name in errors.left_out]
    return AdapterResult(folder, errors, [*models.notes, *left_out])
