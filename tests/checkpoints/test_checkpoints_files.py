"""Reading safetensors folders: byte ranges, and every kind of broken folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))


def folder_with(path: Path, header: Any = None, data: bytes = b"", *, text: bytes | None = None) -> Path:
    """A folder whose only weight file has the given header and data."""
    path.mkdir()
    content = json.dumps(header).encode() if text is None else text
    (path / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + data)
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def sharded(path: Path, weight_map: dict[str, str]) -> Path:
    """A folder of two shards, x in a.safetensors and y in b.safetensors, with the given index."""
    path.mkdir()
    save_file({"x": torch.arange(6, dtype=torch.bfloat16)}, path / "a.safetensors")
    save_file({"y": torch.arange(4, dtype=torch.float32)}, path / "b.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def test_names_shapes_types_and_values_are_those_of_the_file(llama: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    checkpoint = resolve(str(llama))
    tensors = checkpoint.tensors
    assert list(tensors) == sorted(stored)
    assert {n: (i.shape, i.dtype) for n, i in tensors.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in stored.items()
    }
    assert all(torch.equal(checkpoint.read(name), values.flatten()) for name, values in stored.items())


def test_shards_are_read_through_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs", {"x": "a.safetensors", "y": "b.safetensors"})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    checkpoint = resolve(str(snapshot))
    assert checkpoint.read("x", 2, 3).tolist() == [2, 3, 4]
    assert checkpoint.read("y").tolist() == [0, 1, 2, 3]


def test_digest_is_of_content_not_of_layout_or_place(tmp_path: Path) -> None:
    in_two = sharded(tmp_path / "two", {"x": "a.safetensors", "y": "b.safetensors"})
    in_one = tmp_path / "one"
    in_one.mkdir()
    both = {**load_file(in_two / "a.safetensors"), **load_file(in_two / "b.safetensors")}
    save_file(both, in_one / "model.safetensors", {"format": "pt"})
    (in_one / "config.json").write_text('{"model_type": "llama"}')
    digest = resolve(str(in_one)).digest()
    assert digest == resolve(str(in_two)).digest()
    save_file({**both, "x": both["x"] + 1}, in_one / "model.safetensors")
    assert resolve(str(in_one)).digest() != digest


def test_digest_is_remembered_until_the_file_changes(llama: Path, tmp_path: Path) -> None:
    digest = resolve(str(llama)).digest()
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    written = entry.stat().st_mtime_ns
    assert resolve(str(llama)).digest() == digest
    assert entry.stat().st_mtime_ns == written


def test_a_digest_is_not_remembered_for_a_file_that_looks_untouched(tmp_path: Path) -> None:
    """Same size, inode and modification time: only the time that the kernel keeps differs."""
    path = tiny_llama(tmp_path / "m")
    file = path / "model.safetensors"
    digest = resolve(str(path)).digest()
    before = file.stat()
    with file.open("rb+") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read()[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_ino, file.stat().st_mtime_ns) == (
        before.st_size,
        before.st_ino,
        before.st_mtime_ns,
    )
    assert resolve(str(path)).digest() != digest


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"a": 5}', b"null", b"\xff", b'{"model.norm.weight": "0"}', b"[" * 100_000]
)
def test_a_damaged_entry_of_the_digest_cache_is_made_again(llama: Path, tmp_path: Path, damage: bytes) -> None:
    digest = resolve(str(llama)).digest()
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    assert resolve(str(llama)).digest() == digest
    assert entry.read_bytes() == whole
    entry.unlink()
    os.mkfifo(entry)
    assert resolve(str(llama)).digest() == digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nan_or_infinity_anywhere_has_no_digest(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    path = tiny_llama(tmp_path / "m", dtype=str(dtype).removeprefix("torch."))
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][300, 60] = value
    save_file(tensors, path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(InputError, match=r"model\.safetensors: tensor 'model\.embed_tokens\.weight' holds NaN"):
            resolve(str(path)).digest()


def headed(path: Path, config: dict[str, Any], head: float) -> Path:
    """A folder with embeddings of zeros, a head and a rotary buffer."""
    path.mkdir(exist_ok=True)
    table = torch.zeros(4, 2, dtype=torch.bfloat16)
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    save_file({**{name: table.clone() for name in names}, "lm_head.weight": table + head}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "tie_word_embeddings": True},
        {"model_type": "of_remote_code", "tie_word_embeddings": True},
        # These tie where they do not say so.
        *({"model_type": kind} for kind in ("gemma2", "smollm3", "starcoder2", "cohere")),
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 2}},
    ],
)
def test_a_stored_copy_of_a_tied_head_and_rotary_buffers_are_left_out(tmp_path: Path, config: dict[str, Any]) -> None:
    checkpoint = resolve(str(headed(tmp_path / "m", config, 0.0)))
    assert list(checkpoint.tensors) == ["model.embed_tokens.weight"]
    assert not checkpoint.notes
    untied = resolve(str(headed(tmp_path / "m", {**config, "tie_word_embeddings": False}, 0.0)))
    assert list(untied.tensors) == ["lm_head.weight", "model.embed_tokens.weight"]


def test_a_head_that_differs_from_the_embeddings_is_one_of_its_own_whatever_the_configuration_says(
    tmp_path: Path,
) -> None:
    path = headed(tmp_path / "m", {"model_type": "llama", "tie_word_embeddings": True}, 1.0)
    checkpoint = resolve(str(path))
    assert list(checkpoint.tensors) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head.weight is stored and differs" in checkpoint.notes[0]


def test_a_truncated_file_is_refused(llama: Path, tmp_path: Path) -> None:
    content = (llama / "model.safetensors").read_bytes()
    for kept in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path = folder_with(tmp_path / str(kept), {})
        (path / "model.safetensors").write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
            resolve(str(path))


def test_a_file_truncated_after_it_was_indexed_is_refused(llama: Path, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    checkpoint = resolve(str(path))
    with (path / "model.safetensors").open("rb+") as stream:
        stream.truncate(9000)
    with pytest.raises(InputError, match="became shorter"):
        checkpoint.read("model.norm.weight")


ENTRY = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": {**ENTRY, "shape": [3]}}, b"1234", r"gives tensor 'x' 4 bytes, but BF16 \[3\] takes 6"),
        ({"x": {**ENTRY, "shape": [-2]}}, b"1234", "'x' is malformed"),
        ({"x": {**ENTRY, "shape": ["2"]}}, b"1234", "'x' is malformed"),
        ({"x": {**ENTRY, "data_offsets": [4, 0]}}, b"1234", "gives tensor 'x' -4 bytes"),
        ({"x": {**ENTRY, "data_offsets": [0]}}, b"1234", "'x' is malformed"),
        ({"x": {**ENTRY, "data_offsets": [-4, 0]}}, b"1234", "'x' is malformed"),
        ({"x": {"dtype": "BF16"}}, b"", "'x' is malformed"),
        ({"x": 5}, b"", "'x' is malformed"),
        ({"x": {**ENTRY, "dtype": "F4"}}, b"1234", "type 'F4', which is not supported"),
        ({"x": ENTRY, "y": ENTRY}, b"1234", "overlaps another or leaves a gap"),
        ({"x": {**ENTRY, "data_offsets": [2, 6]}}, b"123456", "overlaps another or leaves a gap"),
        ({"x": ENTRY}, b"12", "truncated"),
        ({"x": ENTRY}, b"12345", "1 bytes more than its header describes"),
        ([1], b"", "header is not a mapping"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(str(folder_with(tmp_path / "m", header, data)))


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate([b"{", b"\xff\xfe", b"[" * 100_000]):
        with pytest.raises(InputError, match="header is not JSON"):
            resolve(str(folder_with(tmp_path / str(number), text=text)))


@pytest.mark.parametrize("outside", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ""])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(tmp_path: Path, outside: str) -> None:
    path = sharded(tmp_path / "m", {"x": outside, "y": "b.safetensors"})
    with pytest.raises(InputError, match=r"index\.json: tensor 'x' is said to be in .* outside the folder"):
        resolve(str(path))


def _duplicate(path: Path) -> None:
    save_file({"y": torch.ones(4)}, path / "a.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "change", "message"),
    [
        ({"x": "a.safetensors", "y": "c.safetensors"}, None, r"c\.safetensors: this file of the checkpoint is missing"),
        ({"x": "a.safetensors", "z": "b.safetensors"}, None, r"b\.safetensors holds no tensor 'z'"),
        ({"x": "b.safetensors", "y": "a.safetensors"}, None, r"holds no tensor 'x'"),
        ({"y": "a.safetensors", "x": "b.safetensors"}, _duplicate, r"'y' is in a\.safetensors and in b\.safetensors"),
        ({"x": "a.bin"}, None, r"'a\.bin' is not a safetensors file; loading a pickle"),
        ({}, None, "'weight_map' is missing or empty"),
    ],
)
def test_an_index_that_does_not_match_its_shards_is_refused(
    tmp_path: Path, weight_map: dict[str, str], change: Callable[[Path], None] | None, message: str
) -> None:
    path = sharded(tmp_path / "m", weight_map)
    if change is not None:
        change(path)
    with pytest.raises(InputError, match=message):
        resolve(str(path))


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model\.bin\); .* runs any code"):
        resolve(str(tmp_path))
    with pytest.raises(InputError, match=r"a pickle; .* runs any code"):
        resolve(str(tmp_path / "pytorch_model.bin"))


def test_folders_without_a_model_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no safetensors weights"):
        resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter, not a model; write BASE\+"):
        resolve(str(tmp_path))


def test_a_broken_or_missing_config_is_refused(tmp_path: Path) -> None:
    path = folder_with(tmp_path / "m", {"x": ENTRY}, b"1234")
    for text, message in [("{", "cannot be read as JSON"), ("[]", "expected a JSON object")]:
        (path / "config.json").write_text(text)
        with pytest.raises(InputError, match=rf"config\.json: {message}"):
            resolve(str(path))
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: .* missing"):
        resolve(str(path))
