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

    Quantised weights are plain in the engine as they are in a merge, so that merges can take their place.

    Raises:
        InputError: as `VLLMEngine` and `Checkpoint.plain_folder`.
    """
    folder, settings = checkpoint.plain_folder(), dict(checkpoint.corrected_settings)
    return VLLMEngine(folder, options, max_model_len, log_file=log_file, settings=settings)
