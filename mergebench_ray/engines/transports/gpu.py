"""Memory of the GPU that bank and engine share: what a shard merges is read where it lies, by its CUDA IPC handle.

What is on another device than the engine comes through host memory, as with `shared_memory`.
"""

from __future__ import annotations

from typing import ClassVar

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from mergebench_ray.engines.transports.mapped import MappedTransport, MappedWeightTransferEngine


class GpuTransport(MappedTransport):
    """Of an engine that opens memory of its device, which its workers must all have."""

    backend: ClassVar[str] = "mergebench_ray_gpu"
    reads_devices: ClassVar[bool] = True


WeightTransferEngineFactory.register_engine(GpuTransport.backend, MappedWeightTransferEngine)
