"""The budget of a search: what is spent, what is kept for its end, and whether one more candidate is paid.

What an answer costs is what it has cost so far, first of the references. Before each candidate as much is kept as
the race's end, the final choice and test may take, so that a search ends within its budget and not before it is whole.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.budget import MOST_CANDIDATES, BudgetOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.errors import InputError
from mergebench_ray.placement.answers import items_at_the_end, least_items
from mergebench_ray.runs.spending import UNITS, Sittings, Worked, amount, seconds_of, tokens_of
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import SEARCHED, Trial, proposed, read_trials
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
        taken: candidates of other runs, scored in full, that the search begins with.
    """

    items: Mapping[Split, int]
    methods: int
    groups: int = 1
    raced: bool = False
    taken: int = 0


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
        elsewhere: the rows of other runs, by which what was taken from there has a price.

    Raises:
        InputError: GPU hours without a GPU.
    """

    def __init__(
        self,
        options: BudgetOptions,
        work: Work,
        gpus: float,
        elsewhere: Callable[[frozenset[str]], Sequence[Trial]] = lambda _names: (),
    ) -> None:
        check_gpus(options, gpus)
        self._options, self._work, self._gpus, self._elsewhere = options, work, gpus, elsewhere

    def begins_with(self, taken: int) -> None:
        """So many candidates of other runs, scored in full, are there in the end."""
        self._work = replace(self._work, taken=taken)

    def check(self, trials: Sequence[Trial], worked: Worked, left: Sequence[int] = (), start: float = 0.0) -> None:
        """Refuse a budget that does not pay one candidate and what comes before and after it, once it has a price.

        Args:
            trials: the run's.
            worked: how long the run was worked on.

            left: how many items each reference will be asked that is not scored yet.
            start: minutes that another sitting takes before it scores anything.

        Raises:
            InputError: saying what would be enough for another sitting, which goes on with what is scored.
        """
        if proposed(trials):
            return
        for unit, limit in self._options.limits.items():
            if (found := self._costs(unit, trials, UnderWay(), worked)) is None:
                continue
            in_full = found.of(1 + len(left), self._work.items["validation"] + sum(left))
            ahead = in_full + self._end(found, 1, trials)
            if found.spent + _MARGIN * ahead > limit:
                again = start * {"tokens": 0.0, "minutes": 1.0, "gpu_hours": self._gpus / 60}[unit]
                least = found.spent + _MARGIN * (ahead + again)
                first, others = ("the first references", "the others, ") if left else ("the references", "")
                raise InputError(
                    f"search.budget.{unit} = {limit:g}: {first} have taken {amount(found.spent)} {UNITS[unit]}; with "
                    f"{others}one candidate, the final choice and test{', and another start,' if again else ''} it is "
                    f"about {_rounded_up(least)}: give that or more"
                )

    def pays_another(self, trials: Sequence[Trial], under_way: UnderWay, worked: Worked) -> bool:
        """Whether one more candidate fits.

        Args:
            trials: the run's.
            under_way: the candidates that are not at their end.
            worked: how long the run was worked on.
        """
        came = len(proposed(trials)) + len(under_way.costs)
        if not came:  # it passed `check`
            return True
        for unit, limit in self._options.limits.items():
            if unit == "candidates" and came >= limit:
                return False
            if (found := self._costs(unit, trials, under_way, worked)) is None:
                continue
            ahead = found.candidate * (1 + under_way.going) + found.per_item * under_way.items_left
            if found.spent + _MARGIN * (ahead + self._end(found, came + 1, trials)) > limit:
                return False
        return True

    def expected(self, trials: Sequence[Trial], under_way: UnderWay, worked: Worked) -> int | None:
        """How many candidates it will probably pay, those that have come included; None while nothing tells.

        Arguments as those of `pays_another`.
        """
        came = len(proposed(trials)) + len(under_way.costs)
        found = [] if self._options.candidates is None else [self._options.candidates]
        for unit, limit in self._options.limits.items():
            if (costs := self._costs(unit, trials, under_way, worked)) is not None and costs.candidate > 0:
                left = (limit - costs.spent) / _MARGIN - self._end(costs, came + 1, trials)
                left -= costs.per_item * under_way.items_left
                found.append(came + max(0 if came else 1, math.floor(left / costs.candidate)))
        return min(found, default=None)

    def _end(self, costs: _Costs, candidates: int, trials: Sequence[Trial]) -> float:
        known = {one.split for one in trials if one.role == "base"}
        items = items_at_the_end(self._work.items, candidates + self._work.taken, self._work.methods, known)
        return costs.of(items / self._work.items["validation"], items)

    def _costs(self, unit: str, trials: Sequence[Trial], under_way: UnderWay, worked: Worked) -> _Costs | None:
        """In a unit; None for one that no answer has a price in, or none yet."""
        if unit == "candidates":
            return None
        measure: Measure = "tokens" if unit == "tokens" else "seconds"
        factor = {"tokens": 1.0, "minutes": 1 / 60, "gpu_hours": self._gpus / 3600}[unit]
        rates = _rates(measure, trials)
        if rates is None and (names := frozenset(name for one in trials for name in one.reused_from)):
            rates = _rates(measure, self._elsewhere(names))
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
        tokens = sum(map(tokens_of, trials)) + sum(_of_cost("tokens", one) for one in under_way.costs)
        spent = {"tokens": tokens, "minutes": worked.minutes, "gpu_hours": worked.gpu_hours}[unit]
        return _Costs(spent, per_item * factor, per_model * factor, candidate * factor)


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
        folders: of the runs that scores may be taken from, by the names that rows call them.

    Raises:
        InputError: as `Budget`.
    """

    def __init__(
        self,
        options: SearchOptions,
        work: Work,
        gpus: float,
        store: TrialStore,
        sittings: Sittings,
        folders: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        elsewhere = functools.cache(functools.partial(_rows_elsewhere, folders))
        self._limits = {} if options.budget is None else options.budget.limits
        self._budget = None if options.budget is None else Budget(options.budget, work, gpus, elsewhere)
        self._most, self._store, self._sittings = options.most_candidates, store, sittings

    @property
    def most_candidates(self) -> int:
        """How many candidates may come; as many as did, where this budget has ended the search before."""
        enough = self._sittings.enough(self._limits) if self._limits else None
        return self._most if enough is None else min(enough, self._most)

    def begins_with(self, taken: int) -> None:
        """As `Budget.begins_with`; from here on the search has begun."""
        if self._budget is not None:
            self._budget.begins_with(taken)
            self._sittings.note_search()

    def check(self, left: Sequence[int] = ()) -> None:
        """As `Budget.check`; a search that has begun comes to its end, however little is left."""
        if self._budget is not None and not self._sittings.have_searched():
            trials = self._store.trials()
            self._budget.check(trials, self._worked(), left, self._sittings.start(trials, datetime.now(UTC)))

    def expected(self, under_way: UnderWay) -> int | None:
        """How many candidates will probably come; None while nothing tells."""
        most = self.most_candidates
        if self._budget is None:
            return most
        found = self._budget.expected(self._store.trials(), under_way, self._worked())
        if found is None:
            return None if most == MOST_CANDIDATES else most
        return min(found, most)

    def pays_another(self, under_way: UnderWay) -> bool:
        """Whether one more candidate is paid; that it is not is kept, so that it stays so after an interruption."""
        if self._budget is None or self._budget.pays_another(self._store.trials(), under_way, self._worked()):
            return True
        came = len(proposed(self._store.trials())) + len(under_way.costs)
        self._sittings.note_enough(self._limits, came)
        return False

    def _worked(self) -> Worked:
        return self._sittings.spent(self._store.trials(), datetime.now(UTC))


def check_gpus(options: BudgetOptions, gpus: float) -> None:
    """Refuse a budget of GPU hours where there are no GPUs.

    Args:
        options: the budget.
        gpus: that there are.

    Raises:
        InputError: saying what to give instead.
    """
    if options.gpu_hours is not None and not gpus:
        raise InputError("search.budget.gpu_hours: there are no GPUs; give minutes or tokens")


def check_before(options: BudgetOptions, items: Mapping[Split, int], of_specialists: int) -> None:
    """Refuse a budget that pays no search, as far as that is known before anything is scored.

    Args:
        options: the budget.
        items: split -> items that a whole model answers; none is known from another run.
        of_specialists: items of all specialists on validation, each on its own domain.

    Raises:
        InputError: saying what is the least.
    """
    asked = least_items(items, of_specialists)
    least = _TOKENS_AN_ITEM * asked
    if options.tokens is not None and options.tokens < least:
        raise InputError(
            f"search.budget.tokens = {options.tokens}: references, one candidate, the final choice and test ask "
            f"{asked:,} items, and each takes {_TOKENS_AN_ITEM} tokens at the very least: give more than "
            f"{least:,}, or score fewer items"
        )


def _rates(measure: Measure, trials: Sequence[Trial]) -> tuple[float, float] | None:
    """What an answer costs, and merging and loading a model; None where no row says it.

    Best of what all engines scored together, as they will what comes at the end; rows whose scores were taken from
    before cost nothing and say nothing.
    """
    paid = [one for one in trials if one.score_seconds > 0 and _asked(one)]
    rows = [one for one in paid if one.role not in SEARCHED] or proposed(paid)
    if not rows:
        return None
    answered = sum(map(_asked, rows))
    if measure == "tokens":
        return sum(map(tokens_of, rows)) / answered, 0.0
    loads = [took for one in rows if (took := one.merge_seconds + one.load_seconds) > 0]  # not of one that was loaded
    return sum(one.score_seconds for one in rows) / answered, statistics.mean(loads) if loads else 0.0


def _asked(trial: Trial) -> int:
    """Items that were asked for a row, not taken from before; of those only that have a score."""
    return max(0, sum(score.items for score in trial.domains.values()) - sum(trial.reused_from.values()))


def _rows_elsewhere(folders: Mapping[str, Path], names: frozenset[str]) -> list[Trial]:
    """The rows of runs, and of those that they have taken scores from, as far as they can be read."""
    rows: list[Trial] = []
    known: set[str] = set()
    while new := (names - known) & folders.keys():
        known |= new
        for name in sorted(new):
            with suppress(InputError, OSError):
                found = read_trials(folders[name])
                rows += found
                names |= {other for one in found for other in one.reused_from}
    return rows


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
