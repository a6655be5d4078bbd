"""The ways in which merged weights travel to an engine: a row for each, and a file in `engines/transports/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

_FOLDER = "mergebench_ray.engines.transports"
TRANSPORTS: Mapping[str, str] = {
    "shared_memory": f"{_FOLDER}.shared_memory.SharedMemoryTransport",
    "gpu": f"{_FOLDER}.gpu.GpuTransport",
}
"""Name in a sweep -> the class, by its path: it is imported in the processes that use it, since it imports vLLM."""
READ_DEVICES = frozenset({"gpu"})
"""Those by which an engine reads what shards on its GPU have merged where it lies."""

if TYPE_CHECKING:
    TransportName = str
else:
    TransportName = Literal[tuple(TRANSPORTS)]
