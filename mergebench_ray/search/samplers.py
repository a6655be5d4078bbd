"""Any Optuna sampler by its class name."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import optuna

from mergebench_ray.config import Choices, Range, Sweep
from mergebench_ray.errors import InputError, nearest, one_line
from mergebench_ray.search.space import Space

_MOST = 1_000_000  # of an option, and of the candidates that a sampler would write down one by one
_TRIED = 12  # two more than most samplers draw at random before they begin
_QUICK = 500  # numbers that are suggested a dozen times in a moment
_ENUMERATING = ("GridSampler", "BruteForceSampler")


def make_sampler(name: str, seed: int, options: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """Build the sampler `name` of `optuna.samplers`, seeded where it takes a seed.

    Raises:
        InputError: unknown sampler (with the closest name), or an option that it does not take.
    """
    kind = getattr(optuna.samplers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, optuna.samplers.BaseSampler)):
        known = [key for key in optuna.samplers.__all__ if key.endswith("Sampler")]
        raise InputError(f"search.sampler = {name!r:.80}: no such Optuna sampler; {nearest(name, known)}")
    accepted = inspect.signature(kind).parameters
    seeded = {"seed": seed} if "seed" in accepted and "seed" not in options else {}
    kind = {"GridSampler": _Grid, "BruteForceSampler": _BruteForce}.get(name, kind)
    with _its_errors(name):
        sampler: optuna.samplers.BaseSampler = kind(**seeded, **options)
    return sampler


def try_sampler(sweep: Sweep, space: Space) -> None:
    """Let the sweep's sampler propose candidates of its space, to find options that only fail when they are used.

    Raises:
        InputError: an option of a wrong type or out of its range, or a space that the sampler cannot search.
    """
    name, options = sweep.search.sampler, sweep.search.sampler_options
    if name in _ENUMERATING:
        _check_enumerable(sweep)
    for key, value in options.items():
        if key != "seed" and isinstance(value, int) and abs(value) > _MOST:
            raise InputError(f"search.sampler_options.{key} = {value}: more than {_MOST}")
    sampler = make_sampler(name, sweep.search.seed, options)
    with _its_errors(name):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for number in range(_TRIED if space.num_numbers <= _QUICK else 2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, number / _TRIED)


def _check_enumerable(sweep: Sweep) -> None:
    """Refuse spaces that would be written out without end."""
    search_space = sweep.search.sampler_options.get("search_space", {})
    grid = search_space.values() if isinstance(search_space, Mapping) else ()
    counts = [len(values) for values in grid if isinstance(values, list)]
    ranges = [p for method in sweep.methods.values() for p in method.values() if isinstance(p, Range | Choices)]
    if sweep.search.sampler == "BruteForceSampler":
        counts = [int(one.high - one.low) for one in ranges if isinstance(one, Range) and one.integer]
    if math.prod(counts) > _MOST:
        raise InputError(
            f"search.sampler = {sweep.search.sampler!r}: more than {_MOST} candidates to write down; narrow the space, "
            "or choose another sampler"
        )


# Both stop a study when they have been everywhere, which Optuna refuses where Tune asks for candidates.
class _Grid(optuna.samplers.GridSampler):
    def after_trial(self, *arguments: Any) -> None:
        with suppress(RuntimeError):
            super().after_trial(*arguments)


class _BruteForce(optuna.samplers.BruteForceSampler):
    def after_trial(self, *arguments: Any) -> None:
        with suppress(RuntimeError):
            super().after_trial(*arguments)


@contextmanager
def _its_errors(name: str) -> Iterator[None]:
    """Turn whatever a sampler raises into one line."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Whoever names an experimental sampler or option has chosen it.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise InputError(
            f"search.sampler_options: {name} does not take them ({one_line(error)}); see Optuna's documentation"
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)
