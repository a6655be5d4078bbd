from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_races import MEAN, made_up_items
from mergebench_ray.search import race_order
from mergebench_ray.search.race.contrasts import Contrasts
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.order import shuffled_order, stratified_order
from mergebench_ray.search.race.pool import Pool
from mergebench_ray.search.race_order import RaceOrder


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


def test_first_items_count_the_same_from_a_runs_folder_as_when_they_were_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where a metric leaves items out, or a search that was killed would not find its own decisions."""
    items = made_up_items(per_domain=20)
    scores = np.random.default_rng(0).choice([0.0, 1.0, None], len(items)).tolist()
    places = tuple(stratified_order(items, 0).tolist())
    order = RaceOrder(Pool(items.taken(np.array(places)), MEAN), places)
    kept = {("domain", "task", str(place)): (score, "") for place, score in enumerate(scores)}
    monkeypatch.setattr(race_order, "scores_by_item", lambda _folder, _row: kept)
    answered: Any = {place: SimpleNamespace(row={"score": score}) for place, score in enumerate(scores)}
    row: Any = None
    for count in (1, 20, 40, len(items)):
        assert order.kept_scores(tmp_path, row, count) == order.scores(answered, count)
    assert order.kept_scores(tmp_path, row) == order.scores(answered, len(items))
