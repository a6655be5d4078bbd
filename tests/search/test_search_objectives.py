"""What a search is after, as plain numbers: no engine, no cluster, no study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.estimates import estimate_mean, influences_of_mean
from mergebench_ray.scores import DomainScore, Influences
from mergebench_ray.search.objectives.errors import difference, standard_error
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import (
    check_objective,
    make_objective,
    objective_name,
    objective_names,
)
from mergebench_ray.search.objectives.shares import check_references, why_not_normalised
from mergebench_ray.search.objectives.weighted_domains import WeightedDomains
from mergebench_ray.search.objectives.worst_domain import WorstDomain

SPECIALISTS = {
    "math": DomainScore(0.6, 0.05, 64),
    "coding": DomainScore(0.5, 0.04, 64),
    "text": DomainScore(8.0, 0.2, 64, higher_is_better=False),
}
REFERENCES = References(SPECIALISTS)
SCORES = {"math": 0.3, "coding": 0.45, "text": 10.0}
SPECS = ["normalised_average", "worst_domain", "math", "text", {"math": 2.0, "text": 1.0}]


def measured(scores: Mapping[str, float], error: float = 0.04, count: int = 64) -> Measured:
    """Scores of the domains above, each with the same error."""
    return Measured(
        {
            name: DomainScore(score, error, count, higher_is_better=SPECIALISTS[name].higher_is_better)
            for name, score in scores.items()
        }
    )


# Values


def test_the_normalised_average_counts_every_specialist_alike() -> None:
    assert NormalisedAverage(REFERENCES).value(SCORES) == pytest.approx((0.5 + 0.9 + 0.8) / 3)


def test_the_worst_domain_is_what_is_recovered_least() -> None:
    objective = WorstDomain(REFERENCES)
    assert objective.value(SCORES) == pytest.approx(0.5)
    assert list(objective.slopes(SCORES)) == ["math"]
    assert objective.value({**SCORES, "text": 80.0}) == pytest.approx(0.1)


def test_a_domain_alone_looks_at_no_other() -> None:
    objective = make_objective("coding", REFERENCES)
    assert objective.name == "coding"
    assert objective.value({"coding": 0.45}) == pytest.approx(0.9)
    assert objective.value({"math": 0.45}) is None


def test_of_weights_only_the_ratios_count() -> None:
    one, other = (WeightedDomains({"math": 2 * k, "coding": k}, REFERENCES) for k in (1.0, 50.0))
    assert one.value(SCORES) == pytest.approx((2 * 0.5 + 0.9) / 3)
    assert other.value(SCORES) == pytest.approx(one.value(SCORES))
    assert one.name == "2 math + 1 coding"


def test_equal_weights_of_all_domains_are_the_normalised_average() -> None:
    assert WeightedDomains(dict.fromkeys(SPECIALISTS, 1.0), REFERENCES).value(SCORES) == pytest.approx(
        NormalisedAverage(REFERENCES).value(SCORES)
    )


def test_forgetting_is_what_is_kept_of_the_base_where_there_is_no_specialist() -> None:
    base = {"math": DomainScore(0.1, 0.02, 64), "facts": DomainScore(0.5, 0.03, 64), "text": DomainScore(30.0, 0.2, 64)}
    objective = make_objective("forgetting", References(SPECIALISTS, {**base, "story": DomainScore(0.8, 0.01, 64)}))
    assert objective.value({**SCORES, "facts": 0.4, "story": 0.88}) == pytest.approx((0.8 + 1.1) / 2)
    assert objective.value(SCORES) is None
    assert NormalisedAverage(REFERENCES).value({**SCORES, "facts": 0.4}) == NormalisedAverage(REFERENCES).value(SCORES)
    assert make_objective("forgetting", REFERENCES).value(SCORES) is None


def test_a_perplexity_of_10_beats_one_of_30() -> None:
    objective = NormalisedAverage(REFERENCES)
    good, bad = (objective.value({**SCORES, "text": value}) for value in (10.0, 30.0))
    assert good is not None
    assert bad is not None
    assert good > bad


def test_a_specialist_normalised_by_itself_recovers_everything() -> None:
    own = {name: score.score for name, score in SPECIALISTS.items()}
    assert all(make_objective(spec, REFERENCES).value(own) == 1.0 for spec in SPECS)


@pytest.mark.parametrize("spec", SPECS)
def test_scores_that_are_missing_or_no_numbers_have_no_value(spec: str | dict[str, float]) -> None:
    objective = make_objective(spec, REFERENCES)
    assert objective.value({}) is None
    assert objective.value(dict.fromkeys(SCORES, math.nan)) is None
    assert objective.value({**SCORES, "math": math.nan}) is None or "math" not in objective.references


@pytest.mark.parametrize("spec", SPECS)
def test_slopes_are_what_a_small_step_gives(spec: str | dict[str, float]) -> None:
    step = 1e-6
    objective = make_objective(spec, REFERENCES)
    middle = objective.value(SCORES)
    assert middle is not None
    for name, score in SCORES.items():
        moved = objective.value({**SCORES, name: score + step})
        assert moved is not None
        assert (moved - middle) / step == pytest.approx(objective.slopes(SCORES).get(name, 0.0), abs=1e-5)
        reference = DomainScore(SPECIALISTS[name].score + step, 0.0, 64, SPECIALISTS[name].higher_is_better)
        beside = make_objective(spec, References({**SPECIALISTS, name: reference})).value(SCORES)
        assert beside is not None
        assert (beside - middle) / step == pytest.approx(objective.reference_slopes(SCORES).get(name, 0.0), abs=1e-5)


# Errors


@pytest.mark.parametrize("spec", SPECS)
def test_the_error_of_a_value_is_that_of_repeated_draws_of_scores_and_references(
    spec: str | dict[str, float],
) -> None:
    generator = np.random.default_rng(0)
    errors = {"math": 0.01, "coding": 0.02, "text": 0.3}
    scores = {
        name: DomainScore(score, errors[name], 64, SPECIALISTS[name].higher_is_better) for name, score in SCORES.items()
    }
    values = []
    for _ in range(4000):
        drawn = {name: generator.normal(one.score, one.standard_error) for name, one in scores.items()}
        references = {
            name: DomainScore(generator.normal(one.score, one.standard_error), 0.0, 64, one.higher_is_better)
            for name, one in SPECIALISTS.items()
        }
        values.append(make_objective(spec, References(references)).value(drawn))
    found = standard_error(make_objective(spec, REFERENCES), Measured(scores))
    assert found.total == pytest.approx(np.std(values), rel=0.05)


def test_one_task_in_two_domains_is_no_more_certain_than_in_one() -> None:
    estimate = estimate_mean([1.0, 0.0, 1.0, 1.0, 0.0], [f"item {number}" for number in range(5)])
    assert estimate.influences is not None
    scores = dict.fromkeys(("a", "b"), DomainScore(estimate.value, estimate.standard_error, 5))
    objective = NormalisedAverage(References(dict.fromkeys(scores, DomainScore(0.8, 0.0, 5))))
    shared = standard_error(objective, Measured(scores, dict.fromkeys(scores, estimate.influences)))
    assert shared.total == pytest.approx(estimate.standard_error / 0.8)
    assert standard_error(objective, Measured(scores)).total == pytest.approx(
        estimate.standard_error / 0.8 / math.sqrt(2)
    )


class MadeUpItems:
    """Answers of a specialist and two models in two domains: in the second they are worse, and items come in threes."""

    def __init__(self, seed: int, items: int = 90) -> None:
        generator = np.random.default_rng(seed)
        self.clusters = {
            "math": [f"math {number}" for number in range(items)],
            "coding": [f"coding {number // 3}" for number in range(items)],
        }
        self.answers = {"specialist": {}, "first": {}, "second": {}}  # type: dict[str, dict[str, np.ndarray]]
        for domain, clusters in self.clusters.items():
            hard = {name: generator.uniform() for name in dict.fromkeys(clusters)}
            difficulty = np.array([hard[name] for name in clusters])
            for model, skill in (("specialist", 0.8), ("first", 0.6), ("second", 0.5)):
                noise = generator.uniform(size=items)
                lacking = 0.2 if domain == "coding" and model != "specialist" else 0.0
                self.answers[model][domain] = (0.7 * difficulty + 0.3 * noise < skill - lacking).astype(float)

    def measured(self, model: str, draws: Mapping[str, Sequence[int]] | None = None) -> Measured:
        """Its scores; of some of the items, drawn with repeats, where `draws` says so."""
        domains: dict[str, DomainScore] = {}
        influences: dict[str, Influences] = {}
        for domain, clusters in self.clusters.items():
            chosen = range(len(clusters)) if draws is None else draws[domain]
            values = [float(self.answers[model][domain][place]) for place in chosen]
            estimate = estimate_mean(values, [clusters[place] for place in chosen])
            domains[domain] = DomainScore(estimate.value, estimate.standard_error, len(values))
            influences[domain] = influences_of_mean([estimate]) or {}
        return Measured(domains, influences)

    def drawn(self, generator: np.random.Generator) -> dict[str, list[int]]:
        """Items of as many clusters as there are, drawn with repeats."""
        draws = {}
        for domain, clusters in self.clusters.items():
            names = list(dict.fromkeys(clusters))
            places = {name: [place for place, one in enumerate(clusters) if one == name] for name in names}
            draws[domain] = [
                place for one in generator.integers(len(names), size=len(names)) for place in places[names[one]]
            ]
        return draws


@pytest.mark.parametrize("spec", ["normalised_average", "worst_domain", "coding", {"math": 3.0, "coding": 1.0}])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_of_a_difference_is_that_of_a_paired_bootstrap(spec: str | dict[str, float], seed: int) -> None:
    """Items are drawn again, the same for both models and the specialists."""
    items, generator = MadeUpItems(seed), np.random.default_rng(seed)
    objective = make_objective(spec, References(items.measured("specialist").domains))
    first, second = items.measured("first"), items.measured("second")
    found = difference(objective, first, second)
    assert found.value == pytest.approx(objective.value(first.scores) - objective.value(second.scores))  # type: ignore[operator]
    drawn = []
    for _ in range(600):
        draws = items.drawn(generator)
        one, other = (objective.value(items.measured(model, draws).scores) for model in ("first", "second"))
        drawn.append(one - other)  # type: ignore[operator]
    assert found.error.own == pytest.approx(np.std(drawn), rel=0.1)
    apart = math.hypot(*(standard_error(objective, model).total for model in (first, second)))
    assert found.error.total < 0.9 * apart


def test_the_worst_of_two_equal_domains_is_known_better_than_either() -> None:
    """Of two normal numbers alike, the lower has a variance of 1 - 1/π of either's (Clark, 1961)."""
    same = DomainScore(0.5, 0.05, 100)
    objective = make_objective("worst_domain", References(dict.fromkeys(("a", "b"), DomainScore(1.0, 0.0, 100))))
    found = standard_error(objective, Measured({"a": same, "b": same})).own
    assert found == pytest.approx(0.05 * math.sqrt(1 - 1 / math.pi), rel=0.08)
    apart = Measured({"a": same, "b": DomainScore(0.9, 0.05, 100)})
    assert standard_error(objective, apart).own == pytest.approx(0.05, rel=0.08), "there is but one that may be worst"
    assert found == standard_error(objective, Measured({"a": same, "b": same})).own, "drawn the same again"


