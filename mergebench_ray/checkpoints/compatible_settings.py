"""Making sure that base and specialists have the settings that must agree, and saying which others differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.checkpoints.tokenizer_files import compare_tokenizers
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import full_config, known_settings
from mergebench_ray.families.settings import (
    Differences,
)

_MAX_SHOWN = 80
_MAX_LISTED = 4


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
    rules = base.family.settings
    found = _differences(base, specialist)
    changing = {key: values for key, values in found.items() if not _is_noted(key, base, specialist)}
    refused = {key: values for key, values in changing.items() if not rules.is_allowed(key, allow)}
    if refused:
        first = dict(list(refused.items())[:_MAX_LISTED])
        names = dict.fromkeys(map(rules.name_to_allow, refused))
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
    rules = base.family.settings
    known: set[str] = set()
    for checkpoint in (base, *specialists.values()):
        for settings in (rules.flat(_plain(checkpoint)), rules.flat(checkpoint.config)):
            known |= {part for key in settings for part in (key, rules.name_to_allow(key), *key.split("."))}
    for name in allow:
        if name not in known:
            raise InputError(f"allow: {name!r} is no setting of these models; write it as config.json does")


def _differences(base: Checkpoint, specialist: Checkpoint) -> Differences:
    rules = base.family.settings
    if not rules.different(rules.flat(base.config), rules.flat(specialist.config)):
        return {}
    ours, theirs = rules.flat(_plain(base)), rules.flat(_plain(specialist))
    nobodys = rules.unread(ours, theirs)
    return {key: values for key, values in rules.different(ours, theirs).items() if key not in nobodys}


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration with defaults and new spellings; as it is written where transformers has no class for it."""
    full = full_config(checkpoint.config, checkpoint.config_file)
    return dict(checkpoint.config) if full is None else dict(full.to_dict())


def _is_noted(key: str, base: Checkpoint, specialist: Checkpoint) -> bool:
    known = known_settings(base.config, base.config_file)
    if known is not None and key.partition(".")[0] not in known:
        # Nobody reads what the class does not have.
        return True
    rules = base.family.settings
    return rules.changes_nothing(key, rules.flat(_plain(base)), rules.flat(_plain(specialist)))


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
