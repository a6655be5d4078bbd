"""Settings of a configuration that must agree: equal shapes with other numbers there are another function."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from mergebench_ray.config.fields import Strict

Differences = dict[str, tuple[Any, Any]]


class SettingRules(Strict):
    """Which settings of a configuration say what a model computes.

    Settings are flat: by name, those of a nested configuration as `text_config.NAME`.

    Attributes:
        decided_elsewhere: settings that are judged with the tensors or the architecture.
        without_effect: patterns of settings that say how a model was made, stored, trained or is called.
        of_the_base: pattern of settings of which the base's value is used, without another meaning of the weights.
        rotary: settings that hold those of rotary embeddings, the present name first.
        earlier_rotary_kinds: earlier names of kinds of rotary embeddings, and the present ones.
        rotary_kinds_from_positions: kinds that are computed from the number of positions.
        of_sliding_windows: settings that only layers of sliding attention read.
    """

    decided_elsewhere: frozenset[str]
    without_effect: tuple[re.Pattern[str], ...]
    of_the_base: re.Pattern[str]
    rotary: tuple[str, ...]
    earlier_rotary_kinds: Mapping[str, str]
    rotary_kinds_from_positions: tuple[str, ...]
    of_sliding_windows: tuple[str, ...]

    def different(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Differences:
        """Flat settings that have other values and may say something about what a model computes."""
        return {
            key: (ours.get(key), theirs.get(key))
            for key in sorted({*ours, *theirs})
            if not self._is_irrelevant(key) and not _same(ours.get(key), theirs.get(key))
        }

    def unread(self, *flat_settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Settings of sliding windows, where all models list the kinds of their layers and none has such a layer."""
        has_windows = any("sliding_attention" in (settings.get("layer_types") or []) for settings in flat_settings)
        all_list_kinds = all("layer_types" in settings for settings in flat_settings)
        return self.of_sliding_windows if all_list_kinds and not has_windows else ()

    def flat(self, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Settings by name; those of rotary embeddings as `rope_parameters.NAME`."""
        found: dict[str, Any] = {}
        for key, value in settings.items():
            if isinstance(value, dict) and key.endswith("_config") and key not in self.decided_elsewhere:
                found |= self.flat(value, f"{prefix}{key}.")
            elif isinstance(value, dict) and key in self.rotary:
                found |= self._flat_rope(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value
        return found

    def _flat_rope(self, settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Settings of rotary embeddings, their kind under its present name; those of some layers below their name."""
        found: dict[str, Any] = {}
        for key, value in settings.items():
            if isinstance(value, dict):
                found |= self._flat_rope(value, f"{prefix}{key}.")
            elif key == "rope_type" or (key == "type" and "rope_type" not in settings):
                found[f"{prefix}rope_type"] = self.earlier_rotary_kinds.get(str(value), value)
            elif key != "type":
                found[f"{prefix}{key}"] = value
        return found

    def _is_irrelevant(self, key: str) -> bool:
        name = key.rpartition(".")[2]
        return name in self.decided_elsewhere or any(one.fullmatch(name) for one in self.without_effect)

    def changes_nothing(self, key: str, *flat_settings: Mapping[str, Any]) -> bool:
        """Whether the base's value of a setting can be used without another meaning of the weights of any model."""
        name = key.rpartition(".")[2]
        if self.of_the_base.fullmatch(name) is None:
            return False
        return name.endswith(("_id", "_ids", "_index")) or not any(map(self._counts_positions, flat_settings))

    def _counts_positions(self, settings: Mapping[str, Any]) -> bool:
        """Whether rotary embeddings are computed from the number of positions that a model may have."""
        kinds = {key.removesuffix("rope_type"): kind for key, kind in settings.items() if key.endswith(".rope_type")}
        given = ("factor", "original_max_position_embeddings")
        return any(
            kind in self.rotary_kinds_from_positions
            or (kind == "yarn" and any(settings.get(prefix + key) is None for key in given))
            for prefix, kind in kinds.items()
        )

    def name_to_allow(self, key: str) -> str:
        """What a setting is allowed by: rotary embeddings as a whole."""
        rope = next((name for name in self.rotary if name in key.split(".")), None)
        return key if rope is None else key[: key.index(rope) + len(rope)]

    def is_allowed(self, key: str, allow: Collection[str]) -> bool:
        """Whether a setting is among those that may differ: by its whole name, its part or its last name."""
        names = {key, self.name_to_allow(key), *key.split(".")}
        # The later name covers the earlier one, which a file may still use.
        return not names.isdisjoint({*allow, *(self.rotary if "rope_scaling" in allow else ())})


def _same(ours: Any, theirs: Any) -> bool:
    return ours == theirs or _written(ours) == _written(theirs)


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
