"""The budget of a search: what is spent, what is kept for its end, and whether one more candidate is paid.

What an answer costs is what it has cost so far, first of the references. Before each candidate as much is kept as
the race's end, the final choice and test may take, so that a search ends within its budget and not before it is whole.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.budget import BudgetOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.placement.answers import items_at_the_end, least_items
from mergebench_ray.runs.spending import UNITS, Sittings, amount, seconds_of, tokens_of
from mergebench_ray.runs.trials import SEARCHED, Trial, TrialStore, proposed
from mergebench_ray.search.standing import Cost

Measure = Literal["tokens", "seconds"]

_TOKENS_AN_ITEM = 2  # one that is read, one that is written
_FIRST_SHARE = 0.25  # of the items, that a candidate of a race answers, before the first has said it
_MARGIN = 1.1  # on all that is not spent yet, since answers differ in length


@dataclass(frozen=True)
class Work:
    """What a search scores.

    Attributes:
        items: split -> items that a whole model answers.
        methods: how many are searched.
        groups: of engines that score candidates at once.
        raced: whether candidates are stopped before they have answered everything.
    """

    items: Mapping[Split, int]
    methods: int
    groups: int = 1
    raced: bool = False


@dataclass(frozen=True)
class UnderWay:
    """The candidates that are not at their end.

    Attributes:
        costs: what each has cost in the goes that it has ended.
        going: how many of them are being scored.
        items_left: how many items the race will probably ask for once no further candidate comes.
    """

    costs: Sequence[Cost] = ()
    going: int = 0
    items_left: int = 0


class Budget:
    """Says whether one more candidate is paid. Depends on its arguments alone.

    Args:
        options: the budget.
        work: what the search scores.
        gpus: GPUs that it holds.

    Raises:
        InputError: GPU hours without a GPU.
    """

    def __init__(self, options: BudgetOptions, work: Work, gpus: float) -> None:
        if options.gpu_hours is not None and not gpus:
            raise InputError("search.budget.gpu_hours: the cluster has no GPUs; give minutes or tokens")
        self._options, self._work, self._gpus = options, work, gpus

    def check(self, trials: Sequence[Trial], seconds: float) -> None:
        """Refuse a budget that does not pay one candidate and what comes after it, once the references are scored.

        Args:
            trials: the run's.
            seconds: that it has taken so far.

        Raises:
            InputError: saying what would be enough.
        """
        if proposed(trials):
            return
        for unit, limit in self._options.limits.items():
            if (found := self._costs(unit, trials, UnderWay(), seconds)) is None:
                continue
            in_full = found.of(1, self._work.items["validation"])
            least = found.spent + _MARGIN * (in_full + self._end(found, 1, 1, trials))
            if least > limit:
                raise InputError(
                    f"search.budget.{unit} = {limit:g}: the references have taken {amount(found.spent)} {UNITS[unit]}; "
                    f"with one candidate, the final choice and test it is about {_rounded_up(least)}: give that or more"
                )

    def pays_another(self, trials: Sequence[Trial], under_way: UnderWay, seconds: float) -> bool:
        """Whether one more candidate fits.

        Args:
            trials: the run's.
            under_way: the candidates that are not at their end.
            seconds: that the run has taken so far.
        """
        came = len(proposed(trials)) + len(under_way.costs)
        if not came:  # it passed `check`
            return True
        for unit, limit in self._options.limits.items():
            if unit == "candidates" and came >= limit:
                return False
            if (found := self._costs(unit, trials, under_way, seconds)) is None:
                continue
            ahead = found.candidate * (1 + under_way.going) + found.per_item * under_way.items_left
            if found.spent + _MARGIN * (ahead + self._end(found, came + 1, self._work.methods, trials)) > limit:
                return False
        return True

    def expected(self, trials: Sequence[Trial], under_way: UnderWay, seconds: float) -> int | None:
        """How many candidates it will probably pay, those that have come included; None while nothing tells.

        Arguments as those of `pays_another`.
        """
        came = len(proposed(trials)) + len(under_way.costs)
        found = [] if self._options.candidates is None else [self._options.candidates]
        for unit, limit in self._options.limits.items():
            if (costs := self._costs(unit, trials, under_way, seconds)) is not None and costs.candidate > 0:
                left = (limit - costs.spent) / _MARGIN - self._end(costs, came + 1, self._work.methods, trials)
                left -= costs.per_item * under_way.items_left
                found.append(came + max(0 if came else 1, math.floor(left / costs.candidate)))
        return min(found, default=None)

    def _end(self, costs: _Costs, candidates: int, methods: int, trials: Sequence[Trial]) -> float:
        known = {one.split for one in trials if one.role == "base"}
        taken = sum(bool(one.taken_from) for one in trials)
        items = items_at_the_end(self._work.items, candidates + taken, methods, known)
        return costs.of(items / self._work.items["validation"], items)

    def _costs(self, unit: str, trials: Sequence[Trial], under_way: UnderWay, seconds: float) -> _Costs | None:
        """In a unit; None for one that no answer has a price in, or none yet."""
        if unit == "candidates":
            return None
        measure: Measure = "tokens" if unit == "tokens" else "seconds"
        factor = {"tokens": 1.0, "minutes": 1 / 60, "gpu_hours": self._gpus / 3600}[unit]
        rates = _rates(measure, trials)
        if rates is None:
            return None
        per_item, per_model = rates
        own = [_of_row(measure, one) for one in proposed(trials)]
        own += [_of_cost(measure, one) for one in under_way.costs]
        own = [one for one in own if one > 0]
        if len(own) > 1:
            candidate = statistics.mean(own) + statistics.stdev(own) / math.sqrt(len(own))
            candidate /= self._work.groups if measure == "seconds" else 1
        else:
            share = _FIRST_SHARE if self._work.raced else 1.0
            candidate = per_model + share * per_item * self._work.items["validation"]
        if measure == "seconds":
            spent = seconds
        else:
            spent = sum(map(tokens_of, trials)) + sum(_of_cost(measure, one) for one in under_way.costs)
        return _Costs(spent * factor, per_item * factor, per_model * factor, candidate * factor)


@dataclass(frozen=True)
class _Costs:
    """In one unit.

    Attributes:
        spent: so far.
        per_item: of an answer.
        per_model: of merging and loading.
        candidate: of one, rather more than less.
    """

    spent: float
    per_item: float
    per_model: float
    candidate: float

    def of(self, models: float, items: float) -> float:
        return models * self.per_model + items * self.per_item


class RunBudget:
    """The budget of a run that is under way; without one it pays whatever the sweep's trials take.

    Args:
        options: how the sweep searches.
        work: what it scores.
        gpus: GPUs that it holds.
        store: the run's trials.
        sittings: when the run was worked on.

    Raises:
        InputError: as `Budget`.
    """

    def __init__(self, options: SearchOptions, work: Work, gpus: float, store: TrialStore, sittings: Sittings) -> None:
        self._limits = {} if options.budget is None else options.budget.limits
        self._budget = None if options.budget is None else Budget(options.budget, work, gpus)
        self._most, self._store, self._sittings = options.most_candidates, store, sittings

    @property
    def most_candidates(self) -> int:
        """How many candidates may come; as many as did, where this budget has ended the search before."""
        enough = self._sittings.enough(self._limits) if self._limits else None
        return self._most if enough is None else min(enough, self._most)

    def check(self) -> None:
        """As `Budget.check`."""
        if self._budget is not None:
            self._budget.check(self._store.trials(), self._seconds())

    def expected(self, under_way: UnderWay) -> int:
        """How many candidates will probably come."""
        most = self.most_candidates
        if self._budget is None:
            return most
        return min(self._budget.expected(self._store.trials(), under_way, self._seconds()) or most, most)

    def pays_another(self, under_way: UnderWay) -> bool:
        """Whether one more candidate is paid; that it is not is kept, so that it stays so after an interruption."""
        if self._budget is None or self._budget.pays_another(self._store.trials(), under_way, self._seconds()):
            return True
        came = len(proposed(self._store.trials())) + len(under_way.costs)
        self._sittings.note_enough(self._limits, came)
        return False

    def _seconds(self) -> float:
        return 60 * self._sittings.spent(self._store.trials(), datetime.now(UTC))[0]


def check_before(options: BudgetOptions, items: Mapping[Split, int]) -> None:
    """Refuse a budget that pays no search, as far as that is known before anything is scored.

    Args:
        options: the budget.
        items: split -> items that a whole model answers.

    Raises:
        InputError: saying what is the least.
    """
    least = _TOKENS_AN_ITEM * least_items(items)
    if options.tokens is not None and options.tokens < least:
        raise InputError(
            f"search.budget.tokens = {options.tokens}: references, one candidate, the final choice and test ask "
            f"{least_items(items):,} items, and each takes {_TOKENS_AN_ITEM} tokens at the very least: give more than "
            f"{least:,}, or score fewer items"
        )


def _rates(measure: Measure, trials: Sequence[Trial]) -> tuple[float, float] | None:
    """What an answer costs, and merging and loading a model; None where no row says it.

    Best of what all engines scored together, as they will what comes at the end; rows whose scores were taken from
    before cost nothing and say nothing.
    """
    paid = [one for one in trials if one.score_seconds > 0]
    rows = [one for one in paid if one.role not in SEARCHED] or proposed(paid)
    answered = sum(score.items for one in rows for score in one.domains.values())
    answered -= sum(count for one in rows for count in one.reused_from.values())
    if not answered:
        return None
    if measure == "tokens":
        return sum(map(tokens_of, rows)) / answered, 0.0
    loads = [one.merge_seconds + one.load_seconds for one in rows]
    return sum(one.score_seconds for one in rows) / answered, statistics.mean(loads)


def _asked(trial: Trial) -> int:
    """Items that were asked for a row, not taken from before."""
    return sum(score.items for score in trial.domains.values()) - sum(trial.reused_from.values())


def _of_row(measure: Measure, trial: Trial) -> float:
    return float(tokens_of(trial)) if measure == "tokens" else seconds_of(trial)


def _of_cost(measure: Measure, cost: Cost) -> float:
    spent = cost.spent
    if measure == "tokens":
        return float(spent.tokens + spent.judge_tokens)
    return cost.merge_seconds + cost.load_seconds + spent.seconds


def _rounded_up(value: float) -> str:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return amount(math.ceil(value / step) * step)
