"""A merge is made again from what lies in its folder; whatever differs is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import CommandLine
from mergebench_ray import merge, verify
from mergebench_ray.checkpoints.reproduction import RecordedEvaluation, RecordedScore, Reproduction
from mergebench_ray.runs.recorded import compared_scores
from mergebench_ray.scores import DomainScore
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, without_compiler: None) -> Path:
    """A folder with base, math, code, and what was merged of them."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    specialists = {
        name: str(tiny_specialist(folder / name, base, seed=seed)) for seed, name in enumerate(["math", "code"])
    }
    merge(out=folder / "merged", method="ties", base=str(base), specialists=specialists)
    return folder


def with_changed_byte(folder: Path, out: Path, tensor: str = "model.norm.weight") -> Path:
    """A copy of a model in which the lowest bit of a tensor's first byte is another one."""
    shutil.copytree(folder, out)
    [weights] = out.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    size = int.from_bytes(content[:8], "little")
    content[8 + size + json.loads(content[8 : 8 + size])[tensor]["data_offsets"][0]] ^= 1
    weights.write_bytes(content)
    return out


def test_a_merge_is_what_its_recipe_says(models: Path, run: CommandLine) -> None:
    finished = run("verify", models / "merged")
    assert finished.status == 0, finished
    assert finished.out.startswith(f"equal: {models / 'merged'} is the merge that its recipe says, 20 tensors")
    result = verify(models / "merged")
    assert (result.is_equal, result.tensors, result.versions) == (True, 20, {})
    assert json.loads(run("verify", models / "merged", "--json").out)["equal"] is True


def test_a_changed_byte_of_the_weights_names_the_tensor(models: Path, run: CommandLine, tmp_path: Path) -> None:
    finished = run("verify", with_changed_byte(models / "merged", tmp_path / "changed"))
    assert finished.status == 1
    assert finished.out.startswith(
        "different: 1 of 20 tensors, the first: tensor model.norm.weight differs in 1 of 64 entries"
    )


def test_a_changed_byte_of_an_input_names_the_input_and_nothing_is_merged(
    models: Path, run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_changed_byte(models / "math", tmp_path / "changed")
    monkeypatch.setattr("mergebench_ray.commands.verify.merge", None)
    finished = run("verify", models / "merged", "--specialist", f"math={changed}")
    assert finished.status == 1
    assert finished.out.startswith(f"different: input math ({changed}) is not what was merged: SHA-256 ")


def test_a_changed_configuration_or_tokenizer_is_named(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "merged", tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    (tmp_path / "changed" / "tokenizer_config.json").unlink()
    (tmp_path / "changed" / "chat_template.jinja").write_text("other")
    (tmp_path / "changed" / "LICENSE").write_text("added")
    found = [(one.kind, one.name, one.what) for one in verify(tmp_path / "changed").differences]
    assert found == [
        ("file", "chat_template.jinja", "differs"),
        ("file", "config.json", "differs"),
        ("file", "tokenizer_config.json", "is missing"),
    ]


def test_changed_code_that_the_configuration_names_is_named(models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "auto_map": {"AutoTokenizer": ["own.X", None]}}))
    (base / "own.py").write_text("class X: pass\n")
    merge(out=tmp_path / "merged", method="model_soup", base=str(base), specialists={"math": str(models / "math")})
    assert verify(tmp_path / "merged").is_equal
    (tmp_path / "merged" / "own.py").write_text("class Y: pass\n")
    (tmp_path / "merged" / "further.py").write_text("")
    assert [str(one) for one in verify(tmp_path / "merged").differences] == [
        "file further.py is not of the merge",
        "file own.py differs",
    ]


