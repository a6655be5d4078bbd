"""What the Tab key offers for a word that was begun, without a slow import; where it is nothing, shells offer files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from mergebench_ray.errors import InputError


def method_completions(incomplete: str) -> list[str]:
    """Names of methods."""
    from mergebench_ray.methods import method_names

    return _begun(method_names(), incomplete)


def suite_completions(incomplete: str) -> list[str]:
    """Names of built-in suites."""
    from mergebench_ray.config.suite import built_in_suites

    return _begun(built_in_suites(), incomplete)


def shipped_sweep_completions(incomplete: str) -> list[str]:
    """Names of sweeps that ship."""
    from mergebench_ray.config.sweep import built_in_sweeps

    return _begun(built_in_sweeps(), incomplete)


def sweep_completions(incomplete: str) -> list[str]:
    """Names of sweeps that ship, and sweep files here; nothing where anything on the disk begins as the word does."""
    if incomplete and _beginning(incomplete):
        return []
    return [*shipped_sweep_completions(incomplete), *sorted(map(str, Path().glob("*.y*ml")))]


def sweep_or_suite_completions(incomplete: str) -> list[str]:
    """Names of sweeps and suites, as `sweep_completions`."""
    return (
        [] if incomplete and _beginning(incomplete) else sweep_completions(incomplete) + suite_completions(incomplete)
    )


def run_completions(incomplete: str) -> list[str]:
    """Folders of runs, here, in `runs/` and where the word leads."""
    from mergebench_ray.runs.run_folder import RunFolder

    folders = [*Path().glob("*"), *Path("runs").glob("*"), *_beginning(incomplete)]
    return sorted(_begun({str(path) for path in folders if RunFolder(path).sweep_file.is_file()}, incomplete))


def task_completions(context: typer.Context, incomplete: str) -> list[str]:
    """Domains and tasks of the suite that was given before, after those of the word that a comma ends."""
    from mergebench_ray.config import Suite

    split = str(context.params.get("split") or "test")
    try:
        suite = Suite.load(str(context.params["suite"]))
    except (InputError, KeyError):
        return []
    before, comma, begun = incomplete.rpartition(",")
    names = dict.fromkeys(
        [*suite.domains, *suite.forgetting, *(task for one in suite.scored.values() for task in one.tasks_of(split))]
    )
    chosen = before.split(",")
    return [f"{before}{comma}{name}" for name in _begun(names, begun) if name not in chosen]


def split_completions(incomplete: str) -> list[str]:
    """The splits."""
    from mergebench_ray.config.fields import DATA_SPLITS

    return _begun(DATA_SPLITS, incomplete)


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _beginning(incomplete: str) -> list[Path]:
    """What lies on the disk under names that begin so."""
    folder, slash, begun = incomplete.rpartition("/")
    try:
        return [path for path in Path(f"{folder}{slash}").iterdir() if path.name.startswith(begun)]
    except OSError:
        return []
