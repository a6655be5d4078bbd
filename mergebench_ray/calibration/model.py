"""Models for calibration, filled from any checkpoint: a whole one, or one transformer layer at a time.

Tested on Llama (tied and untied heads) and Gemma-2 (soft-capping, extra norms, sliding windows, scaled embeddings).
Other decoders of the same build (embeddings, a list `layers`, a last `norm`) should work, but were not tried.

Shapes: B = batch size, L = longest sample of the batch, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from mergebench_ray.calibration.samples import Batch
from mergebench_ray.checkpoints import Checkpoint, TensorInfo
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.families import family_of
from mergebench_ray.families.configuration import full_config

_READ_BLOCK = 1 << 22
_OF_LINEAR_LAYERS = frozenset({"gram", "layerwise"})
_CANNOT = "it cannot be calibrated; use a method that needs no calibration data"
_ONE_AT_A_TIME = "it cannot be merged layer by layer; use another method"


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Build a checkpoint's model and fill it tensor by tensor, so that no second copy of the weights ever exists.

    Returns:
        The model in evaluation mode, no parameter asking for gradients; a tied head is tied to the embeddings.

    Raises:
        InputError: if transformers does not know the architecture, or has other parameters than the checkpoint.
    """
    model = _skeleton(checkpoint, dtype, device)
    _require_parameters(model, checkpoint)
    for name, parameter in list(model.named_parameters()):
        place_parameter(model, name, read_parameter(checkpoint, name, parameter.shape, dtype, device))
    model.tie_weights()
    return model