def test_inputs_that_lie_elsewhere_are_asked_for_and_taken_from_there(
    models: Path, run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    merge(out=tmp_path / "merged", method="ties", base="./base", specialists={"math": "./math", "code": "./code"})
    monkeypatch.chdir(tmp_path)
    line = run.refused("verify", "merged", "--base", models / "base", "--specialist", f"code={models / 'code'}")
    assert line.endswith("the recipe names ./math, which is not here; say where it lies: --specialist math=REF")
    assert "no such specialist, only code, math" in run.refused("verify", "merged", "--specialist", "law=x")
    places = {name: str(models / name) for name in ("math", "code")}
    assert verify("merged", base=str(models / "base"), specialists=places).is_equal


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--suite", "x.yaml"], "--suite: is for --scores"),
        (["--data", "a/b=x"], "--data: is for --scores"),
        (["--allow-code-execution"], "--allow-code-execution: is for --scores"),
        (["--calibration", "math=x.jsonl"], "--calibration: this merge saw no data"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    models: Path, run: CommandLine, options: list[str], problem: str
) -> None:
    assert problem in run.refused("verify", models / "merged", *options)


def test_a_folder_that_does_not_say_how_it_was_merged_is_refused(
    models: Path, run: CommandLine, tmp_path: Path
) -> None:
    assert "holds no recipe.yaml" in run.refused("verify", models / "base")
    shutil.copytree(models / "merged", tmp_path / "changed")
    recipe = (tmp_path / "changed" / "recipe.yaml").read_text()
    (tmp_path / "changed" / "recipe.yaml").write_text(recipe.replace("density: 0.2", "density: 0.3"))
    line = run.refused("verify", tmp_path / "changed")
    assert "parameters.density changed since the recipe was written (another digest); restore it" in line
    assert "names no scores in reproduce.json" in run.refused("verify", models / "merged", "--scores")


def test_other_versions_are_named(models: Path, run: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(models / "merged", tmp_path / "older")
    record = Reproduction.read(models / "merged")
    assert record is not None
    older = record.model_copy(update={"versions": {**record.versions, "torch": "2.0"}})
    (tmp_path / "older" / "reproduce.json").write_text(older.model_dump_json())
    finished = run("verify", tmp_path / "older")
    assert finished.status == 0
    assert finished.out.startswith(f"note: merged with torch 2.0, verified with {record.versions['torch']}\nequal: ")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_calibrated_merge_is_made_again_from_the_samples_that_it_saw(
    models: Path, run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"math {number}", "response": f"{number + 1}"} for number in range(4)]
    Path("math.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    models_of = {"base": str(models / "base"), "specialists": {"math": str(models / "math")}}
    merge(out="merged", method="fisher", calibration={"math": "math.jsonl"}, **models_of)
    assert verify("merged").is_equal

    Path("other.jsonl").write_text(Path("math.jsonl").read_text().replace("math 3", "math 4"))
    [difference] = verify("merged", calibration={"math": "other.jsonl"}).differences
    assert str(difference).startswith("input samples of math (other.jsonl) is not what was seen: SHA-256 ")

    Path("math.jsonl").unlink()
    finished = run("verify", "merged")
    line = finished.err.splitlines()[-1]
    assert finished.status == 2
    assert line.startswith(
        "error: calibration data of math, math.jsonl: math.jsonl: no such file; check the path; say "
    )
    assert "Without them the merge cannot be made again: verified are the digests of all inputs" in line
    changed = with_changed_byte(Path("merged"), tmp_path / "changed", "model.embed_tokens.weight")
    assert [one.name for one in verify(changed).differences] == ["model.embed_tokens.weight"]


def test_scores_are_the_same_as_far_as_their_errors_can_tell() -> None:
    recorded = {"math": RecordedScore(score=0.5, standard_error=0.03), "law": RecordedScore(score=0.9)}
    evaluation = RecordedEvaluation(suite="s", split="test", tasks=["math"], model="m", models={"m": recorded})
    near, far = DomainScore(0.59, 0.04, 64), DomainScore(0.61, 0.04, 64)
    assert compared_scores(evaluation, {"math": near, "law": DomainScore(0.9, float("nan"), 1)}) == (
        {"math": (0.5, 0.59), "law": (0.9, 0.9)},
        {},
    )
    assert compared_scores(evaluation, {"math": far})[1] == {
        "math": "is 0.6100 instead of 0.5000, more than 2 standard errors apart",
        "law": "is of a domain that the suite does not have",
    }
