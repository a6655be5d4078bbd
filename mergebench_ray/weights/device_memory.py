"""Memory of a device that other processes open where it lies: a GPU's, by its CUDA IPC handle.

A handle travels as text, so that nothing of it is unpickled. Host memory is opened in the same way, by its path, which
makes a machine without a GPU a device as well.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from mergebench_ray.machine import connected_ray

ELSEWHERE = "it lies in"
"""What a problem begins with that stays as long as the memory: a reader has another device, or another node."""

_SCHEME = "cuda:"
_SIZES = ("storage_size_bytes", "storage_offset_bytes", "ref_counter_offset")
_BYTES = ("storage_handle", "ref_counter_handle", "event_handle")


@dataclass(frozen=True)
class DeviceMemory:
    """Where memory lies, for a process that may open it.

    Attributes:
        device: as `device_name` calls it.
        path: what `Piece.path` may be.
        problem: why nobody can open it; empty where it can be.
    """

    device: str
    path: str
    problem: str = ""


Opener: TypeAlias = Callable[[DeviceMemory], str]
"""Opens memory; why it cannot, in a few words, or empty where it is open."""


def device_name(device: torch.device) -> str:
    """A name that two processes give a device exactly if it is the same one: a GPU's UUID, or a node's host memory."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_properties(device).uuid}"
    return f"host memory of {this_node() or 'this machine'}"


def this_node() -> str:
    """Ray's id of the node that this process runs on; empty without Ray."""
    ray = connected_ray()
    return "" if ray is None else str(ray.get_runtime_context().get_node_id())


def on_gpu(path: str) -> bool:
    """Whether a path is that of a GPU's memory."""
    return path.startswith(_SCHEME)


def share(memory: Tensor, owner: str) -> str:
    """The path of a GPU's memory, for one process that opens it.

    Args:
        memory: flat, with a storage of its own, which lives until that process is done with it.
        owner: a file that is there as long as the memory is.

    Raises:
        RuntimeError: CUDA cannot share it.
    """
    _, arguments = reduce_tensor(memory)
    return _as_text(inspect.signature(rebuild_cuda_tensor).bind(*arguments).arguments, owner)


def opened(path: str, device: torch.device) -> Tensor:
    """A GPU's memory as bytes, uint8, while its owner lives.

    Args:
        path: as `share` made it.
        device: the same GPU, as this process calls it.

    Raises:
        ValueError: it is no such path.
        RuntimeError: CUDA cannot open it.
    """
    given, _, _ = _of_text(path)
    storage: dict[str, Any] = {"tensor_cls": Tensor, "storage_cls": torch.TypedStorage, "dtype": torch.uint8}
    whole = {"tensor_size": (given["storage_size_bytes"],), "tensor_stride": (1,), "tensor_offset": 0}
    memory: Tensor = rebuild_cuda_tensor(
        **storage, **whole, **given, storage_device=device.index or 0, requires_grad=False
    )
    return memory


def owner_of(path: str) -> os.stat_result:
    """The file that is there as long as a memory is: host memory itself, or what `share` was given.

    Raises:
        OSError: it is gone, and the memory with it.
        ValueError: it is no such path.
    """
    if not on_gpu(path):
        return os.stat(path)
    _, owner, identity = _of_text(path)
    status = os.stat(owner)
    # A path such as /proc/PID/fd/N may name another file tomorrow; its inode tells.
    if [status.st_dev, status.st_ino] != identity:
        raise FileNotFoundError(errno.ENOENT, "GPU memory's owner has gone, another file is in its place", owner)
    return status


def _as_text(arguments: dict[str, Any], owner: str) -> str:
    kept = {name: arguments[name] for name in (*_SIZES, "event_sync_required")}
    handles = {name: bytes(arguments[name]).hex() for name in _BYTES}
    status = os.stat(owner)
    return _SCHEME + json.dumps({**kept, **handles, "owner": owner, "identity": [status.st_dev, status.st_ino]})


def _of_text(path: str) -> tuple[dict[str, Any], str, list[int]]:
    """Arguments of `rebuild_cuda_tensor`, the owner, and its device and inode."""
    try:
        given = json.loads(path.removeprefix(_SCHEME))
        owner, identity = given.pop("owner"), given.pop("identity")
        handles = {name: bytes.fromhex(given.pop(name)) for name in _BYTES}
        if given.keys() != {*_SIZES, "event_sync_required"} or not isinstance(owner, str):
            raise ValueError("other fields")
        if not all(isinstance(given[name], int) and given[name] >= 0 for name in _SIZES):
            raise ValueError("sizes below 0")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a path of GPU memory ({error}): {path:.100}") from error
    return {**given, **handles}, owner, identity
