"""Any Optuna sampler by its class name."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from mergebench_ray.config import Choices, Range, SearchOptions, Sweep
from mergebench_ray.config.objective import each_objective
from mergebench_ray.errors import InputError, nearest, one_line
from mergebench_ray.search.growing import GrowingRanges, SamplerOfGrowing
from mergebench_ray.search.space import Space
from mergebench_ray.search.untried import SamplerOfUntried

AUTO = "auto"
OWN_ERROR = "own_standard_error"
"""User attribute of a trial: its value's error without the references' part, which all candidates share.

A list where there are several objectives, with None for what is not known. It is larger where the value is only an
estimate.
"""
_MOST_MODELLED = 20  # numbers of which a model learns something from a few dozen candidates
_MOST = 1_000_000  # of an option, and of the candidates that a sampler would write down one by one
_TRIED = 12  # two more than most samplers draw at random before they begin
_QUICK = 500  # numbers that are suggested a dozen times in a moment
_HUB = "optunahub:"
_SEARCH_TOGETHER = ("CmaEsSampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler", "QMCSampler")
_OF_GROWING = ("TPESampler", "RandomSampler")
_ENUMERATING = ("GridSampler", "BruteForceSampler")


class SeededByNumber(optuna.samplers.BaseSampler):
    """A sampler that proposes the same whatever was proposed before it in this process.

    It is made anew for every trial, seeded by the trial's number, and once more for each number that is not drawn
    together with the others, seeded by its name too. What a proposal depends on besides is in the study, so a search
    that goes on after an interruption proposes what it would have proposed without.

    Args:
        make: makes the sampler that draws for the trial of this number, and the one that draws its number of this name.

    Attributes:
        made_of: the sampler that was made last.
    """

    def __init__(self, make: Callable[..., optuna.samplers.BaseSampler]) -> None:
        self._make = make
        self._number, self.made_of = -1, make()

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self._number:
            self._number, self.made_of = trial.number, self._make(trial.number)
        return self.made_of

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._number = -1
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does, whichever numbers of the trial were drawn already."""
        sampler = self._make(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._of(trial).after_trial(study, trial, state, values)


def make_sampler(name: str, seed: int, options: Mapping[str, Any]) -> SeededByNumber:
    """Build the sampler `name` of `optuna.samplers`, or of optunahub, seeded by trial number where it takes a seed.

    Raises:
        InputError: unknown sampler (with the closest name), or an option that it does not take.
    """
    kind = _of_the_hub(name) if name.startswith(_HUB) else getattr(optuna.samplers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, optuna.samplers.BaseSampler)):
        known = [key for key in optuna.samplers.__all__ if key.endswith("Sampler")]
        raise InputError(f"search.sampler = {name!r:.80}: no such Optuna sampler; {nearest(name, known)}")
    kind = {"GridSampler": _Grid, "BruteForceSampler": _BruteForce, "QMCSampler": _QMC}.get(name, kind)
    accepted = inspect.signature(kind).parameters
    seed = options.get("seed", seed)

    def make(*draw: int | str) -> optuna.samplers.BaseSampler:
        given = dict(options)
        if "seed" in accepted:
            given["seed"] = seed if kind in (_Grid, _QMC) else _seed(seed, *draw)
        with _its_errors(name):
            if kind is _QMC:  # else every number that it does not draw itself were the same in all trials
                given.setdefault("independent_sampler", optuna.samplers.RandomSampler(_seed(seed, *draw)))
            sampler: optuna.samplers.BaseSampler = kind(**given)
        return sampler

    return SeededByNumber(make)


def _of_the_hub(name: str) -> Any:
    """What a name such as ``optunahub:auto_sampler.AutoSampler`` stands for: a folder of its samplers, and a class."""
    try:
        import optunahub
    except ImportError:
        raise InputError(
            f"search.sampler = {name!r:.80}: the package optunahub is not installed; pip install optunahub, or name "
            "one of Optuna's own samplers"
        ) from None
    folder, _, kind = name.removeprefix(_HUB).rpartition(".")
    try:
        return getattr(optunahub.load_module(f"samplers/{folder}"), kind)
    except Exception as error:  # whatever its download or its module raises
        raise InputError(
            f"search.sampler = {name!r:.80}: cannot be loaded ({one_line(error)}); write {_HUB}FOLDER.CLASS, as "
            f"in {_HUB}auto_sampler.AutoSampler"
        ) from error


def random_draws(options: SearchOptions, space: Space) -> list[str]:
    """What a sampler draws at random although its name promises more, a line each."""
    name, found = options.sampler, []
    if name in _SEARCH_TOGETHER and len(space.methods) > 1:
        found.append(
            f"search.sampler = {name!r} draws hyper-parameters at random where there are several methods: it searches "
            "only what every candidate has; take auto, or one method"
        )
    elif name == "CmaEsSampler":
        choices = [
            key
            for key, one in space.distributions(space.methods[0]).items()
            if isinstance(one, CategoricalDistribution) and not one.single()
        ]
        if choices:
            found.append(f"search.sampler = {name!r} draws {', '.join(choices):.200} at random: it searches no choices")
    return found


def auto_fallback(options: SearchOptions, space: Space) -> list[str]:
    """That `auto` is not the Gaussian process that it is elsewhere, and why, in a line; none where it is."""
    if options.sampler != AUTO or (reason := _why_not_modelled(options, space)) is None:
        return []
    return [f"search.sampler = {AUTO!r} is TPESampler here: the Gaussian process {reason}"]


