"""`families` says what is known of names, and what the parts of a model are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from command_line import CommandLine
from mergebench_ray.checkpoints import merged_names, resolve
from mergebench_ray.commands.families import model_parts
from tiny_architectures import ARCHITECTURES
from tiny_models import tiny_llama


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_families_with_words_of_their_own_are_listed_before_all_others(run: CommandLine) -> None:
    *own, others = json.loads(run("families", "--json").out)
    assert {"gpt2", "lfm2", "lfm2_moe", "openai-gpt"} == {one["name"] for one in own}
    (lfm2,) = (one for one in own if one["name"] == "lfm2")
    assert lfm2 == {"name": "lfm2", "words": ["decoder", "of_embeddings"], "covers": ["lfm2"]}
    assert {"llama", "qwen3_moe", "gemma2"} <= {*others["covers"]}
    assert "lfm2" in run("families").out


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Qwen3 MoE", {"layers, experts": 24, "layers, routers": 2, "output head": 1}),
        ("Phi-3", {"layers, attention, fused": 2, "layers, mlp, fused": 2}),
        ("Llama-4, multimodal", {"towers for pictures and sound": None}),
    ],
)
def test_every_tensor_has_a_part_and_merged_are_those_that_a_merge_takes(
    architecture: str, expected: dict[str, int | None], tmp_path: Path
) -> None:
    folder = ARCHITECTURES[architecture].write(tmp_path)[0]
    model, found = resolve(str(folder)), model_parts(folder)
    assert found.problem is None
    parts = {one.part: one for one in found.parts}
    assert sum(one.tensors for one in found.parts) == len(model.tensors)
    assert sum(one.parameters for one in found.parts) == model.num_parameters
    assert sum(one.merged for one in found.parts) == len(merged_names(model, ()))
    assert parts["embeddings"].merged == 0
    assert parts["layers, attention"].merged == parts["layers, attention"].tensors
    for part, count in expected.items():
        assert parts[part].tensors == (count or parts[part].tensors), found.parts


def test_what_is_not_understood_is_named_and_refused_after_the_parts_are_shown(
    run: CommandLine, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path / "model")
    assert run("families", folder).status == 0
    tensors = load_file(folder / "model.safetensors")
    tensors["model.other_table.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    finished = run("families", folder, "--json")
    assert finished.status == 2
    assert json.loads(finished.out)["problem"] in finished.err
    assert "embeddings" in finished.err
    assert "no such file or folder" in run("families", tmp_path / "nothing").err
