"""Wrong input: exit 2, one line that names what, where and the remedy, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from command_line import CommandLine
from made_up_trials import made_up_trials
from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import Recipe
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.runs.trial_store import TrialStore
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two specialists that fit, and one of another architecture."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    tiny_specialist(folder / "math", base, seed=1)
    tiny_specialist(folder / "coding", base, seed=2)
    tiny_gemma2(folder / "gemma")
    return folder


@pytest.fixture
def broken(models: Path, tmp_path: Path) -> Path:
    """A copy of the math specialist, to be broken."""
    return Path(shutil.copytree(models / "math", tmp_path / "broken"))


def sweep_file(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "name": "x",
        "suite": "smollm2-mini",
        "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
        "evaluation": {"allow_code_execution": True},
    }
    path = folder / "sweep.yaml"
    path.write_text(to_yaml({**content, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sarch": {}}, "'sarch'"),
        ({"search": {"trials": -1}}, "search.trials"),
        ({"search": {"sampler": "NoSampler"}}, "NoSampler"),
        ({"methods": {"tiess": None}}, "ties"),
        ({"methods": {"ties": {"density": {"low": 0.1, "high": 1.5}}}}, "density"),
        ({"methods": {"ties": {"density": 0.2}}}, "nothing to search"),
        ({"methods": {}}, "methods"),
        ({"suite": "no-such-suite"}, "no-such-suite"),
        ({"evaluation": {"domains": ["cooking"]}}, "cooking"),
        ({"evaluation": {"allow_code_execution": False}}, "allow_code_execution"),
        ({"engine": {"transport": "nccl"}}, "engine.transport"),
        ({"specialists": {"poetry": "./nowhere"}}, "no specialist of that name"),
        ({"engine": {"tensor_parallel_size": 2}}, "num_attention_heads = 9"),
        ({"search": {"trials": 1, "points_to_evaluate": [{}, {}]}}, "more than 1 trials"),
        ({"search": {"storage": "nowhere://"}}, "search.storage"),
        ({"search": {"sampler_options": {"n_startup_trials": "many"}}}, "search.sampler_options"),
    ],
)
def test_a_wrong_sweep(run: CommandLine, tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    line = run.refused("tune", sweep_file(tmp_path, **changes), "--out", tmp_path / "run")
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_sweep_file_that_is_not_there(run: CommandLine, tmp_path: Path) -> None:
    assert "no such file" in run.refused("tune", tmp_path / "missing.yaml")


def test_a_task_that_does_not_exist(run: CommandLine, models: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    suite = tmp_path / "suite.yaml"
    suite.write_text(to_yaml({"name": "own", "tasks_folder": "tasks", "domains": {"math": {"tasks": {"nope": "acc"}}}}))
    refused = run.refused("evaluate", models / "base", "--suite", suite)
    assert "'nope'" in refused


def test_a_data_file_with_a_missing_field(run: CommandLine, models: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "data.jsonl").write_text(json.dumps({"question": "1 + 1?"}) + "\n")
    (tasks / "own.yaml").write_text(
        to_yaml(
            {
                "task": "own",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(tasks / "data.jsonl")}},
                "output_type": "generate_until",
                "test_split": "test",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    suite = tmp_path / "suite.yaml"
    domains = {"math": {"tasks": {"own": "exact_match"}}}
    suite.write_text(to_yaml({"name": "own", "tasks_folder": "tasks", "domains": domains}))
    line = run.refused("evaluate", models / "base", "--suite", suite)
    assert "answer" in line
    assert "data.jsonl" in line


def merge_arguments(models: Path, specialist: Path, out: Path) -> list[object]:
    return ["merge", "--method", "ties", "--base", models / "base", "--specialist", f"math={specialist}", "--out", out]


def test_a_specialist_of_another_architecture(run: CommandLine, models: Path, tmp_path: Path) -> None:
    line = run.refused(*merge_arguments(models, models / "gemma", tmp_path / "out"))
    assert "math" in line
    assert not (tmp_path / "out").exists()


def test_a_specialist_of_another_shape(run: CommandLine, models: Path, tmp_path: Path) -> None:
    wider = tiny_llama(tmp_path / "wider", intermediate_size=128)
    line = run.refused(*merge_arguments(models, wider, tmp_path / "out"))
    assert "128" in line


def test_truncated_safetensors(run: CommandLine, models: Path, broken: Path, tmp_path: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert str(file) in run.refused(*merge_arguments(models, broken, tmp_path / "out"))


def test_an_index_that_names_a_file_outside_its_folder(
    run: CommandLine, models: Path, broken: Path, tmp_path: Path
) -> None:
    names = list(load_file(broken / "model.safetensors"))
    (broken / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside.safetensors" in run.refused(*merge_arguments(models, broken, tmp_path / "out"))


def test_a_pickle_checkpoint(run: CommandLine, models: Path, broken: Path, tmp_path: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    assert "pickle" in run.refused(*merge_arguments(models, broken, tmp_path / "out"))


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(
    run: CommandLine, models: Path, broken: Path, tmp_path: Path, value: float
) -> None:
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    line = run.refused(*merge_arguments(models, broken, tmp_path / "out"))
    assert name in line
    assert str(broken) in line
    assert not (tmp_path / "out").exists()


def test_a_recipe_says_what_is_wrong_with_it(run: CommandLine, models: Path, tmp_path: Path) -> None:
    base, math = resolve(str(models / "base")), resolve(str(models / "math"))
    text = Recipe(
        method="task_arithmetic",
        parameters={"scaling_coef": {"math": 0.3}},
        base=str(base),
        specialists={"math": str(math)},
        base_digest=base.digest(),
        specialist_digests={"math": math.digest()},
    ).to_yaml()
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"

    def refused(old: str, new: str, *options: str) -> str:
        assert old in text
        file.write_text(text.replace(old, new, 1))
        line = run.refused("merge", "--recipe", file, "--out", out, *options)
        assert not out.exists()
        return line

    assert "parameters.scaling_coef.math changed" in refused("math: 0.3", "math: 0.4")
    other_type = refused("dtype: bfloat16", "dtype: float64", "--accept-changes")
    assert "dtype = 'float64'" in other_type
    assert "calibration" not in other_type
    assert "the base" in refused("base_digest: ", "base_digest: a", "--accept-changes")


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("which", ["base", "math"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_embedding_that_is_not_finite(
    run: CommandLine, models: Path, tmp_path: Path, value: float, which: str
) -> None:
    """Of the base it would be copied into the merge, of a specialist scored."""
    folders = {name: Path(shutil.copytree(models / name, tmp_path / name)) for name in ("base", "math")}
    file = folders[which] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][319, 63] = value
    save_file(tensors, file, metadata={"format": "pt"})
    line = run.refused(*merge_arguments(tmp_path, folders["math"], tmp_path / "out"))
    assert "model.embed_tokens.weight" in line
    assert str(file) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_beside_the_weights_that_is_not_json(run: CommandLine, models: Path, tmp_path: Path, name: str) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    (base / name).write_text((base / name).read_text()[:-2])
    assert str(base / name) in run.refused(*merge_arguments(tmp_path, models / "math", tmp_path / "out"))


def test_a_single_file_beside_the_index_of_an_earlier_save(
    run: CommandLine, models: Path, broken: Path, tmp_path: Path
) -> None:
    shutil.copyfile(broken / "model.safetensors", broken / "model-00001-of-00001.safetensors")
    names = load_file(broken / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index" in run.refused(*merge_arguments(models, broken, tmp_path / "out"))


def test_an_output_folder_that_exists(run: CommandLine, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert str(out) in run.refused(*merge_arguments(models, models / "math", out))
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_ray_that_cannot_be_reached(
    run: CommandLine, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A session that other tests left running would be used instead.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    arguments = [*merge_arguments(models, models / "math", tmp_path / "out"), "--address", "127.0.0.1:1"]
    assert "127.0.0.1:1" in run.refused(*arguments)


def test_a_port_that_is_taken(run: CommandLine, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = run.refused("tune", sweep_file(tmp_path), "--out", tmp_path / "run", "--dashboard-port", port)
    assert str(port) in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_and_one_that_does_not(run: CommandLine, tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sweep.yaml").write_text(sweep.read_text())
    assert "--resume" in run.refused("tune", sweep, "--out", tmp_path / "run")
    assert "nothing to resume" in run.refused("tune", sweep, "--out", tmp_path / "none", "--resume")


def test_a_run_resumed_with_a_changed_sweep(run: CommandLine, tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sweep.yaml").write_text(sweep.read_text())
    TrialStore(tmp_path / "run").append(made_up_trials(1, test=False)[-1])
    line = run.refused("tune", sweep, "--out", tmp_path / "run", "--resume", "--set", "search.seed=5")
    assert "search.seed" in line


def test_unknown_options_and_settings_are_one_line_too(run: CommandLine, tmp_path: Path) -> None:
    assert "--nope" in run.refused("tune", "x.yaml", "--nope")
    assert "KEY=VALUE" in run.refused("tune", sweep_file(tmp_path), "--set", "trials")
    assert "NAME=REF" in run.refused("merge", "--out", tmp_path / "out", "--specialist", "x")
    assert "--method" in run.refused("merge", "--out", tmp_path / "out")


def test_calibration_data_that_no_merge_reads_or_that_is_missing(
    run: CommandLine, models: Path, tmp_path: Path
) -> None:
    arguments = merge_arguments(models, models / "math", tmp_path / "out")
    assert "ties reads no data" in run.refused(*arguments, "--calibration", "math=samples.jsonl")
    arguments[2] = "regmean"
    assert "no calibration data for specialist math" in run.refused(*arguments)


@pytest.mark.parametrize("kind", ["pipe", "text without an ending"])
def test_calibration_samples_that_are_no_file_of_samples(
    run: CommandLine, models: Path, tmp_path: Path, kind: str
) -> None:
    samples = tmp_path / "samples"
    if kind == "pipe":
        os.mkfifo(samples)
    else:
        samples.write_text('{"prompt": "a", "response": "b"}')
    arguments = merge_arguments(models, models / "math", tmp_path / "out")
    arguments[2] = "regmean"
    assert f"{samples}: not a file of samples" in run.refused(*arguments, "--calibration", f"math={samples}")


def test_more_shards_than_there_is_memory_for(run: CommandLine, models: Path, tmp_path: Path) -> None:
    arguments = merge_arguments(models, models / "math", tmp_path / "out")
    assert "less than or equal to 10000" in run.refused(*arguments, "--shards", "100000000")
    assert "--shards 10000" in run.refused(*arguments, "--shards", "10000")


@pytest.mark.parametrize("memory", ["inf", "1e300"])
def test_a_plan_for_memory_of_no_size(run: CommandLine, tmp_path: Path, memory: str) -> None:
    assert "GiB" in run.refused("plan", sweep_file(tmp_path), "--host-memory", memory)
