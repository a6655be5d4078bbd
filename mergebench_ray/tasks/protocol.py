"""How a suite's settings change an lm-eval task: decoding, few-shot count, and which items each split has."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mergebench_ray.config.suite import TaskSettings
from mergebench_ray.digests import hashed_number

# Of the length that an identifier may have; int() refuses texts of thousands of digits.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")

DECODING_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_answer_tokens": "max_gen_toks",
    "max_total_tokens": "max_total_tokens",
}


def data_split(config: Mapping[str, Any], settings: TaskSettings, split: str) -> str | None:
    """The data set's own name of the split that items are taken from; None where the task has none.

    A task without a split for test is asked what lm-eval asks it: its validation split.

    Args:
        config: the task file.
        settings: the suite's.
        split: "validation" or "test".
    """
    test = settings.test_split or config.get("test_split") or config.get("validation_split")
    if split == "test" or settings.held_out_by:
        return test
    return settings.validation_split or config.get("validation_split")


def overrides(
    config: Mapping[str, Any],
    settings: TaskSettings,
    split: str,
    from_files: bool,
    gen_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Keys of the task file that have to be replaced; empty for a task that is used as it is.

    A task builds all of its splits, asked for or not. Where the suite says which split is meant, or files of a user
    take a data set's place, it is left with the one that is scored and, if it shows examples, the one they are from.

    Args:
        config: the task file.
        settings: the suite's.
        split: "validation" or "test".
        from_files: whether its data come from local files.
        gen_kwargs: options of generation that replace the task's and the suite's.
    """
    changed: dict[str, Any] = {}
    if settings.num_fewshot is not None:
        changed["num_fewshot"] = settings.num_fewshot
    decoding = settings.decoding.model_dump(exclude_none=True)
    if (samples := decoding.pop("samples", None)) is not None:
        changed["repeats"] = samples
    chosen = {DECODING_NAMES[name]: value for name, value in decoding.items()}
    if "temperature" in chosen:
        chosen["do_sample"] = chosen["temperature"] > 0
    if is_generated(config):
        chosen |= gen_kwargs
    if chosen:
        changed["generation_kwargs"] = {**(config.get("generation_kwargs") or {}), **chosen}
    if from_files or settings.test_split or settings.validation_split or settings.held_out_by:
        other = "validation" if split == "test" else "test"
        changed |= {f"{split}_split": data_split(config, settings, split), f"{other}_split": None}
        if not changed.get("num_fewshot", config.get("num_fewshot")):
            changed |= {"training_split": None, "fewshot_split": None, "fewshot_config": {"samples": []}}
    return changed


def is_generated(config: Mapping[str, Any]) -> bool:
    """Whether a task's answers are texts that the model writes."""
    return bool(config.get("output_type", "generate_until") == "generate_until")


def key_text(value: Any) -> str:
    """One text for a key, however data write it: ``12``, ``12.0`` and ``"12"`` are one key, ``"012"`` another."""
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    return value


def in_split(document: Mapping[str, Any], settings: TaskSettings, split: str, share: float) -> bool:
    """Whether an item belongs to a split, where validation and test divide one split of the data.

    The hash is of the field's value alone: the same on every machine and in every version of the data, and equal for
    translations of one item that share an id.

    Args:
        document: holds the field `settings.held_out_by`.
        settings: the suite's.
        split: "validation" or "test".
        share: of items that validation gets.
    """
    if settings.held_out_by is None:
        return True
    key = key_text(document[settings.held_out_by])
    place = hashed_number(key, 8) / 2**64
    return (place < share) == (split == "validation")


def cluster_key(document: Mapping[str, Any], fields: Sequence[str]) -> str:
    """What items with the same values in these fields share, whatever task they are of."""
    return hashlib.sha256(key_text([document[name] for name in fields]).encode()).hexdigest()[:16]
