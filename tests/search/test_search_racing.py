"""Candidates of a race from their first look to their row, and after the process that scored them was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import made_up_search
from killed_search import Killed, killed_at
from made_up_search import DOMAINS, PER_DOMAIN, MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.runs.opening import _num_candidates
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched

ITEMS = len(DOMAINS) * PER_DOMAIN
POOL = {"trials": 14, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 4}}


def search(folder: Path, options: Any = POOL, **other: Any) -> MadeUpSearch:
    return MadeUpSearch(folder, MadeUpScorer(), options, **other)


def table(folder: Path) -> list[Any]:
    """All that a row says but times and costs."""
    return [
        (one.role, one.number, one.optuna_number, one.parameters, one.domains, one.objectives, one.estimate)
        for one in searched(TrialStore(folder).trials())
    ]


def lines(folder: Path) -> list[dict[str, Any]]:
    return JsonLines(folder / "decisions.jsonl").read()


class TestOneSitting:
    @pytest.fixture(scope="class")
    def raced(self, tmp_path_factory: pytest.TempPathFactory) -> MadeUpSearch:
        found = search(tmp_path_factory.mktemp("raced"))
        found.drive()
        return found

    def test_fewer_items_are_asked_and_a_good_candidate_is_scored_in_full(
        self, raced: MadeUpSearch, tmp_path: Path
    ) -> None:
        in_full = search(tmp_path, POOL | {"race": {"kind": "none", "in_flight": 20}})
        in_full.drive()
        assert raced.scorer.asked < 0.6 * in_full.scorer.asked == 0.6 * 14 * ITEMS
        values = {one.optuna_number: one.objective.value or 0.0 for one in searched(in_full.store.trials())}
        best = best_candidate(raced.store.trials())
        assert best is not None
        assert max(values.values()) - values[best.optuna_number] < 0.05

    def test_a_stopped_candidate_has_an_estimate_and_no_score(self, raced: MadeUpSearch) -> None:
        rows = searched(raced.store.trials())
        stopped = [one for one in rows if one.role == "stopped"]
        assert stopped
        for one in stopped:
            assert one.estimate is not None
            assert one.objective.value is one.normalised_average is None
            assert one.estimate.answered == sum(score.items for score in one.domains.values()) < ITEMS
            assert raced.store.find(one.digest, "items", "validation") is None
            assert not raced.run.items_file(one.digest, "validation").exists()
        assert {one.estimate for one in rows if one.role == "candidate"} == {None}

    def test_the_study_is_told_estimates_marked_as_such(self, raced: MadeUpSearch) -> None:
        study = optuna.load_study(study_name="x", storage=raced.storage)
        for row in searched(raced.store.trials()):
            trial = study.trials[row.optuna_number]
            assert trial.value == (row.objective.value if row.estimate is None else row.estimate.value)
            assert ("estimated" in trial.user_attrs) == (row.estimate is not None)

    def test_every_decision_is_a_line_that_says_what_it_was_made_from(self, raced: MadeUpSearch) -> None:
        decided = [line for line in lines(raced.run.path) if "candidate" in line]
        ends = {line["candidate"]: line["action"] for line in decided}
        assert ends == {
            one.optuna_number: "done" if one.role == "candidate" else "stop" for one in searched(raced.store.trials())
        }
        assert all("chance" in line["why"] for line in decided if line["action"] == "stop")

    def test_what_a_row_took_is_that_of_all_its_goes(self, raced: MadeUpSearch) -> None:
        for one in searched(raced.store.trials()):
            answered = ITEMS if one.estimate is None else one.estimate.answered
            assert (one.score_seconds, one.tokens) == (answered, 10 * answered)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pool", "halving", "exact"])
def test_a_search_that_was_killed_at_any_write_goes_on_as_the_calm_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options = {"trials": 5, "sampler": "RandomSampler", "race": {"kind": kind}}
    if kind == "pool":
        options["race"] |= {"survivors": 2}  # type: ignore[operator]
    with pytest.MonkeyPatch.context() as patch:
        calm_search = search(tmp_path / "calm", options)
        writes = killed_at(patch, -1, torn=False)
        calm_search.drive()
    calm = table(tmp_path / "calm")
    places = range(1, writes[0] + 1, 3 if kind == "pool" else 9)
    for place in places:
        folder = tmp_path / f"{place}"
        storage = memory_storage()
        first = search(folder, options, storage=storage)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, place, torn=place % 2 == 0)
            with pytest.raises(Killed):
                first.drive()
        search(folder, options, storage=storage).drive()
        assert table(folder) == calm, f"killed at write {place}"
        assert lines(folder) == lines(tmp_path / "calm"), f"killed at write {place}"


def test_raising_trials_goes_on_with_the_race(tmp_path: Path) -> None:
    search(tmp_path, POOL | {"trials": 9}).drive()
    before = table(tmp_path)
    more = search(tmp_path)
    more.drive()
    assert table(tmp_path)[: len(before)] == before
    assert len(table(tmp_path)) == 14
    assert [line["action"] for line in lines(tmp_path) if "candidate" not in line] == [
        *("begin", "close", "reopen", "close")
    ]


def test_candidates_of_a_run_that_did_not_race_are_what_the_others_are_compared_with(tmp_path: Path) -> None:
    search(tmp_path, POOL | {"trials": 4, "race": {"kind": "none", "in_flight": 20}}).drive()
    (tmp_path / "decisions.jsonl").unlink()
    search(tmp_path).drive()
    done = [line["candidate"] for line in lines(tmp_path) if line["action"] == "done"]
    assert done[:4] == [0, 1, 2, 3]
    assert len(table(tmp_path)) == 14


def test_decisions_that_the_answers_do_not_lead_to_are_refused(tmp_path: Path) -> None:
    search(tmp_path, POOL | {"trials": 9}).drive()
    file = tmp_path / "decisions.jsonl"
    file.write_text(file.read_text().replace('"action": "pause"', '"action": "go on"', 1))
    with pytest.raises(InputError, match="decisions are not those that the answers"):
        search(tmp_path).drive()


def test_a_candidate_that_was_scored_before_answers_nothing(tmp_path: Path) -> None:
    again = {"scaling_coef": {"coding": 0.3, "math": 0.5, "safety": 0.7}}
    options = {"points_to_evaluate": [again, again], "race": "pool"}
    search(tmp_path, options | {"trials": 1, "points_to_evaluate": [again]}).drive()
    found = search(tmp_path, options | {"trials": 2})
    found.drive()
    first, second = searched(found.store.trials())
    assert found.scorer.asked == 0
    assert (second.objectives, second.digest, second.tokens) == (first.objectives, first.digest, 0)


def test_a_model_whose_stopped_candidate_comes_again_is_scored_anew(tmp_path: Path) -> None:
    bad = {"scaling_coef": {"coding": 1.0, "math": 0.0, "safety": 0.0}}
    good = [{"scaling_coef": {"coding": 0.3, "math": 0.5, "safety": 0.7 + step}} for step in (0.0, 0.01, 0.02)]
    options = {"trials": 5, "points_to_evaluate": [*good, bad, bad], "race": {"kind": "pool", "survivors": 3}}
    found = search(tmp_path, options)
    found.drive()
    first, second = (one for one in searched(found.store.trials()) if one.optuna_number in (3, 4))
    assert first.role == second.role == "stopped"
    assert second.tokens > 0


def test_rows_say_who_proposed_them_and_what_follows_from_the_weights_comes_after_the_sweeps_points(
    tmp_path: Path,
) -> None:
    point = {"scaling_coef": 0.25}
    found = search(tmp_path, POOL | {"free_proposals": True, "points_to_evaluate": [point]})
    found.drive()
    search(tmp_path, POOL | {"trials": 16, "free_proposals": True, "points_to_evaluate": [point]}).drive()
    rows = {one.optuna_number: one for one in searched(TrialStore(tmp_path).trials())}
    first, then = ["sweep", "metagpt", "kappa", *["sampler"] * 11], ["usual", "sampler"]
    assert [rows[number].proposed_by for number in range(16)] == first + then
    assert set(rows[1].coefficients.values()) == {1 / 3}
    assert rows[1].flat()["proposed_by"] == "metagpt"


def test_a_row_on_disk_reads_back(tmp_path: Path) -> None:
    found = search(tmp_path)
    found.drive()
    for row in found.store.trials():
        assert Trial.from_json(row.to_json()) == row


def test_answers_on_disk_count_where_those_that_are_asked_again_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"trials": 2, "sampler": "RandomSampler", "race": "exact"}
    storage = memory_storage()
    first = search(tmp_path, options, storage=storage)
    with monkeypatch.context() as patch:
        killed_at(patch, 6, torn=False)
        with pytest.raises(Killed):
            first.drive()
    before = {
        line["place"]: line["score"] for line in JsonLines(tmp_path / "race" / "0.jsonl").read() if "place" in line
    }
    assert before
    honest = made_up_search.answer
    with monkeypatch.context() as patch:
        turned = {"score": 0.0}

        def other(recipe: Any, place: int) -> Any:
            found = honest(recipe, place)
            return replace(found, value=0.0, row={**found.row, **turned, "answer": "other"})  # type: ignore[typeddict-item]

        patch.setattr(made_up_search, "answer", other)
        search(tmp_path, options, storage=storage).drive()
    row = next(one for one in searched(TrialStore(tmp_path).trials()) if one.optuna_number == 0)
    kept = {int(one["item"]): one["score"] for one in TrialStore(tmp_path).items(row).to_pylist()}
    assert {place: kept[place] for place in before} == before
    assert {kept[place] for place in kept if place not in before} == {0.0}
    search(tmp_path, options | {"trials": 3}, storage=storage).drive()


def test_items_that_a_metric_leaves_out_do_not_count_in_the_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = made_up_search.answer

    def some(recipe: Any, place: int) -> Any:
        found = honest(recipe, place)
        is_left_out = DOMAINS[place // PER_DOMAIN] == "math" and place % 2
        return replace(found, value=ABSENT, row={**found.row, "score": None}) if is_left_out else found

    monkeypatch.setattr(made_up_search, "answer", some)
    monkeypatch.setattr(
        made_up_search, "_scores_of", lambda rows: [row["score"] for row in rows if row["score"] is not None]
    )
    found = search(tmp_path)
    found.drive()
    decided = {line["candidate"]: line for line in lines(tmp_path) if line["action"] == "done"}
    done = [one for one in searched(found.store.trials()) if one.role == "candidate"]
    assert done
    for one in done:
        assert decided[one.optuna_number]["why"]["value"] == pytest.approx(one.objective.value)


def test_answers_of_another_candidate_than_the_study_has_are_refused(tmp_path: Path) -> None:
    search(tmp_path, POOL | {"trials": 9}).drive()
    stopped = next(one for one in searched(TrialStore(tmp_path).trials()) if one.role == "stopped")
    file = JsonLines(tmp_path / "race" / f"{stopped.optuna_number}.jsonl")
    file.path.write_text(file.path.read_text().replace(stopped.digest, "0" * 64, 1))
    with pytest.raises(InputError, match="the answers of another candidate"):
        search(tmp_path, POOL | {"trials": 9}).drive()


def test_candidates_that_wait_count_where_trials_are_made_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search(tmp_path)
    with monkeypatch.context() as patch:
        killed_at(patch, 20, torn=False)
        with pytest.raises(Killed):
            first.drive()
    begun = {line["candidate"] for line in lines(tmp_path) if "candidate" in line}
    assert len(searched(TrialStore(tmp_path).trials())) < len(begun) == _num_candidates(RunFolder(tmp_path))


@pytest.mark.parametrize("kind", ["ASHAScheduler", "MedianStoppingRule"])
def test_tunes_own_schedulers_stop_candidates(tmp_path: Path, kind: str) -> None:
    found = search(tmp_path, POOL | {"race": kind})
    found.drive()
    assert {row.role for row in searched(found.store.trials())} == {"candidate", "stopped"}


FAILED = {2: 0, 6: 2}


def failing(folder: Path, options: Any) -> MadeUpSearch:
    one = MadeUpSearch(folder, MadeUpScorer(fails=FAILED), options)
    one.drive()
    return one


@pytest.mark.parametrize("race", [POOL["race"], "none"], ids=str)
def test_a_candidate_that_is_given_up_has_a_row_that_says_why_and_the_search_goes_on(tmp_path: Path, race: Any) -> None:
    one = failing(tmp_path, POOL | {"race": race})
    rows = {row.optuna_number: Trial.from_json(row.to_json()) for row in searched(TrialStore(tmp_path).trials())}
    assert len(rows) == 14
    given_up = {number for number, row in rows.items() if row.failure}
    assert given_up == set(FAILED)
    assert {(rows[one].role, rows[one].failure) for one in FAILED} == {("stopped", "its engines were lost")}
    states = optuna.load_study(study_name="x", storage=one.storage).get_trials()
    assert {trial.number for trial in states if trial.state is optuna.trial.TrialState.FAIL} == set(FAILED)


@pytest.mark.slow
def test_a_search_that_was_killed_around_a_candidate_that_is_given_up_goes_on_as_the_calm_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sitting(folder: Path, storage: Any) -> None:
        MadeUpSearch(folder, MadeUpScorer(fails={2: 0}), POOL, storage=storage).drive()

    sitting(tmp_path / "calm", None)
    writes = lines(tmp_path / "calm")
    assert [line["candidate"] for line in writes if line.get("action") == "give up"] == [2]
    for place in (11, 12, 13):  # before its decision, after it, and after its row
        folder, storage = tmp_path / str(place), memory_storage()
        with monkeypatch.context() as patch:
            killed_at(patch, place, torn=False)
            with pytest.raises(Killed):
                sitting(folder, storage)
        sitting(folder, storage)
        assert table(folder) == table(tmp_path / "calm")
        assert lines(folder) == writes
