"""RegMean++: Gram matrices layer by layer, on the activations that the already merged layers produce.

Shapes: B = batch size, L = longest sample of the batch, D = hidden size; a linear weight is (out, in).

Source: RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging, arXiv 2508.03121.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mergebench_ray.calibration.gram import GramCollector, Grams
from mergebench_ray.calibration.model import LayerStack, read_parameter
from mergebench_ray.calibration.samples import Batch, Encoded, batches
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.errors import InputError, about
from mergebench_ray.progress import Progress

Layer = dict[str, Tensor]
"""A layer's tensors in bf16 by their names in the checkpoint."""

Solve = Callable[[dict[str, list[Tensor]], dict[str, list[Tensor]], dict[str, str]], dict[str, Tensor]]
"""Merges the linear layers of one transformer layer.

Gets the Gram matrices of each group, one per specialist; the weights of each linear layer, the base's first, then one
per specialist; and the group of each weight. All in float32. Returns each merged weight, (out, in) in float32.
"""


def merge_layer_by_layer(
    base: Checkpoint,
    specialists: Mapping[str, Checkpoint],
    encoded: Mapping[str, Sequence[Encoded]],
    solve: Solve,
    *,
    batch_size: int,
    pad_id: int,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    emit: Callable[[str, Tensor], None],
) -> None:
    """Merge each layer's linear weights from what the merged layers before it make of every specialist's data.

    The inputs of the first layer are the base's embeddings. Norms and biases of a merged layer are the plain average.

    Memory: one layer of each specialist with its Gram matrices, and the hidden states of all data, B·L·D numbers of
    `dtype` for each batch of each specialist; never a whole model.

    Args:
        base: checkpoint of the base.
        specialists: checkpoints by name; merged in the order of the sorted names.
        encoded: each specialist's own samples, by the same names.
        solve: merges the linear layers of one transformer layer.
        batch_size: B.
        pad_id: token that fills up short samples.
        dtype: type of weights and hidden states while they run.
        device: where they run.
        progress: told about each layer of each specialist.
        emit: gets name and value (bf16) of each merged linear weight, in the order of the layers.

    Raises:
        InputError: if a specialist has no samples, or an input of a layer was NaN or infinite.
    """
    names = sorted(specialists)
    for name in names:
        if not encoded.get(name):
            raise InputError(f"specialist {name!r} has no calibration samples: name data for it")
    stack = LayerStack(base, dtype, device)
    data = {name: batches(encoded[name], batch_size, pad_id) for name in names}
    hidden = {name: stack.embed(data[name]) for name in names}
    for index in range(stack.num_layers):
        layers, grams = [], []
        for k, name in enumerate(names):
            done = (index + k / len(names)) / stack.num_layers
            progress(done, f"layer {index + 1} of {stack.num_layers}: {name}")
            layers.append(_read_layer(stack, index, specialists[name]))
            with about(f"specialist {name} ({specialists[name]})"):
                grams.append(_grams_of_layer(stack, index, layers[-1], data[name], hidden[name], device))
        merged = _merge_layer(_read_layer(stack, index, base), layers, grams, solve)
        for weight in grams[0].group_of:
            emit(weight, merged[weight])
        # The last layer's outputs are nobody's inputs.
        if index + 1 < stack.num_layers:
            with stack.filled(index, merged):
                for name in names:
                    _advance(stack, data[name], hidden[name])


def _read_layer(stack: LayerStack, index: int, checkpoint: Checkpoint) -> Layer:
    """Read a layer in bf16, as the bank holds it, on the CPU."""
    cpu = torch.device("cpu")
    return {
        name: read_parameter(checkpoint, name, shape, torch.bfloat16, cpu)
        for name, shape in stack.shapes(index).items()
    }


def _grams_of_layer(
    stack: LayerStack, index: int, layer: Layer, data: list[Batch], hidden: list[Tensor], device: torch.device
) -> Grams:
    with stack.filled(index, layer) as module, GramCollector(module, stack.family, stack.prefix(index)) as collector:
        for batch, states in zip(data, hidden, strict=True):
            collector.expect(batch, device)
            stack.run(batch, states)
    return collector.grams()


def _merge_layer(base: Layer, layers: list[Layer], grams: list[Grams], solve: Solve) -> Layer:
    """The linear weights as they are solved, everything else the plain average; each rounded once to bf16."""
    group_of = grams[0].group_of
    matrices = {group: [each.matrices[group] for each in grams] for group in grams[0].matrices}
    weights = {name: [layer[name].float() for layer in (base, *layers)] for name in group_of}
    merged = {name: weight.bfloat16().cpu() for name, weight in solve(matrices, weights, group_of).items()}
    return merged | {
        name: _average(base[name], [layer[name] for layer in layers]) for name in base if name not in merged
    }


def _average(base: Tensor, specialists: list[Tensor]) -> Tensor:
    """θ₀ + mean of the task vectors, which are differences in bf16; sums in float32."""
    total = torch.zeros(base.shape)
    for values in specialists:
        total += values - base
    return (base.float() + total * (1.0 / len(specialists))).bfloat16()


def _advance(stack: LayerStack, data: list[Batch], hidden: list[Tensor]) -> None:
    """Replace hidden states by what the layer that has weights makes of them, one batch at a time."""
    for number, batch in enumerate(data):
        hidden[number] = stack.run(batch, hidden[number])
