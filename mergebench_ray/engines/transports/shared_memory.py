"""Weights through memory that both processes map: names and offsets travel, bytes stay where they are.

The receiving side is a weight-transfer engine of vLLM like its own `ipc` and `nccl` ones, so that all of them go
through the same four calls. It runs inside vLLM's workers, whichever executor runs those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from mergebench_ray.engines.repacking import packed_again
from mergebench_ray.engines.transports.transport import WeightTransport
from mergebench_ray.weights.manifest import WeightManifest
from mergebench_ray.weights.memory_file import MappedFiles

BACKEND = "mergebench_ray_shared_memory"


class SharedMemoryTransport(WeightTransport):
    """The default transport, between processes of one node."""

    backend: ClassVar[str] = BACKEND
    beside_engine: ClassVar[bool] = True

    def connect(self) -> None:
        """Meet the receiving side: nothing to agree on."""
        self.receiver.init_weight_transfer_engine({})

    def send(self, manifest: WeightManifest, names: Sequence[str]) -> None:
        """Replace the tensors called `names` by those of the manifest and set its version."""
        wanted = set(names)
        tensors = [tensor for tensor in manifest.tensors if tensor.name in wanted]
        self.receiver.start_weight_update()
        self.receiver.update_weights(
            {
                "dtype": manifest.dtype,
                "names": [tensor.name for tensor in tensors],
                "shapes": [list(tensor.shape) for tensor in tensors],
                "pieces": [[[p.path, p.offset, p.count] for p in tensor.pieces] for tensor in tensors],
            }
        )
        self.receiver.finish_weight_update(manifest.version)


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing: both sides are on one node."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where tensors lie: for each, its pieces as [memory file, first element, number of elements]."""

    dtype: str
    names: list[str]
    shapes: list[list[int]]
    pieces: list[list[list[Any]]]


class SharedMemoryWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """The receiving side, in each of vLLM's workers."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = MappedFiles()

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Meet the sender: nothing to agree on."""

    def start_weight_update(self) -> None:
        """Nothing yet: the model stays usable until the new tensors are known to be there."""

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Map every tensor first, then replace the weights by them."""
        dtype = getattr(torch, update_info.dtype)
        self._files.forget_dead()
        weights = [
            (name, self._files.read(shape, dtype, pieces))
            for name, shape, pieces in zip(update_info.names, update_info.shapes, update_info.pieces, strict=True)
        ]
        with packed_again(self.model) as received:
            initialize_layerwise_reload(self.model)
            try:
                received.names = self.model.load_weights(iter(weights))
            finally:
                # After an error too: half-loaded layers would stay without storage and swallow the next load.
                finalize_layerwise_reload(self.model, self.model_config)

    def finish_weight_update(self) -> None:
        """Nothing left to do."""

    def shutdown(self) -> None:
        """Unmap all memory files."""
        self._files = MappedFiles()


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightTransferEngine)
