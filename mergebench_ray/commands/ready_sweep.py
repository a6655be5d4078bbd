"""All that can be wrong with a sweep, found in one place before anything starts: what `plan` passes, `tune` runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergebench_ray.calibration import Calibration
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.commands.calibration import load_calibration
from mergebench_ray.commands.models import Models
from mergebench_ray.commands.sweep_models import resolve_sweep_models
from mergebench_ray.config import Recipe, Suite, Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.config.objective import each_objective
from mergebench_ray.config.race import RaceOptions
from mergebench_ray.evaluation.continuations import check_continuations
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.judges.judges import digests
from mergebench_ray.methods import complete_parameters, get_method, method_source, parse_parameters
from mergebench_ray.placement.answers import FINALISTS, Answers, expected_answers
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.search.budget import check_before
from mergebench_ray.search.earlier_items import run_folders
from mergebench_ray.search.race_choice import chosen_race, expected_share
from mergebench_ray.search.samplers import auto_fallback, random_draws
from mergebench_ray.search.space import Space
from mergebench_ray.search.warm_start import Taken, Wanted, find_candidates, matching_folders
from mergebench_ray.tasks.chat import ChatTemplate
from mergebench_ray.tasks.loading import chosen_domains, load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest, notes_of
from mergebench_ray.tasks.splits import check_classes_apart, check_splits_apart


@dataclass(frozen=True)
class ReadySweep:
    """A sweep that could start here.

    Attributes:
        sweep: the sweep.
        suite: what it scores on.
        models: its models, and the judges at hand.
        space: what it may try.
        tasks: the tasks of each split, with their items.
        race: which candidates are scored on.
        race_notes: why it is none, where one would be expected.
        task_notes: what is scored otherwise than task files say, a line each.
        calibration: samples for methods that see data; None where none does.
        taken: candidates of other runs that the search begins with; None for a run that has them already.
        taken_notes: which are left out of them, a line each.
    """

    sweep: Sweep
    suite: Suite
    models: Models
    space: Space
    tasks: dict[Split, list[ScoredTask]]
    race: RaceOptions
    race_notes: list[str]
    task_notes: list[str]
    calibration: Calibration | None
    taken: list[Taken] | None = None
    taken_notes: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Everything that is otherwise than one might think, a line each."""
        return [*self.models.notes, *self.task_notes, *self.search_notes]

    @property
    def items(self) -> dict[Split, int]:
        """How many items a whole model is asked on each split."""
        return {split: sum(len(task.items) for task in some) for split, some in self.tasks.items()}

    @property
    def domain_items(self) -> dict[str, int]:
        """How many items of each domain a whole model is asked on validation."""
        found: Counter[str] = Counter()
        for task in self.tasks["validation"]:
            found[task.domain] += len(task.items)
        return dict(found)

    @property
    def items_of_specialists(self) -> int:
        """How many items all specialists are asked on validation, each on its own domain."""
        return sum(count for domain, count in self.domain_items.items() if domain in self.models.specialists)

    @property
    def answers(self) -> list[Answers]:
        """How many answers each part of the search takes."""
        search = self.sweep.search
        candidates = search.most_candidates if search.trials or not search.budget or search.budget.candidates else None
        share = expected_share(self.race, len(each_objective(search.objective)), constraints=bool(search.constraints))
        taken = FINALISTS if self.taken is None and search.warm_start else len(self.taken or ())
        return expected_answers(
            self.items, self.items_of_specialists, candidates, len(self.sweep.methods), share, taken
        )

    @property
    def search_notes(self) -> list[str]:
        """What sampler and race do not do, a line each."""
        search, space = self.sweep.search, self.space
        return [*auto_fallback(search, space), *random_draws(search, space), *self.race_notes, *self.taken_notes]


