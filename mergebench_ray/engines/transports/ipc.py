"""Between bank and engine on the same GPU: CUDA IPC handles travel, bytes stay where they are."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from mergebench_ray.engines.transports.sender import Rendezvous, SendingTransport


class IPCTransport(SendingTransport):
    """vLLM's `ipc`; it needs no rendezvous."""

    backend: ClassVar[str] = "ipc"

    @classmethod
    def init_info(cls, rendezvous: Rendezvous | None, rank: int = 0) -> Any:
        """What vLLM's sender is made from."""
        return IPCTrainerInitInfo(rank=rank)
