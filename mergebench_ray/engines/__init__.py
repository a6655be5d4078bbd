"""Engines that answer with weights replaced in place, and how the weights get there.

vLLM itself is imported when an engine is made, not before: it reads its environment at import.
"""

from __future__ import annotations

from mergebench_ray.engines.requests import (
    Generation,
    GenerationRequest,
    Likelihood,
    LoadReport,
    LoglikelihoodRequest,
    Request,
)
from mergebench_ray.engines.transports.transport import WeightReceiver, WeightTransport
from mergebench_ray.engines.vllm_engine import VLLMEngine

__all__ = [
    "Generation",
    "GenerationRequest",
    "Likelihood",
    "LoadReport",
    "LoglikelihoodRequest",
    "Request",
    "VLLMEngine",
    "WeightReceiver",
    "WeightTransport",
]
