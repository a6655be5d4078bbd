"""Configurations and tokenizers of any content beside good weights: a result or one clear line, never anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergebench_ray.checkpoints import check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_llama

SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS | st.sampled_from([10**9, 10**400, -(10**40), "silu", "bfloat16", "default", "yarn", "sliding_attention"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["llama", "gemma2", "gemma3", "gpt2", "mixtral", "qwen3_next", "falcon", "of_remote_code", "", 5]
)
KEYS = st.sampled_from(
    [
        *("model_type", "architectures", "num_hidden_layers", "n_layer", "num_layers", "num_attention_heads"),
        *("tie_word_embeddings", "text_config", "vision_config", "rope_parameters", "rope_scaling", "rope_theta"),
        *("layer_types", "eos_token_id", "quantization_config", "torch_dtype", "dtype", "num_labels", "id2label"),
        *("vocab_size", "hidden_size", "max_position_embeddings", "hidden_act", "sliding_window", "auto_map"),
        *("attribute_map", "to_dict", "__class__", "get_text_config", "num_experts", "pruned_heads"),
    ]
)
NESTED = st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=3)
CHANGES = st.dictionaries(KEYS | st.text(max_size=8), JSON | NESTED, max_size=3)
ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "base")
    shutil.copytree(root / "base", root / "other")
    return root


def check(models: Path, file: str, content: bytes, *, of_base: bool = False) -> None:
    """Check a pair of models of which one has other content in one of its files."""
    before = sorted(models.rglob("*"))
    original = (models / "base" / file).read_bytes()
    (models / "other" / file).write_bytes(content)
    pair = [models / "base", models / "other"]
    try:
        base, specialist = (resolve(str(folder)) for folder in (reversed(pair) if of_base else pair))
        assert base.num_layers >= 1
        check_compatible(base, {"a": specialist})
    except InputError:
        pass
    finally:
        (models / "other" / file).write_bytes(original)
    assert sorted(models.rglob("*")) == before


@ANY_FILE
@given(changes=CHANGES, of_base=st.booleans())
def test_any_settings(models: Path, changes: dict[str, Any], of_base: bool) -> None:
    content = {**json.loads((models / "base" / "config.json").read_text()), **changes}
    check(models, "config.json", json.dumps(content).encode(), of_base=of_base)


@ANY_FILE
@given(kind=KINDS, changes=CHANGES)
def test_any_architecture(models: Path, kind: Any, changes: dict[str, Any]) -> None:
    for of_base in (False, True):
        check(models, "config.json", json.dumps({**changes, "model_type": kind}).encode(), of_base=of_base)


@ANY_FILE
@given(changes=st.dictionaries(st.sampled_from(["model", "added_tokens", "normalizer", "decoder", ""]), JSON | NESTED))
def test_any_tokenizer(models: Path, changes: dict[str, Any]) -> None:
    content = {**json.loads((models / "base" / "tokenizer.json").read_text()), **changes}
    check(models, "tokenizer.json", json.dumps(content).encode())
    model = {**content, "model": {"vocab": changes.get("model"), "merges": changes.get("added_tokens")}}
    check(models, "tokenizer.json", json.dumps(model).encode())


@ANY_FILE
@given(
    file=st.sampled_from(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]),
    content=st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_any_file(models: Path, file: str, content: bytes) -> None:
    check(models, file, content)
