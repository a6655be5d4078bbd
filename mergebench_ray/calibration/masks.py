"""Trained masks of Localize-and-Stitch: which entries of a task vector a specialist needs on its own data.

Source: Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic, arXiv 2408.13656, section 3.1; as in
its code, an epoch is one step along the mean gradient of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.calibration.gradients import merged_parameters, visit_gradients
from mergebench_ray.calibration.model import load_model, read_parameter
from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.errors import InputError
from mergebench_ray.progress import Progress


def train_mask(
    base: Checkpoint,
    specialist: Checkpoint,
    encoded: Sequence[Encoded],
    *,
    threshold: float,
    sigmoid_bias: float,
    learning_rate: float,
    epochs: int,
    l1_strength: float,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> dict[str, Tensor]:
    """Train mask logits S of the merged parameters θ₀ + σ(S) ⊙ τ and round them.

    S starts at ±`sigmoid_bias`. A step is S ← S − (learning_rate · ∂loss/∂θ ⊙ τ + l1_strength) ⊙ σ′(S), where the loss
    is the mean cross-entropy of a sample's tokens after the first, averaged over the samples.

    Memory above the model: the mean gradient in float32, the mask, and the activations of one sample with the logits
    of all its tokens; with more than one epoch also S in float32.

    Args:
        base: checkpoint of θ₀, and of embeddings and output head.
        specialist: checkpoint of θ₀ + τ; τ is the difference in bf16.
        encoded: the specialist's own samples, of at least two tokens each.
        threshold: S starts positive where abs(τ) is at least this.
        sigmoid_bias: where S starts.
        learning_rate: of the step along the gradient.
        epochs: number of steps.
        l1_strength: pulls S down.
        dtype: type of the model's weights and activations.
        device: where it runs.
        progress: told about each sample of each epoch.

    Returns:
        bool of each merged parameter, in its shape: True where the entry of τ is kept.

    Raises:
        InputError: a sample of a single token, or a gradient that is NaN or infinite, naming parameter and sample.
    """
    _require_two_tokens(encoded)
    model = load_model(base, dtype, device)
    names = list(merged_parameters(model))
    logits: dict[str, Tensor] = {}

    def vector_and_logits(name: str) -> tuple[Tensor, Tensor, Tensor]:
        """θ₀, τ and S, in float32; nothing is kept of them between steps but S, and that only after the first."""
        shape = base.tensors[name].shape
        start = read_parameter(base, name, shape, torch.bfloat16, device)
        vector = (read_parameter(specialist, name, shape, torch.bfloat16, device) - start).float()
        first = torch.where(vector.abs() >= threshold, sigmoid_bias, -sigmoid_bias)
        return start.float(), vector, logits.pop(name, first)

    masks = {}
    for epoch in range(epochs):
        for name in names:
            start, vector, current = vector_and_logits(name)
            model.get_parameter(name).copy_(start + current.sigmoid() * vector)
            if epoch:
                logits[name] = current
        gradients = _mean_gradients(model, encoded, _part_of(progress, epoch, epochs))
        for name in names:
            _, vector, current = vector_and_logits(name)
            share = current.sigmoid()
            step = learning_rate * (gradients.pop(name) * vector) + l1_strength
            current = current - step * (share * (1 - share))
            if epoch + 1 < epochs:
                logits[name] = current
            else:
                masks[name] = current > 0
    return masks


def _require_two_tokens(encoded: Sequence[Encoded]) -> None:
    for number, sample in enumerate(encoded):
        if len(sample.ids) < 2:
            raise InputError(f"calibration sample {number} has a single token, none to predict: remove it or cut less")


def _part_of(progress: Progress, epoch: int, epochs: int) -> Progress:
    return lambda done, text: progress((epoch + done) / epochs, f"mask: epoch {epoch + 1} of {epochs}, {text}")


def _mean_gradients(model: Any, encoded: Sequence[Encoded], progress: Progress) -> dict[str, Tensor]:
    """Gradients of the language-model loss by all merged parameters, float32, averaged over samples."""
    sums: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:
        if name in sums:
            sums[name] += gradient
        else:
            sums[name] = gradient.float()

    visit_gradients(model, encoded, _language_model_loss, add, progress)
    for total in sums.values():
        total.div_(len(encoded))
    return sums


def _language_model_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross-entropy of all tokens after the first, each given those before it."""
    # Logits are the largest activation: the last token's are not made, as cutting them off would copy all gradients.
    positions = torch.arange(ids.shape[1] - 1, device=ids.device)
    logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[0, 1:])
