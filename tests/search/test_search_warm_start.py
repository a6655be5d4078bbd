"""A search begins with what earlier runs know of its candidates, or says why it cannot."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from killed_search import Killed, killed_at
from made_up_search import DOMAINS, MadeUpBank, MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.config import Recipe, SearchOptions, Sweep
from mergebench_ray.config.yaml_files import parse_model, to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.opening import _num_candidates
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, proposed, searched
from mergebench_ray.search import warm_start
from mergebench_ray.search.space import Space
from mergebench_ray.search.warm_start import Wanted, find_candidates

POOL = {"trials": 10, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 4}}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    search(folder, POOL).drive()
    return folder


@pytest.fixture(scope="module")
def begun(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeUpSearch:
    """A search that began with the candidates of that run, and is over."""
    made = warm(tmp_path_factory.mktemp("runs") / "b", earlier)
    made.drive()
    return made


def search(folder: Path, options: Any, **other: Any) -> MadeUpSearch:
    made = MadeUpSearch(folder, MadeUpScorer(), options, **other)
    (folder / "sweep.yaml").write_text(to_yaml(made.sweep.model_dump(mode="json", exclude_none=True)))
    return made


def wanted(folders: Any, methods: Any = None, **changes: Any) -> Wanted:
    """What a sweep with this warm start wants of other runs' candidates."""
    coefficient = {"low": 0.0, "high": 1.0, "per": "specialist"}
    content = {
        **{"name": "x", "suite": "smollm2-mini", "search": {**POOL, "warm_start": folders}},
        "methods": methods or {"task_arithmetic": {"scaling_coef": coefficient}},
    }
    sweep = Sweep.model_validate(content)
    found: dict[str, Any] = {
        **{"sweep": sweep, "space": Space(sweep, list(DOMAINS), None), "base": "base-base", "items": "items"},
        "specialists": {name: f"specialist-{name}" for name in DOMAINS},
        "recipe": MadeUpBank().recipe,
    }
    return Wanted(**{**found, **changes})


def warm(folder: Path, earlier: Path, options: Any = POOL, **other: Any) -> MadeUpSearch:
    """A search that begins with the candidates of another run."""
    made = search(folder, options, **other)
    if not made.run.warm_start_file.exists():
        warm_start.keep(made.run, find_candidates(wanted(str(earlier)))[0])
    return made


def table(folder: Path) -> list[Any]:
    return [
        (one.role, one.number, one.optuna_number, one.parameters, one.objectives, one.estimate, one.taken_from)
        for one in searched(TrialStore(folder).trials())
    ]


def of_other_specialists(method: str, parameters: dict[str, Any]) -> Recipe:
    return (
        MadeUpBank().recipe(method, parameters).model_copy(update={"specialist_digests": dict.fromkeys(DOMAINS, "e")})
    )


