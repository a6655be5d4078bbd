"""What vLLM would be started with on a GPU, as far as vLLM itself says without one that it takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm.engine.arg_utils import EngineArgs

from mergebench_ray.config import EngineOptions
from mergebench_ray.engines.starting import start_vllm
from mergebench_ray.engines.transports import transport_class
from tiny_models import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("options", "executor", "share"),
    [
        (EngineOptions(), "uni", 0.5),
        (EngineOptions(gpu_memory_utilization=0.37, transport="gpu"), "uni", 0.37),
        (EngineOptions(tensor_parallel_size=2), "mp", 0.5),
    ],
    ids=["alone", "as planned", "two workers"],
)
def test_an_engine_on_a_gpu_has_its_share_and_never_vllms_own_ray(
    model: Path, monkeypatch: pytest.MonkeyPatch, options: EngineOptions, executor: str, share: float
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(vllm, "LLM", lambda **arguments: given.update(arguments))
    backend = transport_class(options.transport).backend
    start_vllm(model, options, 64, 0, "bfloat16", backend, on_cpu=False, settings=None)
    del given["use_tqdm_on_load"]  # of `LLM` itself
    assert EngineArgs(**given).distributed_executor_backend == executor
    assert given["gpu_memory_utilization"] == share
    assert not {"enforce_eager", "block_size", "enable_chunked_prefill"} & given.keys()  # left to vLLM on a GPU
