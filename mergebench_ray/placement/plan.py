"""The planner: sizes of bank and engines from tensor headers alone, held against the machines there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import Field

from mergebench_ray.checkpoints import Checkpoint, merged_names
from mergebench_ray.config import Sweep
from mergebench_ray.config.engine import EngineSettings
from mergebench_ray.engines.environment import engine_dtype
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.machine import available_memory
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.calibration import calibration_needs
from mergebench_ray.placement.need import Need, Place, Record

_BYTES = 2  # merged weights, task vectors and base are bf16
_GIB = 1 << 30
PROCESS_BYTES = int(0.6 * _GIB)  # a worker process with torch and Ray imported, before any weight
_FEW_ROUNDS = 8  # candidates an engine would score
_ENGINE_PROCESS = int(2.0 * _GIB)  # the same with vLLM, its activations and buffers at the default batch


class Machine(Record):
    """The nodes a plan is made for.

    Attributes:
        nodes: how many, all alike.
        gpus: GPUs a node.
        gpu_memory: bytes a GPU.
        host_memory: bytes a node that may be used.
    """

    nodes: int = Field(ge=1)
    gpus: int = Field(ge=0)
    gpu_memory: int = Field(ge=0)
    host_memory: int = Field(ge=0)

    @classmethod
    def this(cls) -> Machine:
        """The machine this runs on, without GPUs, with the memory that is free now."""
        return cls(nodes=1, gpus=0, gpu_memory=0, host_memory=available_memory())


class Plan(Record):
    """What a sweep would run and take.

    Attributes:
        sweep: its name.
        models: references of base and specialists by name.
        parameters: parameters of the base.
        merged_parameters: those that are merged (no embeddings, no output head).
        candidates: how many are tried, at most.
        budget: what the search may cost, by unit; empty without a budget.
        answers: how many each part of the search asks for.
        methods: the methods searched.
        shards: bank shards.
        engines: vLLM engines.
        engines_per_candidate: engines that share the items of one candidate in the search; beside it all do.
        needs: memory by part.
        machine: what it is held against.
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
    needs: list[Need]
    machine: Machine
    problem: str | None
    notes: list[str]


