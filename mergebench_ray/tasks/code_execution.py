"""Whether generated programs may run here, asked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.sandbox.runner import allow_weak_sandbox, weak_points
from mergebench_ray.tasks.groups import planned_tasks
from mergebench_ray.tasks.task_files import task_manager

_REMEDY = (
    "use Linux 5.13 or newer with Landlock enabled, leave the domain out, or, where nothing on this machine has to be "
    "guarded, set evaluation.allow_weak_sandbox: true (--allow-weak-sandbox)"
)


def check_code_execution(task: str, options: EvaluationOptions) -> None:
    """Let this process run generated programs as the options allow it.

    Args:
        task: one that runs programs.
        options: of the evaluation.

    Raises:
        InputError: it is not allowed, or the system cannot isolate programs and a weak sandbox is not allowed.
    """
    if not options.allow_code_execution:
        raise InputError(
            f"task {task} runs generated programs; set evaluation.allow_code_execution: true to allow it, "
            "or leave its domain out"
        )
    lacking = _lacking()
    if lacking and not options.allow_weak_sandbox:
        raise InputError(f"task {task} runs generated programs, {lacking}; {_REMEDY}")
    allow_weak_sandbox(options.allow_weak_sandbox)


def code_execution_notes(suite: Suite, options: EvaluationOptions, splits: Iterable[str]) -> list[str]:
    """A line if tasks of the chosen domains run programs and this system cannot isolate them."""
    if not options.allow_code_execution:
        return []
    manager = task_manager(suite)
    tasks = (planned_tasks(suite, domain, split) for split in splits for domain in options.domains or suite.domains)
    running = {one.name for some in tasks for one in some if one.file(manager, suite).get("unsafe_code")}
    if not running or not (lacking := _lacking()):
        return []
    which = f"{', '.join(sorted(running))}: generated programs"
    if options.allow_weak_sandbox:
        return [f"{which} run in a weak sandbox, {lacking}"]
    return [f"{which} are refused on this machine, {lacking}; {_REMEDY}"]


def _lacking() -> str:
    try:
        points = weak_points()
    except RuntimeError as error:
        raise InputError(f"{error}; run `mergebench-ray doctor`") from error
    return f"from which this system cannot guard {' and '.join(points)}" if points else ""
