"""What a sweep would run and take, and what would sit where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from mergebench_ray.checkpoints.headers import is_here
from mergebench_ray.commands.models import Models
from mergebench_ray.commands.ready_sweep import ReadySweep, make_ready
from mergebench_ray.commands.sweep_models import resolve_headers_of
from mergebench_ray.config import Suite, Sweep
from mergebench_ray.config.budget import MOST_CANDIDATES
from mergebench_ray.config.fields import DataSplit, Split
from mergebench_ray.config.objective import each_objective
from mergebench_ray.config.transports import READ_DEVICES
from mergebench_ray.errors import InputError
from mergebench_ray.machine import available_memory
from mergebench_ray.markup import terminal_text
from mergebench_ray.placement import Cluster, Placement, Plan, make_plan
from mergebench_ray.placement.answers import Answers, expected_answers
from mergebench_ray.placement.clusters import connects_to_cluster, running_cluster, this_machine
from mergebench_ray.placement.costs import TOKENS, Tokens
from mergebench_ray.placement.records import gibibytes
from mergebench_ray.runs.spending import UNITS, amount
from mergebench_ray.runtime import ray_session
from mergebench_ray.search.budget import check_gpus
from mergebench_ray.search.checks import read_sweep
from mergebench_ray.search.race_choice import expected_share, in_flight_of
from mergebench_ray.tasks.groups import planned_tasks
from mergebench_ray.tasks.loading import chosen_domains
from mergebench_ray.tasks.scored_task import Item

_GIB = 1 << 30
_MOST_GIB = 1_000_000
_CHARACTERS = 4  # of a token, about
_ANSWERED = 1 / 3  # of the longest answer that a task allows: seen on the tasks of the built-in suite


def plan(
    sweep: Path | str | Sweep,
    *,
    overrides: Mapping[str, Any] | None = None,
    nodes: int | None = None,
    gpus_per_node: int = 0,
    gpu_memory_gib: float = 80.0,
    host_memory_gib: float | None = None,
    address: str | None = None,
) -> Plan:
    """Work out what a sweep would run, how much memory and time it takes, and what sits where; loads no weights.

    Models that are on the hub and not in its cache are planned by their headers alone.

    Args:
        sweep: a sweep, the path of its file, or its name where it ships.
        overrides: dotted keys of the file and the values to use instead.
        nodes: nodes to plan for; None, with no GPUs and no memory said either, for the cluster that there is, else this
            machine.
        gpus_per_node: GPUs of each.
        gpu_memory_gib: GiB of each GPU.
        host_memory_gib: GiB of each node; None for what is free here.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else this machine.

    Raises:
        InputError: the sweep is wrong in any way that `tune` would refuse, as far as it can be seen without what would
            have to be fetched; or the cluster cannot be reached. That the sweep does not fit is said in the plan.
    """
    for option, value in (("--gpu-memory", gpu_memory_gib), ("--host-memory", host_memory_gib)):
        if value is not None and not 0 <= value <= _MOST_GIB:
            raise InputError(f"{option} {value}: must be from 0 to {_MOST_GIB} GiB")
    checked = read_sweep(sweep, overrides)
    to_come = nodes is not None or gpus_per_node > 0 or host_memory_gib is not None
    if to_come and address is not None:
        raise InputError("--address: a cluster says by itself what it has; leave out --nodes and what goes with it")
    ready = None if lies_elsewhere(checked) else make_ready(checked)
    if to_come:
        host = available_memory() if host_memory_gib is None else int(host_memory_gib * _GIB)
        cluster = Cluster.alike(nodes or 1, host, gpus_per_node, int(gpu_memory_gib * _GIB))
    else:
        cluster = cluster_of(address)
    check_gpus_wanted(checked, cluster)
    return plan_of_headers(checked, cluster) if ready is None else plan_of(ready, cluster)


def cluster_of(address: str | None) -> Cluster:
    """The nodes that a run would have: a cluster's, or this machine.

    Raises:
        InputError: the cluster cannot be reached, or says of a node what is not true.
    """
    if not connects_to_cluster(address):
        return this_machine()
    with ray_session(address):
        return running_cluster()


def check_gpus_wanted(sweep: Sweep, cluster: Cluster) -> None:
    """Refuse a budget of GPU hours, or weights that are read from a GPU, where there are no GPUs.

    Raises:
        InputError: saying what to give instead.
    """
    if sweep.search.budget is not None:
        check_gpus(sweep.search.budget, cluster.gpus)
    if sweep.engine.transport in READ_DEVICES and not cluster.gpus:
        raise InputError(
            f"sweep {sweep.name}, engine.transport: {sweep.engine.transport} reads weights from GPUs, and there are "
            "none; use shared_memory"
        )


def lies_elsewhere(sweep: Sweep) -> bool:
    """Whether a model of a sweep would have to be fetched."""
    base, specialists = sweep.model_references(sweep.load_suite())
    return not all(map(is_here, (base, *specialists.values())))


def plan_of(ready: ReadySweep, cluster: Cluster) -> Plan:
    """The plan of a sweep that could start."""
    models = ready.models
    return make_plan(
        *(ready.sweep, models.base, models.specialists, cluster, ready.notes, models.judges, ready.answers),
        items=ready.items["validation"],
        tokens=_tokens(
            (item for task in ready.tasks["validation"] for item in task.items),
            at_once=in_flight_of(ready.race, on_gpus=cluster.gpus > 0) or ready.sweep.engine.max_num_seqs,
        ),
    )


def plan_of_headers(sweep: Sweep, cluster: Cluster) -> Plan:
    """The plan of a sweep whose models, or some of them, would have to be fetched.

    Raises:
        InputError: models that do not fit together, as far as their headers show it.
    """
    suite = sweep.load_suite()
    models = resolve_headers_of(sweep, suite)
    items = _items_at_most(sweep, suite)
    return make_plan(
        *(sweep, models.base, models.specialists, cluster, models.notes, models.judges),
        answers=_answers_at_most(sweep, suite, models, items),
        items=items["validation"],
    )


def does_not_fit(plan: Plan) -> str:
    """Why a sweep with such a plan is refused, in one line."""
    return f"sweep {plan.sweep}: {plan.problem}"


def _tokens(items: Iterable[Item], at_once: int) -> Tokens:
    """Tokens of an item, about, without any tokenizer."""
    prompts, answers = [], []
    for item in items:
        texts = [text for one in item.instances for text in one.args if isinstance(text, str)]
        options = [option for one in item.instances for option in one.args if isinstance(option, dict)]
        prompts.append(sum(map(len, texts)) / _CHARACTERS)
        answers.append([option.get("max_gen_toks", 0) for option in options])
    if not prompts:
        return TOKENS.model_copy(update={"at_once": at_once})
    return Tokens(
        prompt=mean(prompts),
        answer=_ANSWERED * mean(map(sum, answers)),
        longest=max(max(one, default=0) for one in answers),
        at_once=at_once,
    )


def _items_at_most(sweep: Sweep, suite: Suite) -> dict[Split, int]:
    """Items of each split, as far as the sweep says; 0 for what only data could say."""
    options = sweep.evaluation
    most = options.validation_items or 0
    held_back = most // 2 if options.final_items is None else options.final_items
    each: dict[Split, int] = {"validation": most, "final": held_back, "test": options.test_items or 0}
    return {
        split: count * _tasks(sweep, suite, "test" if split == "test" else "validation")
        for split, count in each.items()
    }


def _tasks(sweep: Sweep, suite: Suite, split: DataSplit, only: Iterable[str] | None = None) -> int:
    domains = chosen_domains(suite, sweep.scoring(suite))
    return sum(len(planned_tasks(suite, one, split)) for one in domains if only is None or one in only)


def _answers_at_most(sweep: Sweep, suite: Suite, models: Models, items: dict[Split, int]) -> list[Answers]:
    if not items["validation"]:
        return []
    of_specialists = (sweep.evaluation.validation_items or 0) * _tasks(sweep, suite, "validation", models.specialists)
    share = expected_share(sweep.search.race, len(each_objective(sweep.search.objective)))
    return expected_answers(items, of_specialists, sweep.search.most_candidates, len(sweep.methods), share)


def plan_tables(plan: Plan) -> list[Table]:
    """A plan as people read it: what it is of, and what sits where."""
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
    if plan.placement is None:
        return [table]
    _add_times(table, plan)
    return [table, _table_of_nodes(plan.placement)]


def _add_times(table: Table, plan: Plan) -> None:
    found = plan.estimate
    if found is None:
        return
    table.add_section()
    table.add_row("reckoned by", terminal_text(found.rates.source))
    table.add_row(
        "a candidate",
        f"{found.candidate_seconds:.1f} s: merging {found.merge_seconds:.2f}, loading {found.load_seconds:.2f}, "
        f"answers {found.answer_seconds:.1f}",
    )
    unit, count = ("h", 1) if found.hours[1] >= 1 else ("min", 60)
    spans = dict.fromkeys(f"{count * one:.2g}" for one in found.hours)
    if plan.answers:
        table.add_row("the sweep, about", f"{' to '.join(spans)} {unit}")


def _table_of_nodes(placement: Placement) -> Table:
    """Nodes, alike ones in one row, with their devices, what sits there, and its bytes."""
    table = Table(title="What sits where")
    for column in ("node", "where", "parts", "takes", "of"):
        table.add_column(column, justify="right" if column in ("takes", "of") else "left")
    alike: dict[tuple[tuple[str, str, str, str], ...], list[str]] = {}
    for index, node in enumerate(placement.cluster.nodes):
        alike.setdefault(tuple(_rows_of(placement, index)), []).append(node.name)
    for rows, names in alike.items():
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more like it"
        for row in rows:
            table.add_row(terminal_text(name), *map(terminal_text, row))
            name = ""
        table.add_section()
    return table


def _rows_of(placement: Placement, index: int) -> Iterable[tuple[str, str, str, str]]:
    node, here = placement.cluster.nodes[index], placement.on(index)
    parts = _counted(one.part.name for one in here) or "nothing"
    yield "host", parts, gibibytes(placement.host_memory_on(index)), gibibytes(node.host_memory)
    alike: dict[tuple[str, str, str], list[int]] = {}
    for device, memory in enumerate(node.gpu_memory):
        names = _counted(one.part.name for one in here if device in one.devices)
        row = (names or "nothing", gibibytes(placement.gpu_memory_on(index, device)), gibibytes(memory))
        alike.setdefault(row, []).append(device)
    for row, devices in alike.items():
        yield f"GPU {', '.join(map(str, devices))}", *row


def _counted(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
