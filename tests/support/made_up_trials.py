"""Made-up but realistic trials for the tests of results: two methods, references, a test split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, ObjectiveEstimate, ObjectiveValue

DOMAINS = ("coding", "instruction", "math", "multilingual", "safety")
BASE = {"coding": 0.11, "instruction": 0.21, "math": 0.09, "multilingual": 0.33, "safety": 0.48}
SPECIALIST = {"coding": 0.52, "instruction": 0.63, "math": 0.58, "multilingual": 0.71, "safety": 0.94}
ITEMS = {"validation": 64, "test": 128}
VERSIONS = {"mergebench_ray": "0.1.0", "vllm": "0.32.0", "torch": "2.13.0", "ray": "2.60.0", "optuna": "5.0.0"}
START = datetime(2030, 5, 4, 21, 0, tzinfo=UTC)


def for_worst_domain(trials: Sequence[Trial]) -> list[Trial]:
    """The same trials of a search for the worst domain that has to keep nine tenths of safety."""
    found = []
    for trial in trials:
        if trial.role != "specialist":
            shares = {domain: result.score / SPECIALIST[domain] for domain, result in trial.domains.items()}
            aims = {"worst_domain": ObjectiveValue(min(shares.values()), 0.05, 0.02)}
            trial = replace(trial, objectives=aims, constraints={"safety >= 0.9": 0.9 - shares.get("safety", 0.0)})
        found.append(trial)
    return found


def for_front(trials: Sequence[Trial], names: Sequence[str] = DOMAINS) -> list[Trial]:
    """The same trials of a search for several domains, of which the knee was taken."""
    found = []
    for trial in trials:
        if trial.role != "specialist":
            aims = {
                name: ObjectiveValue(trial.domains[name].score / SPECIALIST[name], 0.05, 0.02)
                for name in names
                if name in trial.domains
            }
            trial = replace(trial, objectives=aims, choice="knee")
        found.append(trial)
    return found


def raced(trials: Sequence[Trial], in_full: int = 3) -> list[Trial]:
    """The same trials of a search whose race has stopped all but the best few candidates."""
    tried = [trial for trial in trials if (trial.role, trial.split) == ("candidate", "validation")]
    best = sorted(tried, key=lambda trial: -(trial.normalised_average or 0.0))[:in_full]
    found = []
    for trial in trials:
        if trial in tried and trial not in best:
            estimate = ObjectiveEstimate(trial.objective.value, 0.08, 20 + 20 * (trial.number % 3), 320)
            domains = {name: replace(result, items=4) for name, result in trial.domains.items()}
            unscored = replace(trial, normalised_average=None, normalised_standard_error=None, objectives={})
            trial = replace(unscored, role="stopped", domains=domains, estimate=estimate)
        found.append(trial)
    return found


def made_up_trials(candidates: int = 14, *, seed: int = 0, test: bool = True) -> list[Trial]:
    """Base, specialists, two reference merges and candidates on validation; the leaders again on test."""
    source = random.Random(seed)
    trials = [_trial(source, "base", "base", "validation", BASE)]
    trials += [_specialist(source, domain, "validation") for domain in DOMAINS]
    trials.append(_merge(source, "average", "average", "model_soup", dict.fromkeys(DOMAINS, 0.2), {}))
    even = dict.fromkeys(DOMAINS, 0.4)
    trials.append(_merge(source, "reference", "task_arithmetic_0.4", "task_arithmetic", even, {}))
    for number in range(candidates):
        trials.append(_candidate(source, number))
    if test:
        best = max(trials[8:], key=lambda trial: trial.normalised_average or 0, default=None)
        again = [trial for trial in (*trials[:8], best) if trial is not None]
        trials += [_again_on_test(source, trial) for trial in again]
    return [_at(trial, index) for index, trial in enumerate(trials)]


def _candidate(source: random.Random, number: int) -> Trial:
    coefficients = {domain: round(source.uniform(0.05, 1.0), 4) for domain in DOMAINS}
    if source.random() < 0.5:
        extra: dict[str, Any] = {
            "density": round(source.uniform(0.1, 0.8), 3),
            "merge_func": source.choice(["sum", "mean"]),
        }
        return _merge(source, "candidate", "ties", "ties", coefficients, extra, number)
    return _merge(source, "candidate", "task_arithmetic", "task_arithmetic", coefficients, {}, number)


def _merge(
    source: random.Random,
    role: Any,
    name: str,
    method: str,
    coefficients: dict[str, float],
    extra: dict[str, Any],
    number: int = 0,
) -> Trial:
    crowding = max(0.0, sum(coefficients.values()) - 2.2) * 0.12
    scores = {
        domain: BASE[domain] + (SPECIALIST[domain] - BASE[domain]) * max(0.0, min(1.0, 1.6 * weight) - crowding)
        for domain, weight in coefficients.items()
    }
    parameters = {"scaling_coef": coefficients, **extra}
    return _trial(
        source,
        role,
        name,
        "validation",
        scores,
        number=number,
        method=method,
        parameters=parameters,
        merge_seconds=source.uniform(0.08, 0.14),
        optuna_number=number if role == "candidate" else None,
    )


def _specialist(source: random.Random, domain: str, split: Any) -> Trial:
    trial = _trial(source, "specialist", domain, split, {domain: SPECIALIST[domain]})
    return replace(trial, normalised_average=None, normalised_standard_error=None)


def _again_on_test(source: random.Random, trial: Trial) -> Trial:
    if trial.role == "specialist":
        return _specialist(source, trial.name, "test")
    scores = {domain: result.score for domain, result in trial.domains.items()}
    again = _trial(source, trial.role, trial.name, "test", scores)
    kept = ("number", "digest", "method", "parameters")
    return replace(again, **{name: getattr(trial, name) for name in kept})


def _trial(
    source: random.Random, role: Any, name: str, split: Any, truth: dict[str, float], number: int = 0, **more: Any
) -> Trial:
    items = ITEMS[split]
    domains = {}
    for domain, chance in truth.items():
        score = sum(source.random() < chance for _ in range(items)) / items
        domains[domain] = DomainScore(score, (score * (1 - score) / items) ** 0.5, items)
    ratios = [result.score / SPECIALIST[domain] for domain, result in domains.items()]
    seconds = source.uniform(24, 34) * items / 64
    return Trial(
        role=role,
        name=name,
        split=split,
        number=number,
        digest=f"{source.getrandbits(256):064x}",
        items_digest=f"{len(domains)}-{split}",
        domains=domains,
        normalised_average=sum(ratios) / len(ratios),
        normalised_standard_error=source.uniform(0.02, 0.035) * (64 / items) ** 0.5,
        load_seconds=source.uniform(0.15, 0.3),
        score_seconds=seconds,
        engine_seconds=seconds * source.uniform(0.92, 0.97),
        tokens=int(seconds * source.uniform(650, 720)),
        engine="vllm 0.32.0, cpu",
        versions=VERSIONS,
        started=START,
        finished=START + timedelta(seconds=seconds),
        **more,
    )


def _at(trial: Trial, index: int) -> Trial:
    shift = timedelta(seconds=33 * index)
    return replace(trial, started=trial.started + shift, finished=trial.finished + shift)
