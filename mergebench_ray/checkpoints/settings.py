"""Settings of a configuration that must agree: equal shapes with other numbers there are another function."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.tokenizer_files import compare_tokenizers
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import full_config, known_settings

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
_MAX_SHOWN = 80
_MAX_LISTED = 4

Differences = dict[str, tuple[Any, Any]]


def compare_settings(who: str, base: Checkpoint, specialist: Checkpoint, allow: Collection[str]) -> list[str]:
    """Compare what two models compute and read, as transformers' own configurations say it where there are such.

    Unsaid settings have their defaults there, and old spellings agree with new ones.

    Args:
        who: the specialist, for messages.
        base: the base.
        specialist: the specialist.
        allow: settings that may differ although they change what a model computes.

    Returns:
        One line about everything that differs and is the base's in a merge, or none.

    Raises:
        InputError: other values of settings that change what is computed.
    """
    found = _differences(base, specialist)
    changing = {key: values for key, values in found.items() if not _is_noted(key, base, specialist)}
    refused = {key: values for key, values in changing.items() if not _is_allowed(key, allow)}
    if refused:
        first = dict(list(refused.items())[:_MAX_LISTED])
        names = dict.fromkeys(map(_name_to_allow, refused))
        raise InputError(
            f"{who}: {_listed(first)} ({base}), so equal weights compute something else; give specialists that were "
            f"fine-tuned from this base, or allow it by name: allow: [{', '.join(names)}]"
        )
    parts = [_listed({key: values}) + (" (allowed)" if key in changing else "") for key, values in found.items()]
    parts += _compare_generation(base, specialist)
    parts += compare_tokenizers(base, specialist)
    return [f"{'; '.join(parts)}: the base's are used"] if parts else []


def check_allowed(allow: Collection[str], base: Checkpoint, specialists: Mapping[str, Checkpoint]) -> None:
    """Refuse names of settings that no configuration has.

    Raises:
        InputError: naming it.
    """
    if not allow:
        return
    known: set[str] = set()
    for checkpoint in (base, *specialists.values()):
        for settings in (_flat(_plain(checkpoint)), _flat(checkpoint.config)):
            known |= {part for key in settings for part in (key, _name_to_allow(key), *key.split("."))}
    for name in allow:
        if name not in known:
            raise InputError(f"allow: {name!r} is no setting of these models; write it as config.json does")


def _differences(base: Checkpoint, specialist: Checkpoint) -> Differences:
    if not _different(_flat(base.config), _flat(specialist.config)):
        return {}
    ours, theirs = _flat(_plain(base)), _flat(_plain(specialist))
    found = _different(ours, theirs)
    if not any("sliding_attention" in (settings.get("layer_types") or []) for settings in (ours, theirs)):
        # Without such layers nobody reads these.
        unread = ("max_window_layers", "sliding_window", "use_sliding_window")
        for key in unread if "layer_types" in ours and "layer_types" in theirs else ():
            found.pop(key, None)
    return found


def _different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Differences:
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted({*ours, *theirs})
        if not _is_irrelevant(key) and not _same(ours.get(key), theirs.get(key))
    }


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration with defaults and new spellings; as it is written where transformers has no class for it."""
    full = full_config(checkpoint.config, checkpoint.folder / "config.json")
    return dict(checkpoint.config) if full is None else dict(full.to_dict())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by name; those of a nested configuration as `text_config.NAME`, of embeddings `rope_parameters.NAME`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key.endswith("_config") and key not in _DECIDED_ELSEWHERE:
            found |= _flat(value, f"{prefix}{key}.")
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


def _is_noted(key: str, base: Checkpoint, specialist: Checkpoint) -> bool:
    name = key.rpartition(".")[2]
    known = known_settings(base.config, base.folder / "config.json")
    if known is not None and key.partition(".")[0] not in known:
        # Nobody reads what the class does not have.
        return True
    if _NOTED.fullmatch(name) is None:
        return False
    return name.endswith(("_id", "_ids", "_index")) or not any(map(_counts_positions, (base, specialist)))


def _counts_positions(checkpoint: Checkpoint) -> bool:
    """Whether rotary embeddings are computed from the number of positions that a model may have."""
    settings = _flat(_plain(checkpoint))
    kinds = {key.removesuffix("rope_type"): kind for key, kind in settings.items() if key.endswith(".rope_type")}
    given = ("factor", "original_max_position_embeddings")
    return any(
        kind in _FROM_POSITIONS or (kind == "yarn" and any(settings.get(prefix + key) is None for key in given))
        for prefix, kind in kinds.items()
    )


def _name_to_allow(key: str) -> str:
    """What a setting is allowed by: rotary embeddings as a whole."""
    rope = next((name for name in _ROPE if name in key.split(".")), None)
    return key if rope is None else key[: key.index(rope) + len(rope)]


def _is_allowed(key: str, allow: Collection[str]) -> bool:
    names = {key, _name_to_allow(key), *key.split(".")}
    # The later name covers the earlier one, which a file may still use.
    return not names.isdisjoint({*allow, *(_ROPE if "rope_scaling" in allow else ())})


def _same(ours: Any, theirs: Any) -> bool:
    return ours == theirs or _written(ours) == _written(theirs)


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _listed(differences: Differences) -> str:
    return ", ".join(
        f"{key} is {_short(theirs)}, the base's is {_short(ours)}" for key, (ours, theirs) in differences.items()
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _compare_generation(base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """Other tokens that end a text, where generation_config.json says so."""
    ours, theirs = _ends(base), _ends(specialist)
    already_said = (base.config.get("eos_token_id"), specialist.config.get("eos_token_id")) == (ours, theirs)
    if ours == theirs or already_said:
        return []
    return [f"eos_token_id of generation is {_short(theirs)}, the base's is {_short(ours)}"]


def _ends(checkpoint: Checkpoint) -> Any:
    file = checkpoint.folder / "generation_config.json"
    said = read_json_object(file).get("eos_token_id") if file.is_file() else None
    return checkpoint.config.get("eos_token_id") if said is None else said
