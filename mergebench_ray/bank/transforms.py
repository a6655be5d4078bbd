"""Task vectors transformed tensor by tensor and kept on disk, for whatever holds a bank's range or reads windows.

A file a specialist, laid out as the model's merged tensors are; a shard or a window reads its own entries of it beside
the task vectors, so that a candidate is a pass like any other. Tensors are made one by one in Ray tasks, or in threads
where there is no Ray, no free core or no folder that all nodes see; each on one thread, so that its bits are the same
wherever it is made.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mergebench_ray.bank.calls import Call, Calls, RayCalls, ThreadCalls
from mergebench_ray.bank.kept_forms import MANIFEST, hold, make_room
from mergebench_ray.bank.layout import Layout
from mergebench_ray.bank.window_worker import WindowWorker
from mergebench_ray.cache import cache_folder, one_at_a_time
from mergebench_ray.checkpoints import TensorFiles
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_folder
from mergebench_ray.installed_code import sources_below, sources_of
from mergebench_ray.machine import available_memory, connected_ray, usable_cores
from mergebench_ray.methods import Calibrated, Transform
from mergebench_ray.methods.statistics import transform_bytes
from mergebench_ray.progress import Meter, Progress, silent

_FORMAT = 1
_TENSORS = "model-00001-of-00001.safetensors"
_ONE_FILE = 1 << 62


def transformed(
    worker: WindowWorker, layout: Layout, transform: Transform, progress: Progress = silent
) -> tuple[Calibrated, ...]:
    """The files of a transform, made where they are not there.

    Args:
        worker: reads base and specialists, whose digests are known.
        layout: of their merged tensors.
        transform: what to make.
        progress: told of it.

    Raises:
        InputError: NaN or infinity in a weight or in what was made of it, or a cache that cannot be written.
    """
    what = {
        "format": _FORMAT,
        "of": [model.digest() for model in worker.models],
        "tensors": {tensor.name: list(tensor.shape) for tensor in layout.merged},
        "transform": identity_of(transform),
        "sources": [sources_below([Path(__file__).parents[1]]), sources_of([type(transform)])],
    }
    key = canonical_digest(what)
    folder = cache_folder("transformed") / key
    count = 1 if transform.is_shared else len(worker.models) - 1
    found = [Calibrated(folder / str(index) / _TENSORS, f"{key}/{index}") for index in range(count)]
    while not (_is_whole(folder, found) and hold(folder)):
        with one_at_a_time(folder.with_suffix(".lock")):
            if not _is_whole(folder, found):
                num_bytes = count * transform.dtype.itemsize * sum(tensor.count for tensor in layout.merged)
                make_room(folder.parent, num_bytes, progress)
                with whole_folder(folder, replace=folder.exists()) as temporary:
                    _make(temporary, worker, layout, transform, count, progress)
                    written = [temporary / one.path.relative_to(folder) for one in found]
                    manifest = {**what, "digests": [file_digest(one) for one in written]}
                    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return tuple(found)


def identity_of(transform: Transform) -> tuple[str, str, str, str, bool]:
    """What tells transforms of one model apart."""
    kind = type(transform)
    return kind.__module__, kind.__qualname__, transform.key, str(transform.dtype), transform.is_shared


def still_there(files: Sequence[Calibrated]) -> bool:
    """Whether the files of a transform that were made or found before are there still; they count as used now."""
    return hold(files[0].path.parents[1])


def _is_whole(folder: Path, found: list[Calibrated]) -> bool:
    try:
        digests = read_json_object(folder / MANIFEST)["digests"]
        return bool(digests == [file_digest(one.path) for one in found])
    except (InputError, LookupError):
        return False


def _make(
    folder: Path, worker: WindowWorker, layout: Layout, transform: Transform, count: int, progress: Progress
) -> None:
    """Transform every merged tensor, and write what it gives; the largest first."""
    sizes: dict[str, int] = {}
    stored: dict[str, Any] = {}
    for tensor in layout.merged:
        sizes[tensor.name] = sizes.get(tensor.name, 0) + tensor.count
        stored[tensor.name] = (tensor.shape, transform.dtype)
    models = len(worker.models)
    calls = _calls(folder, transform_bytes(max(sizes.values(), default=0), models - 1))
    with ExitStack() as stack:
        files = []
        for index in range(count):
            (folder / str(index)).mkdir()
            files.append(stack.enter_context(TensorFiles(folder / str(index), stored, _ONE_FILE)))
        transform, shared = calls.shared(transform), calls.shared(files)
        todo = [
            Call("transform", (transform, name, shared), models * 2 * size, transform_bytes(size, models - 1))
            for name, size in _largest_first(sizes)
        ]
        meter = Meter(progress, "transforming task vectors", sum(call.num_bytes for call in todo))
        deque(calls.run(worker, todo, meter), maxlen=0)


def _largest_first(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _calls(folder: Path, memory: int) -> Calls:
    """Ray tasks, if they can write there, with a core and memory for the largest; else as many threads as fit."""
    if connected_ray() is not None and RayCalls.can_write(folder, memory):
        return RayCalls()
    room = available_memory() // max(1, memory)
    return ThreadCalls(max(1, min(usable_cores(), room)))
