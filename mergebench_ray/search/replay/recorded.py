"""A finished run as a replay needs it: what every candidate scored on every item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.config.fields import Split
from mergebench_ray.config.objective import each_objective
from mergebench_ray.errors import InputError
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, read_trials
from mergebench_ray.search.objectives.objective import Objective, References
from mergebench_ray.search.objectives.registry import make_objective
from mergebench_ray.search.objectives.shares import check_references
from mergebench_ray.search.race.contrasts import Contrasts, Floats
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.scores_by_item import ItemKey, known_of_items, scores_by_item


@dataclass(frozen=True)
class Answers:
    """Candidates on one split.

    Attributes:
        items: in the suite's order.
        scores: (candidates, items).
        objective: bound to the references' scores on this split.
    """

    items: Items
    scores: Floats
    objective: Objective

    def values(self) -> Floats:
        """The candidates' objectives over all items, more being better, (candidates,)."""
        return Contrasts(self.items, self.objective).values(self.scores)

    def taken(self, places: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Answers:
        """The same candidates on some of the items, in another order."""
        chosen = np.asarray(places, dtype=np.int64)
        return Answers(self.items.taken(chosen), self.scores[:, chosen], self.objective)

    def resampled(self, count: int, seed: int) -> Answers:
        """As if there were so many items: drawn with replacement within each task, each counting as its own cluster."""
        random = np.random.default_rng(seed)
        tasks = self.items.tasks
        sizes = np.bincount(tasks)
        wanted = np.floor(np.cumsum(sizes) * count / len(tasks) + 0.5).astype(int)
        drawn = [
            random.choice(np.flatnonzero(tasks == task), size)
            for task, size in enumerate(np.diff(wanted, prepend=0).tolist())
        ]
        places = np.concatenate(drawn)
        items = self.items.taken(places)
        alone = Items(items.domains, items.domain_of_task, items.tasks, np.arange(len(places)), items.strata)
        return Answers(alone, self.scores[:, places], self.objective)


@dataclass(frozen=True)
class Recorded:
    """A run's candidates with all their item scores.

    Attributes:
        trials: the candidates, in the order of the search.
        validation: what they answered in the search.
        test: what they answered on test; None where not all of them did.
    """

    trials: list[Trial]
    validation: Answers
    test: Answers | None

    @classmethod
    def read(cls, folder: Path) -> Recorded:
        """Read a run.

        Raises:
            InputError: it has fewer than two candidates, or some that a race has stopped,
                their items are not there, are not the same for all or have
                no scores of their own, or the objective cannot be formed.
        """
        trials = read_trials(folder)
        candidates = _candidates(trials, "validation")
        if stopped := sum(one.role == "stopped" for one in trials):
            raise InputError(
                f"{folder}: its race has stopped {stopped} candidates, which have no scores for the items that they "
                "were not asked; give a run with search.race: none"
            )
        if len(candidates) < 2:
            raise InputError(
                f"{folder}: {len(candidates)} candidate{'' if len(candidates) == 1 else 's'} scored on validation, and "
                "a race needs two; give a run that has tried more"
            )
        on_test = _candidates(trials, "test")
        all_on_test = {one.digest for one in on_test} >= {one.digest for one in candidates}
        by_digest = {one.digest: one for one in on_test}
        return cls(
            trials=candidates,
            validation=_answers(folder, trials, candidates, "validation"),
            test=_answers(folder, trials, [by_digest[one.digest] for one in candidates], "test")
            if all_on_test
            else None,
        )


def _candidates(trials: Sequence[Trial], split: Split) -> list[Trial]:
    found = [trial for trial in trials if trial.role == "candidate" and trial.split == split]
    return sorted(found, key=lambda trial: trial.number)


def _answers(folder: Path, trials: Sequence[Trial], candidates: Sequence[Trial], split: Split) -> Answers:
    first, *others = rows = [scores_by_item(folder, trial) for trial in candidates]
    for trial, other in zip(candidates[1:], others):
        if other.keys() != first.keys() or trial.items_digest != candidates[0].items_digest:
            raise InputError(
                f"{folder}: candidates {candidates[0].number} and {trial.number} were scored on different items or "
                "settings, so nothing can be compared; give a run of one suite and one number of items"
            )
    keys = _with_scores(folder, rows)
    known = known_of_items(folder, trials, split, keys)
    items = Items.of(
        [domain for domain, _, _ in keys],
        [task for _, task, _ in keys],
        [first[key][1] for key in keys],
        known,
    )
    scores = np.array([[row[key][0] for key in keys] for row in rows], dtype=np.float64)
    return Answers(items, scores, _objective(folder, trials, split))


def _with_scores(folder: Path, rows: Sequence[Mapping[ItemKey, tuple[float | None, str]]]) -> list[ItemKey]:
    """The items that have a score; those that a metric leaves out for all candidates are not among them."""
    scored: dict[tuple[str, str], list[ItemKey]] = defaultdict(list)
    for key in rows[0]:
        missing = sum(row[key][0] is None for row in rows)
        if 0 < missing < len(rows):
            raise InputError(
                f"{folder}: task {key[1]!r} has a score for item {key[2]!r} in some candidates only, so that they "
                "cannot be compared by items; leave the task out of a run that is to be replayed"
            )
        scored[key[:2]] += [] if missing else [key]
    for (_, task), keys in scored.items():
        if not keys:
            raise InputError(
                f"{folder}: task {task!r} has a metric that exists only over all items, so that no race can look at "
                "some of them; count another metric, or leave the task out"
            )
    return [key for keys in scored.values() for key in keys]


def _objective(folder: Path, trials: Sequence[Trial], split: Split) -> Objective:
    """What the run's search was after; the normalised average where its folder does not say."""
    of_split = [trial for trial in trials if trial.split == split]
    specialists = {
        trial.name: trial.domains[trial.name]
        for trial in of_split
        if trial.role == "specialist" and trial.name in trial.domains
    }
    check_references(specialists)
    base = next((trial.domains for trial in of_split if trial.role == "base"), {})
    file = RunFolder(folder).sweep_file
    options = Sweep.from_yaml(file).search if file.is_file() else SearchOptions()
    objectives = each_objective(options.objective)
    if len(objectives) > 1:
        raise InputError(
            f"{folder}: its search had {len(objectives)} objectives, and what a race costs is told by how far its "
            "choice is below the best, of one; give a run with one objective"
        )
    return make_objective(objectives[0], References(specialists, base))
