"""`advise` says of weights what plain arithmetic says, and draws it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from browser import body_in_browser
from command_line import CommandLine
from mergebench_ray.commands.advice import Advice
from mergebench_ray.commands.advise import advise
from tiny_models import tiny_llama, tiny_specialist

pytestmark = [pytest.mark.compiler, pytest.mark.slow]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("models")
    base = tiny_llama(room / "base")
    found = {name: tiny_specialist(room / name, base, seed=seed) for seed, name in enumerate(("law", "math"))}
    return {"base": base, **found, "far": tiny_specialist(room / "far", base, seed=1, scale=0.4)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "advice.html"


@pytest.fixture(scope="module")
def advice(folders: dict[str, Path], page: Path) -> Advice:
    return advise(str(folders["base"]), {n: str(folder) for n, folder in folders.items() if n != "base"}, out=page)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_sizes_angles_and_signs_are_those_of_plain_arithmetic(advice: Advice, folders: dict[str, Path]) -> None:
    assert advice.specialists == ("far", "law", "math")
    base = load_file(folders["base"] / "model.safetensors")
    names = [name for name in base if "embed" not in name]
    layer = [name for name in names if ".layers.1." in name]
    for group, some in ((advice.whole, names), (advice.by_layer["layer 1"], layer)):
        vectors = []
        for name in advice.specialists:
            weights = load_file(folders[name] / "model.safetensors")
            vectors.append(torch.cat([(weights[one] - base[one]).flatten() for one in some]).double())
        size = torch.cat([base[one].flatten() for one in some]).double().norm()
        for a, first in enumerate(vectors):
            assert group.drift[a] == pytest.approx(float(first.norm() / size), rel=1e-6)
            for b, second in enumerate(vectors[:a]):
                cosine = first @ second / first.norm() / second.norm()
                assert group.cosines[a, b] == group.cosines[b, a] == pytest.approx(float(cosine), abs=1e-6)
                signs = first.sign() * second.sign()
                alike = (signs > 0).sum() / (signs != 0).sum()
                assert group.agreement[a, b] == pytest.approx(float(alike))


def test_what_stands_out_is_said(advice: Advice) -> None:
    said = " ".join(advice.remarks)
    assert "far moved" in said
    assert "`per: specialist`" in said
    assert "far and math go the same way" in said
    assert sum(advice.starts["metagpt"].values()) == pytest.approx(1.0)
    assert len(set(advice.starts["kappa"].values())) == 1


def test_the_page_opens_in_a_browser(advice: Advice, page: Path, tmp_path: Path) -> None:
    body = body_in_browser(page, tmp_path / "profile")
    assert advice.remarks[0].split("`")[0] in body
    assert body.count("js-plotly-plot") == 3


def test_the_command_prints_tables_or_json(command: CommandLine, folders: dict[str, Path]) -> None:
    models = [folders["base"], *(f"{name}={folders[name]}" for name in ("base", "law", "math"))]
    printed = command("advise", *models).out
    assert "base is the base: it brings nothing to a merge." in printed
    found = json.loads(command("advise", *models, "--json").out)
    assert found["whole"]["drift"]["base"] == 0
    assert found["starts"]["kappa"].keys() == {"law", "math"}
    assert found["whole"]["agreement"]["base, law"] == 0.5


def test_a_page_is_not_written_over_what_is_not_one(
    command: CommandLine, folders: dict[str, Path], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    assert "exists" in command.refused("advise", folders["base"], f"law={folders['law']}", "--out", notes)
    assert notes.read_text() == "mine"
