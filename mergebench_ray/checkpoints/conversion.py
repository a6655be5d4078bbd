"""Folders of the cache with what a model was converted to, made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_folder

_CONTENTS = "conversion.json"


def converted(part: str, key: str, make: Callable[[Path, Path], None]) -> Path:
    """The folder of a conversion, which is made where it is not there, or where a part of it was lost.

    Safe for several processes at a time: one converts, the others wait for it.

    Args:
        part: of the cache.
        key: stands for all that determines the conversion.
        make: fills an empty folder, the first, which then becomes the second.

    Raises:
        InputError: the cache cannot be written; or as `make`, and nothing is left behind.
    """
    root = cache_folder(part)
    folder = root / key
    if _is_whole(folder):
        return folder
    with one_at_a_time(root / f"{key}.lock"):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with whole_folder(folder) as temporary:
                make(temporary, folder)
                sizes = {entry.name: entry.stat().st_size for entry in temporary.iterdir()}
                (temporary / _CONTENTS).write_text(json.dumps(sizes) + "\n", encoding="utf-8")
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a conversion holds all that was written."""
    try:
        sizes = read_json_object(folder / _CONTENTS)
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (InputError, OSError):
        return False
