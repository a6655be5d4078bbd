"""From a process on another GPU or node, which broadcasts to all of the engine's workers."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from mergebench_ray.engines.transports.sender import Rendezvous, SendingTransport, required


class NCCLTransport(SendingTransport):
    """vLLM's `nccl`."""

    backend: ClassVar[str] = "nccl"

    @classmethod
    def init_info(cls, rendezvous: Rendezvous | None, rank: int = 0) -> Any:
        """What vLLM's sender is made from.

        Raises:
            ValueError: if there is no rendezvous.
        """
        return NCCLTrainerInitInfo(rank=rank, **required(rendezvous, cls.backend).settings())
