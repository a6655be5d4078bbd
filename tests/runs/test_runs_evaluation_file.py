"""The file of `evaluate --out`: what is written is what is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.runs.evaluation_file import EvaluationFile
from mergebench_ray.scores import DomainScore, Scores, TaskScore


def _scores(error: float) -> Scores:
    tasks = {"t": TaskScore("t", "asr", 0.25, error, 4, one_minus=True, domain="safety")}
    domain = DomainScore(0.75, error, 4, counted={"t": "1 - asr"})
    return Scores("test", {"safety": domain}, [], "v", 1.5, 1.0, 9, 0, tasks)


def test_a_written_file_reads_back_whole(tmp_path: Path) -> None:
    written = EvaluationFile.of("owner/model", "d", "mini", _scores(0.1), ["a note"])
    written.write(tmp_path / "x.json")
    assert EvaluationFile.read(tmp_path / "x.json") == written
    assert written.tasks["t"].score == 0.75
    assert written.tasks["t"].counted == "1 - asr"
    assert written.average is not None


def test_an_error_that_is_not_known_reads_back_as_such(tmp_path: Path) -> None:
    EvaluationFile.of("m", "d", "mini", _scores(math.nan), []).write(tmp_path / "x.json")
    assert math.isnan(EvaluationFile.read(tmp_path / "x.json").domains["safety"].standard_error)


def test_a_file_of_an_earlier_version_reads_without_what_came_later(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        '{"split": "test", "domains": {"math": {"score": 1.0, "standard_error": 0.1, "items": 3}}, '
        '"tasks": {"t": {"counted": "acc"}}}'
    )
    assert EvaluationFile.read(tmp_path / "x.json").domains["math"].higher_is_better


@pytest.mark.parametrize("content", ["{", "[]", '{"split": "test", "domains": {"math": {"score": "1"}}, "tasks": {}}'])
def test_another_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json: not what `evaluate --out` writes") as caught:
        EvaluationFile.read(tmp_path / "x.json")
    assert "\n" not in str(caught.value)
