"""Host memory that both processes map: the default, between any bank and any engine."""

from __future__ import annotations

from typing import ClassVar

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from mergebench_ray.engines.transports.mapped import MappedTransport, MappedWeightTransferEngine


class SharedMemoryTransport(MappedTransport):
    """The default transport."""

    backend: ClassVar[str] = "mergebench_ray_shared_memory"


WeightTransferEngineFactory.register_engine(SharedMemoryTransport.backend, MappedWeightTransferEngine)
