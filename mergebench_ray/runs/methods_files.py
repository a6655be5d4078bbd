"""Files of methods of the user's own, kept in a run's folder: a search goes on with the code that began it."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.config import Sweep
from mergebench_ray.files import whole_folder
from mergebench_ray.methods import get_method
from mergebench_ray.outside_code import OutsideCode, code_of
from mergebench_ray.runs.run_folder import RunFolder


def changed_method(run: RunFolder, sweep: Sweep) -> str | None:
    """Which method has other code than a run was begun with, and what to do about it; None where all have the same.

    Args:
        run: its folder; where that keeps no files of methods, there is nothing to compare with.
        sweep: its methods are known in this process.
    """
    kept = {file.name: file.read_bytes() for file in run.methods_folder.glob("*.py")}
    for name, code in _codes(sweep).items():
        before = kept.get(Path(code.path).name)
        if kept and before != code.source.encode():
            what = "has changed" if before is not None else "was in another file"
            return (
                f"{code.path}: method {name} {what} since the run was begun (its files then: {run.methods_folder}); "
                "undo the change, or start a new run with another --out"
            )
    return None


def keep_methods(run: RunFolder, sweep: Sweep) -> None:
    """Keep the files of a sweep's methods, in place of those that were kept before."""
    codes = {Path(code.path).name: code for code in _codes(sweep).values()}
    if codes or run.methods_folder.exists():
        with whole_folder(run.methods_folder, replace=run.methods_folder.exists()) as temporary:
            for name, code in codes.items():
                (temporary / name).write_bytes(code.source.encode())


def _codes(sweep: Sweep) -> dict[str, OutsideCode]:
    if sweep.methods_folder is None:
        return {}
    found = {name: code_of(type(get_method(name))) for name in sweep.methods}
    return {name: code for name, code in found.items() if code is not None}
