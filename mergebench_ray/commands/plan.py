"""What a sweep would run and take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mergebench_ray.commands.budget import check_gpu_hours
from mergebench_ray.commands.ready_sweep import make_ready
from mergebench_ray.config import Sweep
from mergebench_ray.config.budget import MOST_CANDIDATES
from mergebench_ray.errors import InputError
from mergebench_ray.markup import terminal_text
from mergebench_ray.placement import Machine, Plan, make_plan
from mergebench_ray.placement.plan import gibibytes
from mergebench_ray.runs.spending import UNITS, amount
from mergebench_ray.search.budget import check_gpus
from mergebench_ray.search.checks import read_sweep

_GIB = 1 << 30
_MOST_GIB = 1_000_000


def plan(
    sweep: Path | str | Sweep,
    *,
    overrides: Mapping[str, Any] | None = None,
    nodes: int | None = None,
    gpus_per_node: int = 0,
    gpu_memory_gib: float = 80.0,
    host_memory_gib: float | None = None,
) -> Plan:
    """Work out what a sweep would run and how much memory it takes, without loading weights.

    Args:
        sweep: a sweep, or the path of its file.
        overrides: dotted keys of the file and the values to use instead.
        nodes: nodes to plan for; None for this machine.
        gpus_per_node: GPUs of each.
        gpu_memory_gib: GiB of each GPU.
        host_memory_gib: GiB of each node; None for what is free here.

    Raises:
        InputError: the sweep is wrong in any way that `tune` would refuse; that it does not fit is said in the plan.
    """
    for option, value in (("--gpu-memory", gpu_memory_gib), ("--host-memory", host_memory_gib)):
        if value is not None and not 0 <= value <= _MOST_GIB:
            raise InputError(f"{option} {value}: must be from 0 to {_MOST_GIB} GiB")
    checked = read_sweep(sweep, overrides)
    ready = make_ready(checked)
    if nodes is None and not gpus_per_node:
        check_gpu_hours(checked, connects=False)
    elif checked.search.budget is not None:
        check_gpus(checked.search.budget, gpus_per_node)
    models = ready.models
    here = Machine.this()
    machine = Machine(
        nodes=nodes or 1,
        gpus=gpus_per_node,
        gpu_memory=int(gpu_memory_gib * _GIB) if gpus_per_node else 0,
        host_memory=here.host_memory if host_memory_gib is None else int(host_memory_gib * _GIB),
    )
    return make_plan(checked, models.base, models.specialists, machine, ready.notes, models.judges, ready.answers)


def does_not_fit(plan: Plan) -> str:
    """Why a sweep with such a plan is refused, in one line."""
    return f"sweep {plan.sweep}: {plan.problem}"


def plan_table(plan: Plan) -> Table:
    """A plan as people read it."""
    table = Table(title=terminal_text(f"Plan of {plan.sweep}"), show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("models", f"base and {len(plan.models) - 1} specialists")
    table.add_row("parameters (merged)", f"{plan.parameters / 1e6:.1f} M ({plan.merged_parameters / 1e6:.1f} M)")
    many = "as many as the budget pays" if plan.candidates == MOST_CANDIDATES else str(plan.candidates)
    table.add_row("candidates", terminal_text(f"{many} of {', '.join(plan.methods)}"))
    if plan.budget:
        limits = " or ".join(f"{amount(limit)} {UNITS[unit]}" for unit, limit in plan.budget.items())
        table.add_row("budget", f"{limits}, references, final choice and test included")
    if plan.engines > 1:
        each = plan.engines_per_candidate == 1
        table.add_row(
            "engines", f"{plan.engines}, {'a candidate each' if each else 'sharing the items of each candidate'}"
        )
    table.add_section()
    table.add_row("answers", "those that other runs were given included")
    for part in plan.answers:
        counts = dict.fromkeys((part.least, part.most))
        table.add_row(f"answers: {part.what}", " to ".join(f"{count:,}" for count in counts))
    table.add_section()
    for need in plan.needs:
        table.add_row(terminal_text(f"{need.what} ({need.where})"), f"{need.count} x {gibibytes(need.bytes_each)}")
    table.add_section()
    machine = plan.machine
    for where, capacity, count in (
        ("host", machine.host_memory, machine.nodes),
        ("gpu", machine.gpu_memory, machine.nodes * machine.gpus),
    ):
        needed = sum(need.count * need.bytes_each for need in plan.needs if need.where == where)
        if count:
            table.add_row(f"{where} memory, needed of there", f"{gibibytes(needed)} of {gibibytes(capacity * count)}")
    return table
