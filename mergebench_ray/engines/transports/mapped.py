"""Weights through memory that both processes map: names and offsets travel, bytes stay where they are.

What lies elsewhere, on other nodes or on disk, the manifest brings into such memory itself, a bucket at a time.

The receiving side is a weight-transfer engine of vLLM like its own `ipc` and `nccl` ones, so that all of them go
through the same four calls. It runs inside vLLM's workers, whichever executor runs those.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from mergebench_ray.engines.repacking import Received, packed_again
from mergebench_ray.engines.transports.transport import WeightTransport
from mergebench_ray.weights.device_memory import DeviceMemory
from mergebench_ray.weights.manifest import WeightBucket, WeightManifest
from mergebench_ray.weights.memory_file import MappedFiles


class MappedTransport(WeightTransport):
    """Tells the receiving side where a manifest's tensors lie."""

    def connect(self) -> None:
        """Meet the receiving side: nothing to agree on."""
        self.receiver.init_weight_transfer_engine({})

    def send(self, manifest: WeightManifest, names: Sequence[str]) -> None:
        """Replace the tensors called `names` by those of the manifest, bucket by bucket, and set its version."""
        self.receiver.start_weight_update()
        try:
            with closing(manifest.buckets(names)) as buckets:
                for bucket in buckets:
                    self.receiver.update_weights(_update_info(manifest.dtype, bucket))
        except BaseException:
            # Where a bucket did not come, vLLM still waits for it, its layers taken apart.
            with suppress(Exception):
                self.receiver.finish_weight_update()
            raise
        self.receiver.finish_weight_update(manifest.version)


def _update_info(dtype: str, bucket: WeightBucket) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "names": [tensor.name for tensor in bucket.tensors],
        "shapes": [list(tensor.shape) for tensor in bucket.tensors],
        "pieces": [[[p.path, p.offset, p.count] for p in tensor.pieces] for tensor in bucket.tensors],
        "is_last": bucket.is_last,
    }


@dataclass
class MappedInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing: both sides are on one node."""


@dataclass
class MappedUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A bucket: for each tensor, its pieces as [path of memory, first element, number of elements]."""

    dtype: str
    names: list[str]
    shapes: list[list[int]]
    pieces: list[list[list[Any]]]
    is_last: bool


class MappedWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """The receiving side, in each of vLLM's workers."""

    init_info_cls = MappedInitInfo
    update_info_cls = MappedUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = MappedFiles(self.device)
        self._load = ExitStack()
        self._received: Received | None = None

    def init_transfer_engine(self, init_info: MappedInitInfo) -> None:
        """Nothing to agree on: both sides are on one node."""

    def start_weight_update(self) -> None:
        """Nothing yet: the model stays usable until the new tensors are known to be there."""

    def receive_weights(self, update_info: MappedUpdateInfo) -> None:
        """Map every tensor of a bucket first, then replace the weights by them.

        A module whose tensors are in several buckets is replaced once all of them are there; what vLLM keeps until then
        is copied, as the next bucket takes its place.
        """
        dtype = getattr(torch, update_info.dtype)
        self._files.forget_dead()
        try:
            weights = [
                (name, self._files.read(shape, dtype, pieces))
                for name, shape, pieces in zip(update_info.names, update_info.shapes, update_info.pieces, strict=True)
            ]
            if self._received is None:
                self._received = self._load.enter_context(_replacing(self.model, self.model_config))
            self._received.add(self.model.load_weights(iter(weights)))
            if not update_info.is_last:
                _copy_kept(self.model, weights)
        except BaseException:
            self._received = None
            self._load.__exit__(*sys.exc_info())
            raise
        if update_info.is_last:
            self._end()

    def finish_weight_update(self) -> None:
        """End a load whose last bucket never came; nothing is left to do of others."""
        self._end()

    def _end(self) -> None:
        self._received = None
        self._load.close()

    def open(self, memory: DeviceMemory) -> str:
        """Open memory of this worker's device, from which buckets will come: an `Opener`."""
        return self._files.open(memory)

    def shutdown(self) -> None:
        """Unmap all memory."""
        self._files = MappedFiles(self.device)


def _copy_kept(model: torch.nn.Module, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Copy what vLLM holds of a bucket's tensors for modules that are not complete yet."""
    bucket = {tensor.untyped_storage().data_ptr() for _, tensor in weights}

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            lies_there = value.device.type == "cpu" and value.untyped_storage().data_ptr() in bucket
            return value.clone() if lies_there else value
        if isinstance(value, tuple | list):
            return type(value)(map(copied, value))
        return {key: copied(one) for key, one in value.items()} if isinstance(value, dict) else value

    for module in model.modules():
        for _, call in get_layerwise_info(module).loaded_weights:
            for name, value in call.arguments.items():
                call.arguments[name] = copied(value)


@contextmanager
def _replacing(model: torch.nn.Module, model_config: Any) -> Iterator[Received]:
    """Around what loads new weights into vLLM's model, in one part or several."""
    with packed_again(model) as received:
        initialize_layerwise_reload(model)
        try:
            yield received
        finally:
            # After an error too: half-loaded layers would stay without storage and swallow the next load.
            finalize_layerwise_reload(model, model_config)
