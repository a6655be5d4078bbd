"""Transports: how merged weights travel to an engine, one file each.

To add one, write a file with a subclass of `WeightTransport` and name it in `config/transports.py`.
"""

from __future__ import annotations

import importlib

from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines.transports.transport import WeightReceiver, WeightTransport

__all__ = ["WeightReceiver", "WeightTransport", "transport_class"]


def transport_class(name: str) -> type[WeightTransport]:
    """The transport of this name; importing it imports vLLM."""
    module, _, found = TRANSPORTS[name].rpartition(".")
    transport: type[WeightTransport] = getattr(importlib.import_module(module), found)
    return transport