def read_parameter(
    checkpoint: Checkpoint, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Read a whole tensor in pieces, each converted as it comes.

    Raises:
        InputError: if the checkpoint has no such tensor, or one of another shape.
    """
    info = _require_parameter(checkpoint, name, shape)
    values = torch.empty(info.numel, dtype=dtype, device=device)
    for start in range(0, info.numel, _READ_BLOCK):
        count = min(_READ_BLOCK, info.numel - start)
        values[start : start + count] = checkpoint.read(name, start, count)
    return values.view(info.shape)


def place_parameter(module: nn.Module, name: str, values: Tensor) -> None:
    """Put a tensor where a module has its parameter `name`; it asks for no gradient."""
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, nn.Parameter(values, requires_grad=False))


def require_calibratable(checkpoint: Checkpoint, kinds: Collection[str]) -> None:
    """Refuse a model of which the statistics that take data cannot be computed; reads no weights.

    Args:
        checkpoint: the base.
        kinds: names of the statistics.

    Raises:
        InputError: naming what the model has otherwise.
    """
    model = _skeleton(checkpoint, torch.bfloat16, torch.device("cpu"))
    _require_parameters(model, checkpoint)
    if _OF_LINEAR_LAYERS.intersection(kinds):
        require_linear_layers(model)
    if "layerwise" in kinds:
        LayerStack(checkpoint, torch.bfloat16, torch.device("cpu"))


def require_linear_layers(model: PreTrainedModel) -> None:
    """Refuse a model that has merged matrices which are not linear layers, so have no inputs to look at.

    Raises:
        InputError: naming one.
    """
    family = family_of(model.config.model_type)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and family.is_merged(name) and name not in linear:
            raise InputError(f"{name!r} of {type(model).__name__} is no linear layer, so {_CANNOT}")


def _require_parameters(model: nn.Module, checkpoint: Checkpoint) -> None:
    for name, parameter in model.named_parameters():
        _require_parameter(checkpoint, name, parameter.shape)


def _require_parameter(checkpoint: Checkpoint, name: str, shape: Sequence[int]) -> TensorInfo:
    info = checkpoint.tensors.get(name)
    if info is None:
        raise InputError(f"{checkpoint}: its file has no {name!r}, which transformers' model needs, so {_CANNOT}")
    if info.shape != tuple(shape):
        raise InputError(
            f"{checkpoint}: {name!r} has shape {list(info.shape)}, its configuration needs {list(shape)}, so {_CANNOT}"
        )
    return info


class LayerStack:
    """A model of which at most one transformer layer has weights; the other layers hand on what they are given.

    transformers' own model runs around that layer, so it gets attention mask, positions and rotary embeddings exactly
    as it does in the whole model.

    Args:
        base: checkpoint of the architecture and of the embeddings.
        dtype: type of weights and hidden states.
        device: where both are.

    Attributes:
        family: the base's.
        num_layers: number of transformer layers.
    """

    def __init__(self, base: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self._base, self._dtype, self._device = base, dtype, device
        self.family = base.family
        model = _skeleton(base, dtype, device)
        layout = self.family.decoder
        layers = getattr(model.base_model, layout.layers, None)
        if not isinstance(layers, nn.ModuleList) or not hasattr(model.base_model, layout.norm):
            raise InputError(f"{base}: {type(model).__name__} is not a list of layers and a norm, so {_ONE_AT_A_TIME}")
        _require_parameters(model, base)
        require_linear_layers(model)
        self._prefix = f"{model.base_model_prefix}."
        self._backbone: Any = model.base_model
        self._layers = list(layers)
        self._places = nn.ModuleList(_HandOn() for _ in self._layers)
        setattr(self._backbone, layout.layers, self._places)
        setattr(self._backbone, layout.norm, _HandOn())
        self.num_layers = len(self._layers)

    def shapes(self, index: int) -> dict[str, torch.Size]:
        """Shapes of a layer's tensors by their names in the checkpoint."""
        prefix = self.prefix(index)
        return {prefix + name: parameter.shape for name, parameter in self._layers[index].named_parameters()}

    def prefix(self, index: int) -> str:
        """What the names of a layer's tensors begin with in the checkpoint."""
        return f"{self._prefix}{self.family.decoder.layers}.{index}."

    def embed(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Hidden states (B, L, D) that enter the first layer; the base's embeddings are in memory only meanwhile."""
        name, embedding = next(
            (name, module)
            for name, module in self._backbone.named_modules()
            if module is self._backbone.get_input_embeddings()
        )
        name = f"{name}.weight"
        shape = embedding.weight.shape
        values = read_parameter(self._base, self._prefix + name, shape, self._dtype, self._device)
        place_parameter(self._backbone, name, values)
        hidden = [self._forward(batch, input_ids=batch.input_ids.to(self._device)) for batch in batches]
        place_parameter(self._backbone, name, torch.empty(shape, device="meta"))
        return hidden

    @contextmanager
    def filled(self, index: int, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Give a layer its weights, by their names in the checkpoint, for the duration of a `with` block.

        Raises:
            KeyError: if one is missing.
        """
        layer = self._layers[index]
        prefix = self.prefix(index)
        for name, shape in self.shapes(index).items():
            values = weights[name].to(self._device, self._dtype).view(shape)
            place_parameter(layer, name.removeprefix(prefix), values)
        self._places[index] = layer
        try:
            yield layer
        finally:
            self._places[index] = _HandOn()
            layer.to("meta")

    def run(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, D) after the layer that has weights, of those that enter it."""
        return self._forward(batch, inputs_embeds=hidden)

    def _forward(self, batch: Batch, **inputs: Tensor) -> Tensor:
        mask = batch.attention_mask.to(self._device)
        with torch.no_grad():
            output: Tensor = self._backbone(attention_mask=mask, use_cache=False, **inputs).last_hidden_state
        return output


class _HandOn(nn.Module):
    """Stands in for a layer or norm without weights."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


def _skeleton(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """The model with its parameters on the meta device: shapes without memory. Buffers are real."""
    kind = checkpoint.config.get("model_type")
    config = full_config(checkpoint.config, checkpoint.config_file)
    if config is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{checkpoint}: the installed transformers has no language model {kind!r}, so {_CANNOT}")
    config.use_cache = False
    attention = checkpoint.family.decoder.attention(config)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except Exception as error:  # other people's code on other people's data
        raise InputError(
            f"{checkpoint}: transformers makes no model of it ({one_line(error)}), so {_CANNOT}"
        ) from error
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(device))
    return model.requires_grad_(False).eval()
