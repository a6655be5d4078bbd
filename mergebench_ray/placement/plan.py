"""What a sweep would run, what that takes, and what sits where: for people to read, and for `plan.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Sweep
from mergebench_ray.config.transports import READ_DEVICES
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.changes import shards_on_gpus, what_is_lacking
from mergebench_ray.placement.costs import TOKENS, Estimate, Tokens, estimate
from mergebench_ray.placement.parts import ModelSizes
from mergebench_ray.placement.placement import Placement, find_placement
from mergebench_ray.placement.records import Cluster, Record

_FEW_ROUNDS = 8  # candidates an engine would score


class Plan(Record):
    """What a sweep would run and take.

    Attributes:
        sweep: its name.
        models: references of base and specialists by name.
        parameters: parameters of the base.
        merged_parameters: those that are merged.
        candidates: how many are tried, at most.
        budget: what the search may cost, by unit; empty without a budget.
        answers: how many each part of the search asks for.
        methods: the methods searched.
        shards: bank shards.
        engines: vLLM engines.
        engines_per_candidate: engines that share the items of one candidate in the search; beside it all do.
        cluster: what it is planned for.
        placement: what sits where; None if it does not fit.
        estimate: how long it takes; None where it does not fit.
        problem: None if it fits, else one sentence with the remedy.
        notes: rules that were applied to differing checkpoints.
    """

    sweep: str
    models: dict[str, str]
    parameters: int
    merged_parameters: int
    candidates: int
    budget: dict[str, float]
    answers: list[Answers]
    methods: list[str]
    shards: int
    engines: int
    engines_per_candidate: int
    cluster: Cluster
    placement: Placement | None
    estimate: Estimate | None
    problem: str | None
    notes: list[str]


def make_plan(
    sweep: Sweep,
    base: Checkpoint,
    specialists: Mapping[str, Checkpoint],
    cluster: Cluster,
    notes: list[str] | None = None,
    judges: Mapping[str, FoundJudge] = MappingProxyType({}),
    answers: Sequence[Answers] = (),
    items: int = 0,
    tokens: Tokens = TOKENS,
) -> Plan:
    """Work out what `sweep` takes, and place it; reads headers only.

    Args:
        sweep: the checked sweep.
        base: the base, resolved.
        specialists: the specialists by name, resolved.
        cluster: the nodes to plan for.
        notes: what `check_compatible` said.
        judges: the judges that scoring needs, found.
        answers: how many each part of the search asks for.
        items: that a candidate is asked when it is not stopped.
        tokens: of an item.
    """
    sizes = ModelSizes.of(sweep, base, specialists)
    judged = {name: (one.judge, one.checkpoint.num_parameters) for name, one in judges.items()}
    placement = find_placement(sweep, sizes, judged, cluster)
    together = engines_per_candidate(sweep)
    notes = [*(notes or []), *cluster.notes]
    if placement is not None and (shards := shards_on_gpus(sweep, sizes, judged, placement)) is not None:
        notes.append(f"the bank does not fit the GPUs and is in host memory; with bank.shards: {shards} it would fit")
    if placement is not None and sweep.engine.transport in READ_DEVICES and placement.apart:
        notes.append(
            f"engine.transport {sweep.engine.transport}: {placement.apart} of {sweep.engine.count} engines are not on "
            "the GPU of every shard; what lies elsewhere comes to them through host memory"
        )
    return Plan(
        sweep=sweep.name,
        models={"base": str(base.ref), **{name: str(checkpoint.ref) for name, checkpoint in specialists.items()}},
        parameters=sizes.parameters,
        merged_parameters=sizes.merged,
        candidates=sweep.search.most_candidates,
        budget=sweep.search.budget.limits if sweep.search.budget else {},
        answers=list(answers),
        methods=list(sweep.methods),
        shards=sweep.bank.shards,
        engines=sweep.engine.count,
        engines_per_candidate=together,
        cluster=cluster,
        placement=placement,
        estimate=None if placement is None else estimate(sweep, sizes, placement, items, answers, together, tokens),
        problem=None if placement is not None else what_is_lacking(sweep, sizes, judged, cluster),
        notes=notes,
    )


def engines_per_candidate(sweep: Sweep) -> int:
    """How many engines share the items of a candidate: one, or all.

    A candidate each wastes nothing: no engine waits for the others. But candidates that are scored at once are proposed
    without knowing each other's scores, so a search of few rounds learns little: then all engines share each one.
    """
    engine = sweep.engine
    few_rounds = sweep.search.most_candidates < _FEW_ROUNDS * engine.count
    together = few_rounds if engine.division == "auto" else engine.division == "items"
    return engine.count if together else 1
