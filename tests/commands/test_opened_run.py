"""What notebooks and programs read of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from made_up_run import ITEMS, write_run
from made_up_trials import DOMAINS, for_front, made_up_trials, raced
from mergebench_ray import InputError, OpenedRun, TuneResult, open_run
from mergebench_ray.report.figures import FIGURE_NAMES
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "made-up"
    write_run(path)
    return path


@pytest.fixture(scope="module")
def best() -> Trial:
    found = best_candidate(made_up_trials())
    assert found is not None
    return found


def test_a_run_is_opened_by_a_path_of_either_kind(folder: Path, best: Trial) -> None:
    for path in (folder, str(folder)):
        run = open_run(path)
        assert (run.folder, run.status.state, run.best) == (folder, "finished", best)


def test_a_run_that_was_opened_stays_the_same_where_the_process_works_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    run = open_run(folder.name)
    assert repr(run).endswith(f"\nfolder: {folder.name}")
    monkeypatch.chdir(tmp_path)
    assert run.folder == folder
    assert len(run.trials) == len(made_up_trials())
    assert run.status.state == "finished"
    assert repr(run).endswith(f"\nfolder: {folder}")


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run \(no sweep\.yaml there\)"):
        open_run(tmp_path)


def test_trials_are_a_frame_with_a_row_for_each_model_and_split(folder: Path, best: Trial) -> None:
    frame = open_run(folder).trials
    assert len(frame) == len(made_up_trials())
    assert "record" not in frame
    rows = frame[(frame["role"] == "candidate") & (frame["split"] == "validation")]
    row = rows.loc[rows["normalised_average"].idxmax()]
    assert (row["number"], row["score.math"]) == (best.number, best.domains["math"].score)
    assert row["coefficient.math"] == best.coefficients["math"]


def test_a_run_that_has_scored_nothing_has_an_empty_frame_and_no_best(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    run = open_run(tmp_path / "run")
    assert (len(run.trials), run.best, run.front) == (0, None, [])
    assert run.trials[run.trials["split"] == "test"].empty
    assert "no candidate" in repr(run)
    with pytest.raises(InputError, match=r"no model has been scored yet|no such file"):
        run.plot()
    with pytest.raises(InputError, match="no candidate has been scored"):
        run.items()


def test_the_frame_of_a_run_that_has_just_begun_takes_what_that_of_any_run_takes(tmp_path: Path) -> None:
    base = replace(made_up_trials()[0], normalised_average=None, normalised_standard_error=None)
    for name, trials in (("nothing", []), ("base", [base])):
        write_run(tmp_path / name, trials)
        frame = open_run(tmp_path / name).trials
        assert frame[frame["role"] == "candidate"].nlargest(5, "normalised_average").empty
        assert len(frame.nlargest(5, "number")) == len(trials)


def test_what_comes_later_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    trials = made_up_trials(test=False)
    write_run(tmp_path / "run", trials[:10])
    run = open_run(tmp_path / "run")
    assert len(run.trials) == 10
    TrialStore(tmp_path / "run").extend(trials[10:])
    assert len(run.trials) == len(trials)
    assert run.best == best_candidate(trials)


def test_the_report_is_made_again_once_there_are_other_trials(tmp_path: Path) -> None:
    trials = made_up_trials(test=False)
    write_run(tmp_path / "run", trials[:10])
    run = open_run(tmp_path / "run")
    before = run.report.read_text()
    written = run.report.stat().st_mtime_ns
    assert run.report.stat().st_mtime_ns == written
    TrialStore(tmp_path / "run").extend(trials[10:])
    assert run.report.read_text() != before


def test_items_say_what_was_asked_answered_and_scored(folder: Path, best: Trial) -> None:
    run = open_run(folder)
    frame = run.items()
    assert list(frame.columns[:7]) == ["domain", "task", "item", "prompt", "expected", "answer", "score"]
    assert len(frame) == ITEMS * len(DOMAINS)
    assert set(frame["prompt"][frame["domain"] == "math"]) == {f"Question {n} of math?" for n in range(ITEMS)}
    pd.testing.assert_frame_equal(frame, run.items(best.label, "test"))
    assert set(run.items("math")["domain"]) == {"math"}
    assert run.items("base", "validation")["answer"].str.startswith("base says").all()
    pd.testing.assert_frame_equal(run.items(best), run.items(best.label, "validation"))


def test_items_of_what_is_not_there_are_refused_with_what_is(folder: Path, best: Trial, tmp_path: Path) -> None:
    run = open_run(folder)
    with pytest.raises(InputError, match=r"no model 'bas'; did you mean 'base'"):
        run.items("bas")
    with pytest.raises(InputError, match="was not scored on 'final'"):
        run.items("base", "final")
    trials = raced(made_up_trials(test=False))
    write_run(tmp_path / "run", trials)
    stopped = next(one for one in trials if one.role == "stopped")
    (tmp_path / "run" / "items" / f"{stopped.digest}-validation.parquet").unlink()
    with pytest.raises(InputError, match="are not there; the race stopped it"):
        open_run(tmp_path / "run").items(stopped)


def test_model_report_and_log_are_where_the_run_has_them(folder: Path) -> None:
    run = open_run(folder)
    assert run.model == folder / "best" / "model"
    assert run.report.read_text().startswith("<!DOCTYPE html>")
    assert run.report == folder / "report.html"
    assert run.log == "what libraries said\n"
    assert run.sweep.name == "made-up"


@pytest.mark.parametrize("name", FIGURE_NAMES)
def test_every_chart_is_drawn_by_its_name(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", for_front(raced(made_up_trials()), DOMAINS[:3]))
    figure = open_run(tmp_path / "run").plot(name)
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 1


def test_a_chart_that_is_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'search'"):
        open_run(folder).plot("serach")
    with pytest.raises(InputError, match=r"nothing for the plot 'race' to show; there is search, leaderboard"):
        open_run(folder).plot("race")


def test_a_result_is_a_few_lines_and_a_small_table(folder: Path, best: Trial) -> None:
    result = TuneResult(folder)
    lines = repr(result).splitlines()
    assert lines[0].startswith(f"best of 14 candidates: {best.label}, normalised average ")
    assert lines[-1] == f"folder: {folder}"
    assert len(lines) < 8
    assert max(map(len, lines)) < 200
    html = result._repr_html_()
    assert f"best: {best.label}" in html
    assert html.count("<tr") == 1 + 1 + 3  # a head, of candidates the one that was scored on test, what it has to beat
    assert result.test.split == "test"
    assert result.best == best
    assert result.final is None
    assert result.front == [best]
    assert {one.role for one in result.references} == {"base", "specialist", "average", "reference"}


def test_the_result_of_a_run_that_is_not_over_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", made_up_trials(test=False))
    with pytest.raises(InputError, match="the run is not over"):
        TuneResult(tmp_path / "run")


def test_names_are_shown_as_they_are_in_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    trials = [replace(one, name=evil) if one.role == "reference" else one for one in made_up_trials()]
    trials = [
        replace(one, domains={evil if name == "math" else name: result for name, result in one.domains.items()})
        for one in trials
    ]
    write_run(tmp_path / evil.replace("/", ""), trials)
    html = open_run(tmp_path / evil.replace("/", ""))._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3


def test_a_trial_is_one_short_line(best: Trial) -> None:
    assert repr(best).startswith(f"<{best.label} on validation: normalised_average 0.")
    stopped = next(one for one in raced(made_up_trials()) if one.role == "stopped")
    assert "stopped after" in repr(stopped)
    assert len(repr(best)) < 100


def test_an_opened_run_is_what_its_status_says(folder: Path) -> None:
    run = OpenedRun(folder)
    assert repr(run).splitlines()[:-1] == run.status.lines()
    assert repr(run.status) == "\n".join(run.status.lines())
