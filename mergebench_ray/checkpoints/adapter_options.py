"""What an adapter's configuration says of its factors: rank and scale of each, and what lies beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError

REMEDY = "apply it with peft's merge_and_unload, save the model and give its folder instead"
# Each of these changes what the factors mean, or what else is stored beside them.
_NOT_UNDERSTOOD = (
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Initialisations that also change the base's own weights, so that the factors alone do not give the specialist.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_TYPES: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "bias": (str,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "modules_to_save": (list, str),
    "lora_bias": (bool,),
    "target_parameters": (list,),
}
_LISTS = ("modules_to_save", "target_parameters")
_BIASES = ("none", "all", "lora_only")
_MAX_RANK = 1 << 20
_MAX_ALPHA = 1e30
_MAX_SHOWN = 100


@dataclass(frozen=True)
class AdapterOptions:
    """The settings of a LoRA adapter.

    Attributes:
        rank: of the factors, where no pattern says otherwise.
        alpha: what the product is multiplied with, before it is divided by the rank.
        ranks: patterns of modules' names -> rank.
        alphas: patterns of modules' names -> alpha.
        divides_by_root: whether the product is divided by the square root of the rank (rsLoRA).
        has_magnitudes: whether rows of a changed weight are scaled to lengths of their own (DoRA).
        has_biases: whether biases are stored beside the factors.
        changes_biases: whether what is added to biases is stored with the factors.
        parameters: ends of names of parameters that have factors of their own, experts' among them.
        saved_modules: names of modules that are stored whole.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    divides_by_root: bool
    has_magnitudes: bool
    has_biases: bool
    changes_biases: bool
    parameters: tuple[str, ...]
    saved_modules: tuple[str, ...]

    @classmethod
    def of(cls, file: Path, options: Mapping[str, Any]) -> AdapterOptions:
        """The options of an adapter_config.json.

        Raises:
            InputError: naming what is no LoRA whose arithmetic is known here, or wrong.
        """
        _refuse_unless_known(file, options)
        ranks = {key: _rank(file, f"rank_pattern.{key}", one) for key, one in _pattern(file, options, "rank_pattern")}
        alphas = {
            key: _alpha(file, f"alpha_pattern.{key}", one) for key, one in _pattern(file, options, "alpha_pattern")
        }
        saved = options.get("modules_to_save") or []
        return cls(
            rank=_rank(file, "r", options.get("r")),
            alpha=_alpha(file, "lora_alpha", options.get("lora_alpha")),
            ranks=ranks,
            alphas=alphas,
            divides_by_root=bool(options.get("use_rslora")),
            has_magnitudes=bool(options.get("use_dora")),
            has_biases=options.get("bias") not in (None, "none"),
            changes_biases=bool(options.get("lora_bias")),
            parameters=tuple(options.get("target_parameters") or ()),
            saved_modules=tuple([saved] if isinstance(saved, str) else saved),
        )

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors."""
        return self.ranks.get(_matching(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied with."""
        rank = self.rank_of(module)
        alpha = self.alphas.get(_matching(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.divides_by_root else rank)

    def targets(self, name: str) -> bool:
        """Whether a parameter has factors of its own, as peft looks for it."""
        return any(name == one or name.endswith(f".{one}") for one in self.parameters)

    def stores_whole(self, name: str) -> bool:
        """Whether a tensor that is no factor has its place in the adapter: in a module that is saved, or as a bias."""
        *modules, leaf = name.split(".")
        paths = [".".join(modules[: count + 1]) for count in range(len(modules))]
        # As peft looks for them.
        is_saved = any(path.endswith(one) for path in paths for one in self.saved_modules)
        return is_saved or (self.has_biases and leaf == "bias")


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that fits a module's name, as peft looks for it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _refuse_unless_known(file: Path, options: Mapping[str, Any]) -> None:
    if options.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {shown(options.get('peft_type'))} is not LORA; {REMEDY}")
    for key in _NOT_UNDERSTOOD:
        if options.get(key):
            raise InputError(f"{file}: {key} = {shown(options[key])} is not known here; {REMEDY}")
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(f"{file}: init_lora_weights = {shown(start)} also changes the base's weights; {REMEDY}")
    for key, kinds in _TYPES.items():
        if options.get(key) is not None and not isinstance(options[key], kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{file}: {key} = {shown(options[key])} must be of type {names}; mend the file")
    if options.get("bias") not in (None, *_BIASES):
        raise InputError(f"{file}: bias = {shown(options['bias'])} is none of {', '.join(_BIASES)}; mend the file")
    for key in _LISTS:
        for name in options.get(key) or []:
            if not isinstance(name, str):
                raise InputError(f"{file}: {key} holds {shown(name)}, where a name is expected; mend the file")


def _pattern(file: Path, options: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    patterns = options.get(key) or {}
    for pattern in patterns:
        try:
            re.compile(f"({pattern})")
        except re.error as error:
            raise InputError(f"{file}: {key}: {shown(pattern)} is no pattern ({error}); mend the file") from error
    return list(patterns.items())


def _rank(file: Path, key: str, rank: Any) -> int:
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise InputError(f"{file}: {key} = {shown(rank)} must be a whole number >= 1; mend the file")
    return rank


def _alpha(file: Path, key: str, alpha: Any) -> float:
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= _MAX_ALPHA:
        raise InputError(f"{file}: {key} = {shown(alpha)} must be a finite number; mend the file")
    return float(alpha)


def shown(value: Any) -> str:
    """A value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
