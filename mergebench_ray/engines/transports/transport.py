"""The seam between a bank's memory and an engine's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from mergebench_ray.weights.manifest import WeightManifest


class WeightReceiver(Protocol):
    """The calls by which vLLM takes new weights (its `VLLMWeightSyncClient`).

    An engine offers them itself; `vllm.distributed.weight_transfer.RayVLLMWeightSyncClient` offers them for an
    engine in another process.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Make the receiving side ready; once."""

    def start_weight_update(self) -> None:
        """Make the weights ready to be replaced."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Replace some weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the replaced weights the ones that answer, under a new version."""


class WeightTransport(ABC):
    """Moves tensors of a candidate into one engine.

    Contract: a transport is made in the engine's process and used by one thread. `connect` is called once, before the
    first `send`. `send` returns when the engine answers with the new weights. If it raises, the engine's weights are
    undefined and the engine knows it: the next `send` must name every tensor.
    """

    backend: ClassVar[str]
    """Name under which vLLM's workers know the receiving side."""
    reads_devices: ClassVar[bool] = False
    """Whether the receiving side has `open`, for memory of its device that tensors of a manifest then lie in."""

    def __init__(self, receiver: WeightReceiver) -> None:
        self.receiver = receiver

    @abstractmethod
    def connect(self) -> None:
        """Meet the receiving side."""

    @abstractmethod
    def send(self, manifest: WeightManifest, names: Sequence[str]) -> None:
        """Replace the tensors called `names` by those of the manifest and set its version."""

    def close(self) -> None:  # noqa: B027 (most transports hold nothing)
        """Release what the transport holds."""