def make_ready(sweep: Sweep, run: RunFolder | None = None) -> ReadySweep:
    """Read all that a sweep names but weights: headers of checkpoints, task files, items, samples, earlier runs.

    Args:
        sweep: has passed `check_sweep`.
        run: where it will run, or go on; None where it will not.

    Raises:
        InputError: what is wrong, and what to do.
    """
    suite = sweep.load_suite()
    models = resolve_sweep_models(sweep, suite)
    space = Space(sweep, list(models.specialists), models.num_layers)
    tasks = load_checked_tasks(suite, sweep.scoring(suite), sweep.evaluation.splits, models.judges, models.base)
    merges = [
        (method, complete_parameters(method, parameters, list(models.specialists), models.num_layers))
        for method, parameters in space.corners()
    ]
    calibration = load_calibration(models, merges, sweep.calibration, suite, sweep.evaluation.data)
    task_notes = notes_of(task for some in tasks.values() for task in some)
    race, race_notes = chosen_race(sweep, tasks["validation"])
    ready = ReadySweep(sweep, suite, models, space, tasks, race, race_notes, task_notes, calibration)
    if sweep.search.budget is not None and not earlier_runs(sweep, run or RunFolder(Path("runs") / sweep.name)):
        check_before(sweep.search.budget, ready.items, ready.items_of_specialists)
    if not sweep.search.warm_start or (run is not None and run.warm_start_file.exists()):
        return ready
    taken, notes = find_taken(ready, None if run is None else run.path)
    return replace(ready, taken=taken, taken_notes=notes)


def earlier_runs(sweep: Sweep, run: RunFolder) -> dict[str, Path]:
    """The runs that scores may be taken from, by the names that rows call them."""
    if not sweep.evaluation.reuse:
        return {}
    return run_folders(run.path, matching_folders(sweep.search.warm_start, run.path))


def find_taken(ready: ReadySweep, own: Path | None) -> tuple[list[Taken], list[str]]:
    """The candidates of other runs that a sweep's search begins with, and what is to be said of them.

    Args:
        ready: the sweep.
        own: the run's own folder.

    Raises:
        InputError: as `find_candidates`.
    """
    models = ready.models
    base, specialists = models.base.digest(), {name: one.digest() for name, one in models.specialists.items()}

    def recipe(method: str, parameters: dict[str, Any]) -> Recipe:
        complete = complete_parameters(method, parameters, list(specialists), models.num_layers)
        samples = get_method(method).calibration_samples(parse_parameters(method, complete))
        return Recipe(
            method=method,
            method_source=method_source(method),
            parameters=complete,
            base=str(models.base.ref),
            specialists={name: str(one.ref) for name, one in models.specialists.items()},
            base_digest=base,
            specialist_digests=specialists,
            merged=models.base.merged_parts,
            calibration=ready.calibration.record(method, samples) if samples and ready.calibration else None,
        )

    items = items_digest(ready.tasks["validation"])
    return find_candidates(Wanted(ready.sweep, ready.space, base, specialists, items, recipe), own)


def load_checked_tasks(
    suite: Suite,
    options: EvaluationOptions,
    splits: Sequence[Split],
    judges: Mapping[str, FoundJudge],
    base: Checkpoint,
) -> dict[Split, list[ScoredTask]]:
    """The tasks of some splits with their items, each of which a model can be asked.

    Args:
        suite: names the tasks.
        options: which domains, how many items, and whether generated programs may run.
        splits: of the items.
        judges: those at hand.
        base: whose tokenizer says how long a text is.

    Raises:
        InputError: as `load_tasks` and `check_continuations`; a search that would see items of its test.
    """
    if len(splits) > 1:
        check_splits_apart(suite, chosen_domains(suite, options))
    template = ChatTemplate.of(base.folder, str(base)) if options.apply_chat_template else None
    tasks = {split: load_tasks(suite, split, options, judges=digests(judges), template=template) for split in splits}
    if len(splits) > 1:
        check_classes_apart(suite, chosen_domains(suite, options), tasks["test"])
    check_continuations(itertools.chain.from_iterable(tasks.values()), base.folder, suite.max_model_len)
    return tasks