def worst_of_two(error: float = 0.05, **others: DomainScore) -> float:
    """The error of the worst of two domains, of which the second is far above the first, with others beside."""
    references = References(dict.fromkeys(("a", "b"), DomainScore(1.0, 0.0, 100)))
    scores = {"a": DomainScore(0.5, 0.05, 100), "b": DomainScore(0.9, error, 100), **others}
    return standard_error(make_objective("worst_domain", references), Measured(scores)).own


def test_an_error_that_is_not_known_counts_only_where_the_objective_depends_on_it() -> None:
    expected = worst_of_two()
    assert worst_of_two(error=math.nan) == pytest.approx(expected, rel=0.1)
    assert worst_of_two(other=DomainScore(0.1, math.nan, 1)) == pytest.approx(expected, rel=0.1)
    assert worst_of_two(other=DomainScore(0.1, math.inf, 1)) == pytest.approx(expected, rel=0.1)
    assert math.isnan(worst_of_two(a=DomainScore(0.5, math.nan, 1)))
    assert worst_of_two(a=DomainScore(0.5, math.inf, 1)) == math.inf


def test_few_draws_near_what_is_divided_by_are_not_the_whole_error() -> None:
    lower = DomainScore(12.0, 4.0, 100, higher_is_better=False)
    references = References({"text": DomainScore(10.0, 0.0, 100, higher_is_better=False)})
    drawn = standard_error(make_objective("worst_domain", references), Measured({"text": lower})).own
    assert drawn == pytest.approx(4.0 * 10 / 12**2, rel=0.6), "a third of the score is far for slopes"


