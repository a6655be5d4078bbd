"""What a budget pays: candidates while references, final choice and test fit beside them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from made_up_search import DOMAINS, PER_DOMAIN, TOKENS, MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.config import SearchOptions
from mergebench_ray.config.budget import BudgetOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import Spent
from mergebench_ray.placement.answers import expected_answers
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings, Worked, tokens_of
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.scores import DomainScore, ObjectiveEstimate
from mergebench_ray.search.budget import Budget, RunBudget, UnderWay, Work, check_before
from mergebench_ray.search.standing import Cost

WORK = Work({"validation": 100, "final": 50, "test": 100}, methods=2)
AT_THE_END = (4 + 5) * 50 + (4 + 2) * 100  # items, with as many finalists as there may be


def row(role: Any, number: int = 0, *, items: int = 100, tokens: int = 10, split: Any = "validation") -> Trial:
    """That costs so many tokens an item, and a tenth of a second."""
    estimate = ObjectiveEstimate(0.5, 0.1, items, 100) if role == "stopped" else None
    return Trial(
        *(role, role, split, f"{role}{number}", "items", number),
        domains={"math": DomainScore(0.5, 0.1, items)},
        estimate=estimate,
        score_seconds=items / 10,
        tokens=tokens * items,
        method="ties" if role in ("candidate", "stopped") else None,
    )


REFERENCES = [row("base"), row("average"), row("specialist")]  # 3,000 tokens, 30 seconds


def budget(**limits: Any) -> Budget:
    return Budget(BudgetOptions(**limits), WORK, gpus=2)


def after(seconds: float) -> Worked:
    return Worked(seconds / 60, 2 * seconds / 3600)


def rows(count: int) -> list[Trial]:
    return [*REFERENCES, *(row("candidate", number) for number in range(count))]


def test_as_many_candidates_are_paid_as_leave_enough_for_the_end() -> None:
    spent, ahead = 3_000 + 10 * 1_000, 1_000 + 10 * AT_THE_END
    needed = spent + 1.1 * ahead
    assert budget(tokens=int(needed) + 1).pays_another(rows(10), UnderWay(), Worked())
    assert not budget(tokens=int(needed) - 1).pays_another(rows(10), UnderWay(), Worked())


def test_what_waits_and_runs_and_what_the_race_still_asks_is_kept_too() -> None:
    waiting = UnderWay([Cost(spent=Spent(tokens=1_000))] * 3)
    tokens = int(3_000 + 13 * 1_000 + 1.1 * (1_000 + 10 * AT_THE_END)) + 1
    assert budget(tokens=tokens).pays_another(rows(10), waiting, Worked())
    assert not budget(tokens=tokens).pays_another(rows(10), replace(waiting, going=1), Worked())
    assert not budget(tokens=tokens).pays_another(rows(10), replace(waiting, items_left=100), Worked())


def test_candidates_that_differ_in_cost_are_expected_to_cost_rather_more() -> None:
    alike = [*REFERENCES, *(row("candidate", number) for number in range(4))]
    mixed = [*REFERENCES, *(row("candidate", number, tokens=5 + 10 * (number % 2)) for number in range(4))]
    limit = int(7_000 + 1.1 * (1_000 + 10 * (4 + 5) * 50 + 10 * 600)) + 1
    assert budget(tokens=limit).pays_another(alike, UnderWay(), Worked())
    assert not budget(tokens=limit).pays_another(mixed, UnderWay(), Worked())


def test_minutes_and_gpu_hours_are_those_of_the_clock() -> None:
    seconds = 0.1 * AT_THE_END * 1.1 + 11  # one more candidate and the end
    assert budget(minutes=(100 + seconds) / 60 + 0.01).pays_another(rows(10), UnderWay(), after(100))
    assert not budget(minutes=(100 + seconds) / 60 - 0.01).pays_another(rows(10), UnderWay(), after(100))
    assert budget(gpu_hours=2 * (100 + seconds) / 3600 + 0.001).pays_another(rows(10), UnderWay(), after(100))
    assert not budget(gpu_hours=2 * (100 + seconds) / 3600 - 0.001).pays_another(rows(10), UnderWay(), after(100))


def test_of_several_limits_the_first_ends_the_search() -> None:
    assert not budget(candidates=10, tokens=10**9).pays_another(rows(10), UnderWay(), Worked())
    assert budget(candidates=11, tokens=10**9).pays_another(rows(10), UnderWay(), Worked())
    assert not budget(candidates=11, tokens=20_000).pays_another(rows(10), UnderWay(), Worked())


def test_what_is_scored_on_test_already_is_not_kept_for_again() -> None:
    before = [*rows(10), *(row("base", split=split) for split in ("final", "test"))]
    limit = sum(map(tokens_of, before)) + int(1.1 * (1_000 + 10 * (5 * 50 + 2 * 100))) + 1
    assert budget(tokens=limit).pays_another(before, UnderWay(), Worked())
    assert not budget(tokens=limit).pays_another([*rows(10), row("base", 1), row("base", 2)], UnderWay(), Worked())


def test_references_that_cost_nothing_are_known_by_candidates() -> None:
    reused = [replace(one, tokens=0, score_seconds=0.0) for one in REFERENCES]
    assert budget(tokens=1).pays_another([*reused], UnderWay(), Worked())
    assert not budget(tokens=5_000).pays_another([*reused, row("stopped", items=20)], UnderWay(), Worked())


def test_items_that_were_known_before_cost_nothing_and_are_no_measure() -> None:
    half = [replace(one, tokens=500, score_seconds=5.0, reused_from={"earlier": 50}) for one in REFERENCES]
    taken = [replace(row("candidate", number, tokens=0), taken_from="earlier") for number in range(9)]
    trials = [*half, *taken, row("candidate", 9)]
    work = replace(WORK, taken=9)
    limit = 1_500 + 1_000 + int(1.1 * (1_000 + 10 * AT_THE_END)) + 1
    assert Budget(BudgetOptions(tokens=limit), work, 2).pays_another(trials, UnderWay(), Worked())
    assert not Budget(BudgetOptions(tokens=limit - 10), work, 2).pays_another(trials, UnderWay(), Worked())
    assert Budget(BudgetOptions(candidates=2), work, 2).pays_another(trials, UnderWay(), Worked())
    assert not Budget(BudgetOptions(candidates=1), work, 2).pays_another(trials, UnderWay(), Worked())


def test_a_budget_that_pays_no_candidate_is_refused_with_what_would_do() -> None:
    least = 3_000 + 1.1 * (1_000 + 10 * ((4 + 1) * 50 + (4 + 1) * 100))
    budget(tokens=int(least) + 1).check(REFERENCES, Worked())
    with pytest.raises(InputError, match=r"tokens = 5000: .* have taken 3,000 tokens; .* about 13,000: give"):
        budget(tokens=5_000).check(REFERENCES, Worked())
    with pytest.raises(
        InputError, match=r"search\.budget\.minutes = 1: the references have taken 0\.5 minutes; .* 2\."
    ):
        budget(minutes=1).check(REFERENCES, after(30))
    budget(tokens=5_000).check(rows(1), Worked())  # it has begun: it comes to its end


def test_what_a_refusal_asks_for_pays_another_start_too() -> None:
    start = 40.0
    with pytest.raises(InputError, match="and another start, it is about") as refused:
        budget(minutes=1).check(REFERENCES, after(30 + start), start=start / 60)
    asked = float(str(refused.value).split("about ")[1].split(":")[0])
    budget(minutes=asked).check(REFERENCES, after(30 + 2 * start), start=start / 60)


def test_a_budget_is_refused_as_soon_as_an_answer_has_a_price() -> None:
    with pytest.raises(
        InputError, match=r"the first references have taken 1,000 tokens; with the others, one .* 13,000"
    ):
        budget(tokens=5_000).check([row("specialist")], Worked(), left=[100, 100])
    budget(tokens=12_600).check([row("specialist")], Worked(), left=[100, 100])
    budget(tokens=5_000).check([], Worked(), left=[100, 100, 100])


def test_candidates_of_other_runs_and_all_methods_count_before_they_are_rows() -> None:
    work = replace(WORK, taken=4)
    least = 3_000 + 1.1 * (1_000 + 10 * AT_THE_END)
    Budget(BudgetOptions(tokens=int(least) + 1), work, 0).check(REFERENCES, Worked())
    with pytest.raises(InputError, match="give that or more"):
        Budget(BudgetOptions(tokens=int(least) - 1), work, 0).check(REFERENCES, Worked())


def test_gpu_hours_of_sittings_with_fewer_gpus_are_counted_as_they_were() -> None:
    worked = Worked(minutes=100, gpu_hours=0.5)  # now it holds two
    assert budget(gpu_hours=0.6).pays_another(rows(10), UnderWay(), worked)


REUSED = [replace(one, tokens=0, score_seconds=0.0, reused_from={"earlier": 100}) for one in REFERENCES]


def test_answers_that_are_all_of_another_run_have_the_price_of_there(tmp_path: Path) -> None:
    TrialStore(tmp_path / "first").extend(REFERENCES)
    TrialStore(tmp_path / "earlier").extend([replace(one, reused_from={"first": 100}) for one in REUSED])
    folders = {name: tmp_path / name for name in ("first", "earlier", "gone")}

    def of_run(**limits: Any) -> RunBudget:
        store = TrialStore(tmp_path / "own")
        options = SearchOptions(budget=BudgetOptions(**limits))
        return RunBudget(options, WORK, 0, store, Sittings(RunFolder(store.folder)), folders)

    TrialStore(tmp_path / "own").extend(REUSED)
    for limits in ({"tokens": 5}, {"minutes": 0.001}):
        with pytest.raises(InputError, match=r"have taken 0 .*; with one candidate"):
            of_run(**limits).check()
    assert of_run(tokens=int(1.1 * (20 * 1_000 + 10 * 750)) + 100).expected(UnderWay()) == 20


def test_without_any_price_nobody_knows_how_many_will_come(tmp_path: Path) -> None:
    store = TrialStore(tmp_path)
    store.extend(REUSED)
    for trials, expected in ((None, None), (7, 7)):
        options = SearchOptions(budget=BudgetOptions(tokens=5), trials=trials)
        one = RunBudget(options, WORK, 0, store, Sittings(RunFolder(tmp_path)))
        one.check()
        assert one.expected(UnderWay()) == expected


def test_more_reused_than_has_a_score_gives_no_negative_price() -> None:
    absent = replace(
        REFERENCES[0], domains={"math": DomainScore(0.5, 0.1, 30)}, tokens=100, reused_from={"earlier": 90}
    )
    limit = 2_100 + 1.1 * (10 * 100 + 10 * 750)
    trials = [absent, *REFERENCES[1:]]
    with pytest.raises(InputError):
        budget(tokens=int(limit) - 1).check(trials, Worked())
    assert not budget(tokens=100).pays_another([absent, row("candidate")], UnderWay(), Worked())


def test_a_model_that_was_loaded_already_says_nothing_of_loading() -> None:
    loaded = [replace(one, load_seconds=10.0) for one in REFERENCES]
    again = [replace(one, split="test") for one in REFERENCES]
    seconds = 60 + 1.1 * (10 + 10 + 75 + 75)  # as much for answers as for loads, of one candidate and 7.5 whole models
    budget(minutes=(seconds + 1) / 60).check(loaded, after(60))
    with pytest.raises(InputError):
        budget(minutes=(seconds - 1) / 60).check([*loaded, *again[1:]], after(60))


def test_what_pays_nothing_at_all_is_refused_before_anything_starts() -> None:
    items = 50 + 3 * 100 + 5 * 50 + 5 * 100
    check_before(BudgetOptions(tokens=2 * items), WORK.items, 50)
    with pytest.raises(InputError, match=r"search\.budget\.tokens = 100: .* ask 1,100 items, .* give more than 2,200"):
        check_before(BudgetOptions(tokens=100), WORK.items, 50)


def test_gpu_hours_need_gpus() -> None:
    with pytest.raises(InputError, match=r"search\.budget\.gpu_hours: there are no GPUs"):
        Budget(BudgetOptions(gpu_hours=1), WORK, gpus=0)


def test_how_many_it_will_pay_is_said_before_the_first() -> None:
    tokens = int(3_000 + 1.1 * (10 * (5 * 50 + 5 * 100) + 20 * 1_000)) + 100
    assert budget(tokens=tokens).expected(REFERENCES, UnderWay(), Worked()) == 20
    assert budget(tokens=tokens, candidates=7).expected(REFERENCES, UnderWay(), Worked()) == 7
    assert budget(tokens=4_000).expected(REFERENCES, UnderWay(), Worked()) == 1


def test_a_plan_counts_specialists_on_their_own_domains_and_finalists_of_other_runs() -> None:
    items: dict[Split, int] = {"validation": 200, "final": 50}
    references, candidates, final = expected_answers(items, 100, 1, 1, (0.2, 0.25))
    assert (references.least, references.most) == (500, 500)
    assert (candidates.least, final.most) == (200, (4 + 1) * 50)
    _, candidates, final = expected_answers(items, 100, 1, 1, (0.2, 0.25), taken=9)
    assert (candidates.least, final.most) == (40, (4 + 5) * 50)


POOL = {"sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 4}, "budget": {"tokens": 9_000}}


class TestSearch:
    """Of made-up models, without Tune."""

    def search(self, folder: Path, options: Any = POOL, **study: Any) -> MadeUpSearch:
        return MadeUpSearch(folder, MadeUpScorer(), options, **study)

    def lines(self, folder: Path) -> list[Any]:
        return JsonLines(folder / "decisions.jsonl").read()

    def test_ends_within_its_tokens_and_with_a_candidate_scored_in_full(self, tmp_path: Path) -> None:
        one = self.search(tmp_path)
        one.drive()
        trials = one.store.trials()
        spent = sum(map(tokens_of, trials))
        assert 6_500 < spent <= 9_000
        assert any(trial.role == "candidate" for trial in trials)
        assert self.lines(tmp_path)[0]["candidates"] > 4
        assert {"action": "close"} in self.lines(tmp_path)

    def test_more_of_it_goes_on_and_as_much_does_not(self, tmp_path: Path) -> None:
        self.search(tmp_path).drive()
        before, tried = self.lines(tmp_path), len(searched(TrialStore(tmp_path).trials()))
        self.search(tmp_path).drive()
        assert self.lines(tmp_path) == before
        self.search(tmp_path, POOL | {"budget": {"tokens": 14_000}}).drive()
        assert len(searched(TrialStore(tmp_path).trials())) > tried
        assert sum(map(tokens_of, TrialStore(tmp_path).trials())) <= 14_000

    @pytest.mark.slow
    def test_killed_at_any_write_it_ends_where_the_calm_one_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calm = self.search(tmp_path / "calm")
        calm.drive()
        append, writes = JsonLines.append, [0]

        class Killed(BaseException):
            pass

        def killed(self: JsonLines, records: Any) -> None:
            writes[0] += 1
            if writes[0] == place:
                raise Killed
            append(self, records)

        place = 0
        total = len(self.lines(tmp_path / "calm")) + 2
        for place in (total // 2, total - 4, total):
            folder = tmp_path / str(place)
            storage = memory_storage()
            writes[0] = 0
            with monkeypatch.context() as patch:
                patch.setattr(JsonLines, "append", killed)
                with suppress(Killed):
                    self.search(folder, storage=storage).drive()
            self.search(folder, storage=storage).drive()
            assert self.lines(folder) == self.lines(tmp_path / "calm")

    def test_in_full_it_pays_as_many_as_fit(self, tmp_path: Path) -> None:
        full = {"race": {"kind": "none", "in_flight": 20}, "sampler": "RandomSampler"}
        one = self.search(tmp_path, full | {"budget": {"tokens": 10_000}})
        one.drive()
        items = len(DOMAINS) * PER_DOMAIN
        assert len(searched(one.store.trials())) == (10_000 - 3 * TOKENS * items) // (TOKENS * items) == 5


def test_time_of_earlier_sittings_counts(tmp_path: Path) -> None:
    sittings, start = Sittings(RunFolder(tmp_path)), datetime(2030, 1, 1, tzinfo=UTC)
    with sittings.sitting(start, gpus=2):
        pass
    lines = JsonLines(tmp_path / "sittings.jsonl")
    assert [list(line) for line in lines.read()] == [["began", "gpus"], ["ended"]]
    lines.append([{"began": (start + timedelta(days=400)).isoformat(), "gpus": 1}])
    later = start + timedelta(days=400, minutes=30)
    minutes, gpu_hours = sittings.spent([replace(row("base"), finished=later)])
    first = minutes - 30
    assert gpu_hours == pytest.approx(2 * first / 60 + 0.5)
    assert sittings.spent([], now=later + timedelta(minutes=10))[0] == pytest.approx(first + 40)


@pytest.mark.parametrize(
    "line", ['{"began": "2030-01-01T00:00:00+00:00"}', '{"began": "yesterday", "gpus": 1}', '{"enough": 3}', "{}"]
)
def test_a_wrong_line_of_the_sittings_is_named(tmp_path: Path, line: str) -> None:
    sittings = Sittings(RunFolder(tmp_path))
    sittings.note_enough({"tokens": 5.0}, 3)
    assert sittings.enough({"tokens": 5.0}) == 3
    with (tmp_path / "sittings.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=r"sittings\.jsonl, line 2: damaged, .*; restore it"):
        sittings.check()


def test_what_no_row_took_of_the_sittings_is_their_start(tmp_path: Path) -> None:
    sittings, began = Sittings(RunFolder(tmp_path)), datetime(2030, 1, 1, tzinfo=UTC)
    lines = JsonLines(tmp_path / "sittings.jsonl")
    lines.append([{"began": began.isoformat(), "gpus": 0}, {"ended": (began + timedelta(seconds=70)).isoformat()}])
    assert sittings.start([], began) == pytest.approx(70 / 60)
    again = began + timedelta(hours=1)
    lines.append([{"began": again.isoformat(), "gpus": 0}])
    rows = [replace(one, finished=began + timedelta(seconds=60)) for one in REFERENCES]  # 30 seconds
    rows.append(replace(row("candidate"), taken_from="earlier", finished=again))
    assert sittings.start(rows, again + timedelta(seconds=30)) == pytest.approx(40 / 60)
    assert sittings.start(rows, again + timedelta(seconds=50)) == pytest.approx(50 / 60)  # the longest


def test_a_search_that_has_begun_is_not_refused_when_it_goes_on(tmp_path: Path) -> None:
    sittings = Sittings(RunFolder(tmp_path))
    store = TrialStore(tmp_path)
    store.extend(REFERENCES)
    options = SearchOptions(budget=BudgetOptions(tokens=1))
    with pytest.raises(InputError, match="give that or more"):
        RunBudget(options, WORK, 0.0, store, sittings).check()
    RunBudget(options, WORK, 0.0, store, sittings).begins_with(0)
    RunBudget(options, WORK, 0.0, store, sittings).check()


def test_candidates_that_are_left_out_once_engines_are_up_are_no_finalists(tmp_path: Path) -> None:
    least = int(3_000 + 1.1 * (1_000 + 10 * ((1 + 2) * 50 + (1 + 2 + 2) * 100)))  # of one, that is its method's winner
    found = Budget(BudgetOptions(tokens=least + 2_500), replace(WORK, taken=5), 0.0)
    with pytest.raises(InputError, match="give that or more"):
        found.check(REFERENCES, Worked())
    found.begins_with(0)
    found.check(REFERENCES, Worked())
