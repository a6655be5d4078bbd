"""What can be known to be wrong with a sweep before its models are read: asked by the command line first of all.

Nothing here imports torch or vLLM, nor Ray where no scheduler of Tune is named, so that a plain mistake is answered in
a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.sources import check_there
from mergebench_ray.config import ModelRef, Suite, Sweep
from mergebench_ray.config.merged_parts import check_parts
from mergebench_ray.config.objective import FORGETTING, each_objective
from mergebench_ray.config.race import AUTO, NONE
from mergebench_ray.errors import InputError
from mergebench_ray.methods import get_method, load_methods, parse_parameters
from mergebench_ray.methods.outside import folder_of
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.objectives.goal import Goal, check_goal
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.race.items import Items
from mergebench_ray.search.race.kinds import STOPPING, check_race, make_race
from mergebench_ray.search.space import Space
from mergebench_ray.search.storage import check_storage
from mergebench_ray.watching.tracker import check_tracker


def read_sweep(sweep: Path | str | Sweep, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep, from its file where it is not one already, with everything checked that needs no model.

    Args:
        sweep: a sweep, the path of its file, or its name where it ships.
        overrides: dotted keys of the file and the values to use instead.

    Raises:
        InputError: naming file, key, value and rule.
    """
    opened = open_sweep(sweep, overrides)
    check_sweep(opened)
    return opened


def open_sweep(sweep: Path | str | Sweep, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep, from its file where it is not one already.

    Raises:
        InputError: naming file, key, value and rule; for overrides of what is no file.
    """
    if not isinstance(sweep, Sweep):
        return Sweep.from_yaml(sweep, dict(overrides or {}))
    if overrides:
        raise InputError(f"overrides ({', '.join(overrides)}) are for a sweep's file: change the Sweep itself")
    return sweep


def check_sweep(sweep: Sweep) -> None:
    """Check a sweep against its suite, its methods, its sampler and its storage.

    Raises:
        InputError: saying what is wrong.
    """
    if sweep.methods_folder is not None:
        load_methods(sweep.methods_folder)
    # A run whose sweep does not say so could be neither resumed nor explained.
    elif left := next(filter(folder_of, sweep.methods), None):
        raise InputError(
            f"sweep {sweep.name}: method {left} is known here since a folder was loaded before; say so: "
            f"methods_folder: {folder_of(left)}"
        )
    suite = sweep.load_suite()
    base, specialists = sweep.model_references(suite)
    check_domains(sweep, suite, specialists)
    scored = sweep.evaluation.domains or list(suite.domains)
    check_goal(sweep.search, scored)
    if sweep.scoring(suite) is not sweep.evaluation and not suite.forgetting:
        raise InputError(
            f"sweep {sweep.name}, search: {FORGETTING!r} is asked for, but suite {suite.name} has no tasks in its "
            "forgetting section; add some to a suite that extends it"
        )
    _check_race(sweep, [*scored, *(suite.forgetting if sweep.scoring(suite) is not sweep.evaluation else ())])
    for name in sweep.calibration.data:
        if name not in specialists:
            raise InputError(
                f"sweep {sweep.name}, calibration.data: {name!r} is not a specialist ({', '.join(specialists)})"
            )
    space = Space(sweep, list(specialists), layers=None)
    for method, parameters in space.corners():
        sees_data = bool(get_method(method).calibration_samples(parse_parameters(method, parameters)))
        check_parts(sweep.merged, method, sees_data=sees_data)
    for reference in (base, *specialists.values()):
        check_there(reference)
    from mergebench_ray.search.samplers import try_sampler

    try_sampler(sweep, space)
    if sweep.search.storage is not None:
        check_storage(sweep.search.storage)
    if sweep.tracking is not None:
        check_tracker(sweep.tracking)


def check_domains(sweep: Sweep, suite: Suite, specialists: Mapping[str, ModelRef]) -> None:
    """Check that scored domains are the suite's, and have specialists to be measured against.

    Raises:
        InputError: naming the domain.
    """
    for domain in sweep.evaluation.domains or suite.domains:
        if domain not in suite.domains:
            known = ", ".join(suite.domains)
            raise InputError(
                f"sweep {sweep.name}, evaluation.domains: {domain!r} is not in suite {suite.name} ({known})"
            )
        if domain not in specialists:
            raise InputError(
                f"sweep {sweep.name}: domain {domain!r} has no specialist of that name to be measured against, only "
                f"{', '.join(specialists)}; a specialist bears the name of its domain: rename or add it in "
                "'specialists', or list the other domains in evaluation.domains"
            )


def _check_race(sweep: Sweep, domains: Sequence[str]) -> None:
    """Check what a sweep says of its race, as far as no items are needed.

    Raises:
        InputError: as `check_race`; or constraints, or an objective, that the race does not know.
    """
    options = sweep.search.race
    check_race(options)
    if options.kind in (AUTO, NONE):
        return
    is_plain = len(each_objective(sweep.search.objective)) == 1 and not sweep.search.constraints
    if options.kind in STOPPING and is_plain:  # which need to know how many items there are
        return
    score = DomainScore(0.5, 0.01, 100)
    references = References(dict.fromkeys(domains, score), dict.fromkeys(domains, score))
    goal = Goal.of(sweep.search, references)
    make_race(options, Items.of(list(domains)), goal.objective, 2, goal.several, goal.constraints)