@pytest.mark.parametrize("clusters", [50, 2000])
def test_clusters_that_domains_share_move_both_at_once(clusters: int) -> None:
    references = References(dict.fromkeys(("a", "b"), DomainScore(1.0, 0.0, 100)))
    influences = {f"c{place}": 0.05 / math.sqrt(clusters) * (-1) ** place for place in range(clusters)}
    scores = dict.fromkeys(("a", "b"), DomainScore(0.5, 0.05, 100))
    objective = make_objective("worst_domain", references)
    found = standard_error(objective, Measured(scores, dict.fromkeys(scores, influences))).own
    assert found == pytest.approx(0.05, rel=0.15), "the worst of two that are always alike is either"
    assert standard_error(objective, Measured(scores, {name: {} for name in scores})).own < 0.045, "as if independent"


@pytest.mark.parametrize("spec", ["normalised_average", "worst_domain"])
def test_a_model_differs_from_itself_by_nothing_and_without_error(spec: str) -> None:
    model = MadeUpItems(0).measured("first")
    found = difference(make_objective(spec, References(model.domains)), model, model)
    assert (found.value, found.error.total) == (0.0, 0.0)
    assert found.is_within


def test_of_references_only_what_tells_two_models_apart_is_left() -> None:
    objective = NormalisedAverage(REFERENCES)
    low, high = (
        measured({"math": 0.3, "coding": 0.2, "text": 16.0}),
        measured({"math": 0.3, "coding": 0.4, "text": 16.0}),
    )
    found = difference(objective, high, low)
    assert found.error.of_references == pytest.approx((0.4 - 0.2) / 0.5**2 * 0.04 / 3)
    assert found.error.of_references < standard_error(objective, high).of_references


