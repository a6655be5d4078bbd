"""What must be set before vLLM is imported, in one place."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch

from mergebench_ray.cache import cache_folder
from mergebench_ray.machine import emulates_bf16

ACTOR_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For the `env_vars` of an engine's actor: OpenMP reads it when torch is imported, before any code of ours runs.

Threads that wait for others sleep instead of spinning. On cores that an engine shares with any other busy process,
spinning slows both down several times over.
"""
_reading = logging.getLogger("mergebench_ray.bank")
"""What is said in an engine's process of how weights come from the bank: of use beside what vLLM says."""


def engine_dtype(wanted: str) -> str:
    """What an engine on this machine computes in: what is wanted, or for "auto" what is fast.

    An x86 CPU without AVX-512 emulates bf16, which takes five times as long as float32. The weights are those of the
    bf16 checkpoint either way.
    """
    if wanted != "auto":
        return wanted
    return "float32" if emulates_bf16() and not torch.cuda.is_available() else "bfloat16"


def prepare_environment(num_threads: int, log_file: Path | None) -> None:
    """Set the environment of an engine's process; vLLM reads most of it once, at import.

    Args:
        num_threads: threads that vLLM computes with on a CPU.
        log_file: where vLLM's log goes; None drops it.

    Raises:
        RuntimeError: if vLLM was imported before in a process that was never prepared.
    """
    if "vllm" in sys.modules and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        raise RuntimeError("vllm was imported before the engine's environment was prepared; import it later")
    os.environ |= {
        # The engine core runs in the actor's own process: no second copy of the interpreter, no serialisation, and
        # nothing is left behind when the actor is killed.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # With several workers vLLM would keep a core free for its own scheduler, half of a small machine.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        # Ray sets this from the CPUs it counts for the actor, which has nothing to do with what vLLM should use.
        "OMP_NUM_THREADS": str(num_threads),
        # The terminal belongs to the sweep's own view.
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", _compiled_for_this_processor())
    # The variable alone comes too late where torch has been imported already, as in a Ray worker.
    torch.set_num_threads(num_threads)
    _send_log_to(log_file)


def _compiled_for_this_processor() -> str:
    """Folder for what torch compiles of vLLM.

    Torch's own key leaves out which instructions it compiled for, and code that was made for AVX2 counts wrongly where
    AVX-512 reads it, and the other way round: the ranks of tokens were off by the size of the vocabulary, or 0.
    """
    return str(cache_folder(f"vllm/{torch.backends.cpu.get_cpu_capability().lower()}"))


def _send_log_to(log_file: Path | None) -> None:
    logger = logging.getLogger("vllm")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    # Each load would warn of every module that was not sent, though only tensors that change are.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        _reading.removeHandler(handler)
        handler.close()
    if log_file is None:
        logger.addHandler(logging.NullHandler())
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    _reading.addHandler(handler)
