"""Where commands write: tried first, and nothing is lost when it fails at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from mergebench_ray.commands.evaluate import EvaluationResult, keep
from mergebench_ray.runs.evaluation_file import EvaluationFile, items_file
from mergebench_ray.scores import DomainScore, Scores
from small_disks import small_disk

ITEM = {"domain": "math", "task": "t", "item": "1", "prompt_digest": "aa", "answer": "7", "score": 1.0}
QUESTION = {"domain": "math", "task": "t", "item": "1", "prompt_digest": "aa", "prompt": "3 + 4?", "expected": "7"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def result() -> EvaluationResult:
    scores = Scores("test", {"math": DomainScore(1.0, 0.1, 1)}, [ITEM], "", 1.0, 1.0, 1, 0)  # type: ignore[list-item]
    return EvaluationResult("model", "digest", "suite", scores)


def test_files_of_scores_have_files_of_items_of_their_own(tmp_path: Path) -> None:
    names = ["llama-3.1", "llama-3.2", "scores.json", "a.b.json"]
    assert [items_file(tmp_path / name).name for name in names] == [
        "llama-3.1.items.parquet",
        "llama-3.2.items.parquet",
        "scores.items.parquet",
        "a.b.items.parquet",
    ]


def test_scores_and_items_are_written(result: EvaluationResult, tmp_path: Path) -> None:
    kept = keep(result, tmp_path / "x.json", [QUESTION])  # type: ignore[list-item]
    assert kept.not_written is None
    assert json.loads((tmp_path / "x.json").read_text())["domains"]["math"]["score"] == 1.0
    assert EvaluationFile.read(tmp_path / "x.json").domains == result.scores.domains
    assert pq.read_table(tmp_path / "x.items.parquet").to_pylist() == [{**QUESTION, **ITEM}]


def test_scores_that_find_no_room_are_not_lost(result: EvaluationResult, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        (disk / "ballast").write_bytes(bytes(4096))
        with pytest.warns(UserWarning, match="no space left"):
            kept = keep(result, disk / "x.json", [QUESTION])  # type: ignore[list-item]
        assert [file.name for file in disk.iterdir()] == ["ballast"]
    assert "no space left" in str(kept.not_written)
    assert kept.scores is result.scores


def test_scores_never_replace_what_came_meanwhile(result: EvaluationResult, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("theirs")
    with pytest.warns(UserWarning, match="exists by now"):
        assert keep(result, tmp_path / "x.json", [QUESTION]).not_written  # type: ignore[list-item]
    assert (tmp_path / "x.json").read_text() == "theirs"


COMMANDS = {
    "merge": ["merge", "--method", "ties", "--base", "./none", "--specialist", "a=./none", "--out"],
    "evaluate": ["evaluate", "./none", "--suite", "smollm2-mini", "--out"],
    "bench": ["bench", "--model", "./none", "--json"],
    "train-specialists": ["train-specialists", "--out"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("bad", ["file/x", "dangling", "x" * 300, "file"])
def test_a_bad_place_is_refused_before_anything_is_looked_at(
    run: CommandLine, tmp_path: Path, command: str, bad: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.iterdir())
    assert "output" in run.refused(*COMMANDS[command], tmp_path / bad)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_is_refused_where_only_a_disk_will_do(run: CommandLine, command: str) -> None:
    if command == "merge":
        for address in ("s4://bucket/x", "hf://owner/name"):
            assert f"output {address}: cannot be written" in run.refused(*COMMANDS[command], address)
        hidden = run.refused(*COMMANDS[command], "https://someone:of-ours@host/x?signature=of-ours")
        assert "output https://***host/x***: cannot be written" in hidden
    else:
        assert "output s3://***bucket/x: only" in run.refused(*COMMANDS[command], "s3://someone:of-ours@bucket/x")
        line = run.refused(*COMMANDS[command], "s3://bucket/x")
        assert "output s3://bucket/x: only the model of `merge` is written to s3:// and gs://" in line


def test_items_that_are_there_already_are_not_replaced(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x.items.parquet").write_text("kept")
    line = run.refused("evaluate", "./none", "--suite", "smollm2-mini", "--out", tmp_path / "x")
    assert "x.items.parquet exists already" in line


def test_scores_are_shown_as_a_line_a_domain_and_a_table(result: EvaluationResult) -> None:
    assert repr(result) == "model on suite, test split\nmath 1.000 ± 0.100, 1 items"
    html = replace(result, model="<b>")._repr_html_()
    assert "&lt;b&gt; on suite" in html
    assert "<tr><td>math</td><td>1.000 ± 0.100</td><td>1 items</td></tr>" in html