class TestFind:
    def test_every_candidate_is_found_with_what_it_scored(self, earlier: Path) -> None:
        found, notes = find_candidates(wanted(str(earlier)))
        rows = searched(TrialStore(earlier).trials())
        assert [one.trial for one in found] == rows
        assert {one.run for one in found} == {"a"}
        assert notes == []
        for one in found:
            assert one.suggestion == {
                f"task_arithmetic.scaling_coef.{name}": one.trial.coefficients[name] for name in DOMAINS
            }
            assert (one.items is None) == (one.trial.role == "stopped")

    def test_a_model_of_two_runs_comes_once_and_rather_as_it_was_scored_in_full(
        self, earlier: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(earlier, tmp_path / "a")
        shutil.copytree(earlier, tmp_path / "b")
        store = TrialStore(tmp_path / "a")
        full = next(row for row in searched(store.trials()) if row.role == "candidate")
        stopped = [replace(row, role="stopped") if row is full else row for row in store.trials()]
        store._write(stopped)
        found, _ = find_candidates(wanted([str(tmp_path / "*")]))
        assert len(found) == len(searched(TrialStore(earlier).trials()))
        assert next(one for one in found if one.trial.digest == full.digest).trial.role == "candidate"

    def test_the_own_folder_is_no_other_run(self, earlier: Path) -> None:
        with pytest.raises(InputError, match=r"search.warm_start: '.*' matches no folder"):
            find_candidates(wanted(str(earlier.parent / "*")), own=earlier)

    def test_candidates_outside_of_the_space_are_left_out_with_a_note(self, earlier: Path) -> None:
        coefficient = {"low": 0.0, "high": 0.8, "per": "specialist"}
        found, [note] = find_candidates(wanted(str(earlier), {"task_arithmetic": {"scaling_coef": coefficient}}))
        inside = [row for row in searched(TrialStore(earlier).trials()) if max(row.coefficients.values()) <= 0.8]
        assert [one.trial for one in found] == inside
        assert note.startswith(
            f"search.warm_start: {10 - len(inside)} candidates of {earlier} do not lie in this sweep's"
        )

    def test_a_number_for_all_is_one_in_a_space_of_one(self, tmp_path: Path) -> None:
        points = [{"scaling_coef": 0.5}, {"scaling_coef": {"coding": 0.1, "math": 0.2, "safety": 0.3}}]
        search(tmp_path, {"trials": 2, "race": "none", "points_to_evaluate": points}).drive()
        one_for_all = {"task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.0}}}

        def recipe(method: str, parameters: dict[str, Any]) -> Any:
            return MadeUpBank().recipe(method, {"scaling_coef": dict.fromkeys(DOMAINS, parameters["scaling_coef"])})

        found, notes = find_candidates(wanted(str(tmp_path), one_for_all, recipe=recipe))
        assert [one.suggestion for one in found] == [{"task_arithmetic.scaling_coef": 0.5}]
        assert len(notes) == 1

    def test_neighbouring_groups_with_one_number_lie_in_a_space_of_more_groups(self) -> None:
        """A recipe writes that number once."""
        coefficient = {"low": 0.0, "high": 1.0, "per": "specialist", "layer_groups": 4}
        row: Any = SimpleNamespace(
            method="task_arithmetic",
            parameters={"scaling_coef": {"coding": [0.3, 0.5], "math": 0.2, "safety": [0.1, 0.2, 0.3, 0.4]}},
        )
        found = warm_start._suggestion(row, wanted("a", {"task_arithmetic": {"scaling_coef": coefficient}}))
        assert found is not None
        each = {name: [found[f"task_arithmetic.scaling_coef.{name}.{group}"] for group in range(4)] for name in DOMAINS}
        assert each == {"coding": [0.3, 0.3, 0.5, 0.5], "math": [0.2] * 4, "safety": [0.1, 0.2, 0.3, 0.4]}

    def test_one_folder_needs_no_list_and_a_user_that_is_not_there_is_refused(self) -> None:
        assert SearchOptions(warm_start="runs/*").warm_start == ["runs/*"]  # type: ignore[arg-type]
        with pytest.raises(InputError, match="~nobody-of-that-name/runs"):
            parse_model(SearchOptions, {"warm_start": "~nobody-of-that-name/runs"}, "x.yaml")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base": "other"}, "is a run of other models: the base is not this sweep's"),
            ({"specialists": {}}, "is a run of other models: the specialist coding is not this sweep's"),
            ({"items": "other"}, "was scored on other validation items than this sweep's"),
            ({"recipe": of_other_specialists}, "no candidate to begin with (10 were made of other specialists); leave"),
        ],
    )
    def test_a_run_of_something_else_is_refused(self, earlier: Path, changes: Any, message: str) -> None:
        with pytest.raises(InputError) as error:
            find_candidates(wanted(str(earlier), **changes))
        assert message in str(error.value)
        assert str(earlier) in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_run_with_no_candidate_in_the_space_is_refused(self, earlier: Path) -> None:
        with pytest.raises(InputError, match=r"begin with \(10 do not lie in this sweep's space\); leave it out"):
            find_candidates(wanted(str(earlier), {"ties": {"density": {"low": 0.1, "high": 0.9}}}))

    def test_another_fixed_number_lies_outside_of_the_space(self, earlier: Path) -> None:
        methods = {"task_arithmetic": {"scaling_coef": 0.3}, "ties": {"density": {"low": 0.1, "high": 0.9}}}
        with pytest.raises(InputError, match=r"10 do not lie in this sweep's space\)"):
            find_candidates(wanted(str(earlier), methods))

    def test_one_whose_items_are_not_there_is_left_out_for_that_reason(self, earlier: Path, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        shutil.copytree(earlier, folder)
        before, _ = find_candidates(wanted(str(folder)))
        full, *_ = (one.items for one in before if one.items is not None)
        full.unlink()
        found, [note] = find_candidates(wanted(str(folder)))
        assert found == [one for one in before if one.items != full]
        assert (
            note == f"search.warm_start: 1 candidates of {folder} lack the file of their scored items and are left out"
        )
        made = search(tmp_path / "b", POOL)
        [note] = warm_start.keep(made.run, before)
        assert "1 candidates of a lack the file of their scored items" in note
        assert [one.trial for one in warm_start.read(made.run)] == [one.trial for one in found]

    def test_what_was_stopped_under_other_constraints_is_left_out(self, earlier: Path) -> None:
        methods = {"task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.0, "per": "specialist"}}}
        search = {**POOL, "warm_start": str(earlier), "constraints": {"safety": ">= 0.5"}}
        content = {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search}
        found, [note] = find_candidates(wanted(str(earlier), sweep=Sweep.model_validate(content)))
        rows = searched(TrialStore(earlier).trials())
        stopped = sum(row.role == "stopped" for row in rows)
        assert len(found) == len(rows) - stopped > 0
        assert f"{stopped} candidates of {earlier} were stopped by a race with other constraints" in note

    def test_a_folder_with_brackets_in_its_name_is_itself(self, earlier: Path, tmp_path: Path) -> None:
        shutil.copytree(earlier, tmp_path / "x[1]")
        assert len(find_candidates(wanted(str(tmp_path / "x[1]")))[0]) == 10

    def test_a_run_that_searched_for_something_else_is_refused(self, earlier: Path, tmp_path: Path) -> None:
        shutil.copytree(earlier, tmp_path / "a")
        file = tmp_path / "a" / "sweep.yaml"
        file.write_text(file.read_text().replace("objective: normalised_average", "objective: worst_domain"))
        with pytest.raises(InputError, match="searched for 'worst_domain', this sweep for 'normalised_average'"):
            find_candidates(wanted(str(tmp_path / "a")))

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match="a is no run that has scored anything"):
            find_candidates(wanted(str(tmp_path / "*")))


def test_a_search_begins_with_them_and_tries_as_many_of_its_own(earlier: Path, begun: MadeUpSearch) -> None:
    rows, before = searched(begun.store.trials()), searched(TrialStore(earlier).trials())
    assert [(row.role, row.digest, row.estimate) for row in rows[:10]] == [
        (row.role, row.digest, row.estimate) for row in before
    ]
    assert [(row.number, row.optuna_number, row.tokens) for row in rows[:10]] == [(n, n, 0) for n in range(10)]
    assert {row.taken_from for row in rows[:10]} == {"a"}
    assert rows[0].reused_from == {"a": sum(one.items for one in rows[0].domains.values())}
    assert [row.optuna_number for row in sorted(proposed(rows), key=lambda row: row.number)] == [*range(10, 20)]
    assert _num_candidates(begun.run) == 10
    study = optuna.load_study(study_name="x", storage=begun.storage)
    for row in rows:
        trial = study.trials[row.optuna_number]
        assert trial.value == (row.objective.value if row.estimate is None else row.estimate.value)
        assert trial.user_attrs.get("taken_from", "") == row.taken_from
        assert ("estimated" in trial.user_attrs) == (row.estimate is not None)


def test_the_race_compares_with_those_that_were_scored_in_full(begun: MadeUpSearch) -> None:
    full = [row.number for row in searched(begun.store.trials()) if row.taken_from and row.role == "candidate"]
    lines = JsonLines(begun.run.decisions_file).read()
    assert lines[0]["candidates"] == 10 + len(full)
    assert [line["candidate"] for line in lines[1 : len(full) + 1]] == full
    assert {line["action"] for line in lines[1 : len(full) + 1]} == {"done"}
    later = [line for line in lines if line.get("candidate", 0) >= 10]
    assert later[0]["why"]["compared"] >= len(full)


def test_what_they_reach_is_measured_by_the_references_of_this_run(earlier: Path, tmp_path: Path) -> None:
    made = warm(tmp_path / "b", earlier)
    better = next(row for row in made.store.trials() if (row.role, row.name) == ("specialist", "math"))
    domains = {"math": replace(better.domains["math"], score=2 * better.domains["math"].score)}
    made.store.replace(replace(better, domains=domains))
    made.drive()
    before = {row.digest: row for row in searched(TrialStore(earlier).trials()) if row.role == "candidate"}
    taken = {row.digest: row for row in searched(made.store.trials()) if row.taken_from}
    assert taken.keys() == before.keys()
    assert all((taken[one].objective.value or 0.0) < (before[one].objective.value or 0.0) for one in before)
    assert made.said[0] == (  # their estimates are by the references there
        f"search.warm_start: {10 - len(before)} candidates of a were scored under other versions, settings or device "
        "and are left out"
    )
    assert made.said[1] == f"the search begins with {len(before)} candidates of a, 0 of them stopped there"


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"conditions": {"max_num_seqs": 8}}, set()),
        ({"device": "another card"}, {"candidate"}),  # of which the digests would tell, but not the made-up ones
    ],
)
def test_what_was_not_scored_as_this_run_scores_is_left_out_for_good(
    earlier: Path, tmp_path: Path, changed: Any, left: set[str]
) -> None:
    storage = memory_storage()
    made = warm(tmp_path / "b", earlier, POOL | {"trials": 1}, storage=storage, **changed)
    made.drive()
    taken = [row for row in searched(made.store.trials()) if row.taken_from]
    assert {row.role for row in taken} == left
    assert made.said[0].startswith(f"search.warm_start: {10 - len(taken)} candidates of a were scored under other")
    assert made.said[0].endswith("; none of that run is left") == (not taken)
    assert [row.number for row in proposed(made.store.trials())] == [len(taken)]
    kept = {file.name for file in (tmp_path / "b" / "items").iterdir()}
    assert kept == {f"{row.digest}-validation.parquet" for row in made.store.trials() if row.role != "stopped"}
    again = warm(tmp_path / "b", earlier, POOL | {"trials": 2}, storage=storage)
    again.drive()
    assert [row.digest for row in searched(again.store.trials()) if row.taken_from] == [row.digest for row in taken]


