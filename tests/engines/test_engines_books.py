from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mergebench_ray.config import EngineOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.engines.environment import prepare_environment
from mergebench_ray.engines.starting import longest_step
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from mergebench_ray.weights.held_weights import HeldWeights
from mergebench_ray.weights.manifest import WeightManifest, WeightTensor
from mergebench_ray.weights.memory_file import MappedFiles
from tiny_models import tiny_llama

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight", "model.norm.weight"]


def manifest(*fingerprints: str, names: list[str] = NAMES) -> WeightManifest:
    tensors = tuple(WeightTensor(name, (1,), (), mark) for name, mark in zip(names, fingerprints, strict=True))
    return WeightManifest("version", "bfloat16", tensors)


def memory_file(content: torch.Tensor) -> tuple[int, str]:
    descriptor = os.memfd_create("test")
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    os.write(descriptor, content.view(torch.uint8).numpy().tobytes())
    return descriptor, path


@pytest.mark.parametrize(("parameters", "is_long"), [(135_000_000, False), (9_000_000_000, True)])
def test_a_step_of_a_large_model_may_take_long_on_a_cpu(parameters: int, is_long: bool, tmp_path: Path) -> None:
    for part in range(2):
        (tmp_path / f"model-{part}.safetensors").touch()
        os.truncate(tmp_path / f"model-{part}.safetensors", parameters)
    assert (longest_step(tmp_path, 4096) > 900.0) == is_long


def test_a_changed_tensor_takes_its_layer_with_it() -> None:
    held = HeldWeights(family_of("llama"))
    assert held.changed(manifest("a", "b", "c")) == NAMES
    held.complete(manifest("a", "b", "c"))
    assert held.changed(manifest("a", "b", "c")) == []
    assert held.changed(manifest("other", "b", "c")) == NAMES[:2]
    assert held.changed(manifest("a", "b", "other")) == NAMES[2:]


def test_an_interrupted_replacement_makes_everything_changed() -> None:
    held = HeldWeights(family_of("llama"))
    held.complete(manifest("a", "b", "c"))
    held.begin()
    assert held.undefined
    assert held.differ_from_base()
    assert held.changed(manifest("a", "b", "c")) == NAMES
    held.complete(None)
    assert not held.undefined
    assert not held.differ_from_base()


def test_tensors_that_a_manifest_would_leave_behind_are_noticed() -> None:
    held = HeldWeights(family_of("llama"))
    held.complete(manifest("a", "b", "c"))
    assert not held.not_in(manifest("a", "b", "c"))
    assert held.not_in(manifest("a", "b", names=NAMES[:2]))


def test_a_tensor_is_put_together_from_pieces_of_several_memory_files() -> None:
    (first, first_path), (second, second_path) = (memory_file(torch.arange(8.0) + 10 * i) for i in range(2))
    files = MappedFiles()
    pieces = [[first_path, 5, 3], [second_path, 0, 1]]
    assert files.read([2, 2], torch.float32, pieces).tolist() == [[5, 6], [7, 10]]
    os.close(first)
    os.close(second)


def test_one_piece_is_read_where_it_lies() -> None:
    descriptor, path = memory_file(torch.zeros(4))
    view = MappedFiles().read([4], torch.float32, [[path, 0, 4]])
    os.pwrite(descriptor, torch.ones(1).numpy().tobytes(), 8)
    assert view.tolist() == [0, 0, 1, 0]
    os.close(descriptor)


def test_a_descriptor_used_again_for_another_file_is_mapped_anew() -> None:
    files = MappedFiles()
    descriptor, path = memory_file(torch.zeros(4))
    assert files.read([4], torch.float32, [[path, 0, 4]]).tolist() == [0] * 4
    os.close(descriptor)
    again, same_path = memory_file(torch.ones(4))
    assert same_path == path
    assert files.read([4], torch.float32, [[path, 0, 4]]).tolist() == [1] * 4
    os.close(again)


def test_files_whose_owner_has_gone_are_unmapped() -> None:
    files = MappedFiles()
    descriptor, path = memory_file(torch.zeros(4))
    files.read([4], torch.float32, [[path, 0, 4]])
    files.forget_dead()
    assert path in files._mapped
    os.close(descriptor)
    files.forget_dead()
    assert not files._mapped
    with pytest.raises(FileNotFoundError):
        files.read([4], torch.float32, [[path, 0, 4]])


@pytest.mark.parametrize(("shape", "piece"), [([5], (0, 4)), ([4], (1, 4)), ([2], (-1, 2))])
def test_pieces_that_do_not_fit_are_refused(shape: list[int], piece: tuple[int, int]) -> None:
    descriptor, path = memory_file(torch.zeros(4))
    with pytest.raises(ValueError, match="elements"):
        MappedFiles().read(shape, torch.float32, [[path, *piece]])
    os.close(descriptor)


def test_vllm_imported_before_its_environment_is_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    with pytest.raises(RuntimeError, match="before the engine's environment was prepared"):
        prepare_environment(1, None)


@pytest.mark.slow
def test_importing_the_engines_does_not_import_vllm() -> None:
    code = "import sys, mergebench_ray.engines; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.vllm
def test_a_model_that_vllm_cannot_run_is_one_line_and_its_log_has_the_traceback(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "ctrl", "architectures": ["CTRLLMHeadModel"]})
    )
    with pytest.raises(InputError) as refused:
        VLLMEngine(folder, EngineOptions(), 64, log_file=tmp_path / "vllm.log")
    assert str(refused.value).startswith(f"{folder}: vLLM does not start with this model (")
    assert "\n" not in str(refused.value)
    assert "Traceback" in (tmp_path / "vllm.log").read_text()
