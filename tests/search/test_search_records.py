"""What candidates are measured against, read back from a run's folder as a resumed run does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergebench_ray.config import Recipe, SearchOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search.earlier_items import NONE_EARLIER, Known
from mergebench_ray.search.records import Records
from mergebench_ray.search.scorer import Measurement


def records(folder: Path, specialists: Mapping[str, float], higher_is_better: bool = True, **options: Any) -> Records:
    """Of a run whose specialists scored this in their own domains, on both splits."""
    store = TrialStore(folder)
    for split in ("validation", "test"):
        for name, score in specialists.items():
            result = DomainScore(score, 0.01, 64, higher_is_better=higher_is_better)
            store.append(Trial("specialist", name, split, "d", "i", domains={name: result}))
    session: Any = SimpleNamespace(
        domains=list(specialists),
        specialists=dict.fromkeys(specialists),
        engine_dtype="float32",
        engine_device="cpu",
        items_digest=lambda split, domains: "items",
    )
    return Records(session, store, lambda _text: None, SearchOptions.model_validate(options))


def row(kept: Records, split: Split, role: Any, score: float, higher_is_better: bool = True) -> Trial:
    scores = Scores(split, {"math": DomainScore(score, 0.01, 64, higher_is_better)}, [], "v", 0.0, 0.0, 0, 0)
    recipe = Recipe(
        method="model_soup", base="b", base_digest="c", specialists={"math": "s"}, specialist_digests={"math": "d"}
    )
    return kept.trial(role, "x", split, recipe, Measurement(scores, 0.0, 0.0, 0.0, (0,)), datetime.now(UTC))


@pytest.mark.parametrize("scores", [{"math": 0.0, "coding": 0.0}, {"math": 0.6, "coding": 0.0}])
def test_specialists_that_score_nothing_end_a_run_before_its_search_in_a_line_with_all_scores(
    tmp_path: Path, scores: dict[str, float]
) -> None:
    with pytest.raises(InputError) as error:
        records(tmp_path, scores).specialist_scores("validation")
    assert f"specialist scores: math {scores['math']:g}, coding 0" in str(error.value)
    assert "\n" not in str(error.value)


def test_on_test_they_leave_the_normalised_average_open_and_nothing_is_lost(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 0.0})
    found = row(kept, "test", "candidate", 0.4)
    assert found.normalised_average is None
    assert found.domains["math"].score == 0.4


def test_a_candidate_that_cannot_be_normalised_is_kept_and_a_reference_ends_the_run(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 8.0}, higher_is_better=False)
    assert row(kept, "validation", "candidate", 10.0, False).normalised_average == pytest.approx(0.8)
    assert row(kept, "validation", "candidate", math.inf, False).normalised_average == 0.0
    assert row(kept, "validation", "candidate", math.nan, False).normalised_average is None
    with pytest.raises(InputError, match="x on validation: domain 'math': the model scores nan"):
        row(kept, "validation", "average", math.nan, False)


def test_a_row_has_what_the_search_is_after_beside_the_normalised_average(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 0.8}, objective="math", constraints={"math": "score >= 0.5"})
    found = row(kept, "validation", "candidate", 0.4)
    assert found.objective_name == "math"
    assert found.objective.value == found.normalised_average == pytest.approx(0.5)
    assert found.objective.standard_error == found.normalised_standard_error
    assert found.objective.reference_error == pytest.approx(0.4 / 0.8**2 * 0.01)
    assert found.missed == ["math score >= 0.5"]


def test_what_no_specialist_is_for_is_measured_against_the_base_alone(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 0.8}, constraints={"forgetting": 0.9})
    kept._session.domains.append("facts")
    for role, facts in (("base", 0.5), ("candidate", 0.4)):
        results = {"math": DomainScore(0.4, 0.01, 64), "facts": DomainScore(facts, 0.01, 64)}
        measurement = Measurement(Scores("validation", results, [], "v", 0.0, 0.0, 0, 0), 0.0, 0.0, 0.0, (0,))
        aims = kept._aims("x", role, measurement.scores, "validation")  # type: ignore[arg-type]
        kept._store.append(Trial(role, role, "validation", "d", "i", domains=results, **aims))  # type: ignore[arg-type]
    base, candidate = kept._store.trials()[-2:]
    assert base.constraints == {"forgetting >= 0.9": pytest.approx(-0.1)}
    assert candidate.constraints == {"forgetting >= 0.9": pytest.approx(0.1)}
    assert candidate.normalised_average == pytest.approx(0.5)


def test_a_base_that_has_nothing_to_forget_ends_the_run_before_its_search(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 0.8}, objective="forgetting")
    results = {"math": DomainScore(0.4, 0.01, 64), "facts": DomainScore(0.0, 0.0, 64)}
    with pytest.raises(
        InputError, match="the base scores 0 on 'facts', so nothing can be said of what a merge forgets"
    ):
        kept._aims("base", "base", Scores("validation", results, [], "v", 0.0, 0.0, 0, 0), "validation")


def test_a_candidate_without_a_value_keeps_no_constraint_and_is_kept(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 0.8}, constraints={"math": 0.5})
    found = row(kept, "validation", "candidate", math.nan)
    assert (found.objective.value, found.missed) == (None, ["math >= 0.5"])


def test_a_perfect_candidate_where_lower_is_better_ends_no_search_and_the_log_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = records(tmp_path, {"math": 0.2}, higher_is_better=False)
    found = row(kept, "validation", "candidate", 0.0, False)
    assert (found.normalised_average, found.domains["math"].score) == (None, 0.0)
    assert "the model scores 0" in caplog.text
    assert "set one_minus: true" in caplog.text


def test_the_direction_of_a_domain_is_read_back(tmp_path: Path) -> None:
    kept = records(tmp_path, {"math": 8.0}, higher_is_better=False)
    assert not kept.specialist_scores("validation")["math"].higher_is_better
    assert TrialStore(tmp_path).trials()[0].domains["math"].higher_is_better is False


class Scorer:
    """Scores what it is given, and counts."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.known: list[Known] = []

    def score(self, recipe: Recipe, split: str, domains: list[str], known: Known) -> Measurement:
        return self._measured(f"{recipe.method} on {split}", split, domains, known)

    def score_checkpoint(self, checkpoint: Any, base: Any, split: str, domains: list[str], known: Known) -> Measurement:
        return self._measured(f"{checkpoint.name} on {split}", split, domains, known)

    def _measured(self, what: str, split: str, domains: list[str], known: Known) -> Measurement:
        self.scored.append(what)
        self.known.append(known)
        scores = {domain: DomainScore(0.4, 0.01, 64) for domain in domains}
        found = Scores(split, scores, [], "v", 1.0, 1.0, 10, 0)
        return Measurement(found, 0.1, 0.2, 1.0, (0,), reused=known.sources)


