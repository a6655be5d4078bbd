"""What the report's charts and sentences are made from: a run's trials, sorted out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergebench_ray.config.fields import MODULE_KINDS, Split
from mergebench_ray.config.hyper_parameters import LINE
from mergebench_ray.config.objective import DEFAULT, FORGETTING
from mergebench_ray.runs.leaderboard import (
    best_candidate,
    best_first,
    choice_title,
    describe,
    front,
    objective_title,
    on_split,
    what_is_missed,
    with_error,
    with_objective,
    with_objectives,
)
from mergebench_ray.runs.outlook import outlook
from mergebench_ray.runs.spending import tokens_of
from mergebench_ray.runs.trials import COMPARED_WITH, Trial, is_known, proposed, searched
from mergebench_ray.scores import recovered

SPLIT_MEANING = {
    "validation": "validation (seen by the search)",
    "final": "held back from the search",
    "test": "test (never seen by the search)",
}


@dataclass(frozen=True)
class RunSummary:
    """A run's trials, by what they mean.

    Attributes:
        trials: all of them.
        candidates: candidates that are scored in all that the search is after, on validation, in its order.
        stopped: candidates that the race stopped and of which something can be said, in the order of the search.
        references: base, plain average and reference merges on validation.
        best: the best candidate on validation, or None.
        last_split: the last that the best was scored on: test, else the items held back, else validation.
        domains: all domains, sorted.
        methods: that were searched, sorted.
        objective_title: what the search is after, as axes and columns call it.
        is_share: whether 1 is what the specialists reach, in what the search is after.
        constraints: what a winner has to keep.
    """

    trials: list[Trial]
    candidates: list[Trial]
    stopped: list[Trial]
    references: list[Trial]
    best: Trial | None
    last_split: Split
    domains: list[str]
    methods: list[str]
    objective_title: str
    is_share: bool
    constraints: list[str]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> RunSummary:
        """Sort out the trials of a run."""
        tried = searched(trials)
        best = best_candidate(trials)
        domains = sorted({domain for t in trials for domain in t.domains})
        aims = next((t for t in trials if t.role != "specialist"), None)
        return cls(
            trials=list(trials),
            candidates=sorted((t for t in tried if t.is_scored), key=lambda t: t.number),
            stopped=sorted(
                (t for t in tried if t.estimate is not None and is_known(t.estimate.value)), key=lambda t: t.number
            ),
            references=[t for t in trials if t.split == "validation" and t.role in COMPARED_WITH],
            best=best,
            last_split=_last_split(trials),
            domains=domains,
            methods=sorted({t.method or "" for t in tried}),
            objective_title=objective_title(aims.objective_name if aims else DEFAULT, domains),
            is_share=aims is None
            or aims.objective_name == DEFAULT
            or (aims.objective_name != FORGETTING and bool(aims.objective.reference_error)),
            constraints=list(aims.constraints) if aims else [],
        )

    @property
    def tried(self) -> list[Trial]:
        """All candidates of which something is known, in the order of the search."""
        return sorted([*self.candidates, *self.stopped], key=lambda trial: trial.number)

    @property
    def race_items(self) -> int:
        """Items that a candidate answers in full; 0 where the race stopped nobody."""
        return max((trial.estimate.items for trial in self.stopped if trial.estimate is not None), default=0)

    def items_answered(self, trial: Trial) -> int:
        """Items that a candidate of the race has answered."""
        return self.race_items if trial.estimate is None else trial.estimate.answered

    def race_finding(self) -> str:
        """What the race saved, in one sentence; empty where it stopped nobody."""
        if not self.stopped:
            return ""
        own = proposed(self.tried)
        stopped = sum(trial.estimate is not None for trial in own)
        if not stopped:
            return ""
        asked = sum(map(self.items_answered, own)) / (self.race_items * len(own))
        return (
            f"The race stopped {stopped} of {len(own)} candidates before they had answered all "
            f"{self.race_items} items, so that {asked:.0%} of the items were asked."
        )

    def race_cost(self) -> str:
        """What the search took against full scoring, in one sentence; empty without a race, or a measure of that."""
        in_full = self._in_full()
        if not self.stopped or in_full is None:
            return ""
        own = proposed(self.tried)
        count = len(own)
        minutes, tokens = sum(trial.engine_seconds for trial in own) / 60, sum(map(tokens_of, own))
        return (
            f"That took {minutes:.3g} minutes of engines and {tokens:,} tokens; to score all in full, as plain average "
            f"was, would take about {count * in_full.engine_seconds / 60:.3g} and {count * tokens_of(in_full):,}."
        )

    def _in_full(self) -> Trial | None:
        """A merge that was scored on validation without a race; None where that was taken from before."""
        found = (t for t in self.references if t.role == "average" and t.engine_seconds > 0 and not t.reused_from)
        return next(found, None)

    def outlook(self) -> str:
        """What more candidates would bring, in one sentence; empty while too few have come to tell."""
        found = outlook(self.tried)
        return "" if found is None else str(found)

    def specialist_score(self, domain: str, split: Split) -> float | None:
        """Score of a domain's specialist in that domain."""
        found = (t for t in self.trials if t.role == "specialist" and t.name == domain and t.split == split)
        trial = next(found, None)
        return trial.domains[domain].score if trial and domain in trial.domains else None

    def recovered(self, trial: Trial, domain: str) -> float | None:
        """What of a specialist's score in its domain is recovered; None where that cannot be said."""
        reference = self.specialist_score(domain, trial.split)
        result = trial.domains.get(domain)
        if result is None or reference is None:
            return None
        return recovered(result.score, reference, result.higher_is_better)

    def searched_values(self) -> dict[str, list[Any]]:
        """What differs between candidates: label -> value per candidate, None where a method does not have it."""
        rows = []
        for trial in self.tried:
            row = trial.flat()
            coefficients = {name: value for name, value in row.items() if name.startswith("coefficient.")}
            if len(trial.coefficients) > 1 and len(set(coefficients.values())) == 1:
                coefficients["coefficient"] = next(iter(coefficients.values()))
            rows.append(coefficients | {k: v for k, v in row.items() if k.startswith("parameter.")})
        for name in {name for trial in self.tried for name in trial.parameters}:
            rows = _one_for_all(rows, f"parameter.{name}")
        if not all("coefficient" in row for row in rows if any(name.startswith("coefficient") for name in row)):
            rows = [{name: value for name, value in row.items() if name != "coefficient"} for row in rows]
        else:
            rows = [{n: v for n, v in row.items() if not n.startswith("coefficient.")} for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        values = {_readable(name): [row.get(name) for row in rows] for name in names}
        return {name: column for name, column in values.items() if len({v for v in column if v is not None}) > 1}

    def finding(self) -> str:
        """The result of the run in one or two sentences of plain text."""
        if self.best is None:
            return "No candidate has been scored yet."
        final = on_split(self.trials, self.best, self.last_split) or self.best
        text = f"The best of {len(self.tried)} candidates is {self.best.label}: "
        if not final.is_scored:
            return f"{text}on the {final.split} split its scores could not be normalised by those of the specialists."
        text += f"on the {final.split} split {self._reached(final)}"
        others = [
            trial
            for trial in self.trials
            if trial.split == final.split
            and trial.role in COMPARED_WITH
            and is_known(trial.objective.value)
            and is_known(final.objective.value)
        ]
        others.sort(key=lambda trial: best_first(trial)[1:])
        comparisons = [f"{describe(other)} {with_objective(other)}" for other in others]
        text += f", against {', '.join(comparisons)}." if comparisons else "."
        if leads := leads_of(final):
            text += f" It is {leads}."
        close = [describe(other) for other in others if not is_apart(final, other)]
        text += f" From {' and '.join(close)} it cannot be told apart on these items." if close else ""
        text += f" {raced}" if (raced := self.race_finding()) else ""
        text += self._of_front(final) + self._chosen() + self._kept(final)
        if final.split == "validation":
            text += (
                " The test split has not been scored: the winner's score on the items it was chosen by is flattering."
            )
        return text

    def _reached(self, final: Trial) -> str:
        if not is_known(final.objective.value):
            return f"its {self.objective_title} is not known"
        if final.objective_name == DEFAULT:
            return f"it reaches {with_objective(final)} of what the specialists reach"
        average = with_error(final.normalised_average, final.normalised_standard_error)
        return f"its {self.objective_title} is {with_objective(final)} (normalised average {average})"

    def _of_front(self, final: Trial) -> str:
        """Of what front it is and what took it, if there are several objectives."""
        if final.choice is None:
            return ""
        by, members = choice_title(final.choice), front(self.trials)
        of = "of" if self.best in members else "from next to"
        return (
            f" It was chosen by {by} {of} a front of {len(members)}: on the {final.split} split "
            f"{with_objectives(final)}."
        )

    def _chosen(self) -> str:
        """How it was chosen, if that was on items held back."""
        row = on_split(self.trials, self.best, "final") if self.best is not None else None
        if row is None or not row.chosen:
            return ""
        text = f" On items held back from the search, {self.objective_title} was {with_objective(row)}"
        others = ", ".join(row.tied_with)
        return f"{text}; no simpler, and not told from the best: {others}." if others else f"{text}."

    def _kept(self, final: Trial) -> str:
        """What is to be said of the constraints, if there are any."""
        if not self.constraints or self.best is None:
            return ""
        kept = " and ".join(self.constraints)
        text = f" No candidate keeps {kept}; this one is least far from it." if self.best.missed else ""
        if final.split == "test":
            text += f" On test it {what_is_missed(final)}." if final.missed else " On test it keeps all constraints."
        return text


def leads_of(trial: Trial) -> str:
    """How far a model is above others on the same items, with paired errors; empty where that is not known."""
    found = [
        f"{with_error(abs(value), error)} {'above' if value >= 0 else 'below'} {name}"
        for name, (value, error) in trial.differences.items()
    ]
    return " and ".join(found)


def is_apart(trial: Trial, other: Trial) -> bool:
    """Whether a model's distance from another is more than two paired errors; than their own where none are known."""
    if other.name in trial.differences:
        value, error = trial.differences[other.name]
        return abs(value) > 2 * error
    return not within_errors(trial, other)


def _last_split(trials: Sequence[Trial]) -> Split:
    if any(trial.split == "test" for trial in trials):
        return "test"
    return "final" if any(trial.chosen for trial in trials) else "validation"


def within_errors(first: Trial, second: Trial) -> bool:
    """Whether the objectives of two models are closer than their standard errors together."""
    one, other = first.objective, second.objective
    return abs((one.value or 0.0) - (other.value or 0.0)) <= (one.standard_error or 0.0) + (other.standard_error or 0.0)


def _one_for_all(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """A parameter that has a value for each specialist as one column, if those were the same in every candidate."""
    parts = [{key: value for key, value in row.items() if key.startswith(f"{name}.")} for row in rows]
    if any(len(set(values.values())) > 1 for values in parts):
        return rows
    return [
        {key: value for key, value in row.items() if key not in values} | {name: next(iter(values.values()))}
        if values
        else row
        for row, values in zip(rows, parts)
    ]


def _readable(column: str) -> str:
    """`coefficient.math.mlp.0` as "coefficient of math, mlp, layer group 0", `parameter.density` as "density"."""
    kind, _, rest = column.partition(".")
    if kind == "parameter":
        name, _, part = rest.partition(".")
        return f"{name} of {part}" if part else name
    names, places = rest.split("."), []
    if names[-1].isdigit() and len(names) > 1:
        places.append(f"layer group {names.pop()}")
    elif names[-1] in LINE and len(names) > 1:
        places.append(f"{names.pop()} layer")
    if names[-1] in MODULE_KINDS and len(names) > 1:
        places.insert(0, names.pop())
    specialist = ".".join(names)
    return ", ".join([f"coefficient of {specialist}", *places]) if rest else "coefficient (one for all specialists)"
