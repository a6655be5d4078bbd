"""The part of an engine that runs in each of vLLM's worker processes."""

from __future__ import annotations

from typing import Any

from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines.repacking import packed_again
from mergebench_ray.engines.transports import transport_class
from mergebench_ray.weights.device_memory import DeviceMemory

for _name in TRANSPORTS:
    transport_class(_name)


class EngineWorker:
    """What is asked of each of vLLM's workers besides its own calls.

    It is vLLM's `worker_extension_cls`: naming it makes every worker process import this module, which registers the
    receiving sides that are ours.
    """

    def read_base_again(self) -> None:
        """Load the model folder that vLLM started from, in place."""
        worker: Any = self  # vLLM makes it a base of its worker's class
        with packed_again(worker.get_model()):
            worker.reload_weights()

    def open_memory(self, device: str, path: str) -> str:
        """Open memory of this worker's device; why it cannot, or empty."""
        worker: Any = self
        return str(worker.weight_transfer_engine.open(DeviceMemory(device, path)))

    def norm_classes(self) -> list[str]:
        """Names of the classes of the model's norms."""
        worker: Any = self
        names = {type(module).__name__ for module in worker.get_model().modules()}
        return sorted(name for name in names if "norm" in name.lower())
