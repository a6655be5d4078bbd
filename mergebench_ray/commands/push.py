"""A model of this machine, uploaded to object storage."""

from __future__ import annotations

import shlex
from pathlib import Path

from mergebench_ray.commands.progress import progress_line
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.published import check_new_address, publish


def push(model: Path | str, address: str, *, show_progress: bool = False) -> None:
    """Upload a model, whole or not at all: config.json comes last.

    Args:
        model: a folder, as `merge` writes one; all that is in it is uploaded.
        address: where to, s3://bucket/folder or gs://bucket/folder; must hold nothing.
        show_progress: print what is happening.

    Raises:
        InputError: there is no model, there is something at the address, or it cannot be written.
    """
    folder, place, option = Path(model), Address.parse(address), "address"
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no model (no config.json); give a folder of merge, or a search's best/model")
    check_new_address(place, option)
    with progress_line(show_progress) as report:
        publish(folder, place, report, option)


def push_command(folder: Path, address: Address) -> str:
    """What to type for it."""
    return f"mergebench-ray push {shlex.quote(str(folder))} {shlex.quote(str(address))}"
