"""A merge of models that are in memory, to a state dict; the passes are those of every merge, and so are the bits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mergebench_ray.checkpoints import fit
from mergebench_ray.checkpoints.in_memory import MemoryCheckpoint, MergedInMemory
from mergebench_ray.config import MergedParts
from mergebench_ray.config.names import require_names
from mergebench_ray.errors import InputError
from mergebench_ray.methods import complete_parameters, get_method, parse_parameters
from mergebench_ray.progress import Progress


class LoadedModel(Protocol):
    """What is asked of a model, such as transformers' `PreTrainedModel`."""

    config: Any

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""


logger = logging.getLogger(__name__)

ModelInMemory = Mapping[str, Tensor] | LoadedModel


def refuse_of_memory(options: Sequence[str]) -> None:
    """Refuse options that are for models on disk.

    Args:
        options: those that were given.

    Raises:
        InputError: naming one.
    """
    if options:
        raise InputError(
            f"{options[0]}: is for models on disk; models in memory merge to a state dict, which "
            "model.load_state_dict(...) takes and model.save_pretrained(...) writes"
        )


def merge_in_memory(
    method: str | None,
    base: Any,
    specialists: Mapping[str, Any],
    parameters: Mapping[str, Any],
    config: Any,
    allow: Collection[str],
    parts: MergedParts,
    progress: Progress,
) -> dict[str, Tensor]:
    """Merge; arguments, result and errors are those of `merge`."""
    if method is None or base is None or not specialists:
        raise InputError("give method, base and at least one specialist")
    require_names(specialists, "specialists")
    found = _checkpoint("base", base, config).merging(parts)
    others = {name: _checkpoint(f"specialist {name!r}", one, None, found) for name, one in specialists.items()}
    completed = complete_parameters(method, parameters, sorted(others), found.num_layers)
    if get_method(method).calibration_samples(parse_parameters(method, completed)):
        raise InputError(f"{method} reads data, for which models must be on disk: give folders, and calibration")

    from mergebench_ray.bank import StreamedBank

    fitted = fit(found, others, allow)
    for note in fitted.notes:
        logger.warning(note)
    bank = StreamedBank(found, fitted.specialists, progress=progress)
    merged = MergedInMemory(found)
    bank.merge(method, completed, merged)
    return _as_loaded(_state_of("base", base), found, merged.tensors)


def _checkpoint(name: str, model: Any, config: Any, base: MemoryCheckpoint | None = None) -> MemoryCheckpoint:
    """A model in memory, with the configuration that is given, else its own, else its base's."""
    state = _state_of(name, model)
    given = config if config is not None else getattr(model, "config", None)
    if given is not None:
        given = given.to_dict() if hasattr(given, "to_dict") else given
    elif base is not None:
        given = base.config
    if not isinstance(given, Mapping):
        raise InputError(
            f"config: {name} is a state dict, which does not say what model it is of; give its configuration"
        )
    return MemoryCheckpoint(name, state, given)


def _state_of(name: str, model: Any) -> Mapping[str, Tensor]:
    if hasattr(model, "state_dict"):
        model = model.state_dict()
    if isinstance(model, Mapping) and model:
        return model
    what = "empty" if isinstance(model, Mapping) else f"of type {type(model).__name__}"
    what = "a reference to disk" if isinstance(model, str | Path) else what
    raise InputError(f"{name}: is {what}, others are in memory; give state dicts or models for all of them")


def _as_loaded(state: Mapping[str, Tensor], base: MemoryCheckpoint, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The merge with the names of the base's state dict, in its order, so that a model loads it."""
    table = next((one for name, one in merged.items() if base.family.is_token_embedding(name)), None)
    found = {}
    for name, tensor in state.items():
        if name in merged:
            found[name] = merged[name]
        elif name in base.tied_heads and table is not None:
            found[name] = table
        else:  # what is computed from the configuration
            found[name] = tensor.detach().to("cpu", copy=True)
    return found
