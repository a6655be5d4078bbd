"""A race with constraints: what certainly misses one is stopped, the best of those that keep them is scored in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from made_up_races import DOMAINS, MEAN, WeightedMean, Worst, made_up_items, run_race
from made_up_search import MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.config.constraints import Condition
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.objectives.goal import Constraint
from mergebench_ray.search.race.bounds import Bounds
from mergebench_ray.search.race.front import FrontPool
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.race.pool import Pool

PER_DOMAIN = 80
SAFETY = WeightedMean({**dict.fromkeys(DOMAINS, 0.0), "safety": 1.0})
SAFETY.name = "safety"


def bound(text: str, objective: Any = SAFETY) -> Constraint:
    return Constraint(objective, Condition.parse(text))


def race_of(
    qualities: Any, constraints: Sequence[Constraint], seed: int = 0, kind: Any = Pool, **settings: Any
) -> tuple[Any, list[Any], Any]:
    """Candidates with a quality in each domain: their race, its decisions, and each one's scores, (k, domains)."""
    items = made_up_items(per_domain=PER_DOMAIN)
    source = np.random.default_rng(seed)
    difficulty = source.normal(0, 1, len(items))
    noise = source.normal(0, 1, (len(qualities), len(items)))
    answers = (np.repeat(np.asarray(qualities, float), PER_DOMAIN, axis=1) > difficulty + 0.5 * noise).astype(float)
    order = stratified_order(items, seed)
    race = kind(items.taken(order), MEAN, constraints=constraints, **settings)
    scores = np.stack([answers[:, PER_DOMAIN * place :][:, :PER_DOMAIN].mean(axis=1) for place in range(3)], axis=1)
    return race, run_race(race, answers[:, order]), scores


def test_what_is_best_but_certainly_misses_a_constraint_is_stopped() -> None:
    unsafe, safe, worse = [1.5, 1.5, -1.5], [-0.1, -0.1, 0.8], [-1, -1, 0.8]
    for seed in range(5):
        race, decided, _ = race_of([safe, *[unsafe] * 4, worse], [bound("score >= 0.5")], seed)
        assert race.finished() == [0]
        assert all(race.board.answered(number) < 0.6 * race.items for number in range(1, 5))
        stops = [one for one in decided if one.action == "stop" and one.candidate in range(1, 5)]
        assert all(one.why["keeps"] < 0.1 for one in stops)
    free, _, _ = race_of([safe, *[unsafe] * 4, worse], [])
    assert free.finished() != [0]


def test_where_nobody_keeps_them_whoever_is_least_far_from_it_is_scored_in_full() -> None:
    race, _, _ = race_of([[1.5, 1.5, -1.5], [1, 1, -1.2], [0, 0, 0.3], [1, 1, -0.6]], [bound("score >= 0.9")])
    assert race.finished() == [2]


def test_the_best_of_those_that_keep_them_is_seldom_stopped() -> None:
    lost, asked = 0, 0.0
    constraints = [bound("score >= 0.5"), bound(">= 0.25", Worst())]
    for seed in range(20):
        source = np.random.default_rng(50 + seed)
        race, _, scores = race_of(source.normal(0, 0.8, (12, 3)), constraints, seed)
        keeps = (scores[:, 2] >= 0.5) & (scores.min(axis=1) >= 0.25)
        value = np.where(keeps, scores.mean(axis=1), -9.0)
        lost += value[race.finished()].max() < value.max() - 0.02
        asked += sum(race.board.answered(number) for number in range(12)) / 12 / race.items / 20
    assert lost <= 3
    assert asked < 0.6


def test_what_is_uncertain_counts_by_its_objective() -> None:
    constraint = bound("score >= 0.5")
    race, _, scores = race_of([[1.5, 1.5, 0.0], [-0.3, -0.3, 1.5]], [constraint])
    assert abs(scores[0, 2] - 0.5) < 0.1
    assert race.state(0) == "done"


def test_a_chance_to_keep_a_constraint_is_made_of_all_that_was_answered() -> None:
    items = made_up_items(per_domain=PER_DOMAIN)
    bounds = Bounds(items.taken(stratified_order(items, 0)), [bound("score >= 0.5")])
    bounds.report(0, np.zeros(60))
    bounds.report(1, np.tile([0.0, 1.0], 30))
    assert bounds.chance(0) < 0.1
    assert 0.1 < bounds.chance(1) < 0.9
    assert bounds.distances(0)["safety score >= 0.5"] == pytest.approx(0.5)
    bounds.report(1, np.ones(240))
    assert bounds.chance(1) == 1.0


def test_nobody_is_stopped_before_eight_items_of_each_task_are_answered() -> None:
    race, decided, _ = race_of([[1.5, 1.5, -1.5]] * 4 + [[-0.8, -0.8, 0.8]], [bound("score >= 0.5")])
    assert race.first_look == 40
    assert min(one.answered for one in decided if one.action == "stop") >= 40
    assert race.finished() == [4]


def test_answers_that_are_all_alike_are_not_certain_of_the_rest() -> None:
    items = made_up_items(per_domain=PER_DOMAIN)
    bounds = Bounds(items.taken(stratified_order(items, 0)), [bound("score >= 0.5")])
    bounds.report(0, np.ones(40))
    assert bounds.chance(0) == 0.5


@pytest.mark.parametrize("text", ["score >= 0.4", "score <= 0.4", ">= 0.3", "<= 0.3"])
def test_the_slopes_of_a_distance_are_its_derivatives(text: str) -> None:
    constraint = bound(text)
    scores, step = {"coding": 0.2, "math": 0.7, "safety": 0.6}, 1e-6
    for domain in DOMAINS:
        moved = constraint.missed_by(scores | {domain: scores[domain] + step}) - constraint.missed_by(scores)
        assert constraint.slopes(scores).get(domain, 0.0) == pytest.approx(moved / step, abs=1e-6)


def test_a_front_is_of_those_that_keep_the_constraints() -> None:
    aims = [WeightedMean({one: float(one == name) for one in DOMAINS}) for name in DOMAINS[:2]]
    for aim, name in zip(aims, DOMAINS):
        aim.name = name
    safe, unsafe = [[1.2, -0.5, 1], [-0.5, 1.2, 1]], [[1.5, 0, -1.5], [0, 1.5, -1.5], [1.4, 1.4, -1.5]]
    race, _, _ = race_of([*safe, *unsafe], [bound("score >= 0.5")], kind=FrontPool, several=aims)
    assert race.finished() == [0, 1]
    race, _, _ = race_of([*safe, *unsafe], [], kind=FrontPool, several=aims)
    assert 4 in race.finished()


@pytest.mark.slow
def test_a_search_races_with_constraints_and_tells_the_study_what_is_probably_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"trials": 24, "sampler": "TPESampler", "constraints": {"safety": "score >= 0.5"}}
    storage = memory_storage()
    one = MadeUpSearch(tmp_path, MadeUpScorer(), search, storage=storage)
    one.drive()
    rows = [Trial.from_json(row.to_json()) for row in searched(TrialStore(tmp_path).trials())]
    stopped = [row for row in rows if row.role == "stopped"]
    assert stopped
    assert len(stopped) < len(rows)
    told = {trial.number: trial for trial in optuna.load_study(study_name="x", storage=storage).trials}
    for row in rows:
        assert list(row.constraints) == ["safety score >= 0.5"]
        assert told[row.optuna_number or 0].constraints == pytest.approx(row.constraints)
