"""Every kind of checkpoint reads alike: one interface, the same bits however a tensor is sliced, the same errors."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergebench_ray.checkpoints import Checkpoint, check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_gguf import tiny_gguf
from tiny_models import tiny_adapter, tiny_llama


def _folder(path: Path) -> str:
    return str(tiny_llama(path / "m"))


def _single_precision(path: Path) -> str:
    return str(tiny_llama(path / "m", tied=False, dtype="float32"))


def _sharded(path: Path) -> str:
    whole = tiny_llama(path / "whole")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype="auto", trust_remote_code=False)
    model.save_pretrained(path / "m", max_shard_size="50KB")
    shutil.copyfile(whole / "tokenizer.json", path / "m" / "tokenizer.json")
    assert len(list((path / "m").glob("*.safetensors"))) > 2
    return str(path / "m")


def _adapter(path: Path) -> str:
    base = tiny_llama(path / "base")
    return f"{base}+{tiny_adapter(path / 'a', base, seed=1)}"


def _adapter_with_embeddings(path: Path) -> str:
    base = tiny_llama(path / "base", tied=False)
    return f"{base}+{tiny_adapter(path / 'a', base, seed=1, modules_to_save=['embed_tokens', 'lm_head'])}"


def _gguf(path: Path) -> str:
    return str(tiny_gguf(path / "m.gguf"))


KINDS: dict[str, Callable[[Path], str]] = {
    "a folder": _folder,
    "a folder in single precision": _single_precision,
    "a folder of shards": _sharded,
    "an adapter": _adapter,
    "an adapter with embeddings": _adapter_with_embeddings,
    "a GGUF file": _gguf,
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    made: str = request.param(tmp_path_factory.mktemp("models"))
    return made


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def checkpoint(reference: str) -> Checkpoint:
    return resolve(reference)


def test_tensors_are_listed_by_name_and_read_as_announced(checkpoint: Checkpoint) -> None:
    assert list(checkpoint.tensors) == sorted(checkpoint.tensors)
    for name, info in checkpoint.tensors.items():
        values = checkpoint.read(name)
        assert info.name == name
        assert values.dtype == info.dtype
        assert values.shape == (info.numel,)
        assert values.device.type == "cpu"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_slices_put_together_are_the_whole_tensor(checkpoint: Checkpoint, step: int) -> None:
    for name, info in checkpoint.tensors.items():
        size = min(info.numel, 80 * step)
        slices = [checkpoint.read(name, start, min(step, size - start)) for start in range(0, size, step)]
        assert torch.equal(torch.cat(slices), checkpoint.read(name)[:size])


def test_a_slice_may_be_empty_and_without_a_count_goes_to_the_end(checkpoint: Checkpoint) -> None:
    whole = checkpoint.read("model.norm.weight")
    for start in (0, 3, len(whole)):
        assert checkpoint.read("model.norm.weight", start, 0).shape == (0,)
        assert torch.equal(checkpoint.read("model.norm.weight", start), whole[start:])


def test_a_slice_that_leaves_the_tensor_is_an_internal_fault(checkpoint: Checkpoint) -> None:
    size = checkpoint.tensors["model.norm.weight"].numel
    for start, count in [(-1, 1), (0, size + 1), (size + 1, None), (0, -1)]:
        with pytest.raises(ValueError, match=r"model\.norm\.weight: slice"):
            checkpoint.read("model.norm.weight", start, count)
    with pytest.raises(KeyError):
        checkpoint.read("no.such.tensor")


def test_a_pickled_checkpoint_is_small_and_reads_the_same(checkpoint: Checkpoint) -> None:
    content = pickle.dumps(checkpoint)
    assert len(content) < 20_000
    copy = pickle.loads(content)
    assert str(copy) == str(checkpoint)
    assert copy.digest() == checkpoint.digest()
    for name in checkpoint.tensors:
        assert torch.equal(copy.read(name), checkpoint.read(name))


def test_threads_may_read_at_once(checkpoint: Checkpoint) -> None:
    names = list(checkpoint.tensors) * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(checkpoint.read, names))
    assert all(torch.equal(values, checkpoint.read(name)) for name, values in zip(names, found, strict=True))


def test_no_file_stays_open(checkpoint: Checkpoint) -> None:
    def open_files() -> set[str]:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return {os.readlink(link) for link in links if os.path.islink(link)}

    before = open_files()
    checkpoint.read("model.norm.weight")
    assert open_files() <= before


def test_a_digest_is_of_the_content(checkpoint: Checkpoint, reference: str) -> None:
    digest = checkpoint.digest()
    assert len(digest) == 64
    assert int(digest, 16) >= 0
    assert resolve(reference).digest() == digest


def test_configuration_and_tokenizer_lie_in_a_folder(checkpoint: Checkpoint, reference: str) -> None:
    assert str(checkpoint) == reference
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.num_layers == (1 if reference.endswith(".gguf") else 2)
    assert checkpoint.config_file.parent == checkpoint.folder
    assert checkpoint.config_file.is_file()
    assert (checkpoint.tokenizer_folder / "tokenizer.json").is_file()


def test_a_checkpoint_fits_itself(checkpoint: Checkpoint) -> None:
    notes = check_compatible(checkpoint, {"same": checkpoint})
    assert not any("is not there" in note or "left out" in note for note in notes)


def _rewritten(file: Path) -> None:
    with file.open("rb+") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\0\0")


def _replaced(file: Path) -> None:
    shutil.copyfile(file, file.with_name("copy"))
    os.replace(file.with_name("copy"), file)


@pytest.mark.parametrize("change", [_rewritten, _replaced])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_file_that_changes_after_its_header_was_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], str], change: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    checkpoint = resolve(kind(tmp_path))
    time.sleep(0.02)  # the clock of file times goes in steps
    name = "model.norm.weight"
    change(checkpoint.tensors[name].file)
    with pytest.raises(InputError, match=r"\.safetensors: was changed while it was in use"):
        pickle.loads(pickle.dumps(checkpoint)).read(name)
    with pytest.raises(InputError, match=r"\.safetensors: was changed while it was in use"):
        checkpoint.digest()
