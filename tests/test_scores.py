from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.estimates import estimate_aggregate, estimate_mean, influences_of_mean
from mergebench_ray.scores import (
    DomainScore,
    ItemRow,
    TaskScore,
    average_score,
    combine_tasks,
    combined_error,
    exact_sum,
    in_common,
    recovered,
    task_names,
)


def alone(count: int, name: str = "item") -> list[str]:
    """Clusters of one item each."""
    return [f"{name} {number}" for number in range(count)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Errors by cluster


def test_the_standard_error_of_a_mean_is_the_sample_deviation_over_the_root_of_the_items() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found = estimate_mean(values, alone(7))
    assert found.value == pytest.approx(4 / 7)
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(7))


@pytest.mark.parametrize("clusters", [["a"], ["a", "a", "a"]])
def test_the_error_of_a_single_cluster_is_not_known(clusters: list[str]) -> None:
    values = [1.0] * len(clusters)
    for found in (estimate_mean(values, clusters), estimate_aggregate(mean, values, clusters)):
        assert found.value == 1.0
        assert math.isnan(found.standard_error)


def test_copies_of_an_item_do_not_make_a_mean_more_certain() -> None:
    values = list(np.random.default_rng(0).uniform(size=60))
    once = estimate_mean(values, alone(60))
    for estimate in (estimate_mean, lambda some, groups: estimate_aggregate(mean, some, groups)):
        copied = estimate(values * 4, alone(60) * 4)
        assert copied.value == pytest.approx(once.value)
        assert copied.standard_error == pytest.approx(once.standard_error)


def test_errors_by_cluster_are_those_that_repeated_draws_of_clusters_have() -> None:
    """Three languages, right or wrong mostly together: the stated error is what the mean varies by."""
    generator = np.random.default_rng(0)
    means, stated, by_item = [], [], []
    for _ in range(400):
        hard = generator.uniform(size=100)
        values = (generator.uniform(size=(3, 100)) * 0.3 + hard * 0.7 > 0.5).astype(float)
        tasks = [estimate_mean(list(row), alone(100, "question")) for row in values]
        influences = influences_of_mean(tasks)
        scores = [TaskScore(f"t{i}", "acc", one.value, one.standard_error, 100) for i, one in enumerate(tasks)]
        domain = combine_tasks(scores, influences)
        means.append(domain.score)
        stated.append(domain.standard_error)
        by_item.append(combine_tasks(scores).standard_error)
    assert np.mean(stated) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(by_item) < 0.8 * np.std(means)


def test_tasks_that_share_no_cluster_are_independent() -> None:
    tasks = [estimate_mean([1.0, 0.0, 1.0], alone(3, "a")), estimate_mean([0.2, 0.9], alone(2, "b"))]
    scores = [TaskScore("t", "acc", one.value, one.standard_error, 3) for one in tasks]
    error = math.hypot(*(one.standard_error for one in tasks)) / 2
    assert combine_tasks(scores, influences_of_mean(tasks)).standard_error == pytest.approx(error)
    assert combine_tasks(scores).standard_error == pytest.approx(error)


def test_the_jackknife_of_a_mean_equals_its_analytic_error() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    for clusters in (alone(4), ["a", "b", "b", "c"]):
        analytic, jackknife = estimate_mean(values, clusters), estimate_aggregate(mean, values, clusters)
        assert jackknife.standard_error == pytest.approx(analytic.standard_error, rel=0.25)
    assert estimate_aggregate(mean, values, alone(4)).standard_error == pytest.approx(
        estimate_mean(values, alone(4)).standard_error
    )


def test_the_jackknife_of_many_items_leaves_out_groups_and_comes_to_the_same() -> None:
    values = list(np.random.default_rng(0).uniform(size=2000))
    calls: list[int] = []

    def counting(some: Sequence[float]) -> float:
        calls.append(len(some))
        return mean(some)

    found = estimate_aggregate(counting, values, alone(2000), max_groups=100)
    assert found.standard_error == pytest.approx(estimate_mean(values, alone(2000)).standard_error, rel=0.2)
    assert len(calls) == 101
    assert sum(2000 - count for count in calls) == 2000


def test_many_clusters_of_a_corpus_metric_are_dependent_across_tasks() -> None:
    values = list(np.random.default_rng(0).uniform(size=1000))
    clusters = alone(500) * 2
    one = estimate_aggregate(mean, values, clusters)
    exact = estimate_mean(values, clusters)
    assert one.standard_error == pytest.approx(exact.standard_error, rel=0.2)
    for both in ([one, one], [one, exact]):
        influences = influences_of_mean(both)
        assert influences is not None
        scores = [TaskScore("t", "bleu", estimate.value, estimate.standard_error, 1000) for estimate in both]
        assert combine_tasks(scores, influences).standard_error == pytest.approx(exact.standard_error, rel=0.2)