def test_models_whose_clusters_are_not_known_differ_as_if_independent() -> None:
    objective = make_objective("math", REFERENCES)
    found = difference(objective, measured(SCORES, 0.03), measured(SCORES, 0.04))
    assert found.error.own == pytest.approx(0.05 / 0.6)


# What cannot be measured


@pytest.mark.parametrize("nothing", [0.0, -0.2, math.nan, math.inf])
def test_a_specialist_that_nothing_can_be_measured_against_is_refused_with_all_scores(nothing: float) -> None:
    references = {"math": DomainScore(0.6, 0.0, 64), "coding": DomainScore(nothing, 0.0, 64)}
    with pytest.raises(InputError, match=r"domain 'coding': its specialist scores .*math 0\.6, coding") as error:
        check_references(references)
    assert "\n" not in str(error.value)
    scores = {"math": DomainScore(0.3, 0.04, 64), "coding": DomainScore(0.5, 0.05, 64)}
    assert why_not_normalised(scores, references) == str(error.value)


def test_why_a_model_cannot_be_normalised_is_said_with_all_its_scores() -> None:
    references = {"text": DomainScore(8.0, 0.1, 64, higher_is_better=False)}
    reason = why_not_normalised({"text": DomainScore(0.0, 0.1, 64, higher_is_better=False)}, references)
    assert reason is not None
    assert reason.startswith("domain 'text': the model scores 0, so nothing can be normalised there")
    assert "(model scores: text 0)" in reason
    assert why_not_normalised({"text": DomainScore(9.0, 0.1, 64, higher_is_better=False)}, references) is None


def test_a_share_of_nothing_that_should_be_low_can_be_turned_round() -> None:
    none = {"toxic": DomainScore(0.0, 0.0, 64, higher_is_better=False)}
    with pytest.raises(InputError, match=r"its specialist scores 0, .* set one_minus: true for a share that may be 0"):
        check_references(none)


def test_a_domain_without_its_specialist_is_named() -> None:
    assert "'coding' has no specialist" in str(why_not_normalised({"coding": DomainScore(0.5, 0.1, 3)}, {}))


# Names


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_bound_has_the_name_that_it_was_known_by(spec: str | dict[str, float]) -> None:
    check_objective(spec, list(SPECIALISTS), "search.objective")
    objective: Objective = make_objective(spec, REFERENCES)
    assert objective.name == objective_name(spec)
    assert objective.direction == "maximize"


def test_an_objective_that_is_not_known_is_refused_with_what_may_have_been_meant() -> None:
    assert {"normalised_average", "worst_domain"} <= set(objective_names())
    for spec, reason in (
        ("wurst_domain", "'wurst_domain': no such objective or scored domain; did you mean 'worst_domain'?"),
        ("maths", "'maths': no such objective or scored domain; did you mean 'math'?"),
        ({"math": 1.0, "codings": 2.0}, "'codings' is no domain that is scored; did you mean 'coding'?"),
    ):
        with pytest.raises(InputError) as error:
            check_objective(spec, list(SPECIALISTS), "search.objective")
        assert reason in str(error.value)
        assert "search.objective" in str(error.value)