def _why_not_modelled(options: SearchOptions, space: Space) -> str | None:
    most = max(len(space.distributions(method)) for method in space.methods)
    if most > _MOST_MODELLED:
        return f"is for up to {_MOST_MODELLED} numbers of a method, and there are {most}"
    if options.constraints:
        return "knows nothing of search.constraints"
    if len(each_objective(options.objective)) > 1 and len(space.methods) > 1:
        return "is for one method where there are several objectives"
    return None


def search_sampler(options: SearchOptions, space: Space) -> SamplerOfUntried:
    """The sampler that a sweep names, or with `auto` what searches its space best; it proposes nothing for ever.

    Raises:
        InputError: as `make_sampler`, or options without a name of what takes them.
    """
    ranges = GrowingRanges(space)
    sampler: optuna.samplers.BaseSampler = _named_sampler(options, space, grows=bool(ranges))
    return SamplerOfUntried(SamplerOfGrowing(sampler, ranges) if ranges else sampler, space, options.seed)


def _named_sampler(options: SearchOptions, space: Space, *, grows: bool) -> SeededByNumber:
    if grows:
        _check_growing(options)
    if options.sampler != AUTO:
        return make_sampler(options.sampler, options.seed, options.sampler_options)
    _check_auto(options)
    methods = {method: space.distributions(method) for method in space.methods}
    has_front = len(each_objective(options.objective)) > 1
    if _why_not_modelled(options, space) is not None:
        # By groups it would look at the ranges that numbers had first.
        growing = {"multivariate": len(methods) == 1}
        return make_sampler("TPESampler", options.seed, growing if grows else {"multivariate": True, "group": True})
    from mergebench_ray.search.front_proposals import FrontSampler  # scipy takes half a second
    from mergebench_ray.search.gaussian_process import GaussianProcessSampler

    kind = FrontSampler if has_front else GaussianProcessSampler

    def make(*draw: int | str) -> optuna.samplers.BaseSampler:
        seed = _seed(options.seed, *draw)
        return kind(methods, OWN_ERROR, seed=seed, sequence_seed=options.seed)

    return SeededByNumber(make)


def _seed(seed: int, *draw: int | str) -> int:
    """A seed for what is drawn for a trial, or for one of its numbers; the sweep's where nothing is drawn."""
    return zlib.crc32(repr((seed, *draw)).encode()) if draw else seed


def try_sampler(sweep: Sweep, space: Space) -> None:
    """Let the sweep's sampler propose candidates of its space, to find options that only fail when they are used.

    Raises:
        InputError: an option of a wrong type or out of its range, or a space that the sampler cannot search.
    """
    name, options = sweep.search.sampler, sweep.search.sampler_options
    if name == AUTO:
        _check_auto(sweep.search)
        if GrowingRanges(space):
            _check_growing(sweep.search)
        return  # fits every space
    if name in _ENUMERATING:
        _check_enumerable(sweep)
    for key, value in options.items():
        if key != "seed" and isinstance(value, int) and abs(value) > _MOST:
            raise InputError(f"search.sampler_options.{key} = {value}: more than {_MOST}")
    count = len(each_objective(sweep.search.objective))
    try:
        _try(sweep.search, space, count)
    except InputError as error:
        if count == 1:
            raise
        _try(sweep.search, space, 1)  # what is wrong with one objective, too, is said as that
        reason = one_line(error.__cause__ or error)
        raise InputError(
            f"search.sampler = {name!r:.80}: it cannot search for {count} objectives ({reason}); "
            "take auto, TPESampler, NSGAIISampler, or one objective"
        ) from error


def _try(options: SearchOptions, space: Space, objectives: int) -> None:
    sampler = search_sampler(options, space)
    with _its_errors(options.sampler):
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        for number in range(_TRIED if space.num_numbers <= _QUICK else 2):
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, [number / _TRIED] * objectives)


def _check_auto(options: SearchOptions) -> None:
    if options.sampler_options:
        raise InputError(
            f"search.sampler_options: {AUTO} has none; name the sampler that takes them, such as sampler: TPESampler"
        )


def _check_growing(options: SearchOptions) -> None:
    """Refuse what does not look at a trial's own ranges."""
    if len(each_objective(options.objective)) > 1:
        raise InputError("search.objective: a range that grows (grow_to) knows one objective; leave grow_to out")
    if options.sampler not in (AUTO, *_OF_GROWING) or options.sampler_options.get("group"):
        of_groups = " by groups" if options.sampler in _OF_GROWING else ""
        raise InputError(
            f"search.sampler = {options.sampler!r:.80}{of_groups} keeps the ranges that it has seen first, and knows "
            f"of none that grows (grow_to); take {AUTO}, {' or '.join(_OF_GROWING)}, or leave grow_to out"
        )


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


class _QMC(optuna.samplers.QMCSampler):
    """Its place in the sequence is the trial's number, not a count that a proposal lost with its process would move."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._place = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


@contextmanager
def _its_errors(name: str) -> Iterator[None]:
    """Turn whatever a sampler raises into one line."""
    # Not by its verbosity: each change of a logger's level makes all thousands of loggers look for theirs again.
    handlers = list(logging.getLogger("optuna").handlers)
    for handler in handlers:
        handler.addFilter(_is_error)
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
        for handler in handlers:
            handler.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
