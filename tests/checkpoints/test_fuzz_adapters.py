"""Adapters of any content give a checkpoint or one clear line, and never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergebench_ray.checkpoints import check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_adapter, tiny_llama

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, -(10**40), 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "bias",
        "modules_to_save",
        "rank_pattern",
        "init_lora_weights",
        "target_modules",
        "fan_in_fan_out",
        "use_dora",
    ]
)
PARTS = st.sampled_from(
    [
        *("base_model", "model", "layers", "0", "1", "self_attn", "q_proj", "embed_tokens", "lm_head", "lora_A"),
        *("lora_B", "lora_embedding_A", "modules_to_save", "default", "base_layer", "weight", "norm"),
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=8).map(".".join) | st.text(max_size=20)
SHAPES = st.lists(st.sampled_from([0, 1, 4, 32, 64, 320]) | st.integers(-1, 10**19), max_size=3)
ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "base")
    tiny_adapter(root / "adapter", root / "base", seed=1)
    return root


@pytest.fixture(scope="module")
def options(models: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((models / "adapter" / "adapter_config.json").read_text())
    return loaded


def read(models: Path, adapter: Path) -> None:
    """Resolve, check and read an adapter on its base; only refused in the house's way."""
    before = sorted(models.rglob("*"))
    try:
        checkpoint = resolve(f"{models / 'base'}+{adapter}")
        check_compatible(resolve(str(models / "base")), {"a": checkpoint})
        for name in checkpoint.tensors:
            checkpoint.read(name, 0, min(4, checkpoint.tensors[name].numel))
    except InputError:
        pass
    assert sorted(models.rglob("*")) == before


@ANY_FILE
@given(changes=st.dictionaries(KEYS | st.text(max_size=8), JSON, max_size=3))
def test_any_configuration(models: Path, options: dict[str, Any], changes: dict[str, Any]) -> None:
    (models / "adapter" / "adapter_config.json").write_text(json.dumps({**options, **changes}))
    read(models, models / "adapter")


@ANY_FILE
@given(content=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_configuration_file(models: Path, content: bytes) -> None:
    (models / "adapter" / "adapter_config.json").write_bytes(content)
    read(models, models / "adapter")


@ANY_FILE
@given(
    entries=st.dictionaries(NAMES, st.tuples(st.sampled_from(["BF16", "F32", "I64", "BOOL", "F9", None]), SHAPES)),
    data=st.integers(0, 300),
)
def test_any_header(
    models: Path, options: dict[str, Any], entries: dict[str, tuple[str | None, list[int]]], data: int
) -> None:
    folder = models / "header"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(options))
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape) in entries.items():
        size = {"BF16": 2, "F32": 4, "I64": 8}.get(dtype or "", 1)
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    padding = bytes(position) if 0 <= position < 10**6 else bytes(data)
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + padding)
    read(models, folder)