def of_a_new_run(
    folder: Path, scorer: Scorer, earlier: Any = NONE_EARLIER, said: list[str] | None = None
) -> tuple[Records, TrialStore]:
    """Records of a run in which nothing was scored yet, or which is opened again."""
    names = ("math", "coding")
    models = {name: SimpleNamespace(name=name, digest=lambda name=name: f"d-{name}") for name in (*names, "base")}
    recipes = {
        method: Recipe(
            method=method,
            base="b",
            base_digest="c",
            specialists=dict.fromkeys(names, "s"),
            specialist_digests=dict.fromkeys(names, "d"),
        )
        for method in ("model_soup", "task_arithmetic")
    }
    session: Any = SimpleNamespace(
        bank=SimpleNamespace(recipe=lambda method, _parameters: recipes[method]),
        scorer=scorer,
        base=models["base"],
        specialists={name: models[name] for name in names},
        domains=list(names),
        engine_dtype="float32",
        engine_device="cpu",
        items_digest=lambda split, domains: f"{split} {domains}",
    )
    store = TrialStore(folder)
    say = [].append if said is None else said.append
    return Records(session, store, say, earlier=earlier), store


def test_references_are_scored_once_each_and_not_again_when_a_run_is_resumed(tmp_path: Path) -> None:
    scorer = Scorer()
    kept, store = of_a_new_run(tmp_path, scorer)
    kept.references("validation")
    kept.references("final", "test")
    models = ["math", "coding", "base", "model_soup"]
    assert scorer.scored == [f"{name} on validation" for name in models] + [
        f"{name} on {split}" for name in (*models, "task_arithmetic") for split in ("final", "test")
    ]
    rows = [(trial.role, trial.name, trial.split) for trial in store.trials()]
    assert rows[:4] == [
        ("specialist", "math", "validation"),
        ("specialist", "coding", "validation"),
        ("base", "base", "validation"),
        ("average", "plain average", "validation"),
    ]
    assert [role for role, _, split in rows if split == "test"] == ["specialist"] * 2 + ["base", "average", "reference"]
    assert [list(trial.domains) for trial in store.trials()[:3]] == [["math"], ["coding"], ["math", "coding"]]
    again, _ = of_a_new_run(tmp_path, scorer)
    assert again.left_of_references({"math": 64, "coding": 30}) == []
    scorer.scored.clear()
    again.references("validation")
    again.references("final", "test")
    assert scorer.scored == []


