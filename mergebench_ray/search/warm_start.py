"""Candidates of earlier runs that a search begins with (`search.warm_start`): found, copied, told to its study.

Everything is checked and copied before anything starts, so that a run never needs the others again.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergebench_ray.config import Fixed, Range, Recipe, Sweep
from mergebench_ray.config.fields import expanded
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, read_trials, searched
from mergebench_ray.search.earlier_items import versions_that_matter
from mergebench_ray.search.kept_items import kept_digests
from mergebench_ray.search.space import METHOD, Space

if TYPE_CHECKING:
    from mergebench_ray.search.records import Records
    from mergebench_ray.search.study import RunStudy

_KEY = "search.warm_start"
_OUTSIDE = "do not lie in this sweep's space"
_OTHER_CONSTRAINTS = "were stopped by a race with other constraints"
_NO_ITEMS = "lack the file of their scored items"


@dataclass(frozen=True)
class Taken:
    """A candidate of another run.

    Attributes:
        run: name of that run's folder.
        suggestion: what this search's study would have suggested.
        trial: its row there.
        items: file of its scored items there; None of one that the race stopped, or once they are copied.
        asked: digest of what that run's base was asked, and under which conditions.
        references: what base and specialists scored there, which an estimate is measured by.
    """

    run: str
    suggestion: Mapping[str, Any]
    trial: Trial
    items: Path | None = None
    asked: str = ""
    references: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What candidates of other runs are held against.

    Attributes:
        sweep: the sweep, whose space and objective they have to share.
        space: what it may try.
        base: digest of the base.
        specialists: digests of the specialists.
        items: digest of the validation items.
        recipe: the recipe of a method with its hyper-parameters.
    """

    sweep: Sweep
    space: Space
    base: str
    specialists: Mapping[str, str]
    items: str
    recipe: Callable[[str, dict[str, Any]], Recipe]


def matching_folders(patterns: Iterable[str], own: Path | None = None) -> list[Path]:
    """The folders that paths and patterns name, as far as they are there; a run's own is none of them."""
    found = (Path(name) for pattern in patterns for name in _matches(pattern))
    mine = None if own is None else own.resolve()
    return list({folder.resolve(): folder for folder in found if folder.resolve() != mine}.values())


def find_candidates(wanted: Wanted, own: Path | None = None) -> tuple[list[Taken], list[str]]:
    """The candidates of other runs that a search begins with, each model once, and what is to be said of them.

    Args:
        wanted: what they have to be.
        own: the run's own folder, which a pattern may match.

    Raises:
        InputError: a pattern that matches nothing, a folder that is no run, or one of other models, other items or
            another objective, or without any candidate that lies in the space.
    """
    patterns = wanted.sweep.search.warm_start
    for pattern in patterns:
        if not matching_folders([pattern], own):
            raise InputError(f"{_KEY}: {pattern!r:.300} matches no folder; check the path, or leave it out")
    kept: dict[str, Taken] = {}
    notes = []
    for folder in matching_folders(patterns, own):
        found, left_out = _candidates_of(folder, wanted)
        notes += [f"{_KEY}: {count} candidates of {folder} {why} and are left out" for why, count in left_out.items()]
        for one in found:
            before = kept.get(one.trial.digest)
            if before is None or (before.trial.role, one.trial.role) == ("stopped", "candidate"):
                kept[one.trial.digest] = one
    return list(kept.values()), notes


def keep(run: RunFolder, candidates: Sequence[Taken]) -> list[str]:
    """Copy candidates into a run's folder; what is to be said of those whose items have gone since they were found."""
    kept, gone = [], Counter[str]()
    for one in candidates:
        try:
            if one.items is not None:
                with whole_file(run.items_file(one.trial.digest, one.trial.split)) as temporary:
                    shutil.copyfile(one.items, temporary)
        except FileNotFoundError:
            gone[one.run] += 1
        else:
            kept.append(one)
    _write(run, kept)
    return [f"{_KEY}: {count} candidates of {name} {_NO_ITEMS} and are left out" for name, count in gone.items()]


def read(run: RunFolder) -> list[Taken]:
    """What `keep` wrote; nothing where it did not.

    Raises:
        InputError: it is damaged.
    """
    try:
        return [
            Taken(
                line["run"],
                line["suggestion"],
                Trial.from_json(line["record"]),
                asked=line["asked"],
                references=line["references"],
            )
            for line in JsonLines(run.warm_start_file).read()
        ]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{run.warm_start_file}: damaged, or written by another version; restore it from a copy, or start a new "
            "run with another --out"
        ) from error


