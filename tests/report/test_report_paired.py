"""Differences of two models over the items that both answered."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from made_up_trials import made_up_trials
from mergebench_ray.report.items import (
    Answered,
    ScoredModel,
    item_payload,
    paired,
)
from mergebench_ray.scores import TaskScore, combine_tasks


def test_paired_difference_is_over_the_items_that_both_answered() -> None:
    first, second = np.array([1.0, 0.0, 1.0, np.nan, 1.0]), np.array([0.0, 0.0, 1.0, 1.0, np.nan])
    alone = np.arange(5)
    found = paired(first, second, alone)
    assert found is not None
    assert (found.items, found.better, found.worse) == (3, 1, 0)
    assert found.difference == pytest.approx(1 / 3)
    assert found.standard_error == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))
    assert paired(first[:1], np.array([np.nan]), alone[:1]) is None
    single = paired(first[:1], second[:1], alone[:1])
    assert single is not None
    assert single.standard_error is None


def test_paired_difference_of_translations_has_the_error_of_their_questions() -> None:
    generator = np.random.default_rng(0)
    questions = generator.normal(size=50)
    first = np.concatenate([questions, questions, questions])
    found = paired(first, np.zeros(150), np.tile(np.arange(50), 3))
    assert found is not None
    assert found.standard_error == pytest.approx(np.std(questions, ddof=1) / math.sqrt(50))


@pytest.mark.parametrize("kept", [("", "ab"), ("ab", "")])
def test_clusters_that_one_of_two_runs_kept_count_for_their_difference(kept: tuple[str, str]) -> None:
    scores, clusters = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], [0, 0, 1, 1]
    trial = made_up_trials()[0]
    models = [
        ScoredModel(
            "m",
            "run",
            trial,
            {
                ("math", "t", str(n), str(n)): Answered("", score, "", names and names[clusters[n]])
                for n, score in enumerate(own)
            },
        )
        for own, names in zip(scores, kept, strict=True)
    ]
    found = json.loads(item_payload(models, {})[0])["pairs"]["0,1"][0]
    assert found[:3] == [4, -0.5, pytest.approx(0.5)]


def test_a_domain_says_of_each_of_its_tasks_what_was_counted() -> None:
    tasks = [
        TaskScore("harmbench", "micro_asr", 0.5, 0.1, 4, one_minus=True, domain="safety"),
        TaskScore("xstest", "keyword_refusal_accuracy", 0.5, 0.1, 4, domain="safety"),
    ]
    domain = combine_tasks(tasks)
    assert domain.counted == {"harmbench": "1 - micro_asr", "xstest": "keyword_refusal_accuracy"}
    assert domain.metric == "1 - micro_asr, keyword_refusal_accuracy"