def test_what_references_will_still_be_asked_is_known_between_them(tmp_path: Path) -> None:
    item = GradedItem(1.0, {}, None)  # type: ignore[typeddict-item]
    found = {"d-math": Known({0: item}), "d-base": Known({0: item, 3: item})}
    earlier = SimpleNamespace(known=lambda weights, *_: found.get(weights, Known()), rows=lambda split, items: [])
    kept, _ = of_a_new_run(tmp_path, Scorer(), earlier)
    left: list[list[int]] = []
    kept.references("validation", between=lambda: left.append(kept.left_of_references({"math": 64, "coding": 30})))
    assert left == [[63, 30, 92, 94], [30, 92, 94], [92, 94], [94]]


def test_what_other_runs_know_of_a_model_is_handed_on_and_said(tmp_path: Path) -> None:
    asked: list[Any] = []

    def known(weights: str, split: str, domains: list[str]) -> Known:
        asked.append((weights[:6], split, domains))
        item = GradedItem(1.0, {}, None)  # type: ignore[typeddict-item]
        return {"d-math": Known({0: item}, {"a": 1}, True), "d-base": Known({0: item, 3: item}, {"a": 1, "b": 1})}.get(
            weights, Known()
        )

    scorer, said = Scorer(), list[str]()
    earlier = SimpleNamespace(known=known, rows=lambda split, items: [])
    _, store = made = of_a_new_run(tmp_path, scorer, earlier, said)
    made[0].references("validation")
    assert [(weights, domains) for weights, _, domains in asked][:3] == [
        *(("d-math", ["math"]), ("d-codi", ["coding"])),
        ("d-base", ["math", "coding"]),
    ]
    assert [one.sources for one in scorer.known] == [{"a": 1}, {}, {"a": 1, "b": 1}, {}]
    assert [row.reused_from for row in store.trials()] == [{"a": 1}, {}, {"a": 1, "b": 1}, {}]
    assert [line for line in said if " in a" in line] == [
        "specialist math on validation was scored before: 1 items in a",
        "scoring the base on validation, of which is known: 1 items in a, 1 items in b",
    ]


def test_a_merge_that_was_scored_under_another_name_is_a_row_that_took_nothing(tmp_path: Path) -> None:
    scorer = Scorer()
    kept, _ = of_a_new_run(tmp_path, scorer)
    soup = kept._session.bank.recipe("model_soup", {})
    first = kept.merged("candidate", "model_soup", "validation", soup, number=3)
    second = kept.merged("average", "plain average", "validation", soup)
    assert scorer.scored.count("model_soup on validation") == 1
    assert (second.role, second.name, second.number) == ("average", "plain average", 0)
    assert (second.normalised_average, second.tokens) == (first.normalised_average, 0)
