"""What lies beside a merge's weights: how to make it again, what it was made with, and what it scored."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mergebench_ray.checkpoints.accompanying_files import RECIPE_NAME, recipe_file
from mergebench_ray.checkpoints.card import Publication, evaluation_result, model_card
from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

CARD_NAME = "README.md"
REPRODUCTION_NAME = "reproduce.json"
_PACKAGES = ("mergebench_ray", "torch", "transformers", "safetensors", "numpy")


class _Record(BaseModel):
    """A part of the file; what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class RecordedScore(_Record):
    """A score, with what it was made of; None for what is not known."""

    score: float | None = None
    standard_error: float | None = None
    items: int = 0
    metric: str = ""


class RecordedAsking(_Record):
    """How items were put to models and which, where it is not as the suite has it: arguments of `evaluate`."""

    apply_chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = {}
    limit: float | None = None
    samples: dict[str, list[int]] | None = None


class RecordedEvaluation(_Record):
    """What a merge scored beside others, and how to ask it again.

    Attributes:
        suite: name of the suite.
        split: "validation" or "test".
        tasks: the tasks or domains that were scored.
        items: first items of each task; None for all.
        asked: how items were put to the models and which, where it is not as the suite has it: arguments of `evaluate`.
        model: the merge's own row.
        models: row -> domain -> score.
        averages: row -> normalised average, of those rows that have one.
        versions: of what the numbers come from.
    """

    suite: str
    split: str
    tasks: list[str]
    items: int | None = None
    asked: RecordedAsking = RecordedAsking()
    model: str
    models: dict[str, dict[str, RecordedScore]]
    averages: dict[str, RecordedScore] = {}
    versions: dict[str, str] = {}


class Reproduction(_Record):
    """What a merge was made with, beside its recipe.

    Attributes:
        recipe: the recipe's digest.
        weights: SHA-256 of the merged weights; None where nobody has read them since.
        versions: of the packages that merged.
        allow: settings that were allowed to differ between base and specialists.
        notes: rules that were applied where checkpoints differ, a line each.
        local: references that are paths of the machine that merged; not published.
        sweep: the search that found it.
        evaluation: what it scored.
    """

    recipe: str
    weights: str | None = None
    versions: dict[str, str] = {}
    allow: list[str] = []
    notes: list[str] = []
    local: list[str] = []
    sweep: dict[str, Any] | None = None
    evaluation: RecordedEvaluation | None = None

    @classmethod
    def read(cls, folder: Path) -> Reproduction | None:
        """What a model's folder says; None where it says nothing.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / REPRODUCTION_NAME
        try:
            with open_regular(path) as stream:
                return cls.model_validate_json(stream.read(), strict=True)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: not what `merge` writes ({where}: {first['msg']}); restore it") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); restore it") from error


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a merge's bits may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def texts_beside(recipe: Recipe, reproduction: Reproduction, publication: Publication | None = None) -> dict[str, str]:
    """Card, recipe and record of a merge, as files by name."""
    return {
        CARD_NAME: _card(recipe, reproduction, publication),
        RECIPE_NAME: recipe.to_yaml(),
        REPRODUCTION_NAME: reproduction.model_dump_json(indent=2, exclude_none=True) + "\n",
    }


def _card(recipe: Recipe, reproduction: Reproduction, publication: Publication | None) -> str:
    evaluation = reproduction.evaluation
    if evaluation is None:
        return model_card(recipe, None, reproduction.notes, publication=publication)
    own = evaluation.models[evaluation.model]
    results = [
        evaluation_result(
            *(evaluation.suite, evaluation.split, domain, one.metric, one.score),
            float("nan") if one.standard_error is None else one.standard_error,
            one.items,
        )
        for domain, one in own.items()
        if one.score is not None  # a hub takes numbers alone
    ]
    items = ", ".join(f"{domain} {one.items}" for domain, one in own.items())
    about = f"On the {evaluation.split} split of {evaluation.suite}, with so many items: {items}."
    if evaluation.averages:
        about += (
            " The normalised average: the mean over domains of the share of the specialist's score that is reached."
        )
    seed = (reproduction.sweep or {}).get("search", {}).get("seed")
    notes = [*reproduction.notes, *([] if seed is None else [f"Seed of the search: {seed}"])]
    return model_card(recipe, _table(evaluation), notes, results, about_scores=about, publication=publication)


def _table(evaluation: RecordedEvaluation) -> dict[str, dict[str, tuple[float, float | None]]]:
    rows: dict[str, dict[str, RecordedScore]] = {
        label: {
            **domains,
            **({"normalised average": evaluation.averages[label]} if label in evaluation.averages else {}),
        }
        for label, domains in evaluation.models.items()
    }
    return {label: _cells(row) for label, row in rows.items()}


def _cells(row: Mapping[str, RecordedScore]) -> dict[str, tuple[float, float | None]]:
    return {name: (one.score, one.standard_error) for name, one in row.items() if one.score is not None}


def read_recipe(folder: Path, model: str) -> Recipe:
    """How the merge in a folder was made.

    Args:
        folder: the folder.
        model: what a message calls it.

    Raises:
        InputError: there is no recipe, or it was changed after it was written.
    """
    problems: list[str] = []
    recipe = Recipe.from_yaml(recipe_file(folder, model), accept_changes=True, note=problems.append)
    if problems:
        raise InputError(f"{problems[0]}; restore it")
    return recipe
