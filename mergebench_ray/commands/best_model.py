"""What is written of a search's winner, and of the front that it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult
from ray.exceptions import RayTaskError

from mergebench_ray.bank import Bank, NoLongerHeldError
from mergebench_ray.checkpoints import model_card
from mergebench_ray.commands.merge import write_merged
from mergebench_ray.commands.models import Models
from mergebench_ray.config import Recipe
from mergebench_ray.files import whole_file, whole_folder
from mergebench_ray.runs.leaderboard import (
    choice_title,
    objective_title,
    what_is_missed,
    with_objective,
    with_objectives,
)
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.summary import leads_of
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.session import Session


def write_best(
    session: Session,
    recipe: Recipe,
    models: Models,
    store: TrialStore,
    run: RunFolder,
    results: Sequence[EvalResult],
    aim: str,
) -> None:
    """Write recipe and model, unless they are there; of another winner, found with more trials, they are replaced.

    The card of a model that stays says what is so now.
    """
    text = recipe.to_yaml()
    scores = {
        trial.label: {domain: (result.score, result.standard_error) for domain, result in trial.domains.items()}
        for trial in store.trials()
        if trial.split == "test"
    }
    card = model_card(recipe, scores, [*models.notes, aim], results)
    if run.model_folder.exists() and run.recipe_file.is_file() and run.recipe_file.read_text() == text:
        file = run.model_folder / "README.md"
        if not file.exists() or file.read_text(encoding="utf-8") != card:
            with whole_file(file) as temporary:
                temporary.write_text(card, encoding="utf-8")
        return
    is_written = False
    while not is_written:
        merged = session.bank.merge(recipe)
        try:
            with whole_folder(run.best_folder, replace=True) as folder:
                (folder / run.recipe_file.name).write_text(text)
                write_merged(folder / run.model_folder.name, session.bank, models.base, card)
            is_written = True
        except (OSError, RayTaskError, NoLongerHeldError):
            if session.bank.holds(merged):
                raise  # else a shard was lost while its memory was read


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
