"""An engine proves that weights loaded in place answer as from a cold start, and is refused where they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mergebench_ray.checkpoints import resolve
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.engines.engine_proof import _prompt, prove
from mergebench_ray.engines.model_folder import ModelFolder
from mergebench_ray.errors import InputError

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "families_in_place.py"
LENGTH = 1024


@pytest.fixture
def unproved(engine: VLLMEngine) -> Iterator[VLLMEngine]:
    """The engine with the base; what a test spoils is loaded again."""
    engine.restore_base()
    yield engine
    engine._held.begin()
    engine.restore_base()


def test_an_engine_proves_itself_and_holds_the_base_then(unproved: VLLMEngine, base_folder: Path) -> None:
    proof = prove(unproved, resolve(str(base_folder)), LENGTH)
    assert proof.error <= 1e-3
    # The head is tied, so the norm before it must fit the embeddings' convention.
    assert (proof.changed, proof.tensors, proof.unknown) == (271, 272, ())
    assert "271 of 272 tensors changed" in str(proof)
    assert unproved.weight_version == "base"


def test_a_tied_head_that_stays_packed_is_refused(
    unproved: VLLMEngine, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both import vLLM, which takes seconds, also where none of these tests is run.
    from mergebench_ray.engines.repacking import Received
    from mergebench_ray.engines.transports import mapped

    @contextmanager
    def only_vllm(_model: Any) -> Iterator[Received]:
        yield Received()

    monkeypatch.setattr(mapped, "packed_again", only_vllm)
    with pytest.raises(InputError, match=r"model_type llama: vLLM does not take .* after every tensor was replaced"):
        prove(unproved, resolve(str(base_folder)), LENGTH)


def test_loads_that_do_nothing_are_refused(
    unproved: VLLMEngine, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unproved, "load", lambda _manifest: None)
    with pytest.raises(InputError, match="after every tensor was replaced"):
        prove(unproved, resolve(str(base_folder)), LENGTH)


def test_a_prefix_cache_that_outlives_its_weights_is_refused(
    unproved: VLLMEngine, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unproved.forget_prefixes()
    monkeypatch.setattr(unproved, "forget_prefixes", lambda: None)
    with pytest.raises(InputError, match="log-probability of 16 tokens is off by"):
        prove(unproved, resolve(str(base_folder)), LENGTH)


def test_a_load_that_vllm_refuses_is_one_line_that_names_the_family(
    unproved: VLLMEngine, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_manifest: object) -> None:
        raise RuntimeError("shapes do\nnot fit")

    monkeypatch.setattr(unproved, "load", fail)
    with pytest.raises(InputError, match=r"model_type llama: .* in place \(RuntimeError: shapes do not fit\)"):
        prove(unproved, resolve(str(base_folder)), LENGTH)


def test_a_base_that_changed_on_disk_is_not_read_again(
    unproved: VLLMEngine, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    monkeypatch.setattr(unproved, "_folder", ModelFolder(tmp_path))
    unproved._held.begin()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    with pytest.raises(InputError, match=r"model\.safetensors: was changed while an engine used it"):
        unproved.restore_base()


@pytest.mark.parametrize("change", ["removed", "added"])
def test_files_that_come_or_go_are_changes_too(tmp_path: Path, change: str) -> None:
    file = tmp_path / "model-2.safetensors"
    if change == "removed":
        file.write_bytes(b"")
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a")
    folder = ModelFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("other files may change")
    folder.require_unchanged()
    file.write_bytes(b"") if change == "added" else file.unlink()
    with pytest.raises(InputError, match=rf"model-2\.safetensors: was {change}"):
        folder.require_unchanged()


@pytest.mark.vllm
def test_families_answer_in_place_as_in_transformers() -> None:
    """One whose experts vLLM packs apart, and one with state-space layers; the benchmark has all."""
    packed, hybrid = families = ["Qwen3 MoE", "Granite-4, hybrid"]
    command = [sys.executable, str(BENCHMARK), "--json", "--warm", "--together", *families]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for family in families:
        assert set(results[family]["errors"]) == {"base", "candidate", "specialist", "base again"}
        assert max(results[family]["errors"].values()) <= 1e-3
    assert results[packed]["broken"].startswith("refused"), "the proof must see what is packed apart"
    assert results[hybrid]["proof"].startswith("0 of 23 changed"), (
        "no tensor of such a family is known to have a counterpart"
    )


def test_a_small_vocabulary_is_asked_too() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "river": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    asked = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    context, answer = _prompt(cast(VLLMEngine, asked), 128)
    assert set(context) == {0, 3}
    assert answer == [1, 2]
