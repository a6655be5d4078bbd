"""Who wins in the end: the simplest of those that all items together cannot tell from the best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from mergebench_ray.evaluation.estimates import estimate_mean
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.final_choice import Compared, FinalChoice, choose, complexity
from mergebench_ray.search.finals import finalists, hold_finals
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.scored_items import measured_from_items

ITEMS = 100
OBJECTIVE = NormalisedAverage(References({"math": DomainScore(1.0, 0.0, ITEMS)}))


def scored(right: int, items: int = ITEMS) -> Measured:
    """So many right answers in a row of items, from the first of them on."""
    estimate = estimate_mean([float(place < right) for place in range(items)], [str(place) for place in range(items)])
    score = DomainScore(estimate.value, estimate.standard_error, items)
    return Measured({"math": score}, {} if estimate.influences is None else {"math": estimate.influences})


def candidate(number: int, value: float = 0.5, **parameters: Any) -> Trial:
    return Trial(
        role="candidate",
        name="task_arithmetic",
        number=number,
        split="validation",
        digest=f"{number}",
        items_digest="i",
        method="task_arithmetic",
        parameters={"scaling_coef": parameters} if parameters else {"scaling_coef": 0.4},
        domains={"math": DomainScore(value, 0.05, ITEMS)},
        normalised_average=value,
        normalised_standard_error=0.05,
    )


def compared(
    trials: list[Trial], right: list[int], objective: NormalisedAverage = OBJECTIVE, items: int = ITEMS
) -> Compared:
    """Candidates with so many right answers each on one split."""
    measured = [scored(one, items) for one in right]
    rows = [
        dataclasses.replace(trial, objectives=Goal(objective).values(found)) for trial, found in zip(trials, measured)
    ]
    return Compared(Goal(objective), rows, measured)


def winner(*finals: tuple[Trial, int], objective: NormalisedAverage = OBJECTIVE) -> FinalChoice | None:
    """Who is chosen among candidates with so many right answers each on all items."""
    return choose([compared([trial for trial, _ in finals], [right for _, right in finals], objective)])


def item_rows(right: int, items: int) -> list[dict[str, Any]]:
    """The same answers as the store keeps them."""
    return [
        {
            "domain": "math",
            "task": "sums",
            "item": str(place),
            "prompt_digest": str(place),
            "cluster": str(place),
            "score": float(place < right),
        }
        for place in range(items)
    ]


MANY = candidate(0, math=0.1, coding=0.9)
FEW = candidate(1, math=0.5, coding=0.5)


def test_the_best_is_chosen_where_its_lead_is_more_than_two_paired_errors() -> None:
    choice = winner((MANY, 80), (FEW, 60))
    assert choice is not None
    assert (choice.chosen, choice.tied) == (0, [0])


def test_the_simplest_is_chosen_among_those_that_cannot_be_told_apart() -> None:
    choice = winner((MANY, 62), (FEW, 60))
    assert choice is not None
    assert (choice.chosen, choice.tied) == (1, [0, 1])


def test_the_best_of_the_search_is_chosen_among_those_that_are_as_simple() -> None:
    choice = winner((FEW, 60), (dataclasses.replace(FEW, number=2), 62))
    assert choice is not None
    assert (choice.chosen, choice.tied) == (0, [0, 1])


def test_a_lead_that_unpaired_errors_would_hide_is_seen() -> None:
    """Six points of a hundred items are less than two independent errors: 0.10; of the six items that differ: 0.05."""
    choice = winner((FEW, 60), (MANY, 66))
    assert choice is not None
    assert choice.tied == [1]


def test_what_the_searchs_items_tell_apart_does_not_tie_for_a_lucky_answer_on_those_held_back() -> None:
    pair = [MANY, FEW]
    searched, held_back = compared(pair, [80, 60]), compared(pair, [14, 12], items=20)
    alone = choose([held_back])
    assert alone is not None
    assert alone.tied == [0, 1], "on these alone the simpler one ties with the best"
    assert choose([searched, held_back]) == FinalChoice(0, [0])


def test_each_split_weighs_as_many_items_as_it_has() -> None:
    pair = [MANY, FEW]
    few, many = compared(pair, [2, 18], items=20), compared(pair, [160, 120], items=200)
    assert choose([few]) == FinalChoice(1, [1])
    assert choose([many, few]) == choose([few, many]) == FinalChoice(0, [0])


def test_a_split_whose_error_is_not_known_leaves_the_tie_to_the_others() -> None:
    searched, one_item = compared([MANY, FEW], [62, 60]), compared([MANY, FEW], [1, 1], items=1)
    assert choose([searched]) == choose([searched, one_item]) == FinalChoice(1, [0, 1])


@pytest.mark.parametrize(("searched", "chosen"), [(300, 0), (30, 1)])
def test_constraints_are_kept_or_missed_by_all_items_together(searched: int, chosen: int) -> None:
    """The better one keeps its constraint by 0.1 on the search's items, and misses it by 0.1 on a hundred others."""
    splits = []
    for items, distance in ((searched, -0.1), (100, 0.1)):
        better = dataclasses.replace(MANY, constraints={"math >= 0.9": distance})
        other = dataclasses.replace(FEW, constraints={"math >= 0.9": -0.1})
        splits.append(compared([better, other], [items * 8 // 10, items * 6 // 10], items=items))
    assert choose(splits) == FinalChoice(chosen, [chosen])


class MadeUpRecords:
    """What `hold_finals` asks of `Records`, of models that are in the store already."""

    def __init__(self, store: TrialStore) -> None:
        self._store = store

    def goal(self, _split: str) -> Goal:
        return Goal(OBJECTIVE)

    def merged(self, role: str, name: str, split: str, _recipe: None, number: int = 0) -> Trial:
        return next(row for row in self._store.trials() if row.key == (role, name, number, split))


def test_the_searchs_items_and_those_held_back_are_compared_each_with_its_own(tmp_path: Path) -> None:
    """On twenty items held back the simpler one ties; on the search's hundred it is far behind."""
    store = TrialStore(tmp_path)
    for split, items, rights in (("validation", 100, (80, 60)), ("final", 20, (14, 12))):
        for trial, right in zip((MANY, FEW), rights, strict=True):
            found = scored(right, items)
            row = dataclasses.replace(
                trial, split=split, domains=found.domains, normalised_average=right / items, objectives={}
            )
            store.append(row, item_rows(right, items))
    said: list[str] = []
    bank: Any = SimpleNamespace(recipe=lambda *_: None)
    records: Any = MadeUpRecords(store)
    hold_finals(records, store, bank, said.append)
    winners = [(row.number, row.split, row.tied_with) for row in store.trials() if row.chosen]
    assert (winners, said) == ([(MANY.number, "final", ())], [])


def test_a_candidate_that_misses_a_constraint_is_not_compared_with_those_that_keep_all() -> None:
    choice = winner((dataclasses.replace(MANY, constraints={"math >= 0.9": 0.1}), 80), (FEW, 60))
    assert choice is not None
    assert (choice.chosen, choice.tied) == (1, [1])


def test_none_is_chosen_where_nothing_can_be_normalised() -> None:
    lower = NormalisedAverage(References({"math": DomainScore(1.0, 0.0, ITEMS, higher_is_better=False)}))
    nothing = dataclasses.replace(scored(0), domains={"math": DomainScore(0.0, 0.0, ITEMS, higher_is_better=False)})
    assert choose([Compared(Goal(lower), [MANY], [nothing])]) is None


def test_one_number_for_all_is_simpler_than_one_each_and_data_less_simple_than_none() -> None:
    data = dataclasses.replace(FEW, method="regmean", parameters={})
    order = [candidate(2), FEW, MANY, data]
    assert sorted(order, key=complexity) == order
    assert complexity(candidate(2)) == complexity(FEW)


def test_the_five_best_distinct_candidates_are_finalists() -> None:
    trials = [candidate(number, value) for number, value in enumerate([0.1, 0.9, 0.3, 0.8, 0.4, 0.7, 0.2])]
    again = dataclasses.replace(trials[1], number=7)
    assert [trial.number for trial in finalists([*trials, again])] == [1, 3, 5, 4, 2]


def test_items_on_disk_tell_as_much_as_when_they_were_scored() -> None:
    rows = item_rows(60, ITEMS)
    trial = candidate(0, 0.6)
    found = measured_from_items(trial, pa.Table.from_pylist(rows))
    assert found.influences == scored(60).influences
    rows[0]["score"] = None
    assert measured_from_items(trial, pa.Table.from_pylist(rows)).influences == {}, "its score is not that of its items"


def test_the_lowest_is_best_where_lower_is_better() -> None:
    objective = NormalisedAverage(References({"math": DomainScore(1.0, 0.0, ITEMS)}))
    objective.direction = "minimize"
    choice = winner((MANY, 80), (FEW, 20), objective=objective)
    assert choice is not None
    assert (choice.chosen, choice.tied) == (1, [1])
