from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from made_up_races import DOMAINS, MEAN, WeightedMean, Worst, made_up_answers, made_up_items
from mergebench_ray.search.race.board import Board
from mergebench_ray.search.race.contrasts import Contrasts, chances_above, tempered
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.order import stratified_order


def test_a_prefix_is_valued_as_the_mean_of_domains_of_means_of_tasks() -> None:
    items = Items.of(["a", "a", "a", "b"], ["x", "x", "y", "z"])
    objective = WeightedMean({"a": 2.0, "b": -1.0})
    values = Contrasts(items, objective).values(np.array([[1.0, 0.0, 0.25, 0.5]]))
    assert values[0] == pytest.approx(2 * ((1 + 0) / 2 + 0.25) / 2 - 0.5)


def test_less_is_better_where_the_objective_says_so() -> None:
    items = made_up_items(per_domain=4)
    scores = np.linspace(0, 1, len(items))
    more = Contrasts(items, MEAN).values(scores[None])
    less = Contrasts(items, WeightedMean(MEAN.weights, "minimize")).values(scores[None])
    assert less == pytest.approx(-more)


def test_errors_are_those_of_a_bootstrap_within_tasks() -> None:
    items = made_up_items(per_domain=30)
    first, second = made_up_answers([0.3, 0.6], items, seed=1)
    contrasts = Contrasts(items, MEAN)
    pair = np.stack([contrasts.contributions(first), contrasts.contributions(second)])
    error = math.sqrt(contrasts.variances(pair[:1] - pair[1:])[0] / len(items))
    source = np.random.default_rng(0)
    places = [source.choice(np.flatnonzero(items.tasks == task), (4000, 30)) for task in range(3)]
    drawn = np.mean([(first - second)[some].mean(axis=1) for some in places], axis=0)
    assert error == pytest.approx(drawn.std(), rel=0.06)


def test_items_of_a_cluster_count_as_one() -> None:
    copies = 4
    domains = np.repeat(DOMAINS, 10).tolist()
    items = Items.of(domains)
    scores = made_up_answers([0.2], items)[0]
    repeated = Items.of(domains * copies, clusters=list(range(len(domains))) * copies)
    once, often = Contrasts(items, MEAN), Contrasts(repeated, MEAN)
    single = once.variances(once.contributions(scores)[None])[0] / len(items)
    clustered = often.variances(often.contributions(np.tile(scores, copies))[None])[0] / len(repeated)
    assert clustered == pytest.approx(single, rel=0.15)  # but for the means that were taken off
    alone = Contrasts(Items.of(domains * copies), MEAN)
    assert alone.variances(alone.contributions(np.tile(scores, copies))[None])[0] / len(repeated) < 0.3 * single


def test_a_kinked_objective_counts_the_items_of_the_side_that_counts() -> None:
    items = made_up_items(per_domain=8)
    scores = (items.tasks + np.tile([0.0, 0.5], 12)) / 4
    contrasts = Contrasts(items, Worst())
    contributions = contrasts.contributions(scores)
    assert contrasts.values(scores[None])[0] == pytest.approx(0.0625)
    assert np.all(contributions[items.tasks != 0] == 0)
    assert np.any(contributions[items.tasks == 0] != 0)


def test_an_estimate_is_what_was_measured_until_others_are_further() -> None:
    items = made_up_items()
    items = items.taken(stratified_order(items, 0))
    scores = made_up_answers([0.1], items)[0]
    board = Board(Contrasts(items, MEAN))
    board.report(7, scores[:30])
    value, error = board.estimate(7)
    assert value == board.value(7)
    assert error > 0
    board.report(7, scores)
    assert board.estimate(7) == (board.value(7), 0)


def test_an_estimate_takes_off_how_easy_the_first_items_were() -> None:
    items = made_up_items(per_domain=80)
    plain, corrected = [], []
    for seed in range(20):
        answers = made_up_answers(np.linspace(-0.5, 0.5, 12), items, seed)
        source = np.random.default_rng(seed)
        order = np.argsort(source.random(len(items)) - 0.5 * answers.mean(axis=0))
        board = Board(Contrasts(items.taken(order), MEAN))
        for number, scores in enumerate(answers[:, order]):
            board.report(number, scores[: 24 if number < 6 else 160])
        plain += [board.value(number) - answers[number].mean() for number in range(6)]
        corrected += [board.estimate(number)[0] - answers[number].mean() for number in range(6)]
    assert np.mean(plain) > 0.1
    assert np.std(corrected) < np.std(plain)
    assert abs(np.mean(corrected)) < np.mean(plain) / 2


def test_chances_to_lead_are_those_of_plain_paired_differences() -> None:
    items = made_up_items()
    items = items.taken(stratified_order(items, 0))
    answers = made_up_answers([0.1, 0.9, 0.5], items)
    count, total = 45, len(items)
    board = Board(Contrasts(items, MEAN))
    for number, scores in enumerate(answers):
        board.report(number, scores[:count])
    chances, leader = board.chances_to_lead([0, 1, 2], count)
    means, squares = [], []
    for scores in answers:
        by_task = [(scores - answers[1])[:count][items.tasks[:count] == task] for task in range(3)]
        means.append(np.mean([some.mean() for some in by_task]))
        # The error of each task's mean, squared, with the items that are still to come.
        squares.append(sum(some.var() / len(some) for some in by_task) / 9 * count / (count - 3) * (1 - count / total))
    middle = (squares[0] + squares[2]) / 2
    drawn = [(30 * middle + count * one) / (30 + count) for one in squares]
    assert leader == 1
    assert chances[1] == 0.5
    for number in (0, 2):
        naive = NormalDist().cdf(means[number] / math.sqrt(drawn[number]))
        assert chances[number] == pytest.approx(naive, rel=1e-6)
        assert 0 < chances[number] < 0.5


def test_a_newcomer_on_the_same_items_is_compared_as_the_others_are() -> None:
    source = np.random.default_rng(5)
    items = made_up_items()
    items = items.taken(source.permutation(len(items)))
    answers = made_up_answers([0.2, 0.8], items)
    board = Board(Contrasts(items, MEAN))
    for number, scores in enumerate(answers):
        board.report(number, scores[:40])
    chance, leader, compared = board.chance_to_lead(0, [1])
    chances, _ = board.chances_to_lead([0, 1], 40)
    assert (leader, compared) == (1, 1)
    assert chance < 0.5
    assert chance == pytest.approx(chances[0], abs=0.05)


def test_variances_are_drawn_towards_their_mean_and_less_so_with_more_items() -> None:
    variances = np.array([1.0, 3.0, 0.0])
    few, many = tempered(variances, 5), tempered(variances, 5000)
    assert 1 < few[0] < 2 < few[1] < 3
    assert many == pytest.approx([1.0, 3.0, 2.0], rel=0.01)


def test_chances_are_those_of_a_normal_distribution() -> None:
    found = chances_above(np.array([0.0, 1.96, -1.0, 1.0, math.nan]), np.array([1.0, 1.0, 0.0, 0.0, 1.0]))
    assert found == pytest.approx([0.5, 0.975, 0.0, 1.0, 0.5], abs=1e-4)
