"""An engine that starts with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import EngineOptions
from mergebench_ray.engines.vllm_engine import VLLMEngine


def engine_of(
    checkpoint: Checkpoint, options: EngineOptions, max_model_len: int, log_file: Path | None = None
) -> VLLMEngine:
    """Start an engine with a checkpoint, whose files are fetched to this node first where they are not here.

    Raises:
        InputError: as `VLLMEngine` and `Checkpoint.fetch`.
    """
    checkpoint.fetch()
    return VLLMEngine(
        checkpoint.folder, options, max_model_len, log_file=log_file, settings=dict(checkpoint.corrected_settings)
    )
