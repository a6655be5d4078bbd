"""Any Optuna sampler by its class name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import optuna

from mergebench_ray.errors import InputError


def make_sampler(name: str, seed: int, options: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """Build the sampler `name` of `optuna.samplers`, seeded where it takes a seed.

    Raises:
        InputError: unknown sampler (with the closest name), or an option that it does not take.
    """
    kind = getattr(optuna.samplers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, optuna.samplers.BaseSampler)):
        known = [key for key in optuna.samplers.__all__ if key.endswith("Sampler")]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise InputError(f"search.sampler = {name!r}: no such Optuna sampler; {hint}")
    accepted = inspect.signature(kind).parameters
    seeded = {"seed": seed} if "seed" in accepted and "seed" not in options else {}
    try:
        with warnings.catch_warnings():
            # Whoever names an experimental sampler or option has chosen it.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = kind(**seeded, **options)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(
            f"search.sampler_options: {name} does not take them ({error}); see Optuna's documentation"
        ) from error
    return sampler
