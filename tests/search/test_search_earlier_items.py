"""Nothing is asked twice: items that a model was scored on in another run are found, and only where all is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from killed_search import Killed, killed_at
from made_up_search import DOMAINS, PER_DOMAIN, TOKENS, MadeUpScorer, MadeUpSearch, made_up_tasks
from made_up_search import item as made_up_item
from memory_storage import memory_storage
from mergebench_ray import installed_code as installed_code_module
from mergebench_ray.config import EngineOptions
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.evaluation.graded import GradedItem
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.installed_code import installed_code, source_file, sources_below, sources_of
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.earlier_items import EarlierItems, answer_conditions, run_folders
from mergebench_ray.search.kept_items import value_of, value_text
from mergebench_ray.tasks.item_digests import item_digests
from mergebench_ray.tasks.loading import load_tasks
from task_files import write_generation_task, write_suite

ITEMS = len(DOMAINS) * PER_DOMAIN


def earlier(
    folder: Path, tasks: Mapping[Any, Any] | None = None, conditions: Any = None, notes: list[str] | None = None
) -> EarlierItems:
    """What a run in a folder knows from the runs beside it."""
    note = [].append if notes is None else notes.append
    return EarlierItems(run_folders(folder), tasks or {"validation": made_up_tasks()}, conditions or {}, note)


def scored(folder: Path, items: Mapping[int, GradedItem], weights: str = "w", split: Any = "validation") -> None:
    """A run in which a model was scored on some items."""
    store = TrialStore(folder)
    (folder / "sweep.yaml").touch()
    rows = earlier(folder).rows("validation", items)
    store.append(Trial("base", "base", split, weights, "items"), rows)


def some(places: Any) -> dict[int, GradedItem]:
    return {place: made_up_item(place, DOMAINS[place // PER_DOMAIN], float(place % 2)) for place in places}


def test_the_items_of_a_run_beside_are_known_one_by_one_whatever_the_split(tmp_path: Path) -> None:
    scored(tmp_path / "a", some(range(10)))
    scored(tmp_path / "b", some(range(5, 60)), split="test")
    found = earlier(tmp_path / "c").known("w", "validation")
    assert found.items == some(range(60))
    assert found.sources == {"a": 10, "b": 50}
    assert not found.is_all
    math = earlier(tmp_path / "c").known("w", "validation", ["coding"])
    assert (len(math.items), math.is_all) == (PER_DOMAIN, True)
    assert not earlier(tmp_path / "c").known("another model", "validation").items
    assert not earlier(tmp_path / "c").known("w", "test").items


def test_items_without_a_score_are_known_and_count_as_none_that_was_scored(tmp_path: Path) -> None:
    items = some(range(10))
    items[3] = replace(items[3], value=ABSENT, row={**items[3].row, "score": None})
    scored(tmp_path / "a", items)
    found = earlier(tmp_path / "c").known("w", "validation")
    assert (len(found.items), found.sources) == (10, {"a": 9})


def test_a_run_knows_nothing_from_itself(tmp_path: Path) -> None:
    scored(tmp_path / "a", some(range(10)))
    assert not earlier(tmp_path / "a").known("w", "validation").items


def test_items_of_other_conditions_or_that_ask_something_else_are_not_known(tmp_path: Path) -> None:
    scored(tmp_path / "a", some(range(ITEMS)))
    assert not earlier(tmp_path / "c", conditions={"engine_dtype": "bfloat16"}).known("w", "validation").items
    tasks = made_up_tasks()
    tasks[0].items[3].prompt_digest = "another"
    tasks[1] = replace(tasks[1], one_minus=True)
    found = earlier(tmp_path / "c", {"validation": tasks}).known("w", "validation")
    assert len(found.items) == ITEMS - 1 - PER_DOMAIN


def test_a_damaged_run_is_noted_once_and_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scored(tmp_path / name, some(range(10)))
    damaged = tmp_path / "a" / "items" / "w-validation.parquet"
    damaged.write_bytes(b"PAR1 and nothing else")
    notes: list[str] = []
    found = earlier(tmp_path / "c", notes=notes)
    assert [found.known("w", "validation").sources for _ in range(2)] == [{"b": 10}] * 2
    assert [note.startswith(f"its scores are not used again: {damaged}: damaged") for note in notes] == [True]


@pytest.mark.parametrize("lacks", [["value", "parsed", "digest"], ["value", "parsed", "digest", "cluster"]])
def test_a_run_of_a_version_that_kept_less_is_passed_over_without_a_word(tmp_path: Path, lacks: list[str]) -> None:
    scored(tmp_path / "a", some(range(10)))
    file = tmp_path / "a" / "items" / "w-validation.parquet"
    pq.write_table(pq.read_table(file).drop_columns(lacks), file)
    notes: list[str] = []
    assert not earlier(tmp_path / "c", notes=notes).known("w", "validation").items
    assert notes == []


def test_folders_that_are_no_runs_are_not_looked_through(tmp_path: Path) -> None:
    scored(tmp_path / "a", some(range(3)))
    scored(tmp_path / "elsewhere" / "a", some(range(3)))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert run_folders(tmp_path / "c") == {"a": tmp_path / "a"}
    others = [tmp_path / "elsewhere" / "a", tmp_path / "a"]
    assert run_folders(tmp_path / "c", others) == {"a": tmp_path / "a", str(others[0]): others[0]}


def test_a_run_that_a_link_leads_to_goes_by_its_own_name(tmp_path: Path) -> None:
    scored(tmp_path / "x", some(range(3)))
    (tmp_path / "latest").symlink_to(tmp_path / "x")
    assert run_folders(tmp_path / "c") == {"x": tmp_path / "x"}


@pytest.mark.parametrize(
    "value", [1.0, True, 3, "text", None, ABSENT, (1, "a"), [0.5, (2, 3)], float("inf"), 0.1 + 0.2]
)
def test_a_value_is_read_back_as_it_was(value: Any) -> None:
    text = value_text(value)
    assert text is not None
    assert (value_of(text), type(value_of(text))) == (value, type(value))


def test_a_value_of_numpy_is_kept_as_the_number_it_is_and_others_are_not_kept() -> None:
    assert value_text(np.float32(0.5)) == "0.5"
    assert value_text({"a": 1}) is value_text(object()) is None


class TestItemDigests:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        (tasks / "own.py").write_text("def graded(doc, results):\n    return {'exact_match': 1.0}\n")
        return tmp_path

    def digests(self, folder: Path, items: int | None = None, **settings: Any) -> list[str]:
        write_generation_task(folder / "tasks", **settings)
        file = folder / "tasks" / "capital_text.yaml"
        file.write_text(file.read_text() + "process_results: !function own.graded\n")
        suite = write_suite(folder, {"text": {"capital_text": "exact_match,whole"}})
        return item_digests(load_tasks(suite, "test", EvaluationOptions(test_items=items)))

    def test_they_are_the_same_every_time_and_however_many_there_are(self, folder: Path) -> None:
        assert self.digests(folder, 3) == self.digests(folder)[:3] == self.digests(folder, 3)

    @pytest.mark.parametrize(
        "settings",
        [
            {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 7}},
            {"repeats": 2},
            {"doc_to_target": "{{country}}"},
            {"doc_to_text": "What is the capital of {{country}}?"},
        ],
    )
    def test_a_setting_that_changes_answers_or_their_grades_changes_them(self, folder: Path, settings: Any) -> None:
        assert not set(self.digests(folder)) & set(self.digests(folder, **settings))

    def test_so_does_the_source_of_the_tasks_own_functions(self, folder: Path) -> None:
        before = self.digests(folder)
        (folder / "tasks" / "own.py").write_text("def graded(doc, results):\n    return {'exact_match': 0.0}\n")
        assert not set(before) & set(self.digests(folder))

    def test_so_does_a_module_in_a_folder_below_that_those_functions_use(self, folder: Path) -> None:
        (folder / "tasks" / "lib").mkdir()
        (folder / "tasks" / "lib" / "rules.py").write_text("STRICT = True\n")
        before = self.digests(folder)
        (folder / "tasks" / "lib" / "rules.py").write_text("STRICT = False\n")
        assert not set(before) & set(self.digests(folder))


def test_what_is_installed_is_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base: Any = SimpleNamespace(config={}, folder=tmp_path)
    suite: Any = SimpleNamespace(max_model_len=64)

    def conditions(**options: Any) -> dict[str, Any]:
        return answer_conditions(base, suite, EngineOptions(), {}, **options)

    before = conditions()
    assert conditions() == before != conditions(weak_sandbox=True)
    installed = installed_code(frozenset())
    monkeypatch.setattr(installed_code_module, "distributions", lambda: [SimpleNamespace(name="x", version="2")])
    assert installed_code.__wrapped__(frozenset()) != installed


def test_what_an_editor_leaves_and_what_was_never_in_a_file_have_no_source(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("x = 1\n")
    before = sources_below([tmp_path])
    (tmp_path / ".#own.py").symlink_to("somebody@somewhere.1")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert sources_below([tmp_path]) == before
    made: dict[str, Any] = {}
    exec("def made(): ...", made)
    assert source_file(made["made"]) is None
    assert sources_of([made["made"], len, EarlierItems]) == sources_of([])


def test_of_a_module_without_a_package_its_own_file_counts_and_of_a_package_all_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "alone_here.py").write_text("class One: ...\n")
    (tmp_path / "in_package").mkdir()
    (tmp_path / "in_package" / "__init__.py").write_text("class Two: ...\n")
    import alone_here  # type: ignore[import-not-found]
    import in_package  # type: ignore[import-not-found]

    before = sources_of([alone_here.One]), sources_of([in_package.Two])
    (tmp_path / "beside.py").write_text("y = 1\n")
    (tmp_path / "in_package" / "beside.py").write_text("y = 1\n")
    assert sources_of([alone_here.One]) == before[0]
    assert sources_of([in_package.Two]) != before[1]


def test_items_belong_together_as_this_runs_suite_says(tmp_path: Path) -> None:
    scored(tmp_path / "a", some(range(4)))
    tasks = made_up_tasks()
    tasks[0].items[1].cluster = tasks[0].items[0].cluster = "one topic"
    found = earlier(tmp_path / "c", {"validation": tasks}).known("w", "validation")
    assert [found.items[place].row["cluster"] for place in range(3)] == ["one topic", "one topic", "c2"]


def test_engines_settings_versions_and_the_bases_files_are_conditions_and_their_number_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    base: Any = SimpleNamespace(config={"rope_theta": 1.0}, folder=tmp_path)
    suite: Any = SimpleNamespace(max_model_len=64)
    engine, versions = EngineOptions(), {"vllm": "1", "ray": "1", "engine_device": "x86_64 avx2"}
    before = answer_conditions(base, suite, engine, versions)
    several = engine.model_copy(update={"count": 4, "division": "items", "dtype": "float32"})
    assert answer_conditions(base, suite, several, {**versions, "ray": "2"}) == before
    assert answer_conditions(base, suite, engine.model_copy(update={"max_num_seqs": 4}), versions) != before
    assert answer_conditions(base, suite, engine, {**versions, "engine_device": "x86_64 avx512_bf16"}) != before
    (tmp_path / "tokenizer.json").write_text('{"other": 1}')
    assert answer_conditions(base, suite, engine, versions) != before


class TestSearch:
    """A search beside another one."""

    def run(
        self, folder: Path, *, reuses: bool = True, storage: Any = None, killed: int = -1, **options: Any
    ) -> MadeUpSearch:
        found = MadeUpSearch(folder, MadeUpScorer(), options, reuses=reuses, storage=storage)
        (folder / "sweep.yaml").touch()
        with pytest.MonkeyPatch.context() as patch:
            self.writes = killed_at(patch, killed, torn=killed % 2 == 0)
            found.drive()
        return found

    def test_candidates_that_another_run_scored_in_full_are_not_asked(self, tmp_path: Path) -> None:
        options = {"trials": 3, "race": "none", "sampler": "RandomSampler"}
        first = self.run(tmp_path / "a", **options)
        second = self.run(tmp_path / "b", **options)
        assert (first.scorer.asked, second.scorer.asked) == (3 * ITEMS, 0)
        for before, now in zip(searched(first.store.trials()), searched(second.store.trials()), strict=True):
            assert now.reused_from == {"a": ITEMS}
            assert (now.score_seconds, now.tokens, now.engine) == (0.0, 0, "")
            assert (now.objectives, now.domains) == (before.objectives, before.domains)
            assert first.store.items(before).equals(second.store.items(now))
        anew = self.run(tmp_path / "c", reuses=False, **options)
        assert anew.scorer.asked == 3 * ITEMS
        assert not any(row.reused_from for row in anew.store.trials())

    def test_of_a_candidate_of_which_some_items_are_known_only_the_others_are_asked(self, tmp_path: Path) -> None:
        options = {"trials": 1, "race": "none", "sampler": "RandomSampler"}
        first = self.run(tmp_path / "a", **options)
        [row] = searched(first.store.trials())
        file = first.run.items_file(row.digest, "validation")
        pq.write_table(pq.read_table(file).slice(0, 50), file)
        second = self.run(tmp_path / "b", **options)
        assert second.scorer.asked == ITEMS - 50
        [found] = searched(second.store.trials())
        assert (found.reused_from, found.domains) == ({"a": 50}, row.domains)

    def test_a_race_is_told_all_of_a_candidate_that_another_run_scored_in_full(self, tmp_path: Path) -> None:
        options = {"trials": 10, "race": {"kind": "pool", "survivors": 4}, "sampler": "RandomSampler"}
        first = self.run(tmp_path / "a", **options)
        second = self.run(tmp_path / "b", **options)
        full = {row.digest for row in searched(first.store.trials()) if row.role == "candidate"}
        reused = [row for row in searched(second.store.trials()) if row.reused_from]
        assert {row.digest for row in reused if row.role == "candidate"} == full
        assert all(row.tokens == 0 for row in reused if row.role == "candidate")
        assert second.scorer.asked < first.scorer.asked

    def test_a_race_asks_stopped_candidates_no_first_items_that_another_race_asked_them(self, tmp_path: Path) -> None:
        options = {"trials": 10, "race": {"kind": "pool", "survivors": 4}, "sampler": "RandomSampler"}
        first = self.run(tmp_path / "a", **options)
        second = self.run(tmp_path / "b", **options)
        assert second.scorer.asked == 0
        before = {row.digest: row for row in searched(first.store.trials())}
        stopped = [row for row in searched(second.store.trials()) if row.role == "stopped"]
        assert stopped
        for row in stopped:
            assert (row.tokens, row.score_seconds, row.engine) == (0, 0.0, "")
            assert row.reused_from == {"a": sum(one.items for one in row.domains.values())}
            assert row.reused_from["a"] <= sum(one.items for one in before[row.digest].domains.values())

    @pytest.mark.slow
    def test_a_race_that_goes_further_asks_what_is_missing(self, tmp_path: Path) -> None:
        race = {"kind": "pool", "survivors": 4}
        further = {"trials": 10, "race": race | {"p": 0.01}, "sampler": "RandomSampler"}
        self.run(tmp_path / "a", trials=10, race=race, sampler="RandomSampler")
        alone, after = self.run(tmp_path / "x" / "b", **further), self.run(tmp_path / "b", **further)
        assert 0 < after.scorer.asked <= alone.scorer.asked / 2
        best = [max(row.objective.value or 0.0 for row in searched(one.store.trials())) for one in (alone, after)]
        assert best[0] == best[1]
        for row in searched(after.store.trials()):
            asked = sum(one.items for one in row.domains.values()) - sum(row.reused_from.values())
            assert row.tokens >= TOKENS * asked

    def test_full_scoring_takes_what_a_race_asked(self, tmp_path: Path) -> None:
        first = self.run(tmp_path / "a", trials=10, race={"kind": "pool", "survivors": 4}, sampler="RandomSampler")
        second = self.run(tmp_path / "b", trials=10, race="none", sampler="RandomSampler")
        assert second.scorer.asked == 10 * ITEMS - first.scorer.asked

    def test_answers_without_digests_are_those_of_an_earlier_version_and_passed_over(self, tmp_path: Path) -> None:
        options = {"trials": 10, "race": {"kind": "pool", "survivors": 4}, "sampler": "RandomSampler"}
        first = self.run(tmp_path / "a", **options)
        for file in first.run.race_folder.glob("*.jsonl"):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            file.write_text(
                "".join(f"{json.dumps({k: v for k, v in one.items() if k != 'digest'})}\n" for one in lines)
            )
        second = self.run(tmp_path / "b", **options)
        full = {row.digest for row in searched(first.store.trials()) if row.role == "candidate"}
        assert {row.digest for row in searched(second.store.trials()) if row.reused_from} == full

    @pytest.mark.slow
    def test_a_search_that_was_killed_goes_on_as_the_calm_one(self, tmp_path: Path) -> None:
        options = {"trials": 5, "race": {"kind": "pool", "survivors": 2}, "sampler": "RandomSampler"}
        self.run(tmp_path / "runs" / "a", **options)
        calm = self.run(tmp_path / "runs" / "calm", **options)
        for place in range(1, self.writes[0] + 1, self.writes[0] // 4):
            folder = tmp_path / f"{place}"
            shutil.copytree(tmp_path / "runs" / "a", folder / "a")
            storage = memory_storage()
            with pytest.raises(Killed):
                self.run(folder / "b", storage=storage, killed=place, **options)
            again = self.run(folder / "b", storage=storage, **options)
            assert [self.said(row) for row in searched(again.store.trials())] == [
                self.said(row) for row in searched(calm.store.trials())
            ], f"killed at write {place}"

    @staticmethod
    def said(row: Trial) -> Any:
        """All that a row says but times and costs."""
        return row.role, row.number, row.parameters, row.domains, row.objectives, row.estimate, row.reused_from


def test_a_row_says_where_its_scores_are_from() -> None:
    row = Trial("base", "base", "test", "w", "i", reused_from={"a": 3, "b": 4})
    assert (row.flat()["reused_items"], row.flat()["reused_from"]) == (7, "a, b")
    assert Trial.from_json(row.to_json()) == row
    assert "reused_from" not in replace(row, reused_from={}).flat()
