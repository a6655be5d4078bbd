"""A report writes over nothing but what an earlier report wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from command_line import CommandLine
from made_up_trials import made_up_trials
from mergebench_ray.commands.report import report
from mergebench_ray.errors import InputError
from mergebench_ray.runs import comparison
from mergebench_ray.runs.trial_store import TrialStore
from small_disks import small_disk

OPTIONS = ("out", "csv", "markdown", "latex")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a report, to be copied."""
    return filled(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def tables(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What a report writes for each option that takes a table."""
    folder = tmp_path_factory.mktemp("tables")
    files = {option: folder / option for option in OPTIONS[1:]}
    report([Path(shutil.copytree(made, folder / "run"))], **files)
    return {option: file.read_text() for option, file in files.items()}


def filled(folder: Path) -> Path:
    store = TrialStore(folder)
    for trial in made_up_trials(2):
        store.append(trial)
    (folder / "sweep.yaml").write_text("name: x\nsuite: smollm2-mini\nmethods: {model_soup: null}\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_earlier_reports_are_written_over_each_by_its_own_kind(run: Path, tmp_path: Path) -> None:
    files = {option: tmp_path / f"file.{option}" for option in OPTIONS}
    report([run], **files)
    before = content(tmp_path)
    report([run], **files)
    assert content(tmp_path) == before
    report([run, filled(tmp_path / "second")], **files)
    for option, other in zip(OPTIONS, (*OPTIONS[1:], OPTIONS[0]), strict=True):
        with pytest.raises(InputError, match=f"no `report --{option}` wrote it"):
            report([run], **{option: files[other]})


@pytest.mark.parametrize("option", OPTIONS[1:])
@pytest.mark.parametrize("edit", ["a number", "a line more", "a line less", "the end"])
def test_a_table_that_was_edited_is_never_written_over(
    run: Path, tables: Mapping[str, str], tmp_path: Path, option: str, edit: str
) -> None:
    file, text = tmp_path / "table", tables[option]
    *lines, last = text.splitlines(keepends=True)
    edited = {
        "a number": text[: len(text) // 2] + "7" + text[len(text) // 2 :],
        "a line more": f"{text}{lines[-1]}",
        "a line less": "".join([*lines[:-2], last]),
        "the end": f"{text}mine\n",
    }[edit]
    file.write_text(edited)
    with pytest.raises(InputError, match="edited"):
        report([run], **{option: file})
    assert file.read_text() == edited


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("text", ["", "mine", "<!DOCTYPE html>\n<html>mine</html>", "| mine |", "% mine", "a,b\n1,2\n"])
def test_a_file_of_the_users_is_never_written_over(run: Path, tmp_path: Path, option: str, text: str) -> None:
    mine = tmp_path / "mine"
    mine.write_text(text)
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"--{option}"):
        report([run], **{option: mine})
    assert content(tmp_path) == before


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "name",
    ["trials.parquet", "sweep.yaml", "study.db", "items/x", "best/model/x", "forgetting/base.json", "engine-0.log"],
)
def test_what_is_a_runs_own_is_refused_whether_it_is_there_or_not(
    run: Path, tmp_path: Path, option: str, name: str
) -> None:
    before = content(tmp_path)
    with pytest.raises(InputError, match="is for the run"):
        report([run], **{option: run / name})
    assert content(tmp_path) == before


def test_two_options_never_name_one_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="both --csv and --latex name it"):
        report([run], csv=tmp_path / "table", latex=tmp_path / "link" / "table")
    with pytest.raises(InputError, match="both --out and --csv name it"):
        report([run], csv=run / "report.html")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("option", OPTIONS)
def test_places_that_cannot_be_written_are_refused_before_anything_is(run: Path, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    before = content(tmp_path)
    for bad in ("pipe", "dangling", "file/x", "x" * 250, "."):
        with pytest.raises(InputError, match=r"output|not a regular file"):
            report([run], **{option: tmp_path / bad})
    assert content(tmp_path) == before


def test_a_link_to_an_earlier_report_leads_there(run: Path, tmp_path: Path) -> None:
    report([run], csv=tmp_path / "real.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    (tmp_path / "real.csv").write_text((tmp_path / "real.csv").read_text().splitlines()[0] + "\n")
    report([run], csv=tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "real.csv").read_text().splitlines()) > 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        yield folder


def test_after_a_full_disk_the_same_report_works_again(disk: Path) -> None:
    run = filled(disk / "run")
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(6 << 20))
    before = sorted(content(disk))
    with pytest.raises(InputError, match="no space left"):
        report([run])
    assert sorted(content(disk)) == before
    ballast.unlink()
    assert report([run])["report"].stat().st_size > 1 << 20


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "trials.parquet")
    for name in ("circle", "file", "none", "x" * 300, "a\0b", "pipes"):
        with pytest.raises(InputError, match=r"give the folder of a run|no such file|trials\.parquet"):
            report([tmp_path / name])
    with pytest.raises(InputError, match="at least one run"):
        report([])


def test_the_command_reads_each_run_once(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = comparison.Run.read
    monkeypatch.setattr(comparison.Run, "read", lambda folder: reads.append(folder) or read(folder))
    finished = CommandLine(capsys, monkeypatch)("report", run)
    assert finished.status == 0
    assert "report: " in finished.out
    assert reads == [run]
