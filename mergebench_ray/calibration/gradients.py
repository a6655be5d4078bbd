"""Gradients of one sample at a time, handed on and dropped as they arrive, so that no whole gradient is ever held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from mergebench_ray.progress import Progress

Loss = Callable[[Any, Tensor], Tensor]
"""Gets the model and the token ids (1, L) of a sample; returns a scalar."""

RECOMPUTE_FROM = 256
"""Tokens of a sample from which layers are run again for the backward pass instead of keeping their activations."""


def merged_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are merged: weights and biases of linear layers, norms; no embeddings, no output head."""
    family = family_of(model.config.model_type)
    return {name: parameter for name, parameter in model.named_parameters() if family.is_merged(name)}


def visit_gradients(
    model: Any,
    encoded: Sequence[Encoded],
    loss: Loss,
    visit: Callable[[str, Tensor], None],
    progress: Progress,
) -> None:
    """Differentiate the loss of each sample by all merged parameters, one sample after the other.

    Memory above the model: the activations of one sample, or of one layer where it has `RECOMPUTE_FROM` tokens or
    more, and the gradients of a few parameters at a time.

    Args:
        model: its parameters ask for no gradients, before and afterwards.
        encoded: the samples.
        loss: what is differentiated.
        visit: gets a parameter's name and its gradient, which it may change, once for each sample.
        progress: told about each sample.

    Raises:
        InputError: naming sample (counted from 0) and parameter where a gradient is NaN or infinite.
    """
    parameters = merged_parameters(model)
    device = next(iter(parameters.values())).device
    number = 0

    def hand_on(name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # it has just been added up
        # One pass over memory, where looking at each entry takes five and a third of the whole time.
        if not bool(torch.isfinite(gradient.sum())):
            raise InputError(
                f"calibration sample {number}: gradient of {name!r} is NaN or infinite; check that sample and the "
                "specialist's weights, or calibrate in float32"
            )
        visit(name, gradient)

    hooks = []
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(lambda p, name=name: hand_on(name, p)))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        for number, sample in enumerate(encoded):
            progress(number / len(encoded), f"sample {number + 1} of {len(encoded)}")
            _recompute_layers(model, len(sample.ids) >= RECOMPUTE_FROM)
            with torch.enable_grad():
                loss(model, torch.tensor([sample.ids], device=device)).backward()
    finally:
        model.gradient_checkpointing_disable()
        _recompute_layers(model, False)
        for hook in hooks:
            hook.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _recompute_layers(model: nn.Module, recompute: bool) -> None:
    """Switch recomputation by transformers' own condition, without putting what is inside the layers in training."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = recompute
