"""Fisher diagonals: how much a specialist's prediction depends on each of its parameters.

Source: Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832, section 3; the loss of one sample is that of
MergeBench: the model's own most probable token after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.calibration.gradients import merged_parameters, visit_gradients
from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.progress import Progress


def fisher_diagonal(model: Any, encoded: Sequence[Encoded], progress: Progress) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of −log p(ŷ), ŷ being the arg-max at the sample's last position.

    Memory above the model and the result: the activations of one sample.

    Args:
        model: from `load_model`.
        encoded: at least one sample.
        progress: told about each sample.

    Returns:
        float32, of each merged parameter (linear weights, biases, norms), in its shape, on its device.

    Raises:
        InputError: naming sample and parameter where a gradient is NaN or infinite.
    """
    sums = {
        name: torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        for name, parameter in merged_parameters(model).items()
    }

    def add_square(name: str, gradient: Tensor) -> None:
        gradient = gradient.float()
        sums[name].addcmul_(gradient, gradient)

    visit_gradients(model, encoded, _surprise, add_square, lambda done, text: progress(done, f"Fisher: {text}"))
    for total in sums.values():
        total.div_(len(encoded))
    return sums


def _surprise(model: Any, ids: Tensor) -> Tensor:
    """−log p of the most probable token after the last position."""
    logits: Tensor = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
    return -torch.log_softmax(logits[0, -1].float(), dim=-1).max()