def begin_with(run: RunFolder, store: TrialStore, records: Records, study: RunStudy, space: Space) -> list[str]:
    """Make candidates of other runs rows of this one and the first trials of its study, unless they are already.

    Those that were not scored as this run scores are left out for good.

    Args:
        run: has what `keep` wrote.
        store: the run's trials, references included.
        records: say what they come to against the references of this run.
        study: gets them before the first proposal.
        space: what may be tried.

    Returns:
        what is to be said of them.

    Raises:
        InputError: what `keep` wrote is damaged.
    """
    notes: list[str] = []
    candidates = read(run)
    rows = [row for row in searched(store.trials()) if row.taken_from]
    if candidates and not rows:
        candidates, notes = _scored_alike(candidates, run, store, records)
        rows = [records.taken_over(one.trial, one.run, number) for number, one in enumerate(candidates)]
        store.extend(rows)
    for row, one in zip(rows, candidates, strict=True):
        study.add(row, one.suggestion, space)
    if candidates:
        stopped = sum(one.trial.role == "stopped" for one in candidates)
        names = ", ".join(dict.fromkeys(one.run for one in candidates))
        notes.append(f"the search begins with {len(candidates)} candidates of {names}, {stopped} of them stopped there")
    return notes


def _scored_alike(
    candidates: Sequence[Taken], run: RunFolder, store: TrialStore, records: Records
) -> tuple[list[Taken], list[str]]:
    """Those that were scored as this run scores; the others are forgotten, with a line for each run."""
    asked, references = records.asked("validation"), _reference_scores(store.trials())
    alike, others = [], Counter[str]()
    for one in candidates:
        items = run.items_file(one.trial.digest, one.trial.split)
        if one.trial.role == "candidate":
            is_alike = kept_digests(items) == asked
        else:  # its items were not kept, but what its run asked its references was
            is_alike = one.asked == canonical_digest(sorted(asked))
            is_alike &= versions_that_matter(one.trial.versions) == versions_that_matter(records.versions)
            is_alike &= one.references == references
        if is_alike:
            alike.append(one)
            continue
        others[one.run] += 1
        if all(row.digest != one.trial.digest for row in store.trials()):
            items.unlink(missing_ok=True)
    if others:
        _write(run, alike)
    left = {one.run for one in alike}
    notes = [
        f"{_KEY}: {count} candidates of {name} were scored under other versions, settings or device and are left out"
        f"{'' if name in left else '; none of that run is left'}"
        for name, count in others.items()
    ]
    return alike, notes


def _reference_scores(trials: Iterable[Trial]) -> dict[str, float]:
    """What a run's candidates are measured against on validation."""
    return {
        f"{row.role} {row.name} in {domain}": result.score
        for row in trials
        if row.role in ("base", "specialist") and row.split == "validation"
        for domain, result in row.domains.items()
    }


def _matches(pattern: str) -> Iterator[str]:
    path = expanded(pattern)
    if path.exists():  # before it is taken for a pattern: names may hold brackets
        yield str(path)
    elif glob.has_magic(str(path)):
        yield from (name for name in sorted(glob.glob(str(path))) if Path(name).is_dir())


