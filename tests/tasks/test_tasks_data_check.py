"""`data check`: which data sets a suite or a sweep needs, and whether they are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from mergebench_data import DATA_SETS, ifeval, write_data
from mergebench_ray.commands.data_check import data_blocks, data_check
from task_files import write_lines
from tiny_models import tiny_llama


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


MERGEBENCH_SWEEP: dict[str, Any] = {
    "name": "s",
    "suite": "mergebench",
    "base": "owner/base",
    "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
}


ONLY_OF_PROXIES = {"allenai/wildjailbreak", "EleutherAI/lambada_openai", "neulab/conala"}


def mergebench_copies(folder: Path) -> dict[str, str]:
    """Copies of what the suite mergebench reads, without those that only mergebench-published-proxies does."""
    return {name: path for name, path in write_data(folder).items() if name.partition(":")[0] not in ONLY_OF_PROXIES}


def test_every_data_set_of_a_suite_is_listed_with_its_gate_and_place(tmp_path: Path, run: CommandLine) -> None:
    data = mergebench_copies(tmp_path)
    options = [part for name, path in data.items() for part in ("--data", f"{name}={path}")]
    finished = run("data", "check", "mergebench", "--json", *options)
    assert finished.status == 0, finished
    found = {one["id"]: one for one in json.loads(finished.out)}
    judge = found.pop("allenai/wildguard")
    assert judge["tasks"][0] == "judge wildguard of wildguardtest"
    assert (judge["gated"], judge["there"], judge["optional"]) == (True, False, True)
    assert {name.partition(":")[0] for name in found} == set(DATA_SETS) - ONLY_OF_PROXIES
    assert {name for name, one in found.items() if one["gated"]} == {
        "allenai/wildguardmix:wildguardtest",
        "walledai/XSTest",
    }
    assert found["alexandrainst/m_mmlu:fr"]["splits"] == ["val", "test"]
    assert all(one["source"] == "local" and one["there"] for one in found.values())


def test_a_data_set_that_is_not_there_makes_the_check_fail(tmp_path: Path, run: CommandLine) -> None:
    write_lines(tmp_path / "a.jsonl", [ifeval(1)])
    finished = run("data", "check", "mergebench", "--data", f"google/IFEval={tmp_path / 'a.jsonl'}")
    assert finished.status == 1
    assert "HF_HUB_OFFLINE is set" in finished.err
    assert "google/IFEval" not in finished.err
    finished = run("data", "check", "mergebench", "--data", f"openai/gsm8k={tmp_path}")
    assert "no file for the split 'test', only a.jsonl" in finished.out


def test_a_listing_of_data_sets_that_is_piped_has_a_line_and_all_columns_for_each(run: CommandLine) -> None:
    header, *rows = [line.split("\t") for line in run("data", "check", "mergebench").out.splitlines()]
    assert header[:4] == ["there", "from", "licence", "data set or judge"]
    assert {len(row) for row in rows} == {len(header)}
    listed = {row[3]: dict(zip(header, row, strict=True)) for row in rows}
    assert listed["bigbio/pubmed_qa:pubmed_qa_labeled_fold0_source"]["tasks"] == "pubmedqa"
    assert listed["allenai/wildguard"]["licence"] == "gated"


def test_a_listing_of_data_sets_on_a_narrow_terminal_shows_names_and_paths_whole() -> None:
    found = data_check("mergebench", {"google/IFEval": "/my data/" + 80 * "x"})
    lines = data_blocks(found, 80)
    assert lines[1] == "no     local  open     google/IFEval"
    assert lines[2] == "       train of ifeval"
    assert lines[3] == "       /my data/" + 80 * "x"
    assert all(len(line) <= 80 for line in lines if "/my data/" not in line)
    assert data_blocks(found, 1)
    assert all(", ".join(one.tasks) in " ".join(" ".join(lines).split()) for one in found)


def test_a_judge_that_the_user_names_must_be_there(tmp_path: Path, run: CommandLine) -> None:
    sweep = {**MERGEBENCH_SWEEP, "specialists": {"safety": "owner/safety"}}
    sweep["evaluation"] = {"domains": ["safety"], "data": mergebench_copies(tmp_path)}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(sweep))
    finished = run("data", "check", str(file))
    assert finished.status == 0, finished
    assert "judge allenai/wildguard: not in the cache, and HF_HUB_OFFLINE is set; without it" in finished.err
    sweep["evaluation"]["judges"] = {"wildguard": "./nowhere"}
    file.write_text(json.dumps(sweep))
    finished = run("data", "check", str(file))
    assert finished.status == 1
    assert "./nowhere: model ./nowhere: no such file or folder" in finished.err
    (tmp_path / "judge").mkdir()
    sweep["evaluation"]["judges"] = {"wildguard": str(tmp_path / "judge")}
    file.write_text(json.dumps(sweep))
    (*_, judge) = data_check(file)
    assert (judge.id, judge.source, judge.there, judge.gated) == (str(tmp_path / "judge"), "local", True, False)
    sweep["evaluation"]["judges"] = {"wildguard": None}
    file.write_text(json.dumps(sweep))
    assert not any(one.id == "allenai/wildguard" for one in data_check(file))


def test_only_the_chosen_domains_of_a_sweep_are_checked_and_generated_data_are_there(tmp_path: Path) -> None:
    sweep = {**MERGEBENCH_SWEEP, "specialists": {"math": "owner/math"}}
    sweep["evaluation"] = {"domains": ["math"], "data": {"openai/gsm8k": str(tmp_path)}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    write_lines(tmp_path / "test.jsonl", [{"question": "1 + 1?"}])
    assert [(one.id, one.there) for one in data_check(tmp_path / "sweep.yaml")] == [("openai/gsm8k:main", True)]
    assert all(one.source == "task" and one.there for one in data_check("smollm2-mini"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "gsm9k"], "no task 'gsm9k'; it has .*gsm8k_cot.* and the domains instruction"),
        (["--tasks", "ifeval", "--data", "google/IFEval"], "--data 'google/IFEval': write ID=PATH"),
        (["--tasks", "ifeval", "--data", "google/IFEval=nowhere"], "nowhere: no such file or folder"),
        (["--tasks", "coding"], "runs generated programs"),
    ],
)
def test_evaluate_refuses_wrong_data_before_anything_starts(
    tmp_path: Path, run: CommandLine, arguments: list[str], message: str
) -> None:
    line = run.refused("evaluate", tiny_llama(tmp_path / "model"), "--suite", "mergebench", *arguments)
    assert re.search(message, line), line
