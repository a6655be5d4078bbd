"""What the report says of the search itself: what it cost, what its scores are worth, which numbers mattered."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from made_up_trials import DOMAINS, made_up_trials, raced
from mergebench_ray.config import Sweep
from mergebench_ray.report.grown_ranges import grown_ranges
from mergebench_ray.report.importance import importances
from mergebench_ray.report.pages import write_report
from mergebench_ray.runs.summary import RunSummary
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial


def page(folder: Path, trials: list[Trial]) -> str:
    store = TrialStore(folder)
    for trial in trials:
        store.append(trial)
    text = write_report(folder).read_text(encoding="utf-8")
    return text[text.index("</head>") :]


def candidates(count: int, weights: dict[str, float], noise: float) -> list[Trial]:
    """Of one method, whose scores are these weights of its coefficients."""
    source = random.Random(0)
    first = next(one for one in made_up_trials(14) if one.method == "task_arithmetic" and one.role == "candidate")
    found = []
    for number in range(count):
        drawn = {domain: source.random() for domain in DOMAINS}
        score = sum(weight * drawn[domain] for domain, weight in weights.items()) + source.gauss(0, noise)
        found.append(
            replace(first, number=number, parameters={"scaling_coef": drawn}, normalised_average=score, objectives={})
        )
    return found


@pytest.mark.slow
def test_the_number_that_matters_is_told_from_those_that_do_not() -> None:
    [found] = importances(RunSummary.of(candidates(40, {"safety": 1.0}, 0.1)))
    assert (found.method, found.candidates) == ("task_arithmetic", 40)
    assert set(found.shares) == {f"coefficient of {domain}" for domain in DOMAINS}
    assert sum(share for share, _ in found.shares.values()) > 0.99
    share, error = found.shares["coefficient of safety"]
    assert share - 2 * error > found.by_chance
    assert all(share < found.by_chance for name, (share, _) in found.shares.items() if "safety" not in name)


@pytest.mark.slow
def test_where_nothing_matters_nothing_stands_out_by_much() -> None:
    [found] = importances(RunSummary.of(candidates(40, {}, 0.1)))
    assert max(share - 2 * error for share, error in found.shares.values()) < found.by_chance


def test_a_few_candidates_say_nothing_of_importance(tmp_path: Path) -> None:
    assert importances(RunSummary.of(candidates(19, {"safety": 1.0}, 0.1))) == []
    assert "What mattered" not in page(tmp_path, made_up_trials(14))


@pytest.mark.slow
def test_importance_is_a_chart_for_each_method_with_enough_candidates(tmp_path: Path) -> None:
    text = page(tmp_path, [*made_up_trials(0, test=False), *candidates(24, {"safety": 1.0, "math": 0.5}, 0.1)])
    assert "What mattered" in text
    assert "fANOVA, from 24 of task_arithmetic" in text


@pytest.mark.slow
def test_stopped_candidates_count_with_their_estimates() -> None:
    [found] = importances(RunSummary.of(raced(candidates(40, {"safety": 1.0}, 0.1), in_full=2)))
    assert max(found.shares, key=lambda name: found.shares[name]) == "coefficient of safety"


def test_scores_that_differ_in_two_candidates_alone_end_nothing() -> None:
    same = [replace(one, normalised_average=0.4 if one.number < 2 else 0.0) for one in candidates(24, {}, 0.1)]
    for found in importances(RunSummary.of(same)):
        assert all(0 <= share <= 1 and error < 1 for share, error in found.shares.values())


def test_a_race_is_held_against_scoring_all_in_full() -> None:
    trials = [
        replace(one, engine_seconds=60.0, tokens=1_000) if one.role == "average" else one for one in made_up_trials(14)
    ]
    trials = [replace(one, engine_seconds=6.0, tokens=100) if one.role == "candidate" else one for one in trials]
    run = RunSummary.of(raced(trials))
    assert run.race_cost() == (
        "That took 1.4 minutes of engines and 1,400 tokens; to score all in full, as plain average was, would take "
        "about 14 and 14,000."
    )
    assert RunSummary.of(trials).race_cost() == ""
    reused = [replace(one, engine_seconds=0.0) if one.role == "average" else one for one in raced(trials)]
    assert RunSummary.of(reused).race_cost() == ""


def test_the_score_that_chose_a_candidate_stands_beside_what_fresh_items_say(tmp_path: Path) -> None:
    trials = made_up_trials(14)
    best = RunSummary.of(trials).best
    assert best is not None
    final = replace(best, split="final", chosen=True, normalised_average=0.123)
    text = page(tmp_path / "a", [*trials, final])
    assert "What the search saw, and what fresh items say" in text
    assert "0.123" in text.split("What the search saw, and what fresh items say")[1].split("</table>")[0]
    assert "fresh items say" not in page(tmp_path / "b", made_up_trials(14, test=False))


def test_what_was_tried_beyond_a_range_that_grows_is_said() -> None:
    coefficient = {"low": 0.1, "high": 0.6, "per": "specialist", "grow_to": [0.0, 1.5]}
    content = {"name": "x", "suite": "smollm2-mini", "methods": {"task_arithmetic": {"scaling_coef": coefficient}}}
    one = candidates(1, {}, 0.1)[0]
    inside = [replace(one, parameters={"scaling_coef": dict.fromkeys(DOMAINS, 0.3)})]
    beyond = [replace(one, parameters={"scaling_coef": dict.fromkeys(DOMAINS, 0.3) | {"math": [0.05, 1.25]}})]
    begun = "task_arithmetic, scaling_coef: begun from 0.1 to 0.6"
    assert grown_ranges(Sweep.model_validate(content), inside) == [f"{begun}; no bound has moved"]
    found = grown_ranges(Sweep.model_validate(content), inside + beyond)
    assert found == [f"{begun}; math.0 tried down to 0.05, math.1 tried up to 1.25"]