def make_plan(
    sweep: Sweep,
    base: Checkpoint,
    specialists: Mapping[str, Checkpoint],
    machine: Machine | None = None,
    notes: list[str] | None = None,
    judges: Mapping[str, FoundJudge] = MappingProxyType({}),
    answers: Sequence[Answers] = (),
) -> Plan:
    """Work out what `sweep` takes; reads headers only.

    Args:
        sweep: the checked sweep.
        base: the base, resolved.
        specialists: the specialists by name, resolved.
        machine: the nodes to plan for; None for this machine.
        notes: what `check_compatible` said.
        judges: the judges that scoring needs, found.
        answers: how many each part of the search asks for.
    """
    machine = machine or Machine.this()
    parameters = sum(math.prod(tensor.shape) for tensor in base.tensors.values())
    merged = sum(base.tensors[name].numel for name in merged_names(base, specialists.values()))
    needs = [
        *_needs(sweep, parameters, merged, len(specialists), machine),
        *calibration_needs(sweep, base, len(specialists), on_gpu=machine.gpus > 0),
        *(need for judge in judges.values() for need in _judge_needs(judge, machine)),
    ]
    return Plan(
        sweep=sweep.name,
        models={"base": str(base.ref), **{name: str(checkpoint.ref) for name, checkpoint in specialists.items()}},
        parameters=parameters,
        merged_parameters=merged,
        candidates=sweep.search.most_candidates,
        budget=sweep.search.budget.limits if sweep.search.budget else {},
        answers=list(answers),
        methods=list(sweep.methods),
        shards=sweep.bank.shards,
        engines=sweep.engine.count,
        engines_per_candidate=engines_per_candidate(sweep),
        needs=needs,
        machine=machine,
        problem=_problem(needs, machine),
        notes=notes or [],
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


def _needs(sweep: Sweep, parameters: int, merged: int, specialists: int, machine: Machine) -> list[Need]:
    shards, engines = sweep.bank.shards, sweep.engine.count
    vectors = math.ceil((specialists + 1) * merged * _BYTES / shards)
    output = math.ceil(merged * _BYTES / shards)
    model = parameters * _engine_bytes(sweep.engine.dtype, machine)
    where: Place = "gpu" if machine.gpus else "host"
    needs = [
        Need(what="bank shard: base and task vectors", count=shards, bytes_each=vectors, where=where),
        Need(what="bank shard: merged weights", count=shards, bytes_each=output, where=where),
        Need(what="bank shard: process", count=shards, bytes_each=PROCESS_BYTES, where="host"),
        *_engine_needs("engine", sweep.engine, engines, model, machine),
    ]
    if not machine.gpus:
        processes = "driver, scorer and trial processes"
        needs.append(Need(what=processes, count=3, bytes_each=PROCESS_BYTES, where="host"))
    return needs


def _engine_needs(what: str, engine: EngineSettings, count: int, model: int, machine: Machine) -> list[Need]:
    """Of engines that hold a model of that many bytes; on a GPU they may share, so only their part of it counts.

    vLLM keeps its own copy of the whole model; on a CPU the linear weights are repacked into another layout.
    """
    process = Need(what=f"{what}: process", count=count, bytes_each=_ENGINE_PROCESS, where="host")
    if machine.gpus:
        parallel = engine.tensor_parallel_size
        each = max(int(engine.gpu_memory_utilization * machine.gpu_memory), model // parallel)
        held = f"{what}: model and key-value cache"
        return [Need(what=held, count=count * parallel, bytes_each=each, where="gpu"), process]
    cache = int(engine.kv_cache_gib * _GIB)
    return [
        Need(what=f"{what}: model", count=count, bytes_each=model, where="host"),
        Need(what=f"{what}: key-value cache", count=count, bytes_each=cache, where="host"),
        process,
    ]


def _engine_bytes(dtype: str, machine: Machine) -> int:
    """Bytes of a parameter in an engine; nodes without GPUs are taken to be like this machine."""
    on_gpu = machine.gpus > 0 and dtype == "auto"
    return 2 if on_gpu or engine_dtype(dtype) == "bfloat16" else 4


def _judge_needs(found: FoundJudge, machine: Machine) -> list[Need]:
    """A judge has an engine of its own."""
    parameters = sum(math.prod(tensor.shape) for tensor in found.checkpoint.tensors.values())
    model = parameters * _engine_bytes("auto", machine)
    return _engine_needs(f"judge {found.name}", found.judge, 1, model, machine)


def _problem(needs: list[Need], machine: Machine) -> str | None:
    """Hold the needs against all nodes together, then the largest single part against one node."""
    places: dict[str, tuple[int, int]] = {
        "gpu": (machine.gpu_memory, machine.nodes * machine.gpus),
        "host": (machine.host_memory, machine.nodes),
    }
    for where, (capacity, count) in places.items():
        here = [need for need in needs if need.where == where]
        total = sum(need.count * need.bytes_each for need in here)
        if total > capacity * count:
            return (
                f"needs {gibibytes(total)} of {where} memory, {gibibytes(capacity * count)} are there: "
                "use more or larger nodes, or fewer engines"
            )
        largest = max(here, key=lambda need: need.bytes_each, default=None)
        if largest and largest.bytes_each > capacity:
            return (
                f"{largest.what} needs {gibibytes(largest.bytes_each)}, one {where} has {gibibytes(capacity)}: "
                f"raise bank.shards or engine.tensor_parallel_size"
            )
    return None


def gibibytes(count: int) -> str:
    """A byte count as people read it."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB // 10 else f"{count / 2**20:.0f} MiB"
