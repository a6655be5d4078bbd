"""What vLLM is started with, and how long what it does may take."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.config import EngineOptions
from mergebench_ray.errors import InputError, refusing
from mergebench_ray.steps import STEP_SECONDS

_ALLOW_MORE = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_SLOWEST_CPU = 2e10
"""Bytes of weights times tokens in a second, at the least: two cores with AVX512-bf16 do twenty times as much."""
_UNPLANNED_SHARE = 0.5
"""Of a GPU, for an engine that nobody has planned beside what else may be there."""
_SLOWEST_LOAD = 1e7
"""Bytes of weights in a second, at the least, from wherever they come."""


def start_vllm(
    model_folder: Path,
    options: EngineOptions,
    max_model_len: int,
    seed: int,
    dtype: str,
    backend: str,
    *,
    on_cpu: bool,
    settings: Mapping[str, Any] | None,
) -> Any:
    """Start vLLM, once its environment is prepared.

    Args:
        model_folder: safetensors, config and tokenizer.
        options: the sweep's engine options.
        max_model_len: longest prompt plus answer, in tokens.
        seed: of its own random numbers.
        dtype: what it computes in.
        backend: vLLM's name of the transport of weights.
        on_cpu: whether it computes on a CPU.
        settings: what replaces settings of the folder's config.json.

    Returns:
        vLLM's `LLM`.

    Raises:
        InputError: if vLLM cannot run the model, or the model is not made for that length.
    """
    # Only here, since vLLM reads its environment when it is imported.
    from vllm import LLM

    from mergebench_ray.engines.worker import EngineWorker

    with refusing(
        f"{model_folder}: vLLM does not start with this model",
        "the engine's log has the traceback, where one is kept",
        logging.getLogger("vllm"),
    ):
        # What transformers reads, where a folder also holds a model in Mistral's own format.
        reading: dict[str, Any] = {
            "model": str(model_folder),
            "hf_overrides": dict(settings or {}),
            "config_format": "hf",
            "tokenizer_mode": "hf",
        }
        model = _model_config(model_folder, max_model_len, reading)
        return LLM(
            **reading,
            trust_remote_code=False,
            dtype=dtype,
            seed=seed,
            max_model_len=_with_room_to_score(max_model_len),
            max_num_seqs=options.max_num_seqs,
            tensor_parallel_size=options.tensor_parallel_size,
            load_format="safetensors",
            # Of state-space layers vLLM keeps prefixes only where it reads prompts in parts.
            enable_prefix_caching=not on_cpu or not (model.is_hybrid or model.is_attention_free),
            # Only text is asked, so that what sees and hears need not be in memory.
            language_model_only=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            weight_transfer_config={"backend": backend},
            # In a placement group vLLM would start Ray's workers by itself, for which the group has no GPUs left.
            distributed_executor_backend="uni" if options.tensor_parallel_size == 1 else "mp",
            worker_extension_cls=f"{EngineWorker.__module__}.{EngineWorker.__qualname__}",
            **(_cpu_arguments(options) if on_cpu else _gpu_arguments(options)),
        )


def longest_step(model_folder: Path, tokens: int) -> float:
    """Seconds that a step of so many tokens takes at most on a CPU; with large models and long prompts that is long."""
    return max(STEP_SECONDS, _weight_bytes(model_folder) * tokens / _SLOWEST_CPU)


def longest_load(model_folder: Path) -> float:
    """Seconds that a load of all weights takes at most."""
    return _weight_bytes(model_folder) / _SLOWEST_LOAD


def _weight_bytes(model_folder: Path) -> int:
    return sum(file.stat().st_size for file in model_folder.glob("*.safetensors"))


def _model_config(model_folder: Path, max_model_len: int, reading: Mapping[str, Any]) -> Any:
    """What vLLM makes of a model's configuration, read as it will be.

    Raises:
        InputError: if the model is not made for `max_model_len`.
    """
    from vllm.engine.arg_utils import EngineArgs

    os.environ.pop(_ALLOW_MORE, None)
    try:
        return EngineArgs(**reading, trust_remote_code=False, max_model_len=max_model_len).create_model_config()
    except ValueError as error:
        found = re.search(r"User-specified max_model_len .*?\)\.", str(error))
        if found is None:
            raise
        raise InputError(f"{model_folder}: {found[0]} Lower the suite's max_model_len") from error


def _with_room_to_score(max_model_len: int) -> int:
    """The length that vLLM is given: one more, for the token that it generates after a prompt that fills the model.

    That token's log-probability is what is wanted. It is never read, so no position beyond the model's own is used.
    """
    os.environ[_ALLOW_MORE] = "1"
    return max_model_len + 1


def _cpu_arguments(options: EngineOptions) -> dict[str, Any]:
    return {
        # Compiling takes minutes at the start and gains a tenth.
        "enforce_eager": True,
        # vLLM rewinds the random numbers of a seeded prompt that it has read in part, which fails on a CPU.
        "enable_chunked_prefill": False,
        # Only whole blocks of a context are reused; the smallest that its attention has, as fast as the default of 128.
        "block_size": 32,
        "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
    }


def _gpu_arguments(options: EngineOptions) -> dict[str, Any]:
    return {"gpu_memory_utilization": options.gpu_memory_utilization or _UNPLANNED_SHARE}
