from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from made_up_races import MEAN, WeightedMean, Worst, made_up_answers, made_up_items, run_race
from mergebench_ray.errors import InputError
from mergebench_ray.search.race.exact import Bet, Exact, grow
from mergebench_ray.search.race.halving import Halving
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.kinds import KINDS
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.race.pool import Pool


def _race(kind: str, seed: int, qualities: Any, **settings: Any) -> tuple[Any, list[Any], Any]:
    items = made_up_items(per_domain=60, seed=seed)
    answers = made_up_answers(qualities, items, seed)
    order = KINDS[kind].order(items, seed)
    race = KINDS[kind](items.taken(order), MEAN, candidates=len(answers), **settings)
    return race, run_race(race, answers[:, order]), answers


def _in_order() -> Items:
    items = made_up_items(per_domain=60)
    return items.taken(stratified_order(items, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_race_ends_with_every_candidate_stopped_or_answered_in_full(kind: str) -> None:
    race, decided, answers = _race(kind, 0, np.linspace(-0.5, 1, 12))
    assert {race.state(number) for number in range(12)} <= {"stopped", "done"}
    for number in race.finished():
        assert race.board.answered(number) == race.items
        estimate = race.estimate(number)
        assert not estimate.estimated
        assert estimate.standard_error == 0
        assert estimate.value == pytest.approx(answers[number].mean())
    assert race.finished()
    for decision in decided:
        assert json.loads(json.dumps(decision.record()))["candidate"] == decision.candidate


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_depend_on_the_reports_alone(kind: str) -> None:
    first, second = (_race(kind, 4, np.linspace(0, 0.6, 10))[1] for _ in range(2))
    assert [one.record() for one in first] == [one.record() for one in second]


@pytest.mark.parametrize("kind", ["pool", "sparing", "halving"])
def test_what_a_race_asks_at_its_end_is_seldom_more_than_it_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    close = KINDS[kind].close

    def noted(race: Any) -> Any:
        said.append((race.items_left(), sum(race.board.answered(number) for number in range(12))))
        return close(race)

    monkeypatch.setattr(KINDS[kind], "close", noted)
    more = []
    for seed in range(20):
        race, _, _ = _race(kind, seed, np.random.default_rng(seed).normal(0, 0.4, 12))
        left, before = said.pop()
        more.append(sum(race.board.answered(number) for number in range(12)) - before > left)
    assert np.mean(more) <= 0.2


@pytest.mark.parametrize("kind", ["pool", "sparing", "halving"])
def test_the_best_is_kept_and_what_is_clearly_worse_is_stopped_early(kind: str) -> None:
    for seed in range(10):
        qualities = np.full(16, -0.8)
        qualities[seed] = 1.2
        race, _, answers = _race(kind, seed, qualities)
        assert race.finished() == [seed]
        asked = sum(race.board.answered(number) for number in range(16))
        assert asked < 0.3 * answers.size


def test_a_stopped_candidate_has_an_estimate_with_an_error_that_fits() -> None:
    off = []
    for seed in range(30):
        race, _, answers = _race("pool", seed, np.linspace(-1, 1, 12))
        for number in range(12):
            estimate = race.estimate(number)
            if estimate.estimated:
                assert estimate.answered < race.items
                off.append((estimate.value - answers[number].mean()) / estimate.standard_error)
    # Those that had bad luck are stopped sooner.
    assert -0.8 < np.mean(off) < 0.2
    assert 0.6 < np.std(off) < 1.3


def test_the_pool_raises_its_survivors_together_once_there_are_enough() -> None:
    items = _in_order()
    answers = np.tile(made_up_answers([0.4], items), (3, 1))  # alike, so that none is stopped
    race = Pool(items, MEAN, survivors=3)
    assert [one.action for one in race.report(0, answers[0, :20])] == ["pause"]
    assert [one.action for one in race.report(1, answers[1, :20])] == ["pause"]
    last = race.report(2, answers[2, :20])
    assert [(one.candidate, one.action, one.until) for one in last] == [
        (2, "pause", 20),
        *((number, "go on", 40) for number in range(3)),
    ]


def test_a_newcomer_goes_up_to_the_level_of_the_pool() -> None:
    items = _in_order()
    answers = np.tile(made_up_answers([0.4], items), (4, 1))
    race = Pool(items, MEAN, survivors=3)
    for number in range(3):
        race.report(number, answers[number, :20])
    (only,) = race.report(3, answers[3, :20])
    assert (only.action, only.until) == ("go on", 40)


def test_the_pool_does_not_wait_for_a_candidate_that_failed() -> None:
    items = _in_order()
    answers = np.tile(made_up_answers([0.4], items), (3, 1))
    race = Pool(items, MEAN, survivors=3)
    for number in range(3):
        race.report(number, answers[number, :20])
    race.report(0, answers[0, :40])
    race.report(1, answers[1, :40])
    assert race.withdraw(2) == []  # two wait for others
    raised = race.close()
    assert {one.candidate for one in raised} == {0, 1}
    assert {one.action for one in raised} == {"go on"}


def test_candidates_that_report_in_turns_are_raced_as_well() -> None:
    items = _in_order()
    answers = made_up_answers(np.linspace(-1, 1, 9), items)
    race = Pool(items, MEAN, survivors=3)
    waiting = [(number, race.first_look) for number in range(9)]
    while waiting or not race.closed:
        found = race.report(waiting[-1][0], answers[waiting[-1][0], : waiting.pop()[1]]) if waiting else race.close()
        waiting += [(one.candidate, one.until) for one in found if one.action == "go on"]
    assert {race.state(number) for number in range(9)} <= {"stopped", "done"}
    assert int(answers.mean(axis=1).argmax()) in race.finished()


def test_an_objective_that_is_minimised_keeps_the_smallest() -> None:
    items = made_up_items(per_domain=60)
    answers = made_up_answers([-0.8, 1.2, 1.2, 1.2], items)
    race = Pool(items, WeightedMean(MEAN.weights, "minimize"))
    run_race(race, answers)
    assert race.finished() == [0]
    assert race.estimate(0).value == pytest.approx(answers[0].mean())


def test_half_are_stopped_at_each_doubling() -> None:
    race, decided, _ = _race("halving", 1, np.linspace(0, 1, 8))
    assert isinstance(race, Halving)
    stops = [one.answered for one in decided if one.action == "stop"]
    assert stops == [20] * 4 + [40] * 2 + [80]


def test_exact_stops_the_best_no_more_often_than_it_says() -> None:
    wrong = 0
    for seed in range(60):
        race, _, answers = _race("exact", seed, np.linspace(0, 0.25, 5), alpha=0.2)
        best = np.flatnonzero(answers.mean(axis=1) == answers.mean(axis=1).max())
        wrong += any(race.state(int(number)) == "stopped" for number in best)
    assert wrong <= 12


def test_bets_against_what_is_true_seldom_succeed_and_against_what_is_false_do() -> None:
    source = np.random.default_rng(0)
    weights = np.ones(200)
    even = np.repeat([1.0, -1.0, 0.0], [30, 30, 140])
    true = np.stack([source.permutation(even) for _ in range(2000)])
    assert np.mean([bet.most >= np.log(20) for bet in grow([Bet()] * 2000, true, weights)]) <= 0.05
    false = np.stack([source.permutation(np.repeat([-1.0, 0.0], [60, 140])) for _ in range(50)])
    assert np.mean([bet.most >= np.log(20) for bet in grow([Bet()] * 50, false, weights)]) > 0.95


def test_a_bet_grows_the_same_in_parts() -> None:
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3, 50))
    weights = np.linspace(0.5, 1.5, 60)
    whole = grow([Bet()] * 3, differences, weights)
    parts = grow(grow([Bet()] * 3, differences[:, :20], weights), differences[:, 20:], weights)
    for one, other in zip(whole, parts):
        assert vars(one) == pytest.approx(vars(other))


def test_exact_refuses_what_its_bound_does_not_hold_for() -> None:
    items = made_up_items()
    with pytest.raises(InputError, match="race exact: objective worst"):
        Exact(items, Worst())
    with pytest.raises(InputError, match="an item scored 1"):
        Exact(items, MEAN).report(0, [1.5] * 20)


def test_a_report_that_cannot_be_is_refused() -> None:
    items = made_up_items()
    answers = made_up_answers([0.1], items)[0]
    race = KINDS["none"](items, MEAN)
    race.report(0, answers[:40])
    with pytest.raises(ValueError, match="20 items, after 40"):
        race.report(0, answers[:20])
    with pytest.raises(ValueError, match="no number"):
        race.report(1, [float("nan")] * 20)
    race.report(0, answers)
    with pytest.raises(ValueError, match="is done"):
        race.report(0, answers)
