"""What is written of a search's winner, and of the front that it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

from ray.exceptions import RayTaskError

from mergebench_ray.bank import Bank, NoLongerHeldError
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.checkpoints.reproduction import Reproduction, texts_beside
from mergebench_ray.commands.merge import write_merged
from mergebench_ray.commands.outputs import for_mergekit
from mergebench_ray.commands.ready_sweep import ReadySweep
from mergebench_ray.config import Recipe
from mergebench_ray.files import whole_file, whole_folder
from mergebench_ray.runs.leaderboard import (
    choice_title,
    objective_title,
    what_is_missed,
    with_objective,
    with_objectives,
)
from mergebench_ray.runs.recorded import evaluation_of_trial
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.summary import leads_of
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.session import Session

_OF_THIS_MACHINE: dict[str, set[str] | bool] = {
    "search": {"storage", "warm_start"},
    "evaluation": {"data"},
    "calibration": {"folder"},
    "tracking": True,
}
"""What of a sweep says where things are kept, and changes no number."""


def record_of(ready: ReadySweep, recipe: Recipe, trials: Sequence[Trial], test: Trial) -> Reproduction:
    """What goes beside the winner's weights: how it was found, and what it scored on test."""
    sweep, models = ready.sweep, ready.models
    evaluation = evaluation_of_trial(
        trials, test, ready.suite.name, sweep.evaluation.test_items, sweep.evaluation.asked
    )
    return models.reproduction(recipe).model_copy(
        update={
            "notes": [*models.notes, aim_of(test)],
            "sweep": sweep.model_dump(mode="json", exclude_defaults=True, exclude=_OF_THIS_MACHINE),
            "evaluation": evaluation,
        }
    )


def write_best(session: Session, recipe: Recipe, base: Checkpoint, run: RunFolder, record: Reproduction) -> list[str]:
    """Write recipe and model, unless they are there; of another winner, found with more trials, they are replaced.

    What lies beside the weights of a model that stays says what is so now.

    Returns:
        a line that says why there is no recipe for mergekit, where there is none.
    """
    text = recipe.to_yaml()
    for_others, why_not = for_mergekit(recipe, base, session.bank.layout)
    if run.model_folder.exists() and run.recipe_file.is_file() and run.recipe_file.read_text() == text:
        if (before := Reproduction.read(run.model_folder)) is not None:
            record = record.model_copy(update={"versions": before.versions})  # of what wrote its weights
        for name, content in texts_beside(recipe, record).items():
            file = run.model_folder / name
            if not file.exists() or file.read_text(encoding="utf-8") != content:
                with whole_file(file) as temporary:
                    temporary.write_text(content, encoding="utf-8")
        return why_not
    is_written = False
    while not is_written:
        merged = session.bank.merge(recipe)
        try:
            with whole_folder(run.best_folder, replace=True) as folder:
                (folder / run.recipe_file.name).write_text(text)
                for name, content in for_others.items():
                    (folder / name).write_text(content, encoding="utf-8")
                write_merged(folder / run.model_folder.name, session.bank, base, texts_beside(recipe, record))
            is_written = True
        except (OSError, RayTaskError, NoLongerHeldError):
            if session.bank.holds(merged):
                raise  # else a shard was lost while its memory was read
    return why_not


def write_front(bank: Bank, members: Sequence[Trial], run: RunFolder) -> None:
    """Keep how to make each of some models, the front's and the winner; with more trials they are others."""
    with whole_folder(run.front_folder, replace=True) as folder:
        for trial in members:
            assert trial.method is not None
            recipe = bank.recipe(trial.method, trial.parameters)
            (folder / run.front_recipe_file(trial.method, trial.number).name).write_text(recipe.to_yaml())


def aim_of(test: Trial) -> str:
    """What the model was searched for, and what it came to on test."""
    title = objective_title(test.objective_name, test.domains)
    if test.choice is not None:
        names = [objective_title(name, test.domains) for name in test.objectives]
        title = f"the front of {', '.join(names)}, of which one was chosen by {choice_title(test.choice)}"
    aim = ", keeping ".join(filter(None, (title, " and ".join(test.constraints))))
    reached = ", ".join(filter(None, (with_objectives(test) or with_objective(test), _leads(test))))
    text = f"What the search was after: {aim}. On test {reached}"
    return f"{text}, where it {what_is_missed(test)}" if test.missed else text


def _leads(test: Trial) -> str:
    """How far a model is above others, and in what, where that is not what the search was after."""
    leads = leads_of(test)
    return f"in the normalised average {leads}" if leads and test.choice is not None else leads
