"""Calibration through the commands: Ray actors, data from files, kept statistics, one line for bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergebench_ray import merge
from mergebench_ray.calibration import Calibration, Sample
from mergebench_ray.calibration.jobs import CalibrationJob, run_job
from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import CalibrationOptions, CalibrationSource, Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.methods import CalibrationRequest
from tiny_models import tiny_llama, tiny_specialist

NAMES = ["math", "safety"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    specialists = {name: str(tiny_specialist(folder / name, base, seed=i)) for i, name in enumerate(NAMES)}
    data = {}
    for name in NAMES:
        rows = [{"prompt": f"{name} question {i}? ", "response": f"answer {i}"} for i in range(5)]
        data[name] = str(folder / f"{name}.jsonl")
        Path(data[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"base": str(base), "specialists": specialists, "calibration": data}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which no kernel need be compiled: merges run the eager pass."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def test_merge_calibrates_in_actors_and_its_recipe_makes_the_same_model_again(
    models: dict[str, Any], ray_cluster: None, cache: Path, tmp_path: Path
) -> None:
    first = merge(out=tmp_path / "first", method="regmean", **models)
    written = {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")}
    assert len(written) == len(NAMES)
    assert first.recipe.calibration is not None
    assert first.recipe.calibration.inputs["math"].data == models["calibration"]["math"]
    (tmp_path / "recipe.yaml").write_text(first.recipe.to_yaml())
    again = merge(out=tmp_path / "again", recipe=tmp_path / "recipe.yaml", shards=2)
    assert again.recipe == Recipe.from_yaml(tmp_path / "recipe.yaml")
    assert written == {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")}, "computed again"
    one, two = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("first", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_actor_and_a_process_give_the_same_bits(
    models: dict[str, Any], ray_cluster: None, cache: Path, tmp_path: Path
) -> None:
    base, specialists = resolve(models["base"]), {"math": resolve(models["specialists"]["math"])}
    samples = {"math": [Sample(f"math {i}", "yes") for i in range(3)]}
    options = CalibrationOptions(folder=str(tmp_path / "actors"))
    calibration = Calibration(base, specialists, {"math": CalibrationSource(data="made-up.jsonl")}, samples, options)
    job = CalibrationJob("fisher", base, specialists, samples, {}, {}, options.max_length, options.dtype)
    # A process of its own: vLLM, once started in this one, keeps torch from computing on one thread as actors do.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        expected = pool.submit(compute_alone, job).result()
    (found,) = calibration.statistics(CalibrationRequest("fisher", 3))
    made = load_file(found.path)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[tensor], torch.from_numpy(expected[tensor])) for tensor in made)


def compute_alone(job: CalibrationJob) -> dict[str, Any]:
    """The statistic on one thread, as arrays."""
    torch.set_num_threads(1)
    tensors = run_job(job, torch.device("cpu"), lambda _fraction, _text: None).tensors
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_a_weight_that_is_not_finite_leaves_nothing_behind(
    models: dict[str, Any], ray_cluster: None, cache: Path
) -> None:
    base, samples = resolve(models["base"]), {"math": [Sample("a", "b")]}
    sources = {"math": CalibrationSource(data="made-up.jsonl")}
    # With bf16's range and weights times 1e30 the first activations overflow.
    broken = tiny_specialist(cache.parent / "broken", Path(models["base"]), seed=9, scale=1e30)
    calibration = Calibration(base, {"math": resolve(str(broken))}, sources, samples, CalibrationOptions())
    with pytest.raises(InputError, match=r"^specialist math \(.*broken\): calibration sample 0: gradient of .* is NaN"):
        calibration.statistics(CalibrationRequest("fisher", 1))
    assert not [folder for folder in cache.glob("*") if "statistics.safetensors" not in os.listdir(folder)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": \n', r"math\.jsonl.*line 2"),
        ('{"question": "a", "response": "b"}\n', r"math.*row 1 has no text in field 'prompt'.*question, response"),
        ("", r"math.*holds no item"),
    ],
)
def test_broken_data_is_one_line_and_nothing_is_written(
    models: dict[str, Any], cache: Path, tmp_path: Path, text: str, problem: str
) -> None:
    broken = tmp_path / "math.jsonl"
    broken.write_text(text)
    data = {**models["calibration"], "math": str(broken)}
    with pytest.raises(InputError, match=problem) as caught:
        merge(out=tmp_path / "out", method="fisher", **{**models, "calibration": data})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_specialist_without_data_and_data_without_a_specialist_are_named(
    models: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    lacking = {"math": models["calibration"]["math"]}
    with pytest.raises(InputError, match="no calibration data for specialist safety"):
        merge(out=tmp_path / "out", method="fisher", **{**models, "calibration": lacking})
    surplus = {**models["calibration"], "coding": "coding.jsonl"}
    with pytest.raises(InputError, match=r"'coding'.*no such specialist.*math, safety"):
        merge(out=tmp_path / "out", method="fisher", **{**models, "calibration": surplus})
    assert not (tmp_path / "out").exists()
