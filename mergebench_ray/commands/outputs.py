"""What lies beside a merge's weights: another model's tokenizer, a chat template, the recipe as mergekit reads it."""

from __future__ import annotations

from dataclasses import replace

import torch

from mergebench_ray.bank.layout import Layout
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.checkpoints.chat_template import CHATML, most_common_template
from mergebench_ray.checkpoints.tokenizer_files import require_rows_for
from mergebench_ray.checkpoints.writer import Written
from mergebench_ray.commands.merge_checks import MergeRequest
from mergebench_ray.commands.models import Models
from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.mergekit import FILE_NAME, CannotSayError, mergekit_recipe
from mergebench_ray.methods import TensorPlace


def fitted_output(models: Models, request: MergeRequest) -> tuple[Models, Written]:
    """The models with notes on how they are merged, and how the merge is written.

    Raises:
        InputError: a recipe of models with another number of layers, or a tokenizer that the embeddings do not fit.
    """
    if request.layers not in (None, models.num_layers):
        raise InputError(
            f"slices: takes layers 0 to {request.layers} of models that have {models.num_layers}, and only whole "
            "models are merged here"
        )
    tokenizer = None
    if request.tokenizer is not None:
        specialist = models.specialists[request.tokenizer]
        require_rows_for(f"specialist {request.tokenizer!r} ({specialist})", models.base, specialist)
        tokenizer = specialist.tokenizer_folder
    template, notes = request.chat_template, list(request.rules)
    if template == "auto":
        template = most_common_template([one.tokenizer_folder for one in (models.base, *models.specialists.values())])
        if template is None:
            notes.append("chat_template: auto: none of the models has one")
    written = Written(getattr(torch, request.dtype), tokenizer, CHATML if template == "chatml" else template)
    return replace(models, notes=[*notes, *models.notes]), written


def for_mergekit(recipe: Recipe, base: Checkpoint, layout: Layout) -> tuple[dict[str, str], list[str]]:
    """The file that mergekit makes the same merge from, by its name, or a line that says why there is none."""
    places = [
        TensorPlace(one.name, one.layer, layout.num_layers, kind=one.kind) for one in layout.merged if not one.part
    ]
    merged = {place.name for place in places}
    unmerged = [
        name
        for name, info in base.tensors.items()
        if info.dtype.is_floating_point and info.numel and name not in merged and not base.family.is_buffer(name)
    ]
    try:
        return {FILE_NAME: mergekit_recipe(recipe, places, unmerged)}, []
    except CannotSayError as error:
        return {}, [f"{FILE_NAME} is not written: {error}"]
