"""Several objectives: what is refused of them before anything starts, and what becomes of them in a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import made_up_search
from made_up_search import DOMAINS, MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.estimates import estimate_mean
from mergebench_ray.runs.leaderboard import front
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.checks import read_sweep
from mergebench_ray.search.final_choice import Compared, choose
from mergebench_ray.search.finals import choose_by, finalists
from mergebench_ray.search.objectives.goal import Goal, check_goal
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.samplers import OWN_ERROR
from mergebench_ray.search.space import Space
from mergebench_ray.search.study import RunStudy, open_storage, told_value
from refused_sweeps import refused_search

SWEEP = Path(__file__).parents[2] / "sweeps" / "all-methods.yaml"
TWO = ["math", "safety"]
ITEMS = 100


def goal(**options: Any) -> Goal:
    specialist = DomainScore(1.0, 0.0, ITEMS)
    return Goal.of(
        SearchOptions.model_validate({"objective": TWO, **options}), References(dict.fromkeys(TWO, specialist))
    )


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"objective": ["math"]}, "search.objective = ['math']: a list is of at least two objectives"),
        ({"objective": []}, "a list is of at least two objectives"),
        ({"objective": ["math", ["coding"]]}, "search.objective.1 = ['coding']: expected one objective"),
        ({"objective": ["math", "maths"]}, "search.objective = 'maths': no such objective or scored domain"),
        ({"objective": ["math", "math"]}, "the list names 'math' twice; leave one out"),
        ({"objective": ["math", {"math": 2}]}, "'math' and {'math': 2.0}, which are the same; leave one out"),
        ({"objective": [{"math": 1, "coding": 2}, {"coding": 4, "math": 2}]}, "which are the same"),
        (
            {
                "objective": [
                    "normalised_average",
                    dict.fromkeys(("coding", "instruction", "math", "multilingual", "safety"), 3),
                ]
            },
            "which are the same",
        ),
        (
            {"objective": TWO, "sampler": "CmaEsSampler", "sampler_options": {}},
            "search.sampler = 'CmaEsSampler': it cannot search for 2 objectives (",
        ),
        ({"objective": TWO, "choice": "elbow"}, "search.choice = 'elbow': expected knee, {weights:"),
        ({"objective": TWO, "choice": {"weights": {}}}, "search.choice.weights = {}"),
        (
            {"objective": TWO, "choice": {"weights": {"math": 0}}},
            "search.choice.weights.math = 0: Input should be greater",
        ),
        (
            {"objective": TWO, "choice": {"weights": {"maths": 1}}},
            "search.choice.weights: 'maths' is none of search.objective's; did you mean 'math'?",
        ),
        ({"objective": TWO, "choice": {"floors": {"coding": 1}}}, "search.choice.floors: 'coding' is none of"),
        ({"objective": TWO, "choice": {"floors": {"math": True}}}, "holds true or false, where a number is expected"),
        ({"objective": TWO, "choice": {"floors": {"math": 1}, "weights": {"math": 1}}}, "one of them"),
        (
            {"objective": TWO, "choice": {"floors": {"math": 0.9}}, "constraints": {"math": "<= 0.5"}},
            "search.choice.floors.math = 0.9 against search.constraints: no number is at least 0.9 and at most 0.5",
        ),
        ({"choice": "knee"}, "search.choice: it takes one model of a front, and there is one objective"),
        (
            {"objective": TWO, "race": "halving"},
            "search.race.kind = 'halving': it knows one objective, and there are 2; ",
        ),
        (
            {"objective": TWO, "race": "ASHAScheduler"},
            "it knows one objective, and there are 2; choose pool or sparing",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_before_anything_is_loaded(
    setting: dict[str, Any], reason: str
) -> None:
    assert reason in refused_search(SWEEP, setting)


def test_several_objectives_that_mean_something_are_taken() -> None:
    five = ["coding", "instruction", "math", "multilingual", "safety"]
    for setting in (
        {"objective": five},
        {"objective": ["normalised_average", "worst_domain", {"math": 2, "coding": 1}]},
        {"objective": TWO, "choice": {"weights": {"math": 2}}, "constraints": {"coding": 0.5}},
        {"objective": TWO, "choice": {"floors": {"math": 0.5}}, "constraints": {"math": "<= 0.9"}},
        *(
            {"objective": TWO, "sampler": name, "sampler_options": {}}
            for name in ("TPESampler", "NSGAIISampler", "NSGAIIISampler")
        ),
    ):
        read_sweep(SWEEP, {f"search.{key}": value for key, value in setting.items()})


def test_a_sampler_that_takes_no_such_option_is_refused_for_that() -> None:
    setting = {"search.objective": TWO, "search.sampler": "TPESampler", "search.sampler_options": {"nothing": 1}}
    with pytest.raises(InputError, match=r"search\.sampler_options: TPESampler does not take them"):
        read_sweep(SWEEP, setting)


def test_a_domain_that_bears_an_objectives_name_is_refused_in_a_list_too() -> None:
    with pytest.raises(InputError, match=r"'worst_domain' is an objective and a domain"):
        check_goal(SearchOptions(objective=["math", "worst_domain"]), ["math", "worst_domain"])


@pytest.mark.parametrize(
    ("objective", "domains", "reason"),
    [
        ([{"math": 1.0000001, "safety": 1}, {"math": 1, "safety": 1.0000001}], TWO, "one name, '1 math"),
        (["worst_domain", "math"], ["math"], "'worst_domain' and 'math', which are the same"),
        (["normalised_average", "worst_domain"], ["math"], "which are the same"),
    ],
)
def test_objectives_that_have_one_name_or_are_one_number_of_one_domain_are_refused(
    objective: list[Any], domains: list[str], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        check_goal(SearchOptions(objective=objective), domains)


# What a study is told


def row(number: int, found: Goal, math: float, safety: float) -> Trial:
    measured = Measured({"math": DomainScore(math, 0.03, ITEMS), "safety": DomainScore(safety, 0.02, ITEMS)})
    return Trial(
        *("candidate", "ties", "validation", f"d{number}", "i", number, "ties"),
        domains=measured.domains,
        normalised_average=(math + safety) / 2,
        objectives=found.values(measured),
        constraints=found.missed_by(measured),
        choice="knee",
        optuna_number=number,
    )


def test_the_study_knows_all_objectives_their_errors_and_who_keeps_the_constraints(tmp_path: Path) -> None:
    found = goal(constraints={"safety": 0.5})
    run = RunFolder(tmp_path)
    own = RunStudy(open_storage(run, SearchOptions()), "x", run, *found.objectives)
    for values in ((0.5, 0.6), (0.7, 0.4), (0.4, 0.5)):
        own.study.ask()
        own.reconcile([row(own.study.trials[-1].number, found, *values)])
    assert own.study.metric_names == TWO
    assert own.study.trials[1].values == [0.7, 0.4]
    assert own.study.trials[1].user_attrs[OWN_ERROR] == [pytest.approx(0.03), pytest.approx(0.02)]
    assert own.study.trials[1].user_attrs["standard_error.math"] == pytest.approx(0.03)
    assert [trial.number for trial in own.study.best_trials] == [0], "of those that keep the constraint"


def test_a_candidate_without_one_of_the_values_has_failed() -> None:
    one = row(0, goal(), 0.5, 0.6)
    assert told_value(one) == [0.5, 0.6]
    assert (
        told_value(replace(one, objectives={**one.objectives, "math": replace(one.objectives["math"], value=None)}))
        is None
    )


def test_a_candidate_of_another_run_enters_the_study_with_all_its_objectives(tmp_path: Path) -> None:
    content = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {"density": {"low": 0.1, "high": 0.9}}}}
    space = Space(Sweep.model_validate(content), TWO, None)
    own = RunStudy(open_storage(RunFolder(tmp_path), SearchOptions()), "x", RunFolder(tmp_path), *goal().objectives)
    for number, safety in enumerate((0.6, float("nan"))):
        own.add(row(number, goal(), 0.5, safety), {"ties.density": 0.5}, space)
    assert own.study.trials[0].values == [0.5, 0.6]
    assert own.study.trials[1].state == optuna.trial.TrialState.FAIL


# The final choice


def scored(**right: int) -> Measured:
    """So many right answers of a hundred in each domain."""
    domains, influences = {}, {}
    for name, count in right.items():
        estimate = estimate_mean([float(place < count) for place in range(ITEMS)], [f"{name}{p}" for p in range(ITEMS)])
        assert estimate.influences is not None
        domains[name], influences[name] = (
            DomainScore(estimate.value, estimate.standard_error, ITEMS),
            estimate.influences,
        )
    return Measured(domains, influences)


def chosen(
    choice: Any, *finals: tuple[int, int], simple: int = 0, on_front: list[bool] | None = None, **options: Any
) -> tuple[int, list[int]]:
    found = goal(**options)
    measured = [scored(math=math, safety=safety) for math, safety in finals]
    rows = []
    for number, one in enumerate(measured):
        numbers = {"a": 0.4} if number == simple else {"a": 0.4, "b": 0.5}
        fields = {"choice": choice, "objectives": found.values(one), "parameters": {"scaling_coef": numbers}}
        fields["constraints"] = found.missed_by(one)
        rows.append(replace(row(number, found, 0, 0), name="task_arithmetic", method="task_arithmetic", **fields))
    choice_made = choose([Compared(found, rows, measured)], on_front)
    assert choice_made is not None
    return choice_made.chosen, choice_made.tied


def test_the_final_choice_takes_of_the_front_on_fresh_items_what_the_sweep_says() -> None:
    finals = ((90, 20), (70, 75), (30, 90))
    assert chosen("knee", *finals) == (1, [1])
    assert chosen({"weights": {"math": 1.0}}, *finals) == (0, [0])
    assert chosen({"floors": {"safety": 0.8}}, *finals) == (2, [2])


def test_the_simplest_of_those_that_are_told_from_it_in_nothing_is_taken() -> None:
    assert chosen("knee", (89, 30), (70, 75), (69, 74), simple=2) == (2, [1, 2])
    assert chosen("knee", (89, 30), (70, 75), (69, 60), simple=2) == (1, [1]), "it is told from it in one"


def test_no_simpler_one_is_taken_below_a_floor_that_the_best_keeps() -> None:
    finals = (70, 76), (71, 74)
    assert chosen({"floors": {"safety": 0.75}}, *finals, simple=1) == (0, [0])
    assert chosen({"floors": {"safety": 0.7}}, *finals, simple=1) == (1, [0, 1])


def test_another_choice_holds_for_all_that_is_scored_and_marks_no_winner(tmp_path: Path) -> None:
    store = TrialStore(tmp_path)
    for number, values in enumerate([(0.9, 0.2), (0.7, 0.75), (0.3, 0.9)]):
        store.append(row(number, goal(), *values))
    store.append(replace(row(1, goal(), 0.7, 0.75), split="final", chosen=True, tied_with=("ties #2",)))
    assert [one.number for one in finalists(store.trials())] == [1, 2, 0]
    choose_by(store, {"floors": {"safety": 0.8}})
    assert {repr(one.choice) for one in TrialStore(tmp_path).trials()} == {"{'floors': {'safety': 0.8}}"}
    assert not any(one.chosen for one in store.trials())
    assert finalists(store.trials())[0].number == 2


def test_where_none_keeps_the_constraints_on_fresh_items_the_least_far_from_it_is_taken() -> None:
    assert chosen("knee", (50, 78), (90, 50), (70, 60), constraints={"safety": 0.8}) == (0, [0])


def test_a_member_of_the_searchs_front_is_taken_before_a_simpler_one_next_to_it() -> None:
    finals = ((70, 75), (69, 74), (30, 90))
    assert chosen("knee", *finals, simple=1, on_front=[True, False, True]) == (0, [0])
    assert chosen("knee", (40, 40), *finals[1:], on_front=[True, False, True]) == (1, [1]), "it is told from all others"


def test_no_finalist_misses_a_constraint_while_another_keeps_all() -> None:
    found = goal(constraints={"safety": 0.5})
    rows = [row(number, found, *one) for number, one in enumerate([(0.5, 0.6), (0.6, 0.52), (0.95, 0.49)])]
    assert [one.number for one in finalists(rows)] == [1, 0]
    assert [one.number for one in finalists(rows[2:])] == [2]


def test_finalists_are_the_front_and_what_would_be_it_without_it() -> None:
    def names(values: list[tuple[float, float]]) -> list[int]:
        return [one.number for one in finalists([row(number, goal(), *one) for number, one in enumerate(values)])]

    assert names([(0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.1, 0.95), (0.6, 0.6), (0.5, 0.5)]) == [0, 3, 1, 2, 4]
    line = [(0.1 + 0.05 * place, 0.9 - 0.05 * place) for place in range(15)]
    assert names(line) == [7, 6, 8, 5, 9], "those nearest to the knee"


# A search


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up_search, "answer", made_up_search.trade_off)


SEVERAL: dict[str, Any] = {"trials": 12, "objective": list(DOMAINS), "race": {"kind": "none", "in_flight": 20}}


@pytest.mark.usefixtures("here")
def test_a_search_for_several_objectives_has_a_front_in_its_folder(tmp_path: Path) -> None:
    storage = memory_storage()
    one = MadeUpSearch(tmp_path, MadeUpScorer(), SEVERAL, storage=storage)
    one.drive()
    rows = searched(one.store.trials())
    assert {tuple(row.objectives) for row in rows} == {DOMAINS}
    assert {row.choice for row in rows} == {"knee"}
    found = front(one.store.trials())
    study = optuna.load_study(study_name="x", storage=storage)
    assert sorted(row.optuna_number or 0 for row in found) == sorted(trial.number for trial in study.best_trials)
    assert 1 < len(found) < 12
