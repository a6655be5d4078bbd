"""Weights between GPUs, by vLLM's own weight-transfer engines: what the transports `ipc`, `nccl` and `nccl_m2n` share.

The sender is written against vLLM's `WeightSource` and its trainer-side engines; the receiving side is vLLM's own. None
of this has run on a GPU yet. What the tests show without one: that vLLM's real factories, sources and engines accept
these classes, and that what the source announces is what it yields.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory

from mergebench_ray.engines.transports.transport import WeightReceiver, WeightTransport
from mergebench_ray.weights.manifest import WeightManifest

ReadTensors = Callable[[Sequence[str]], Iterable[tuple[str, torch.Tensor]]]
"""Streams the tensors of these names, in this order, each whole, on the sender's GPU."""


@dataclass(frozen=True)
class Rendezvous:
    """Where sender and workers meet for NCCL.

    Attributes:
        address: host of the sender.
        port: free port on it.
        num_workers: workers of the engine.
    """

    address: str
    port: int
    num_workers: int

    def settings(self) -> dict[str, Any]:
        """As vLLM's senders take it."""
        return {"master_address": self.address, "master_port": self.port, "world_size": 1 + self.num_workers}


class BankSource(WeightSource):  # type: ignore[misc]
    """The bank's merged tensors, as vLLM's senders want them.

    Args:
        manifest: any candidate's manifest: names, shapes and dtype are the same for all.
        read: streams tensors of the last merge.
        held: names that this process holds where several processes share a bank; None for all.
    """

    def __init__(self, manifest: WeightManifest, read: ReadTensors, held: Collection[str] | None = None) -> None:
        dtype = getattr(torch, manifest.dtype)
        self._all = [ParamMeta(tensor.name, dtype, tensor.shape) for tensor in manifest.tensors]
        self._selected = self._all
        self._read = read
        self._held = None if held is None else frozenset(held)

    def select(self, names: Collection[str]) -> None:
        """Send only these tensors from now on."""
        wanted = set(names)
        self._selected = [meta for meta in self._all if meta.name in wanted]

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and whole shape of each tensor to send, in sending order."""
        return list(self._selected)

    def held_names(self) -> Collection[str] | None:
        """Names that this process holds, or None for all."""
        return self._held

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """A fresh pass over the tensors; a tensor that this process does not hold comes as None.

        Only the groups (layers) of which this process holds a part appear, as vLLM asks.
        """
        names = [name for group in self.groups() for name in group]
        tensors = iter(self._read([name for name in names if self._held is None or name in self._held]))
        for name in names:
            if self._held is not None and name not in self._held:
                yield name, None
                continue
            found, tensor = next(tensors)
            if found != name:
                raise RuntimeError(f"the bank streamed {found} where {name} was due")
            yield name, tensor


class _NewVersion:
    """A receiver that gives the weights their version when vLLM's sender, which knows of none, finishes."""

    def __init__(self, receiver: WeightReceiver) -> None:
        self._receiver = receiver
        self.version: str | None = None
        self.init_weight_transfer_engine = receiver.init_weight_transfer_engine
        self.start_weight_update = receiver.start_weight_update
        self.update_weights = receiver.update_weights

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._receiver.finish_weight_update(weight_version or self.version)


class SendingTransport(WeightTransport):
    """Sends from the process that holds the merged tensors on a GPU.

    Args:
        receiver: the engine, or a stand-in that calls it in its actor.
        source: the tensors.
        rendezvous: where both sides meet, for transports that need one.
    """

    sends_all: ClassVar[bool] = False
    """Whether every send moves all tensors, named or not."""

    def __init__(self, receiver: WeightReceiver, source: BankSource, rendezvous: Rendezvous | None = None) -> None:
        super().__init__(receiver)
        self._client = _NewVersion(receiver)
        self._source = source
        self._init_info = self.init_info(rendezvous)
        self._sender: Any = None

    @classmethod
    @abstractmethod
    def init_info(cls, rendezvous: Rendezvous | None, rank: int = 0) -> Any:
        """What vLLM's sender is made from.

        Raises:
            ValueError: if a rendezvous is needed and there is none.
        """

    def connect(self) -> None:
        """Meet the receiving side; blocks until all workers have joined."""
        self._sender = WeightTransferTrainerFactory.trainer_init(
            self._init_info, client=self._client, source=self._source
        )

    def send(self, manifest: WeightManifest, names: Sequence[str]) -> None:
        """Replace the tensors called `names`, or all of them, and set the manifest's version."""
        if not self.sends_all:
            self._source.select(names)
        self._client.version = manifest.version
        self._sender.send_weights()

    def close(self) -> None:
        """Leave the senders' group."""
        if self._sender is not None:
            self._sender.shutdown()


def required(rendezvous: Rendezvous | None, backend: str) -> Rendezvous:
    """The rendezvous.

    Raises:
        ValueError: if there is none.
    """
    if rendezvous is None:
        raise ValueError(f"backend {backend} needs a rendezvous")
    return rendezvous
