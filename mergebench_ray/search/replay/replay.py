"""A finished run raced again, over many seeded orders of its candidates and items."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mergebench_ray.progress import Progress, silent
from mergebench_ray.search.objectives.objective import Direction
from mergebench_ray.search.race.contrasts import Floats
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race.items import Integers
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.race.race import Race
from mergebench_ray.search.replay.recorded import Answers, Recorded
from mergebench_ray.search.replay.settings import RACES, Setting

HELD_BACK = 1 / 3
"""Of validation, where there are no test items of all candidates: what says how good a choice is on fresh items."""


@dataclass(frozen=True)
class Outcome:
    """A setting over all orders.

    Attributes:
        setting: as on the command line.
        items_asked: share of the items of all candidates that were answered, mean.
        regret: how far the chosen candidate's objective over all validation items is below the best one's, mean.
        regret_95: 95 % of the orders have no more.
        fresh_loss: how far the chosen candidate's objective on fresh items is below that of the one that full scoring
            chooses, mean; below 0 where it is above.
        fresh_loss_error: standard error of that mean over the orders; None for a single one.
        chosen: numbers of the candidates that were chosen, and in which share of the orders, most often first.
        best_stopped: share of the orders in which the best candidate was stopped.
        answered: of each candidate, mean share of the items that it answered.
    """

    setting: str
    items_asked: float
    regret: float
    regret_95: float
    fresh_loss: float
    fresh_loss_error: float | None
    chosen: tuple[tuple[int, float], ...]
    best_stopped: float
    answered: tuple[float, ...]


@dataclass(frozen=True)
class ReplayResult:
    """What `replay` found.

    Attributes:
        run: the run's folder.
        objective: what candidates were compared by.
        direction: which way it is better.
        candidates: their numbers, as `Outcome.answered` has them.
        values: their objectives over all validation items.
        items: validation items of a candidate.
        orders: seeded orders of candidates and items.
        fresh: which items were fresh: ``test``, or ``held back``.
        outcomes: a setting each.
    """

    run: str
    objective: str
    direction: Direction
    candidates: tuple[int, ...]
    values: tuple[float, ...]
    items: int
    orders: int
    fresh: str
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Raced:
    chosen: int
    answered: Integers
    stopped: tuple[int, ...]


def replay_run(
    folder: str,
    recorded: Recorded,
    settings: Sequence[Setting],
    *,
    orders: int,
    seed: int,
    resample: int | None = None,
    progress: Progress = silent,
) -> ReplayResult:
    """Race a run's candidates again.

    Where not all candidates have test items, each order holds back a third of validation, stratified: candidates are
    raced a second time over the other two thirds, and what is chosen is compared on that third.

    Args:
        folder: the run's, for the result.
        recorded: what it holds.
        settings: what to race by.
        orders: how many orders of candidates and items; all settings see the same.
        seed: fixes them.
        resample: race as if there were so many items, drawn with replacement; None for the items there are.
        progress: is told how far it is.

    Raises:
        InputError: a setting that the run's scores or objective do not allow.
    """
    validation = recorded.validation if resample is None else recorded.validation.resampled(resample, seed)
    values = validation.values()
    fresh = None if recorded.test is None else recorded.test.values()
    outcomes = []
    for place, setting in enumerate(settings):
        raced, losses = [], []
        for number in range(orders):
            progress((place + number / orders) / len(settings), f"racing by {setting.label}")
            random = np.random.default_rng([seed, number])
            candidates = random.permutation(len(values))
            order_seed = int(random.integers(2**31))
            one = _race(setting, validation, candidates, order_seed)
            raced.append(one)
            if fresh is not None:
                losses.append(fresh[_best(values)] - fresh[one.chosen])
            else:
                losses.append(_held_back_loss(setting, validation, candidates, order_seed))
        outcomes.append(_outcome(setting, recorded, values, raced, np.array(losses), len(validation.items)))
    sign = 1.0 if validation.objective.direction == "maximize" else -1.0
    return ReplayResult(
        run=folder,
        objective=validation.objective.name,
        direction=validation.objective.direction,
        candidates=tuple(trial.number for trial in recorded.trials),
        values=tuple((sign * values).tolist()),
        items=len(validation.items),
        orders=orders,
        fresh="held back" if fresh is None else "test",
        outcomes=tuple(outcomes),
    )


def drive(race: Race, candidates: Integers, scores: Floats) -> list[Decision]:
    """Run a race whose answers are known: candidates come one after another, and those that are raised go first.

    Args:
        race: a new one.
        candidates: places in `scores`, in the order in which they come; the race knows them by these.
        scores: in the race's order, (candidates, items).

    Returns:
        all decisions.
    """
    decided: list[Decision] = []
    going: deque[tuple[int, int]] = deque()

    def follow(found: Sequence[Decision]) -> None:
        decided.extend(found)
        going.extend((one.candidate, one.until) for one in found if one.action == "go on")

    def answer_all() -> None:
        while going:
            candidate, until = going.popleft()
            follow(race.report(candidate, scores[candidate, :until]))

    for candidate in candidates.tolist():
        going.append((candidate, race.first_look))
        answer_all()
    follow(race.close())
    answer_all()
    return decided


def _race(setting: Setting, answers: Answers, candidates: Integers, seed: int) -> _Raced:
    kind = RACES[setting.kind]
    ordered = answers.taken(kind.order(answers.items, seed))
    race = kind(ordered.items, ordered.objective, candidates=len(candidates), **setting.options)  # type: ignore[arg-type]
    drive(race, candidates, ordered.scores)
    finished = race.finished()
    values = np.array([race.board.value(candidate) for candidate in finished])
    return _Raced(
        chosen=finished[_best(values)],
        answered=np.array([race.board.answered(candidate) for candidate in range(len(candidates))]),
        stopped=tuple(race.in_state("stopped")),
    )


def _held_back_loss(setting: Setting, validation: Answers, candidates: Integers, seed: int) -> float:
    places = stratified_order(validation.items, seed + 1)
    cut = round(len(places) * (1 - HELD_BACK))
    seen, held_back = validation.taken(places[:cut]), validation.taken(places[cut:])
    fresh = held_back.values()
    by_all = _best(seen.values())
    return float(fresh[by_all] - fresh[_race(setting, seen, candidates, seed).chosen])


def _outcome(
    setting: Setting, recorded: Recorded, values: Floats, raced: Sequence[_Raced], losses: Floats, items: int
) -> Outcome:
    chosen = np.array([one.chosen for one in raced])
    regrets = np.nanmax(values) - values[chosen]
    answered = np.array([one.answered for one in raced]) / items
    numbers, counts = np.unique(chosen, return_counts=True)
    often_first = np.argsort(-counts, kind="stable")
    return Outcome(
        setting=setting.label,
        items_asked=float(answered.mean()),
        regret=float(regrets.mean()),
        regret_95=float(np.quantile(regrets, 0.95)),
        fresh_loss=float(losses.mean()),
        fresh_loss_error=float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else None,
        chosen=tuple((recorded.trials[numbers[i]].number, float(counts[i] / len(raced))) for i in often_first),
        best_stopped=float(np.mean([_best(values) in one.stopped for one in raced])),
        answered=tuple(answered.mean(axis=0).tolist()),
    )


def _best(values: Floats) -> int:
    """Place of the greatest that is known."""
    return int(np.where(np.isnan(values), -np.inf, values).argmax())
