"""Which race a sweep gets where it names none, and what it is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean

from made_up_races import WeightedMean
from mergebench_ray.config import Sweep
from mergebench_ray.config.race import RaceOptions
from mergebench_ray.errors import InputError
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.kinds import make_race, race_class
from mergebench_ray.search.race_choice import chosen_race, order_of
from mergebench_ray.search.race_order import RaceOrder


def task(aggregation: Any = mean) -> Any:
    return SimpleNamespace(
        name="told", metric="m", items=[None] * 30, task=SimpleNamespace(aggregation=lambda: {"m": aggregation})
    )


def chosen(tasks: list[Any] | None = None, **search: object) -> tuple[str, list[str]]:
    methods = {"ties": {"density": {"low": 0.1, "high": 0.5}}}
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search})
    options, notes = chosen_race(sweep, [task()] if tasks is None else tasks)
    return options.kind, notes


def test_more_than_eight_candidates_are_raced() -> None:
    assert chosen(trials=9) == ("pool", [])
    assert chosen(trials=8) == ("none", [])
    assert chosen(trials=9, constraints={"math": ">= 0.9"}) == ("pool", [])


def test_what_cannot_be_raced_is_scored_in_full_with_a_line_that_says_why() -> None:
    kind, [note] = chosen([task(), task(np.median)], trials=9)
    assert kind == "none"
    assert note == (
        "candidates are scored in full, without a race: task told: its metric m is no mean over items but exists only "
        "over all of them"
    )


def test_a_race_that_was_asked_for_is_not_left_out() -> None:
    assert chosen(trials=2, race="pool") == ("pool", [])
    with pytest.raises(InputError, match="task told: its metric m is no mean over items"):
        chosen([task(np.median)], trials=9, race="pool")
    assert chosen([task(np.median)], trials=9, race="none") == ("none", [])
    with pytest.raises(InputError, match="task told: its metric m is no mean over items"):
        chosen([task(np.median)], trials=9, race={"kind": "none", "in_flight": 20})


def test_a_scheduler_that_would_begin_after_the_last_item_is_refused() -> None:
    asha = {"kind": "ASHAScheduler", "scheduler_options": {"grace_period": 40}}
    assert chosen([task(), task()], trials=9, race=asha)[0] == "ASHAScheduler"
    with pytest.raises(InputError, match="scheduler_options: ASHAScheduler does not take them"):
        chosen([task()], trials=9, race=asha)


@pytest.mark.parametrize("per_task", [2, 20])
def test_full_scoring_begins_with_as_many_items_as_a_race_so_that_both_answer_alike(per_task: int) -> None:
    tasks = [f"task {number}" for number in range(15) for _ in range(per_task)]
    items = Items.of(["math"] * len(tasks), tasks)
    orders = []
    for options in (RaceOptions(kind="pool"), RaceOptions(kind="none", in_flight=20)):
        places = race_class(options.kind).order(items, 0)
        race = make_race(options, items.taken(places), WeightedMean({"math": 1.0}), candidates=9)
        orders.append(order_of(options, RaceOrder(race, tuple(places.tolist())), on_gpus=False))
    pool, full = orders
    assert (full.places, full.in_flight, full.alone) == (pool.places, pool.in_flight, pool.alone)
    assert pool.alone > 20