@pytest.mark.parametrize("other", ["reordered", "some", "by item"])
def test_questions_that_two_corpora_share_are_dependent_in_whatever_order(other: str) -> None:
    """Translations, each question once a language: a mean of both is no more certain than one."""
    generator = np.random.default_rng(0)
    questions = generator.uniform(size=1000)
    order = {"reordered": generator.permutation(1000), "some": np.arange(1, 1000), "by item": np.arange(1000)}[other]
    clusters = alone(1000, "question")
    first = estimate_aggregate(mean, list(questions), clusters)
    values, own = [float(questions[place]) for place in order], [clusters[place] for place in order]
    second = estimate_mean(values, own) if other == "by item" else estimate_aggregate(mean, values, own)
    exact = np.std(questions, ddof=1) / math.sqrt(1000)
    assert combined_error([influences_of_mean([first, second]) or {}]) == pytest.approx(exact, rel=0.15)
    domains = in_common([influences_of_mean([one]) or {} for one in (first, second)])
    assert combined_error(domains) / 2 == pytest.approx(exact, rel=0.15)


def test_an_aggregate_that_needs_more_items_has_no_error_but_a_value() -> None:
    def strict(values: Sequence[float]) -> float:
        if len(values) < 3:
            raise ValueError("needs three")
        return mean(values)

    found = estimate_aggregate(strict, [1.0, 2.0, 3.0], alone(3))
    assert found.value == 2.0
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_values_that_are_no_numbers_give_means_that_are_none(odd: float) -> None:
    found = estimate_mean([1.0, odd, 0.5], alone(3))
    assert not math.isfinite(found.value)
    assert math.isnan(found.standard_error)
    assert math.isnan(estimate_mean([math.inf, -math.inf], alone(2)).value)


# Directions and averages


def test_what_is_recovered_is_better_when_higher_whichever_way_a_metric_counts() -> None:
    assert recovered(10.0, 8.0, higher_is_better=False) == 0.8
    assert recovered(30.0, 8.0, higher_is_better=False) == pytest.approx(8 / 30)
    assert recovered(math.inf, 8.0, higher_is_better=False) == 0.0
    assert recovered(0.4, 0.5) == 0.8
    assert recovered(-0.1, 0.5) == pytest.approx(-0.2)
    for reference in (0.0, -1.0, math.nan, math.inf):
        assert recovered(0.5, reference) is None
        assert recovered(0.5, reference, higher_is_better=False) is None
    assert recovered(math.nan, 0.5) is None
    assert recovered(0.0, 0.5, higher_is_better=False) is None


def test_one_task_in_two_domains_is_no_more_certain_than_in_one() -> None:
    estimate = estimate_mean([1.0, 0.0, 1.0, 1.0, 0.0], alone(5))
    assert estimate.influences is not None
    scores = dict.fromkeys(("a", "b"), DomainScore(estimate.value, estimate.standard_error, 5))
    influences = dict.fromkeys(scores, estimate.influences)
    assert average_score(scores, influences)[1] == pytest.approx(estimate.standard_error)
    assert average_score(scores)[1] == pytest.approx(estimate.standard_error / math.sqrt(2))


def test_domains_that_count_in_different_directions_have_no_plain_average() -> None:
    scores = {"text": DomainScore(10.0, 0.2, 64, higher_is_better=False), "math": DomainScore(0.3, 0.02, 64)}
    assert math.isnan(average_score(scores)[0])


def test_tasks_of_a_domain_that_count_in_different_directions_are_refused() -> None:
    tasks = [TaskScore("a", "acc", 0.5, 0.1, 4), TaskScore("b", "perplexity", 9.0, 0.1, 4, higher_is_better=False)]
    with pytest.raises(
        InputError, match=r"higher is better for a \(acc\), lower for b \(perplexity, lower is better\)"
    ):
        combine_tasks(tasks)


def test_a_task_of_two_domains_is_kept_for_both() -> None:
    tasks = [
        TaskScore(name, "acc", 0.5, 0.1, 4, domain=domain) for name, domain in (("t", "a"), ("t", "b"), ("u", "b"))
    ]
    assert task_names(tasks) == {"a/t": tasks[0], "b/t": tasks[1], "u": tasks[2]}


def test_the_average_of_domains_carries_their_errors() -> None:
    scores = {"math": DomainScore(0.3, 0.03, 64), "safety": DomainScore(0.8, 0.04, 64)}
    assert average_score(scores) == (pytest.approx(0.55), pytest.approx(0.025))


def test_a_domain_is_the_mean_of_its_tasks_whatever_their_sizes() -> None:
    domain = combine_tasks(
        [TaskScore("a", "acc", 0.2, 0.03, 10), TaskScore("b", "harm", 0.4, 0.04, 1000, one_minus=True)]
    )
    assert domain.score == pytest.approx(0.4)
    assert domain.standard_error == pytest.approx(0.025)
    assert domain.items == 1010


def test_item_rows_become_a_parquet_table() -> None:
    rows = [
        ItemRow(domain="math", task="t", item="1", cluster="c", prompt_digest="a", answer="4", score=1.0, judgement=""),
        ItemRow(domain="math", task="t", item="2", cluster="d", prompt_digest="b", answer="", score=None, judgement=""),
    ]
    assert pa.Table.from_pylist(rows).column("score").to_pylist() == [1.0, None]


def test_numbers_of_any_size_from_a_file_add_up_without_an_error() -> None:
    assert combined_error([{"a": 3e200}, {"b": -4e200}]) == pytest.approx(5e200)
    assert combined_error([{"a": 1e308}, {"a": 1e308}]) == math.inf
    assert exact_sum([1e308, 1e308]) == math.inf
    assert math.isnan(exact_sum([math.inf, -math.inf]))
    assert exact_sum([0.1] * 10) == 1.0