def test_points_to_evaluate_come_after_them(earlier: Path, tmp_path: Path) -> None:
    points = [{"scaling_coef": 0.4}, {"scaling_coef": 0.5}]
    made = warm(tmp_path / "b", earlier, POOL | {"trials": 2, "points_to_evaluate": points})
    made.drive()
    own = sorted(proposed(made.store.trials()), key=lambda row: row.number)
    assert [(row.number, row.coefficients["math"]) for row in own] == [(10, 0.4), (11, 0.5)]


def test_one_of_them_that_is_asked_for_again_counts_and_takes_nothing(earlier: Path, tmp_path: Path) -> None:
    full = next(row for row in searched(TrialStore(earlier).trials()) if row.role == "candidate")
    point = {"scaling_coef": dict(full.coefficients)}
    made = warm(tmp_path / "b", earlier, POOL | {"trials": 1, "points_to_evaluate": [point]})
    made.drive()
    [own] = proposed(made.store.trials())
    assert (own.digest, own.number, own.role, made.scorer.asked) == (full.digest, 10, "candidate", 0)
    assert (own.taken_from, own.reused_from) == ("", {})  # the report adds up what was scored before


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_as_the_calm_one_when_the_other_runs_have_gone(
    earlier: Path, tmp_path: Path
) -> None:
    options = {"trials": 3, "sampler": "RandomSampler", "race": {"kind": "pool", "survivors": 2}}
    gone = tmp_path / "runs" / "a"
    shutil.copytree(earlier, gone)
    with pytest.MonkeyPatch.context() as patch:
        calm = warm(tmp_path / "calm", gone, options)
        writes = killed_at(patch, -1, torn=False)
        calm.drive()
    for place in (1, 2, 5, writes[0] - 2):
        folder = tmp_path / f"{place}"
        storage = memory_storage()
        first = warm(folder, earlier, options, storage=storage)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, place, torn=place % 2 == 0)
            with pytest.raises(Killed):
                first.drive()
        shutil.rmtree(gone, ignore_errors=True)
        search(folder, options, storage=storage).drive()
        assert table(folder) == table(tmp_path / "calm"), f"killed at write {place}"


def test_a_row_says_which_run_it_is_of_and_has_its_items(earlier: Path, begun: MadeUpSearch) -> None:
    row = next(one for one in searched(begun.store.trials()) if one.role == "candidate")
    assert row.flat()["taken_from"] == "a"
    assert Trial.from_json(row.to_json()) == row
    assert begun.store.items(row).equals(TrialStore(earlier).items(row))


def test_damaged_candidates_are_refused(earlier: Path, tmp_path: Path) -> None:
    made = warm(tmp_path / "b", earlier)
    made.run.warm_start_file.write_text('{"run": "a"}\n')
    with pytest.raises(InputError, match=r"warm_start\.jsonl: damaged, or written by another version"):
        warm_start.read(made.run)
