"""Which of a folder's files are the model: one answer that transformers and vLLM share, a note, or a refusal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergebench_ray.checkpoints import check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_adapter, tiny_llama

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "llama")


@pytest.fixture
def sharded(llama: Path) -> Path:
    """The same model in two shards with an index."""
    tensors = load_file(llama / SINGLE)
    (llama / SINGLE).unlink()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, llama / file, {"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (llama / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return llama


def test_a_single_file_beside_the_index_of_another_save_is_ambiguous(sharded: Path) -> None:
    save_file({"x": torch.ones(2)}, sharded / SINGLE)
    with pytest.raises(InputError, match=r"model\.safetensors lies beside an index that names other files"):
        resolve(str(sharded))
    for shard in sharded.glob("model-*"):
        shard.unlink()
    with pytest.raises(InputError, match="lies beside an index"):
        resolve(str(sharded))


def test_an_index_of_the_single_file_is_not_ambiguous(llama: Path) -> None:
    weight_map = dict.fromkeys(load_file(llama / SINGLE), SINGLE)
    (llama / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert not resolve(str(llama)).notes


@pytest.mark.parametrize("other", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"])
def test_other_safetensors_are_refused_beside_a_single_file_and_noted_beside_an_index(
    llama: Path, other: str, request: pytest.FixtureRequest
) -> None:
    save_file({"x": torch.ones(2)}, llama / other)
    with pytest.raises(InputError, match=rf"transformers reads model\.safetensors, vLLM also {other}"):
        resolve(str(llama))
    (llama / other).unlink()
    sharded = request.getfixturevalue("sharded")
    save_file({"x": torch.ones(2)}, sharded / other)
    checkpoint = resolve(str(sharded))
    assert "x" not in checkpoint.tensors
    assert [note for note in check_compatible(checkpoint, {"a": checkpoint}) if other in note]


def test_hidden_files_are_nobodys_weights(llama: Path) -> None:
    (llama / "._model.safetensors").write_bytes(b"left by a copy")
    (llama / "._config.json").symlink_to("nothing")
    assert not resolve(str(llama)).notes


def test_pickled_copies_are_noted_and_a_training_state_is_not(llama: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (llama / name).write_bytes(b"")
    assert resolve(str(llama)).notes == ["pytorch_model.bin lies there too and is not read"]


def test_the_only_file_is_read_whatever_its_name_and_noted(llama: Path) -> None:
    (llama / SINGLE).rename(llama / "model.fp16.safetensors")
    (note,) = resolve(str(llama)).notes
    assert "model.fp16.safetensors" in note


def test_a_model_with_an_adapter_in_its_folder_is_refused(llama: Path) -> None:
    adapter = tiny_adapter(llama.parent / "adapter", llama, seed=0)
    shutil.copyfile(adapter / "adapter_config.json", llama / "adapter_config.json")
    with pytest.raises(InputError, match="a model and an adapter"):
        resolve(str(llama))


def test_a_configuration_that_names_other_weights_is_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "transformers_weights": "x.safetensors"}))
    with pytest.raises(InputError, match=r"config\.json: transformers_weights names 'x\.safetensors'"):
        resolve(str(llama))


def test_a_tensor_in_two_shards_is_harmless_if_both_are_the_same(sharded: Path) -> None:
    one, two = sorted(sharded.glob("model-*"))
    name = next(iter(load_file(two)))
    copy = load_file(two)[name]
    save_file({**load_file(one), name: copy}, one)
    assert resolve(str(sharded)).tensors[name].file == two
    save_file({**load_file(one), name: copy + 1}, one)
    with pytest.raises(InputError, match=rf"'{name}' is in {one.name} and in {two.name}, and they differ"):
        resolve(str(sharded))


def test_a_model_in_a_subfolder_is_pointed_at(llama: Path) -> None:
    with pytest.raises(InputError, match=f"{llama} holds a model"):
        resolve(str(llama.parent))


def _pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def _socket(file: Path) -> None:
    file.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(file.parent):
        server.bind(file.name)


@pytest.mark.parametrize("name", [SINGLE, INDEX, "config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"])
@pytest.mark.parametrize("put", [_pipe, _device, _socket])
def test_a_pipe_or_device_in_place_of_a_file_is_refused(llama: Path, name: str, put: Callable[[Path], None]) -> None:
    put(llama / name)
    with pytest.raises(InputError, match=f"{name}: not a regular file"):
        resolve(str(llama))


def test_a_link_to_nothing_in_place_of_a_file_is_refused(llama: Path) -> None:
    (llama / "vocab.txt").symlink_to("gone")
    with pytest.raises(InputError, match=r"vocab\.txt: cannot be read"):
        resolve(str(llama))


def test_a_folder_in_place_of_a_file_is_refused_but_licences_may_have_one(llama: Path) -> None:
    (llama / "LICENSES").mkdir()
    assert not resolve(str(llama)).notes
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer.json").mkdir()
    with pytest.raises(InputError, match=r"tokenizer\.json: not a regular file"):
        resolve(str(llama))
