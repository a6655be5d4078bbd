"""As `nccl`, each worker receiving only its own part of a tensor; needs the package nccl-extensions."""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.distributed.weight_transfer import ParamMeta
from vllm.distributed.weight_transfer.m2n_common import REPLICATED, M2NMesh, M2NParamMeta
from vllm.distributed.weight_transfer.m2n_source import M2NWeightSource
from vllm.distributed.weight_transfer.m2n_trainer import M2NTrainerInitInfo

from mergebench_ray.engines.transports.sender import BankSource, Rendezvous, SendingTransport, required


class BankM2NSource(BankSource, M2NWeightSource):  # type: ignore[misc]
    """The bank's merged tensors, from one sending process that holds every one of them whole."""

    def mesh(self) -> M2NMesh:
        """The senders' topology: a single rank."""
        return M2NMesh((1, 1), 0)

    def metadata(self) -> list[ParamMeta]:
        """As `BankSource.metadata`, each tensor replicated over the senders."""
        return [M2NParamMeta(meta.name, meta.dtype, meta.shape, REPLICATED) for meta in super().metadata()]


class NCCLM2NTransport(SendingTransport):
    """vLLM's `nccl_m2n`; its source is a `BankM2NSource`, and its plan is made once, over all tensors."""

    backend: ClassVar[str] = "nccl_m2n"
    sends_all: ClassVar[bool] = True

    @classmethod
    def init_info(cls, rendezvous: Rendezvous | None, rank: int = 0) -> Any:
        """What vLLM's sender is made from.

        Raises:
            ValueError: if there is no rendezvous.
        """
        return M2NTrainerInitInfo(rank=rank, **required(rendezvous, cls.backend).settings())
