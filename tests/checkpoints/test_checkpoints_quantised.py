"""Quantised weights are read as the libraries that wrote them make them plain, whatever part is read."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bank_in_process import LocalBank, merge_streamed
from mergebench_ray.checkpoints import check_compatible, quantised_checkpoint, resolve
from mergebench_ray.checkpoints.dequantising import find_packed, packed_weight
from mergebench_ray.checkpoints.headers import HeaderCheckpoint
from mergebench_ray.checkpoints.safetensors_file import read_header
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError
from quantised_models import KINDS, quantised
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "base", tied=False)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "bitsandbytes" not in KINDS[kind][1]["quant_method"]])
def test_quantised_weights_are_read_as_their_library_makes_them_plain(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(packed_weight, "_BLOCK_ELEMENTS", 500)
    expected = quantised(base, tmp_path / "q", kind)
    checkpoint = pickle.loads(pickle.dumps(resolve(str(tmp_path / "q"))))  # as it comes to other processes
    assert set(checkpoint.tensors) == set(expected)
    for name, values in expected.items():
        assert checkpoint.tensors[name].shape == values.shape
        assert torch.equal(checkpoint.read(name).view(values.shape), values)
        middle = values.numel() // 3 + 1
        assert torch.equal(checkpoint.read(name, middle, middle), values.flatten()[middle : 2 * middle])
    assert "quantization_config" not in checkpoint.config
    (note,) = check_compatible(resolve(str(base)), {"math": checkpoint})
    assert note.endswith("dequantised to bfloat16")
    plan = HeaderCheckpoint(
        ModelRef("q"),
        json.loads((tmp_path / "q" / "config.json").read_text()),
        {name: (info.shape, info.dtype) for name, info in read_header(tmp_path / "q" / "model.safetensors").items()},
    )
    assert {name: info.shape for name, info in plan.tensors.items()} == {n: v.shape for n, v in expected.items()}
    assert plan.notes == checkpoint.notes


@pytest.fixture(scope="module")
def specialist(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    quantised(tiny_specialist(folder / "plain", base, seed=1), folder / "awq", "awq")
    return folder / "awq"


@pytest.mark.usefixtures("without_compiler")
def test_a_merge_of_quantised_weights_is_that_of_their_plain_copy(
    base: Path, specialist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    expected = quantised(base, tmp_path / "fp8", "fp8 blocks")
    ours, theirs = resolve(str(tmp_path / "fp8")), resolve(str(specialist))
    bank = merge_streamed(tmp_path / "out", ours, {"a": theirs}, "task_arithmetic", {}, window=1000, threads=2)
    copies = [resolve(str(one.plain_folder())) for one in (ours, theirs)]
    assert all(torch.equal(copies[0].read(name), values.flatten()) for name, values in expected.items())
    merged = LocalBank(copies[0], {"a": copies[1]}, shards=3).merge("task_arithmetic", {})
    written = resolve(str(tmp_path / "out"))
    assert all(torch.equal(written.read(name), values.flatten()) for name, values in merged.items())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert bank.recipe("task_arithmetic", {}).base_digest == ours.digest() != copies[0].digest()


def test_a_plain_copy_has_what_lies_beside_the_weights_now(
    specialist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(specialist, tmp_path / "q")
    copies = [resolve(str(folder)).plain_folder()]
    assert resolve(str(folder)).plain_folder() == copies[0]
    (folder / "chat_template.jinja").write_text("corrected")
    copies.append(resolve(str(folder)).plain_folder())
    assert (copies[-1] / "chat_template.jinja").read_text() == "corrected"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    copies.append(resolve(str(folder)).plain_folder())
    assert json.loads((copies[-1] / "config.json").read_text())["rms_norm_eps"] == 0.25
    before = resolve(str(folder)).digest()
    monkeypatch.setattr(quantised_checkpoint, "_FORMAT", -1)
    assert resolve(str(folder)).digest() != before
    assert resolve(str(folder)).plain_folder() not in copies


@pytest.mark.parametrize("kind", ["awq", "gptq in another order"])
def test_columns_are_read_once_and_only_those_that_are_asked_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    quantised(base, tmp_path / "q", kind)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    found = find_packed(config, tmp_path, read_header(tmp_path / "q" / "model.safetensors"))
    assert found is not None
    weight = next(one for one in found.weights if one.name.endswith("0.mlp.up_proj.weight"))
    monkeypatch.setattr(packed_weight, "_BLOCK_ELEMENTS", 500)
    preadv, sizes = os.preadv, list[int]()

    def counted(*args: Any) -> int:
        sizes.append(preadv(*args))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", counted)
    rows, columns = weight.shape
    stored = sum(info.num_bytes for info in weight.parts.values())
    weight.read(0, rows * columns)
    assert sum(sizes) == stored
    sizes.clear()
    weight.read(rows // 2 * columns, 8 * columns)
    assert 0 < sum(sizes) < stored / 4


def test_an_adapter_may_be_of_a_quantised_base(base: Path, tmp_path: Path) -> None:
    expected = quantised(base, tmp_path / "q", "gptq")
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(
        {name: values.contiguous() for name, values in expected.items()}, plain / "model.safetensors", {"format": "pt"}
    )
    (plain / "config.json").write_bytes((base / "config.json").read_bytes())
    adapter = tiny_adapter(tmp_path / "adapter", base, seed=1)
    ours, theirs = resolve(f"{tmp_path / 'q'}+{adapter}"), resolve(f"{plain}+{adapter}")
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.tensors)
    assert ours.notes == ["read from gptq, dequantised to bfloat16"]


def test_the_digest_of_quantised_weights_holds_their_settings(specialist: Path, tmp_path: Path) -> None:
    shutil.copytree(specialist, tmp_path / "other")
    change_settings(tmp_path / "other", zero_point=False)
    one, other = resolve(str(specialist)), resolve(str(tmp_path / "other"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one.read(name), other.read(name))
    assert one.digest() != other.digest()


def test_experts_in_mxfp4_are_read_as_transformers_makes_them_plain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 20, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (3, 20, 4), dtype=torch.uint8)
    stored = {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}
    save_file({**stored, "experts.down_proj_bias": torch.ones(3, 20)}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    found = find_packed(config, tmp_path, read_header(tmp_path / "model.safetensors"))
    assert found is not None
    (weight,) = found.weights
    expected = convert_moe_packed_tensors(blocks, scales)
    assert (weight.name, weight.shape) == ("experts.down_proj", expected.shape)
    assert found.stored == set(stored)
    for start, count in [(0, expected.numel()), (700, 2500), (2559, 3), (5119, 1)]:
        assert torch.equal(weight.read(start, count), expected.flatten()[start : start + count])


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("gptq", {"bits": 3}, "3 bits in the format 'gptq' are not known here"),
        ("gptq", {"group_size": 20}, "96 inputs in groups of 20"),
        ("awq", {"version": "gemv"}, "in version 'gemv' are not known here"),
        ("fp8 blocks", {"weight_block_size": [64, 64]}, "where [1, 2] is expected"),
        ("fp8 blocks", {"weight_block_size": None}, "weight_block_size is None"),
        ("packed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse, too (sparse-24-bitmask)"),
        ("packed", {"transform_config": {"config_groups": {"u": {}}}}, "rotated, too"),
        ("awq", {"quant_method": "quark"}, "quark) as is not known here"),
    ],
)
def test_what_cannot_be_made_plain_is_refused_by_its_name(
    base: Path, tmp_path: Path, kind: str, settings: dict[str, object], reason: str
) -> None:
    quantised(base, tmp_path / "q", kind)
    change_settings(tmp_path / "q", **settings)
    with pytest.raises(InputError, match=r"^base .*: is quantised .*; give its weights in bf16") as raised:
        check_compatible(resolve(str(tmp_path / "q")), {"math": resolve(str(base))})
    assert reason in str(raised.value)


def test_weights_of_bitsandbytes_are_read_where_it_is_installed(base: Path, tmp_path: Path) -> None:
    expected = quantised(base, tmp_path / "q", "int8 of bitsandbytes")
    checkpoint = resolve(str(tmp_path / "q"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match=r"is quantised .*: to read it here, run: pip install bitsandbytes;"):
            check_compatible(checkpoint, {"math": resolve(str(base))})
        return
    for name, values in expected.items():
        assert torch.equal(checkpoint.read(name), values.flatten())


def test_four_bits_of_bitsandbytes_are_read_as_it_makes_them_plain(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    expected = quantised(base, tmp_path / "q", "nf4")
    checkpoint = resolve(str(tmp_path / "q"))
    assert checkpoint.notes == ["read from nf4 (bitsandbytes), dequantised to bfloat16"]
    for name, values in expected.items():
        assert torch.equal(checkpoint.read(name), values.flatten())
        third = values.numel() // 3
        assert torch.equal(checkpoint.read(name, third, third), values.flatten()[third : 2 * third])


def test_biases_of_gptq_for_layers_that_have_none_are_dropped(base: Path, tmp_path: Path) -> None:
    quantised(base, tmp_path / "q", "gptq")
    file = tmp_path / "q" / "model.safetensors"
    save_file({**load_file(file), "model.layers.0.mlp.up_proj.bias": torch.zeros(96)}, file, {"format": "pt"})
    assert len(check_compatible(resolve(str(base)), {"math": resolve(str(tmp_path / "q"))})) == 1


def test_a_zero_point_that_programs_read_in_two_ways_is_refused(base: Path, tmp_path: Path) -> None:
    quantised(base, tmp_path / "q", "gptq")
    file, name = tmp_path / "q" / "model.safetensors", "model.layers.0.mlp.up_proj"
    stored = load_file(file)
    stored[f"{name}.qzeros"][0, 0] = -1
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj\.qzeros' holds a zero point that programs read in two ways"):
        resolve(str(tmp_path / "q")).read(f"{name}.weight")


def change_settings(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
