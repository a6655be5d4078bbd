"""A race and the order of its items: where they are in the split, and what counts of a candidate's first ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergebench_ray.evaluation.graded import GradedItems
from mergebench_ray.runs.trials import Trial, is_known
from mergebench_ray.scores import ObjectiveEstimate, exact_sum
from mergebench_ray.search.race.decision import Estimate
from mergebench_ray.search.race.race import Race
from mergebench_ray.search.scores_by_item import scores_by_item


@dataclass(frozen=True)
class RaceOrder:
    """A race, and where its items are.

    Attributes:
        race: the race.
        places: of the items in the split, in the race's order.
    """

    race: Race
    places: tuple[int, ...]

    def scores(self, items: GradedItems, count: int) -> list[float]:
        """What counts of a candidate's first items.

        Raises:
            KeyError: one of them is not there.
        """
        return self._filled([items[place].row["score"] for place in self.places[:count]])

    def come_to(self, number: int) -> dict[str, Any]:
        """What a stopped candidate probably comes to, as the fields of its row."""
        several = {name: self._estimate(one) for name, one in self.race.estimates(number).items()}
        estimate = self._estimate(self.race.estimate(number))
        return {"estimate": estimate, "estimates": several, "constraints": self.race.distances(number)}

    def _estimate(self, found: Estimate) -> ObjectiveEstimate:
        value, error = (found.value, found.standard_error) if is_known(found.value) else (None, None)
        return ObjectiveEstimate(value, error, found.answered, self.race.items)

    def kept_scores(self, folder: Path, row: Trial, count: int | None = None) -> list[float]:
        """What counts of the first items of a model that a run has scored in full: of all where no number is given."""
        found = list(scores_by_item(folder, row).values())
        return self._filled([found[place][0] for place in self.places[:count]])

    def _filled(self, scores: Sequence[float | None]) -> list[float]:
        """Scores of the race's first items, with the task's mean for those that its metric leaves out.

        So each task's mean is that without them, as it is where scores are made.
        """
        tasks = self.race.board.contrasts.items.tasks[: len(scores)].tolist()
        known: dict[int, list[float]] = defaultdict(list)
        for task, score in zip(tasks, scores):
            if is_known(score):
                known[task].append(float(score or 0.0))
        means = {task: exact_sum(found) / len(found) for task, found in known.items()}
        return [float(score or 0.0) if is_known(score) else means.get(task, 0.0) for task, score in zip(tasks, scores)]
