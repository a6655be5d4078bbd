"""A merge is published whole or not at all, names nothing of this machine, and is verified from what was published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

from command_line import CommandLine
from hub_server import GROUP, OWNER, TOKEN, Hub, Repo, hub_server
from mergebench_ray import InputError, merge, push, verify
from mergebench_ray.checkpoints.reproduction import RecordedEvaluation, RecordedScore, Reproduction
from mergebench_ray.config import Recipe
from mergebench_ray.config.calibration import CalibrationInput, CalibrationRecord
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")
REPO = f"{OWNER}/merged"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, asked by a user whose cache is empty."""
    with hub_server() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, without_compiler: None) -> Path:
    """A folder with base, math, code and a merge of them that scored something."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\nA base.\n")
    specialists = {}
    for seed, name in enumerate(["math", "code"]):
        specialists[name] = str(tiny_specialist(folder / name, base, seed=seed))
    (folder / "math" / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\n")
    merge(
        out=folder / "merged",
        method="dare",
        base=str(base),
        specialists=specialists,
        parameters={"seed": 7},
    )
    record = Reproduction.read(folder / "merged")
    assert record is not None
    rows = {
        label: {"math": RecordedScore(score=0.5 + 0.1 * k, standard_error=0.05, items=64, metric="acc")}
        for k, label in enumerate(["base", "dare #3"])
    }
    evaluation = RecordedEvaluation(
        suite="smollm2-mini",
        split="test",
        tasks=["math"],
        model="dare #3",
        models=rows,
        averages={"dare #3": RecordedScore(score=0.9, standard_error=0.04)},
    )
    sweep = {"name": "s", "suite": "smollm2-mini", "base": str(base), "search": {"seed": 3}}
    (folder / "merged" / "reproduce.json").write_text(
        record.model_copy(update={"evaluation": evaluation, "sweep": sweep}).model_dump_json()
    )
    recipe = {"models": [{"model": specialists["math"]}], "merge_method": "dare", "base_model": str(base)}
    (folder / "merged" / "mergekit_config.yml").write_text(yaml.safe_dump(recipe))
    (folder / "merged" / "notes-of-mine.txt").write_text("mine")
    return folder


def places(models: Path) -> dict[str, object]:
    return {"base": str(models / "base"), "specialists": {name: str(models / name) for name in ("math", "code")}}


def test_without_yes_it_is_said_what_would_go_and_nothing_is_sent(models: Path, hub: Hub, run: CommandLine) -> None:
    finished = run("push", models / "merged", REPO)
    assert finished.status == 0, finished
    lines = finished.out.splitlines()
    size = (models / "merged" / "model-00001-of-00001.safetensors").stat().st_size
    assert f"{size:>15,}  model-00001-of-00001.safetensors" in lines
    assert "note: notes-of-mine.txt is left out" in lines
    assert lines[-1].endswith(
        f"would go to {hub.endpoint}/{REPO} (private), a new repository; nothing was sent, --yes does"
    )
    assert hub.repos == {}
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_what_is_published_says_all_and_names_nothing_of_this_machine(models: Path, hub: Hub) -> None:
    result = push(models / "merged", REPO, yes=True, benchmarks={"math": "openai/gsm8k:gsm8k"})
    repo = hub.repos[REPO]
    assert (repo.private, len(repo.commits), result.is_sent) == (True, 2, True)
    assert result.commit == f"{hub.endpoint}/{REPO}/commit/{repo.oid}"
    assert result.files == {name: len(content) for name, content in repo.files.items() if name != ".gitattributes"}
    texts = {name: content.decode() for name, content in repo.files.items() if not name.endswith(".safetensors")}
    assert [name for name, text in texts.items() if str(models) in text or "mine" in name] == []

    card = ModelCard(texts["README.md"])
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en", "de"]
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # none of them is on the hub
    assert {"merge", "dare"} <= {*card.data.tags}
    [result_on_hub] = card.data.eval_results
    assert (result_on_hub.dataset_name, result_on_hub.metric_value) == ("smollm2-mini: math", 0.6)
    for text in (
        f'from_pretrained("{REPO}"',
        "- code: not known\n- math: mit",
        "On the test split of smollm2-mini, with so many items: math 64.",
        "| dare #3 | 0.6000 ± 0.0500 |      0.9000 ± 0.0400 |",
        "Seed of the search: 3",
        f"mergebench-ray verify {REPO}",
    ):
        assert text in card.content, text
    (Path(models) / "recipe").write_text(texts["recipe.yaml"])
    recipe = Recipe.from_yaml(Path(models) / "recipe")
    assert (recipe.base, recipe.specialists) == ("base", {"code": "code", "math": "math"})
    assert recipe.digest == Recipe.from_yaml(models / "merged" / "recipe.yaml").digest
    record = json.loads(texts["reproduce.json"])
    assert record["sweep"]["base"] == "base"
    assert {"torch", "mergebench_ray", "python"} <= record["versions"].keys()
    assert yaml.safe_load(texts["mergekit_config.yml"])["models"] == [{"model": "math"}]
    [entry] = parse_eval_result_entries(yaml.safe_load(texts[".eval_results/math.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 0.6)
    assert entry.notes == "acc on 64 items of the test split of smollm2-mini, standard error 0.0500"


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "tokenizer_config.json"])
def test_a_text_that_names_a_path_of_this_machine_is_refused(
    models: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", "/members")  # ends like a hub id, and is a word of a vocabulary
    folder = Path(shutil.copytree(models / "merged", tmp_path / "merged"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "of": "owner/members"}))
    (folder / "vocab.json").write_text('{"/members": 0}')
    push(folder, REPO)
    (folder / name).write_text('{"x": "/members/models/base"}')
    with pytest.raises(InputError, match=rf"{name} would name /members, a path of this machine"):
        push(folder, REPO, yes=True)
    assert hub.repos == {}


def test_paths_that_look_like_hub_ids_are_not_published(
    models: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models.parent)
    within = models.name
    specialists = {"math": f"{within}/math"}
    merge(out=tmp_path / "merged", method="model_soup", base=f"{within}/base", specialists=specialists)
    record = Reproduction.read(tmp_path / "merged")
    assert record is not None
    sweep = {
        "suite": f"{within}/suite.yaml",
        "base": f"{within}/base",
        "calibration": {"data": {"math": {"data": "clients/acme.jsonl"}}, "max_length": 8},
        "evaluation": {"data": {"a/b": "clients/b"}, "judges": {"fair": {"model": "clients/judge", "max_length": 9}}},
    }
    notes = [f"specialist math from {within}/math, base ({within}/base): as {within}/mathematics has it."]
    changed = record.model_copy(update={"sweep": sweep, "notes": notes})
    (tmp_path / "merged" / "reproduce.json").write_text(changed.model_dump_json())
    monkeypatch.chdir(tmp_path / "merged")  # what was a path there is no path here
    push(tmp_path / "merged", REPO, yes=True)
    texts = {name: text.decode() for name, text in hub.repos[REPO].files.items() if not name.endswith(".safetensors")}
    published = json.loads(texts["reproduce.json"])
    assert published["notes"] == [f"specialist math from math, base (base): as {within}/mathematics has it."]
    assert published["sweep"]["base"] == "base"
    assert published["sweep"]["calibration"] == {"max_length": 8}
    assert published["sweep"]["evaluation"] == {"judges": {"fair": {"max_length": 9}}}
    assert [name for name, text in texts.items() if "clients" in text or f"{within}/math\n" in text] == []


def test_samples_of_a_file_are_named_as_no_data_set_of_the_hub_is(models: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "merged", tmp_path / "merged"))
    recipe, record = Recipe.from_yaml(folder / "recipe.yaml"), Reproduction.read(folder)
    assert record is not None
    sources = {"math": "clients/acme.jsonl", "code": "owner/data@main", "law": "own/suite.yaml:law"}
    inputs = {name: CalibrationInput(data=data, samples=1, digest="0") for name, data in sources.items()}
    calibration = CalibrationRecord(max_length=8, dtype="float32", inputs=inputs)
    recipe = recipe.model_copy(update={"calibration": calibration})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "reproduce.json").write_text(record.model_copy(update={"recipe": recipe.digest}).model_dump_json())
    push(folder, REPO, yes=True)
    (tmp_path / "recipe.yaml").write_bytes(hub.repos[REPO].files["recipe.yaml"])
    found = Recipe.from_yaml(tmp_path / "recipe.yaml").calibration
    assert found is not None
    names = {name: one.data for name, one in found.inputs.items()}
    assert names == {"math": "acme.jsonl", "code": "owner/data@main", "law": "suite.yaml:law"}


def test_weights_that_changed_since_they_were_published_are_refused(models: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "merged", tmp_path / "merged"))
    record = json.loads((folder / "reproduce.json").read_text())
    (folder / "reproduce.json").write_text(json.dumps({**record, "weights": "0" * 64}))
    with pytest.raises(InputError, match=r"its weights are not those that reproduce\.json names"):
        push(folder, REPO, yes=True)
    assert hub.repos == {}


def test_a_card_that_was_changed_keeps_its_licence_alone(models: Path, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "merged", tmp_path / "merged"))
    (folder / "README.md").write_text("---\nlicense: gpl-3.0\n---\nMy words.\n")
    result = push(folder, REPO, yes=True)
    assert any("the card is made anew, of this file `license` alone is kept" in note for note in result.notes)
    card = ModelCard(hub.repos[REPO].files["README.md"].decode())
    assert card.data.license == "gpl-3.0"
    assert "My words" not in card.content
    assert "gpl-3.0, as who published it says." in card.content
    assert "- base: apache-2.0\n- code: not known\n- math: mit" in card.content


@pytest.mark.parametrize(
    ("readme", "sentence"), [("---\ntags: [x]\n---\n", "does not name one"), (None, "is not known here")]
)
def test_a_licence_that_is_not_known_is_told_from_none(
    models: Path, hub: Hub, tmp_path: Path, readme: str | None, sentence: str
) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    (base / "README.md").unlink()
    if readme is not None:
        (base / "README.md").write_text(readme)
    merge(out=tmp_path / "merged", method="model_soup", base=base, specialists={"math": str(models / "math")})
    result = push(tmp_path / "merged", REPO, yes=True)
    assert f"The base's, which {sentence}" in hub.repos[REPO].files["README.md"].decode()
    assert not any("README.md is not what" in note for note in result.notes)


def test_inputs_of_the_hub_are_linked_and_their_licences_read_there(models: Path, hub: Hub, tmp_path: Path) -> None:
    for name in ("base", "math"):
        files = {file.name: file.read_bytes() for file in (models / name).iterdir()}
        hub.repos[f"others/{name}"] = Repo(False, [files])
    card = b"---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n"
    hub.repos["others/base"].files["README.md"] = card
    merge(out=tmp_path / "merged", method="model_soup", base="others/base", specialists={"math": "others/math"})
    push(tmp_path / "merged", f"{GROUP}/merged", yes=True, public=True)
    repo = hub.repos[f"{GROUP}/merged"]
    data = ModelCard(repo.files["README.md"].decode()).data
    assert not repo.private
    assert (data.base_model, data.base_model_relation) == (["others/base", "others/math"], "merge")
    assert (data.license, data.license_name, data.license_link) == ("other", "tiny", "LICENSE")
    assert (
        "The base's: tiny. Inputs that say otherwise, whose terms hold as well:\n\n- math: mit\n"
        in repo.files["README.md"].decode()
    )
    assert verify(f"{GROUP}/merged").is_equal
    repo.commits.append({**repo.files, "modeling_x.py": b"import theirs"})
    assert [str(one) for one in verify(f"{GROUP}/merged").differences] == ["file modeling_x.py is not of the merge"]
    with pytest.raises(InputError, match=r"others/base: holds no recipe\.yaml"):
        verify("others/base")


def test_what_was_published_is_verified_by_somebody_else_byte_for_byte(
    models: Path, hub: Hub, run: CommandLine, tmp_path: Path
) -> None:
    push(models / "merged", REPO, yes=True)
    fresh = tmp_path / "somewhere-else"
    fresh.mkdir()
    given = ["--base", models / "base", *(f"--specialist={name}={models / name}" for name in ("math", "code"))]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(fresh)}
    command = [sys.executable, "-m", "mergebench_ray", "verify", REPO, *map(str, given)]
    done = subprocess.run(command, cwd=fresh, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.startswith(f"equal: {REPO} is the merge that its recipe says, 20 tensors")

    hub.requests.clear()
    finished = run("verify", REPO)
    assert finished.status == 2
    assert finished.err.endswith("base: the recipe names base, which is not here; say where it lies: --base REF\n")
    assert not [request for request in hub.requests if "safetensors" in request]

    repo = hub.repos[REPO]
    weights = bytearray(repo.files["model-00001-of-00001.safetensors"])
    weights[-1] ^= 1
    repo.commits.append({**repo.files, "model-00001-of-00001.safetensors": bytes(weights)})
    finished = run("verify", REPO, *given)
    assert finished.status == 1
    assert finished.out.startswith("different: 1 of 20 tensors, the first: tensor model.")


def test_a_repository_that_holds_something_is_replaced_only_if_that_is_said(models: Path, hub: Hub) -> None:
    theirs = {".gitattributes": b"", "theirs.txt": b"theirs"}
    hub.repos[REPO] = Repo(True, [theirs])
    with pytest.raises(InputError, match=r"exists already and holds 1 files \(theirs.txt\): .* with --replace"):
        push(models / "merged", REPO, yes=True)
    assert hub.repos[REPO].files == theirs
    notes = push(models / "merged", REPO, replace=True, public=True).notes
    assert f"theirs.txt, which is in {REPO}, would be removed" in notes
    assert f"{REPO} is there already and stays private: change that on its page; --public is for a new one" in notes
    assert hub.repos[REPO].files == theirs
    assert push(models / "merged", REPO, yes=True, replace=True).exists
    assert "theirs.txt" not in hub.repos[REPO].files
    assert len(hub.repos[REPO].commits) == 2
    hub.repos[REPO].private = False
    with pytest.raises(InputError, match="everybody sees it: give --public"):
        push(models / "merged", REPO, yes=True, replace=True)


def test_a_commit_that_fails_leaves_nothing_of_the_model(models: Path, hub: Hub) -> None:
    hub.refuse = lambda method, path: 403 if "/commit/" in path else 0
    with pytest.raises(InputError, match="the token may not do this"):
        push(models / "merged", REPO, yes=True)
    assert [*hub.repos[REPO].files] == [".gitattributes"]


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(models: Path, hub: Hub) -> None:
    repo = hub.repos[REPO] = Repo(True)

    def meanwhile(method: str, path: str) -> int:
        if "/preupload/" in path:
            repo.commits.append({"theirs.txt": b"theirs"})
        return 0

    hub.refuse = meanwhile
    with pytest.raises(InputError, match="somebody changed the repository meanwhile"):
        push(models / "merged", REPO, yes=True)
    assert repo.files == {"theirs.txt": b"theirs"}


@pytest.mark.parametrize(
    ("repo", "problem"),
    [
        ("no-owner", "write OWNER/NAME"),
        ("some one/x", "write OWNER/NAME"),
        (f"{OWNER}/a--b", "write OWNER/NAME"),
        ("stranger/x", f"the token is of {OWNER}, who is not stranger nor in it; own: {OWNER}, {GROUP}"),
    ],
)
def test_a_name_that_nothing_can_be_pushed_to_is_refused(
    models: Path, hub: Hub, run: CommandLine, repo: str, problem: str
) -> None:
    assert problem in run.refused("push", models / "merged", repo, "--yes")
    assert hub.repos == {}


def test_without_a_token_or_a_model_nothing_is_sent(
    models: Path, hub: Hub, run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "merged", tmp_path / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "no-weights" in run.refused("push", tmp_path / "no-weights", REPO, "--yes")
    assert "holds no recipe.yaml" in run.refused("push", models / "math", REPO, "--yes")
    assert "of push's options none is for object storage" in run.refused("push", models / "math", "s3://b/x", "--yes")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "the token is not taken" in run.refused("push", models / "merged", REPO, "--yes")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token" in run.refused("push", models / "merged", REPO, "--yes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub is offline here" in run.refused("push", models / "merged", REPO, "--yes")
    assert "which was not looked at; nothing was sent" in run("push", models / "merged", REPO).out
    assert hub.repos == {}
