"""Settings of a configuration that must agree: equal shapes with other numbers there are another function."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

# What is decided from the tensors themselves or with the architecture.
_DECIDED_ELSEWHERE = frozenset(
    {
        "model_type",
        "architectures",
        "tie_word_embeddings",
        "vocab_size",
        "quantization_config",
        "compression_config",
    }
)
# What says how a model was made, stored, trained or is called, not what it computes.
_WITHOUT_EFFECT = re.compile(
    r"_?name_or_path|transformers_version|auto_map|_.*|unsloth_.*|(?:torch_)?dtype|transformers_weights|use_cache|"
    r"use_bfloat16|torchscript|pretraining_tp|gradient_checkpointing|return_dict|use_return_dict|output_\w+|"
    r"id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|tokenizer_class|pruned_heads|"
    r"chunk_size_feed_forward|attn_implementation|experts_implementation|"
    r"\w*(?:drop|dropout|pdrop|droprate|dropout_prob|drop_rate)\w*|init(?:ializer)?_\w+|\w*_init_std|\w*initializer\w*|"
    r"\w*aux_loss\w*|\w*z_loss\w*|\w*jitter\w*|\w*_loss_coef\w*|num_nextn_predict_layers|mtp_\w+"
)
# What the base's value is used for, without another meaning of the weights.
_NOTED = re.compile(r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|\w+_token_ids?|\w+_token_index")
# What holds a mapping of settings of its own: rotary embeddings, of all layers or of each kind of them.
_ROPE = ("rope_parameters", "rope_scaling")
# Earlier names of kinds of rotary embeddings, and kinds that are computed from the number of positions.
_EARLIER_KINDS = {"su": "longrope"}
_FROM_POSITIONS = ("dynamic", "longrope")
# What layers of sliding attention read.
_OF_WINDOWS = ("max_window_layers", "sliding_window", "use_sliding_window")

Differences = dict[str, tuple[Any, Any]]


def different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Differences:
    """Flat settings that have other values and may say something about what a model computes."""
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted({*ours, *theirs})
        if not _is_irrelevant(key) and not _same(ours.get(key), theirs.get(key))
    }


def unread(*flat_settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings of sliding windows, where all models list the kinds of their layers and none has such a layer."""
    has_windows = any("sliding_attention" in (settings.get("layer_types") or []) for settings in flat_settings)
    return () if has_windows or any("layer_types" not in settings for settings in flat_settings) else _OF_WINDOWS


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by name; those of a nested configuration as `text_config.NAME`, of embeddings `rope_parameters.NAME`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key.endswith("_config") and key not in _DECIDED_ELSEWHERE:
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, dict) and key in _ROPE:
            found |= _flat_rope(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _flat_rope(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Settings of rotary embeddings, their kind under its present name; those of a kind of layers below its name."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat_rope(value, f"{prefix}{key}.")
        elif key == "rope_type" or (key == "type" and "rope_type" not in settings):
            found[f"{prefix}rope_type"] = _EARLIER_KINDS.get(str(value), value)
        elif key != "type":
            found[f"{prefix}{key}"] = value
    return found


def _is_irrelevant(key: str) -> bool:
    name = key.rpartition(".")[2]
    return name in _DECIDED_ELSEWHERE or _WITHOUT_EFFECT.fullmatch(name) is not None


def changes_nothing(key: str, *flat_settings: Mapping[str, Any]) -> bool:
    """Whether the base's value of a setting can be used without another meaning of the weights of any model."""
    name = key.rpartition(".")[2]
    if _NOTED.fullmatch(name) is None:
        return False
    return name.endswith(("_id", "_ids", "_index")) or not any(map(_counts_positions, flat_settings))


def _counts_positions(settings: Mapping[str, Any]) -> bool:
    """Whether rotary embeddings are computed from the number of positions that a model may have."""
    kinds = {key.removesuffix("rope_type"): kind for key, kind in settings.items() if key.endswith(".rope_type")}
    given = ("factor", "original_max_position_embeddings")
    return any(
        kind in _FROM_POSITIONS or (kind == "yarn" and any(settings.get(prefix + key) is None for key in given))
        for prefix, kind in kinds.items()
    )


def name_to_allow(key: str) -> str:
    """What a setting is allowed by: rotary embeddings as a whole."""
    rope = next((name for name in _ROPE if name in key.split(".")), None)
    return key if rope is None else key[: key.index(rope) + len(rope)]


def is_allowed(key: str, allow: Collection[str]) -> bool:
    """Whether a setting is among those that may differ: by its whole name, its part or its last name."""
    names = {key, name_to_allow(key), *key.split(".")}
    # The later name covers the earlier one, which a file may still use.
    return not names.isdisjoint({*allow, *(_ROPE if "rope_scaling" in allow else ())})


def _same(ours: Any, theirs: Any) -> bool:
    return ours == theirs or _written(ours) == _written(theirs)


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
