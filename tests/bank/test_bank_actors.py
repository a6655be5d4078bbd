"""The bank as Ray actors: the same bits as in one process, weights through memory files, errors as themselves."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from bank_in_process import LocalBank
from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from mergebench_ray.weights.memory_file import map_memory
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

Models = tuple[Checkpoint, dict[str, Checkpoint]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", tied=False)
    specialists = {name: resolve(str(tiny_specialist(folder / name, base, seed=i))) for i, name in enumerate("abc")}
    return resolve(str(base)), specialists


@pytest.fixture(scope="module")
def bank(models: Models, ray_cluster: None) -> Iterator[Bank]:
    bank = Bank.load(*models, shards=3, threads=1)
    yield bank
    bank.close()


def test_actors_give_the_bits_of_one_process(bank: Bank, models: Models) -> None:
    local = LocalBank(*models)
    for method in ("dare", "ties"):
        merged = bank.merge(bank.recipe(method, {}))
        expected = local.merge(method, {})
        found = {name: tensor.clone() for name, tensor in bank.tensors()}
        assert found.keys() == expected.keys() == {tensor.name for tensor in merged.manifest.tensors}
        assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in found)


def test_the_manifest_lets_any_process_of_the_node_map_the_tensors(bank: Bank) -> None:
    merged = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": 0.6}))
    expected = {name: tensor.clone() for name, tensor in bank.tensors()}
    assert merged.manifest.version == bank.recipe("task_arithmetic", {"scaling_coef": 0.6}).digest
    assert any(len(tensor.pieces) > 1 for tensor in merged.manifest.tensors), "no tensor is split over shards"
    for tensor in merged.manifest.tensors:
        parts = [map_memory(p.path, p.offset + p.count)[p.offset :] for p in tensor.pieces]
        assert torch.equal(torch.cat(parts).view(tensor.shape), expected[tensor.name])


def test_fingerprints_change_with_the_content_only(bank: Bank) -> None:
    def fingerprints(coefficients: list[float]) -> dict[str, str]:
        values = {"a": coefficients, "b": 0.1, "c": 0.1}
        manifest = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": values})).manifest
        return {tensor.name: tensor.fingerprint for tensor in manifest.tensors}

    first, second = fingerprints([0.2, 0.4]), fingerprints([0.2, 0.5])
    assert all((first[name] == second[name]) == (".layers.0." in name) for name in first)
    assert fingerprints([0.2, 0.4]) == first


def test_a_pickled_handle_merges_in_another_process(bank: Bank) -> None:
    @ray.remote(num_cpus=0)
    def merge_elsewhere(handle: bytes) -> tuple[int, dict[str, float]]:
        other: Bank = pickle.loads(handle)
        other.merge(other.recipe("model_soup", {}))
        return os.getpid(), {name: float(tensor.float().sum()) for name, tensor in other.tensors()}

    process, sums = ray.get(merge_elsewhere.remote(pickle.dumps(bank)))
    assert process != os.getpid()
    bank.merge(bank.recipe("model_soup", {}))
    assert sums == {name: float(tensor.float().sum()) for name, tensor in bank.tensors()}


def test_a_recipe_of_other_models_is_refused(bank: Bank) -> None:
    recipe = bank.recipe("model_soup", {}).model_copy(update={"base_digest": "0" * 64})
    with pytest.raises(InputError, match="digests differ"):
        bank.merge(recipe)


def test_a_weight_that_is_not_finite_reaches_the_driver_as_one_line(bank: Bank, models: Models, tmp_path: Path) -> None:
    base, specialists = models
    broken = tiny_specialist(tmp_path / "broken", base.folder, seed=3)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"broken.*model\.norm\.weight.*NaN or infinity") as caught:
        Bank.load(base, {**specialists, "b": resolve(str(broken))}, shards=2, threads=1)
    assert "\n" not in str(caught.value)
    del bank


def test_loading_reports_progress(models: Models, bank: Bank) -> None:
    seen: list[float] = []
    other = Bank.load(*models, shards=2, threads=1, progress=lambda fraction, _: seen.append(fraction))
    other.close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    del bank


def test_a_shard_that_was_killed_reads_its_own_range_again_and_merges_the_same_bits(models: Models, bank: Bank) -> None:
    said: list[str] = []
    other = Bank.load(*models, shards=2, threads=1, say=said.append)
    recipe = other.recipe("ties", {})
    before = other.merge(recipe)
    expected = {name: tensor.clone() for name, tensor in other.tensors()}
    killed = int(before.places[1].path.split("/")[2])
    os.kill(killed, signal.SIGKILL)
    after = other.merge(recipe)
    assert before.places[0] == after.places[0]
    assert before.places[1] != after.places[1]
    assert not other.holds(before)
    assert other.holds(after)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.tensors())
    assert all("shard 1 of the bank was lost" in line for line in said)
    other.close()
    del bank
