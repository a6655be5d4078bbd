"""Gram matrices of the inputs of linear layers, for RegMean.

Shapes: B = batch size, L = longest sample of the batch, D = number of inputs of a linear layer, R = rows, the tokens of
all samples without padding. A linear layer's input is X (R, D), its Gram matrix G = XᵀX / R (D, D).

Source: Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mergebench_ray.calibration.model import require_linear_layers
from mergebench_ray.calibration.samples import Batch
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily, family_of
from mergebench_ray.progress import Progress


@dataclass(frozen=True)
class Grams:
    """Gram matrices of all merged linear layers.

    Layers that read the very same input (queries, keys and values; gate and up projection) form a group with one
    matrix. A group has the name of its first layer's weight.

    Attributes:
        matrices: (D, D) float32 of each group.
        group_of: the group of each linear layer's weight.
        rows: R, the same for all.
    """

    matrices: dict[str, Tensor]
    group_of: dict[str, str]
    rows: int


class GramCollector:
    """Adds up XᵀX, in fp32, of the linear layers of a module that runs inside a `with` block.

    Call `expect` before each forward pass. Which layers share an input is seen in the first pass.

    Args:
        module: a whole model, or one of its layers.
        family: says which of its linear layers are merged.
        prefix: what comes before the module's names in the checkpoint.
    """

    def __init__(self, module: nn.Module, family: ModelFamily, prefix: str = "") -> None:
        self._linears = _merged_linears(module, family, prefix)
        self._hooks: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._group_of: dict[str, str] = {}
        self._rows = 0
        self._is_token: Tensor | None = None
        self._last_input: Tensor | None = None
        self._last_group = ""

    def __enter__(self) -> GramCollector:
        for name, linear in self._linears.items():
            self._hooks.append(linear.register_forward_pre_hook(partial(self._see, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._last_input = None

    def expect(self, batch: Batch, device: torch.device) -> None:
        """Announce the batch of the next forward pass, whose padding does not count."""
        self._is_token = batch.attention_mask.to(device).bool()
        self._rows += int(batch.attention_mask.sum())

    def grams(self) -> Grams:
        """The matrices; the collector is empty afterwards.

        Raises:
            InputError: naming the layer whose input was NaN or infinite.
        """
        matrices, self._sums = self._sums, {}
        for name, matrix in matrices.items():
            if not bool(torch.isfinite(matrix.div_(self._rows)).all()):
                raise InputError(
                    f"calibration: the input of {name!r} is NaN or infinite; check the specialist's weights and samples"
                )
        return Grams(matrices, self._group_of, self._rows)

    def _see(self, name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        (values,) = arguments
        if name not in self._group_of:
            self._group_of[name] = self._last_group if values is self._last_input else name
        # Holding on to the input keeps Python from giving its identity to the next one.
        self._last_input, self._last_group = values, self._group_of[name]
        if self._group_of[name] == name:
            rows = values.detach()[self._is_token].float()
            if name not in self._sums:
                self._sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            self._sums[name].addmm_(rows.T, rows)


def _merged_linears(module: nn.Module, family: ModelFamily, prefix: str) -> dict[str, nn.Linear]:
    """The linear layers whose weights are merged, by the name of the weight in the checkpoint."""
    named = {f"{prefix}{name}.weight": child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    return {name: linear for name, linear in named.items() if family.is_merged(name)}


def gram_matrices(model: Any, batches: Sequence[Batch], progress: Progress | None = None) -> Grams:
    """Run batches through a model and collect the Gram matrices of all merged linear layers.

    Memory above the model and the result: the activations of one layer for one batch.

    Raises:
        InputError: naming the layer whose input was NaN or infinite.
    """
    require_linear_layers(model)
    device = next(model.parameters()).device
    with GramCollector(model, family_of(model.config.model_type)) as collector, torch.no_grad():
        for number, batch in enumerate(batches):
            if progress:
                progress(number / len(batches), f"Gram matrices: batch {number + 1} of {len(batches)}")
            collector.expect(batch, device)
            # The backbone alone: logits are the largest activation and no Gram matrix needs them.
            model.base_model(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
            )
        return collector.grams()
