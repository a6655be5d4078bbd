from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

import mergebench_ray
from command_line import CommandLine
from made_up_items_run import write_run
from made_up_races import made_up_answers, made_up_items
from mergebench_ray.errors import InputError
from mergebench_ray.report.own_output import HTML_MARK
from mergebench_ray.search.race.items import levels
from mergebench_ray.search.replay.recorded import Recorded
from mergebench_ray.search.replay.rivals import signed_rank_p
from mergebench_ray.search.replay.settings import DEFAULT_SETTINGS, Setting

DOMAINS = ["coding"] * 40 + ["math"] * 40
QUALITIES = np.linspace(-0.5, 1, 12)


def _answers(qualities: Any, seed: int = 0) -> Any:
    return made_up_answers(qualities, made_up_items(per_domain=40), seed)[:, : len(DOMAINS)]


def _write(folder: Path, qualities: Any = QUALITIES, **more: Any) -> Path:
    specialist, average, base = _answers([1.2, 0.2, -1.0], seed=9)
    write_run(folder, DOMAINS, _answers(qualities), specialist, average, base, **more)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_a_replay_says_what_each_setting_costs_and_loses(run: Path) -> None:
    result = mergebench_ray.replay(run, orders=5)
    assert [one.setting for one in result.outcomes] == [one.label for one in DEFAULT_SETTINGS]
    full = result.outcomes[0]
    assert (full.items_asked, full.regret, full.fresh_loss) == (1, 0, 0)
    assert full.chosen == ((int(np.argmax(result.values)), 1.0),)
    tenth, fifth = result.outcomes[1:3]
    assert (tenth.items_asked, fifth.items_asked) == pytest.approx((0.1, 0.2))
    for one in result.outcomes:
        assert 0 <= one.regret <= one.regret_95 <= max(result.values) - min(result.values)
        assert np.mean(one.answered) == pytest.approx(one.items_asked)
        assert sum(share for _, share in one.chosen) == pytest.approx(1)


def test_values_are_those_of_the_run(run: Path) -> None:
    recorded = Recorded.read(run)
    result = mergebench_ray.replay(run, races=["none"], orders=1)
    answers = _answers(QUALITIES)
    references = _answers([1.2, 0.2, -1.0], seed=9)[0]
    naive = (answers[:, :40].mean(1) / references[:40].mean() + answers[:, 40:].mean(1) / references[40:].mean()) / 2
    assert result.values == pytest.approx(naive)
    assert recorded.validation.scores.tolist() == answers.tolist()


def test_a_replay_is_after_what_the_run_was_after(tmp_path: Path) -> None:
    folder = _write(tmp_path / "run")
    sweep = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {}}, "search": {"objective": "math"}}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    result = mergebench_ray.replay(folder, races=["none"], orders=1)
    references = _answers([1.2, 0.2, -1.0], seed=9)[0]
    assert result.objective == "math"
    assert result.values == pytest.approx(_answers(QUALITIES)[:, 40:].mean(1) / references[40:].mean())


def test_an_objective_that_the_bound_does_not_hold_for_is_not_raced_exactly(tmp_path: Path) -> None:
    folder = _write(tmp_path / "run")
    sweep = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {}}, "search": {"objective": "worst_domain"}}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    assert mergebench_ray.replay(folder, races=["pool"], orders=2).objective == "worst_domain"
    with pytest.raises(InputError, match="race exact: objective worst_domain"):
        mergebench_ray.replay(folder, races=["exact"], orders=1)


