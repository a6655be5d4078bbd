from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from made_up_races import made_up_items
from mergebench_ray.search.race.contrasts import Contrasts
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.order import shuffled_order, stratified_order


def test_every_prefix_has_its_share_of_each_domain_and_stratum() -> None:
    items = made_up_items(per_domain=50)
    order = stratified_order(items, seed=3)
    assert sorted(order) == list(range(len(items)))
    for count in range(1, len(items) + 1):
        taken = items.taken(order[:count])
        for groups, whole, slack in ((taken.tasks, items.tasks, 1.0), (taken.strata, items.strata, 2.0)):
            for group in np.unique(whole):
                share = count * np.mean(whole == group)
                assert abs(np.sum(groups == group) - share) <= slack + 1e-9


def test_an_order_is_a_function_of_the_seed() -> None:
    items = made_up_items()
    for make in (stratified_order, shuffled_order):
        assert np.array_equal(make(items, 1), make(items, 1))
        assert not np.array_equal(make(items, 1), make(items, 2))


def test_any_item_of_a_stratum_may_come_first() -> None:
    items = made_up_items(per_domain=5)
    first = Counter(int(stratified_order(items, seed)[0]) for seed in range(600))
    assert len(first) == len(items)
    assert max(first.values()) < 3 * 600 / len(items)


def test_tasks_of_one_name_in_two_domains_are_two() -> None:
    items = Items.of(["a", "a", "b"], ["x", "y", "x"], clusters=["p", "q", "p"])
    assert items.tasks.tolist() == [0, 1, 2]
    assert items.domain_of_task.tolist() == [0, 0, 1]
    assert items.clusters.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("rare", "look"), [(2, 40), (0, 20)])
def test_the_first_look_has_two_items_of_every_task(rare: int, look: int) -> None:
    domains = ["a"] * 38 + ["b"] * rare
    contrasts = Contrasts(Items.of(domains), _Unused())
    assert contrasts.first_look(20) == look


class _Unused:
    name = "unused"
    direction = "maximize"

    def value(self, scores: object) -> float:
        raise AssertionError("when items are looked at depends on no score")

    def slopes(self, scores: object) -> dict[str, float]:
        raise AssertionError("when items are looked at depends on no score")
