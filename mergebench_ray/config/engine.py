"""Settings of vLLM engines, those that score candidates and those that judges run in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergebench_ray.config.fields import Strict
from mergebench_ray.config.transports import TransportName


class EngineSettings(Strict):
    """What every engine has."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=1024, description="Workers that share an engine's model.")
    max_num_seqs: int = Field(default=128, ge=1, le=65_536, description="Sequences that run at once.")
    kv_cache_gib: float = Field(
        default=1.0, gt=0, le=1e6, description="Memory of the key-value cache on a CPU, in GiB."
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory for vLLM; None for what the plan leaves it beside bank and judges.",
    )
    num_gpus: float | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="GPUs that Ray sets aside for an engine; below 1 it shares one. None for tensor_parallel_size, "
        "where an engine of one worker shares its GPU with what fits beside it in a search.",
    )

    @property
    def gpus(self) -> float:
        """GPUs that Ray sets aside for one engine where there are any; one of several workers has theirs whole."""
        parallel = self.tensor_parallel_size
        if self.num_gpus is None:
            return parallel
        return self.num_gpus if parallel == 1 else max(self.num_gpus, parallel)


class EngineOptions(EngineSettings):
    """The vLLM engines that score candidates."""

    count: int = Field(default=1, ge=1, le=10_000, description="How many engines.")
    division: Literal["auto", "candidates", "items"] = Field(
        default="auto",
        description="Engines score a candidate each, or share the items of one; auto lets the planner choose.",
    )
    transport: TransportName = Field(default="shared_memory", description="How merged weights travel to the engine.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="What engines compute in; auto is bfloat16, but float32 on a CPU that is slow in it.",
    )
