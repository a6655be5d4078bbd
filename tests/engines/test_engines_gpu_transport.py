"""Weights from a bank through every transport into a real vLLM, and through `gpu` from where shards wrote them.

Without a GPU the device is host memory: names of devices, handles, buckets and what falls back are the same, CUDA's own
calls are not made.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mergebench_ray.bank import Bank, Merged
from mergebench_ray.bank.shard import BankShard
from mergebench_ray.checkpoints import resolve
from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines import LoglikelihoodRequest, VLLMEngine
from mergebench_ray.engines.transports import transport_class
from mergebench_ray.weights.device_memory import DeviceMemory
from mergebench_ray.weights.memory_file import MemoryFile

pytestmark = pytest.mark.usefixtures("without_compiler")
LAYERS = 30
QUESTION = LoglikelihoodRequest([504, 2365, 282, 4649, 314], [7042, 28, 284])


@pytest.fixture(scope="module")
def bank(base_folder: Path, tmp_path_factory: pytest.TempPathFactory, without_compiler: None) -> Iterator[Bank]:
    """Two shards, cut inside a tensor; the specialist is the base with other attention."""
    folder = tmp_path_factory.mktemp("specialist")
    for file in (base_folder / "config.json", *base_folder.glob("tokenizer*")):
        shutil.copy(file, folder)
    tensors = load_file(next(base_folder.glob("*.safetensors")))
    changed = {name: 1.5 * one if "v_proj" in name else one for name, one in tensors.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    bank = Bank.load(
        resolve(str(base_folder)), {"a": resolve(str(folder))}, shards=2, threads=1, in_process=True, use_gpu=False
    )
    yield bank
    bank.close()


@pytest.fixture
def over(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The running engine with another transport: its receiving side in vLLM's worker, as at a start."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    def through(name: str) -> VLLMEngine:
        kind = transport_class(name)
        worker: Any = engine._llm.llm_engine.model_executor.driver_worker.worker
        config, settings = WeightTransferConfig(backend=kind.backend), worker.vllm_config
        receiving = WeightTransferEngineFactory.create_engine(config, settings, worker.device, worker.get_model())
        monkeypatch.setattr(worker, "weight_transfer_engine", receiving)
        monkeypatch.setattr(engine, "_transport", kind(engine))
        engine._transport.connect()
        engine.restore_base()
        return engine

    return through


@pytest.fixture
def paths(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Where the tensors of each bucket lay that vLLM was given."""
    found: list[set[str]] = []
    update = engine._llm.update_weights

    def noted(given: dict[str, Any]) -> None:
        pieces = itertools.chain.from_iterable(given["update_info"]["pieces"])
        found.append({path for path, *_ in pieces})
        update(given)

    monkeypatch.setattr(engine._llm, "update_weights", noted)
    return found


def merged(bank: Bank, *coefficients: float) -> Merged:
    return bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": {"a": list(coefficients)}}))


def loaded(engine: VLLMEngine, bank: Bank, candidate: Merged) -> int:
    """How many tensors were sent."""
    return engine.load(bank.localise(candidate.manifest, candidate.places, engine.opener)).tensors


def answer(engine: VLLMEngine) -> float:
    return engine.loglikelihood([QUESTION])[0][0]


def shard(bank: Bank, index: int) -> BankShard:
    return bank._shards._shards[index]  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def cards(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MemoryFile]]:
    """A device's memory of its own for each shard, as on a GPU."""
    made = []
    for one in (shard(bank, 0), shard(bank, 1)):
        made.append(MemoryFile(len(one._output.tensor)))
        made[-1].tensor.copy_(one._output.tensor)
        monkeypatch.setattr(one._output, "_memory", made[-1])
    bank._paths.clear()
    yield made
    for one in made:
        one.close()
    bank._paths.clear()
    for index in (0, 1):
        shard(bank, index)._held.clear()  # what was written there is not where it is read next


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_merge_answers_through_every_transport_as_the_same_weights_from_disk(
    over: Any, bank: Bank, base_folder: Path, name: str
) -> None:
    engine = over(name)
    cold = answer(engine)
    assert loaded(engine, bank, merged(bank, 0.0)) == 271
    assert answer(engine) == cold
    assert loaded(engine, bank, merged(bank, 1.0)) == 271
    assert answer(engine) != cold
    assert loaded(engine, bank, merged(bank, 0.0)) == 271
    assert answer(engine) == cold


@pytest.mark.parametrize("name", TRANSPORTS)
def test_only_layers_that_changed_move(over: Any, bank: Bank, name: str) -> None:
    engine = over(name)
    some = [0.3] * LAYERS
    loaded(engine, bank, merged(bank, *some))
    first = answer(engine)
    some[12] = 0.9
    assert loaded(engine, bank, merged(bank, *some)) == 9  # the tensors of a layer
    assert answer(engine) != first
    assert loaded(engine, bank, merged(bank, *some)) == 0
    some[12] = 0.3
    assert loaded(engine, bank, merged(bank, *some)) == 9
    assert answer(engine) == first


def test_what_lies_on_the_engines_device_is_read_there_and_never_copied_to_the_host(
    over: Any, bank: Bank, cards: list[MemoryFile], paths: list[set[str]]
) -> None:
    candidate = merged(bank, 0.7)
    engine = over("gpu")
    assert loaded(engine, bank, candidate) == 271
    assert paths == [{cards[0].path, cards[1].path}]
    assert shard(bank, 0)._output._unpublished
    found = answer(engine)
    over("shared_memory")
    assert loaded(engine, bank, candidate) == 271
    assert paths[1:] == [{shard(bank, 0)._output.path, shard(bank, 1)._output.path}]
    assert not shard(bank, 0)._output._unpublished
    assert answer(engine) == found


def test_what_lies_on_another_device_comes_through_host_memory_with_one_line(
    over: Any,
    bank: Bank,
    cards: list[MemoryFile],
    paths: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shard(bank, 1)._output, "shared", lambda: DeviceMemory("GPU another", cards[1].path))
    engine = over("gpu")
    for coefficient in (0.7, 0.2):
        assert loaded(engine, bank, merged(bank, coefficient)) == 271
    # What is in both shards comes as a whole from the host.
    host = {shard(bank, 0)._output.path, shard(bank, 1)._output.path}
    assert paths == [{cards[0].path}, host] * 2
    [line] = [record.getMessage() for record in caplog.records if "host memory" in record.getMessage()]
    assert line.startswith("what shard 1 merges comes through host memory: it lies in GPU another, and host memory of")
    found = answer(engine)
    over("shared_memory")
    loaded(engine, bank, merged(bank, 0.2))
    assert answer(engine) == found


def test_a_shard_that_has_merged_something_else_shares_nothing(bank: Bank) -> None:
    first = merged(bank, 0.3)
    merged(bank, 0.4)
    bank._paths.clear()
    with pytest.raises(RuntimeError, match="merged something else"):
        bank.localise(first.manifest, first.places, lambda _memory: "")


@pytest.mark.parametrize("problem", ["", "CUDA error: invalid argument"])
def test_memory_that_is_gone_or_cannot_be_shared_is_not_opened(over: Any, problem: str) -> None:
    engine = over("gpu")
    device = MemoryFile(1).shared().device
    assert engine.opener is not None
    assert engine.opener(DeviceMemory(device, "/proc/1/fd/999999", problem)).endswith(problem or "'/proc/1/fd/999999'")
