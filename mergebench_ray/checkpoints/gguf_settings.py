"""Whether a GGUF file's settings are a model's own, so that equal weights compute the same with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.families.configuration import full_config

REMEDY = "give a GGUF file of the model's own base"
COMPUTED = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
"""Tensors that follow from settings of a model."""
_SCALING = "rope.scaling"
_NUMBERS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    f"{_SCALING}.original_context_length": "original_max_position_embeddings",
}
"""Compared where both sides say something."""
_SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
"""What llama.cpp takes for Gemma-2 where a file does not say; other models have none then."""
_CLOSE = 1e-6
_FACTORS_CLOSE = 1e-3  # of factors that two programs computed in float32


@dataclass(frozen=True)
class GgufSettings:
    """What a GGUF file says besides its weights.

    Attributes:
        file: the file.
        architecture: its `general.architecture`.
        metadata: gguf's fields, by key.
        tensors: gguf's tensors, by name.
    """

    file: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """A setting of the architecture; None where there is none."""
        field = self.metadata.get(f"{self.architecture}.{key}")
        return None if field is None else field.contents()

    def require_those_of(self, model: Checkpoint) -> None:
        """Refuse settings that are not a model's.

        Raises:
            InputError: naming the first.
        """
        full = full_config(model.config, model.config_file)
        rope = _rope(full)
        for key, setting in _NUMBERS.items():
            theirs, ours = self.value(key), _number(full, rope, setting)
            if theirs is not None and ours is not None:
                self._require_equal(key, theirs, setting, ours, model)
        for setting, unsaid in _SOFT_CAPS.items():
            theirs = self.value(setting)
            theirs = theirs if theirs is not None else unsaid if self.architecture == "gemma2" else 0.0
            self._require_equal(setting, theirs, setting, _number(full, rope, setting) or 0.0, model)
        self._require_scaling(model, full, rope)

    def _require_equal(self, key: str, theirs: Any, setting: str, ours: float, model: Checkpoint) -> None:
        if not isinstance(theirs, int | float) or not math.isclose(theirs, ours, rel_tol=_CLOSE):
            raise InputError(
                f"{self.file}: {self.architecture}.{key} is {theirs}, the model's {setting} {ours} ({model}); {REMEDY}"
            )

    def _require_scaling(self, model: Checkpoint, full: Any, rope: Mapping[str, Any]) -> None:
        """Refuse another scaling of rotations, of which a file says some kinds by tensors alone."""
        kind = rope.get("rope_type") or "default"
        ours, theirs = "none" if kind == "default" else str(kind), self._scaling()
        if ours != theirs:
            raise InputError(f"{self.file}: its rope scaling is {theirs}, the model's {ours} ({model}); {REMEDY}")
        if ours in ("linear", "yarn") and (factor := self._factor()) is not None:
            wanted = rope.get("factor") or 1.0
            self._require_equal(f"{_SCALING}.factor", factor, "factor of rope scaling", wanted, model)
        for name, factors in _factors(model, full, rope, ours).items():
            if not _are_close(self.tensors.get(name), factors):
                raise InputError(f"{self.file}: {name!r} is not what the model's settings give ({model}); {REMEDY}")

    def _scaling(self) -> str:
        """How rotations are scaled, by the names of transformers."""
        said, factor = self.value(f"{_SCALING}.type"), self._factor()
        found = set() if said in (None, "none") else {str(said)}
        if said in (None, "linear"):  # which is what llama.cpp takes where it is not said
            found = set() if factor in (None, 0, 1) else {"linear"}
        for begin, kind in zip(COMPUTED, ("llama3", "longrope", "longrope"), strict=True):
            if any(name.startswith(begin) for name in self.tensors):
                found.add(kind)
        return " and ".join(sorted(found)) or "none"

    def _factor(self) -> Any:
        factor = self.value(f"{_SCALING}.factor")
        return self.value("rope.scale_linear") if factor is None else factor


def _rope(full: Any) -> Mapping[str, Any]:
    """How a model rotates; its layers of full attention where kinds of layers do so in their own way."""
    found = getattr(full, "rope_parameters", None) or {}
    return found["full_attention"] if isinstance(found.get("full_attention"), dict) else found


def _number(full: Any, rope: Mapping[str, Any], name: str) -> float | None:
    value = getattr(full, name, None)
    value = rope.get(name) if value is None else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _factors(model: Checkpoint, full: Any, rope: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """What wavelengths are multiplied with, by the name of the tensor that says so in a GGUF file."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    try:
        if kind == "longrope":
            return {f"rope_factors_{one}.weight": torch.tensor(rope[f"{one}_factor"]) for one in ("long", "short")}
        if kind == "llama3":
            scaled, _ = ROPE_INIT_FUNCTIONS[kind](full, torch.device("cpu"))
            plain = float(rope["rope_theta"]) ** -(torch.arange(len(scaled)) / len(scaled))
            return {"rope_freqs.weight": plain / scaled}
    except Exception as error:  # other people's code on other people's data
        raise InputError(
            f"{model.config_file}: its {kind} rope scaling cannot be read ({one_line(error)}); mend the file"
        ) from error
    return {}


def _are_close(tensor: Any, factors: Tensor) -> bool:
    import gguf

    if tensor is None:
        return False
    found = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).flatten()
    return found.shape == factors.shape and torch.allclose(found.float(), factors.float(), rtol=_FACTORS_CLOSE)