def test_the_same_seed_gives_the_same_replay(run: Path) -> None:
    first, second, other = (mergebench_ray.replay(run, races=["pool"], orders=4, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first.outcomes != other.outcomes


def test_test_items_are_the_fresh_ones_where_all_candidates_have_them(run: Path, tmp_path: Path) -> None:
    assert mergebench_ray.replay(run, races=["none"], orders=1).fresh == "held back"
    both = _write(_write(tmp_path / "both"), split="test")
    result = mergebench_ray.replay(both, races=["fewer,share=0.05"], orders=10)
    assert result.fresh == "test"
    (one,) = result.outcomes
    assert one.fresh_loss == pytest.approx(one.regret)  # the same answers again


def test_more_items_cost_a_smaller_share(run: Path) -> None:
    few = mergebench_ray.replay(run, races=["pool"], orders=5)
    many = mergebench_ray.replay(run, races=["pool"], orders=5, items=800)
    assert many.items == 800
    assert many.outcomes[0].items_asked < few.outcomes[0].items_asked


def test_what_is_known_of_items_makes_few_strata() -> None:
    assert levels([0.0, 1.0, 0.5, None]) == [0, 2, 1, -1]
    assert levels([0.3, 0.3]) == [0, 0]
    assert levels([None]) == [-1]


def test_the_signed_rank_test_is_scipys() -> None:
    source = np.random.default_rng(0)
    for _ in range(20):
        differences = source.choice([-1.0, -0.5, 0.0, 0.5, 1.0], 40)
        expected = wilcoxon(differences, alternative="less", zero_method="zsplit", method="approx").pvalue
        assert signed_rank_p(differences) == pytest.approx(expected)
    assert signed_rank_p(np.zeros(5)) == pytest.approx(0.5)


def test_the_command_prints_a_table_or_json_and_writes_a_page(run: Path, command: CommandLine, tmp_path: Path) -> None:
    page = tmp_path / "replay.html"
    finished = command("replay", run, "--race", "pool,p=0.2", "--orders", 2, "--out", page)
    assert finished.status == 0
    assert "pool,p=0.2" in finished.out
    text = page.read_text()
    assert HTML_MARK in text
    assert "pool,p=0.2" in text
    found = json.loads(command("replay", run, "--race", "pool,p=0.2", "--orders", 2, "--json").out)
    assert found["outcomes"][0]["setting"] == "pool,p=0.2"
    assert found["fresh"] == "held back"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--race", "pol"], "did you mean 'pool'"),
        (["--race", "pool,q=1"], "'q' is no setting of pool; it has look, p, survivors"),
        (["--race", "pool,p=2"], "p must be above 0 and at most 0.5"),
        (["--race", "pool,survivors=1.5"], "survivors must be a whole number"),
        (["--orders", "0"], "--orders 0"),
        (["--items", "0"], "--items 0"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_wrong_options_are_refused(run: Path, command: CommandLine, options: list[str], expected: str) -> None:
    assert expected in command.refused("replay", run, *options)


def test_a_page_never_replaces_what_no_report_wrote(run: Path, command: CommandLine, tmp_path: Path) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    assert "exists" in command.refused("replay", run, "--out", notes)
    assert notes.read_text() == "mine"


def test_a_folder_that_is_no_run_is_refused(command: CommandLine, tmp_path: Path) -> None:
    assert "give the folder of a run" in command.refused("replay", tmp_path)


def test_a_run_of_one_candidate_is_refused(command: CommandLine, tmp_path: Path) -> None:
    folder = _write(tmp_path / "run", qualities=[0.3])
    assert "1 candidate scored on validation" in command.refused("replay", folder)


def test_a_run_without_items_is_refused(command: CommandLine, tmp_path: Path) -> None:
    folder = _write(tmp_path / "run")
    for file in (folder / "items").iterdir():
        file.unlink()
    assert "are not there" in command.refused("replay", folder)


def test_a_metric_that_exists_only_over_all_items_is_refused_by_its_task(command: CommandLine, tmp_path: Path) -> None:
    folder = _write(tmp_path / "run", null_task="math")
    assert "task 'math' has a metric that exists only over all items" in command.refused("replay", folder)


def test_candidates_that_were_scored_on_different_items_are_refused(command: CommandLine, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = _write(tmp_path / "run")
    file = next(one for one in (folder / "items").iterdir() if one.name.startswith("candidate-task_arithmetic-3-"))
    pq.write_table(pq.read_table(file).slice(1), file)
    assert "candidates 0 and 3 were scored on different items" in command.refused("replay", folder)


def test_a_setting_names_itself_as_it_is_written() -> None:
    assert Setting.parse("pool,p=0.05,survivors=4").label == "pool,p=0.05,survivors=4"
    with pytest.raises(InputError, match="share must be above 0"):
        Setting.parse("fewer,share=0")