def _write(run: RunFolder, candidates: Iterable[Taken]) -> None:
    lines = [
        {
            **{"run": one.run, "suggestion": one.suggestion, "record": one.trial.to_json()},
            **{"asked": one.asked, "references": one.references},
        }
        for one in candidates
    ]
    with whole_file(run.warm_start_file) as temporary:
        temporary.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def _candidates_of(folder: Path, wanted: Wanted) -> tuple[list[Taken], Counter[str]]:
    """A run's candidates that can be taken, and why how many others cannot."""
    run = RunFolder(folder)
    if not (run.sweep_file.is_file() and run.trials_file.is_file()):
        raise InputError(f"{_KEY}: {folder} is no run that has scored anything (no trials.parquet); name another")
    trials = read_trials(folder)
    sweep = Sweep.from_yaml(run.sweep_file)
    base = _check_alike(folder, sweep, trials, wanted)
    same_constraints = sweep.search.constraints == wanted.sweep.search.constraints
    asked = canonical_digest(sorted(kept_digests(run.items_file(base.digest, base.split))))
    references = _reference_scores(trials)
    found, left_out = [], Counter[str]()
    for row in searched(trials):
        suggestion = _suggestion(row, wanted)
        items = run.items_file(row.digest, row.split) if row.role == "candidate" else None
        if suggestion is None:
            left_out[_OUTSIDE] += 1
        elif other := _difference(row, wanted.recipe(*wanted.space.candidate(suggestion))):
            left_out[other] += 1
        elif row.role == "stopped" and not same_constraints:  # how far it is from ours, nobody knows
            left_out[_OTHER_CONSTRAINTS] += 1
        elif items is not None and not items.is_file():
            left_out[_NO_ITEMS] += 1
        else:
            found.append(Taken(folder.resolve().name, suggestion, row, items, asked, references))
    if not found:
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.items())
        none = f"it has no candidate to begin with ({reasons})" if reasons else "it has scored no candidate yet"
        raise InputError(f"{_KEY}: {folder}: {none}; leave it out")
    return found, left_out


def _difference(row: Trial, recipe: Recipe) -> str:
    """Why a candidate is not what this sweep's recipe makes; empty where it is."""
    if recipe.digest == row.digest:
        return ""
    if recipe.parameters != row.parameters:
        return _OUTSIDE  # by a number that the sweep holds fixed
    code = ", or by other code of the method" if recipe.method_source else ""
    return "were made of other specialists" + code + (", or calibrated on other samples" if recipe.calibration else "")


def _check_alike(folder: Path, sweep: Sweep, trials: Sequence[Trial], wanted: Wanted) -> Trial:
    """Refuse a run whose scores say nothing of this sweep's candidates; its base's row.

    Raises:
        InputError: saying what is another.
    """
    scored = [row for row in trials if row.split == "validation"]
    base = next((row for row in scored if row.role == "base"), None)
    if base is None:
        raise InputError(f"{_KEY}: {folder} has not scored its base yet; name another run, or wait for it")
    others = [row.name for row in scored if row.role == "specialist" and wanted.specialists.get(row.name) != row.digest]
    if base.digest != wanted.base or others:
        what = f"the specialist {others[0]}" if others else "the base"
        raise InputError(f"{_KEY}: {folder} is a run of other models: {what} is not this sweep's; leave it out")
    if base.items_digest != wanted.items:
        raise InputError(
            f"{_KEY}: {folder} was scored on other validation items than this sweep's: another suite, other data, "
            "domains, judges or numbers of items; leave it out"
        )
    there, here = sweep.search.objective, wanted.sweep.search.objective
    if there != here:
        raise InputError(f"{_KEY}: {folder} searched for {there!r:.200}, this sweep for {here!r:.200}; leave it out")
    return base


def _suggestion(row: Trial, wanted: Wanted) -> dict[str, Any] | None:
    """What the study would have suggested; None of what does not lie in the space."""
    searched_of = wanted.sweep.methods.get(str(row.method))
    if searched_of is None:
        return None
    point = {METHOD: row.method}
    for name, parameter in searched_of.items():
        if not isinstance(parameter, Fixed):
            per = isinstance(parameter, Range) and parameter.per == "specialist"
            groups = parameter.layer_groups if isinstance(parameter, Range) else 1
            point[name] = _as_searched(row.parameters.get(name), per_specialist=per, groups=groups)
    try:
        [suggestion] = wanted.space.points([point])
    except InputError:
        return None
    return suggestion


def _as_searched(value: Any, *, per_specialist: bool, groups: int) -> Any:
    """A complete hyper-parameter as a point has it.

    Equal numbers that are searched as one are one; of neighbouring groups of layers, where they are written once, they
    are one a group again.
    """
    if isinstance(value, Mapping):
        parts = {name: _as_searched(one, per_specialist=True, groups=groups) for name, one in value.items()}
        return next(iter(parts.values())) if not per_specialist and _are_equal(parts.values()) else parts
    if isinstance(value, list) and groups == 1 and _are_equal(value):
        return value[0]
    if isinstance(value, list) and value and groups % len(value) == 0:
        return [number for number in value for _ in range(groups // len(value))]
    return value


def _are_equal(values: Iterable[Any]) -> bool:
    some = list(values)
    return bool(some) and all(one == some[0] for one in some)
