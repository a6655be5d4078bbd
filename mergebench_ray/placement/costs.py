"""How long a candidate and a sweep take, by rates that `bench` measures here, or that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mergebench_ray.cache import cache_folder
from mergebench_ray.config import Sweep
from mergebench_ray.files import whole_file
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.parts import ModelSizes
from mergebench_ray.placement.placement import Placement
from mergebench_ray.placement.records import Record

_BYTES = 2
_NETWORK = 0.4e9  # bytes/s in which merged weights come from another node
TOKENS_PER_ANSWER = 250.0
"""Prompt and answer, where the tasks are not at hand."""


class Rates(Record):
    """What a kind of device does in a second.

    Attributes:
        device: "cpu" (a whole machine) or "gpu" (one).
        source: where the numbers are from.
        merge: bytes that a merging pass reads and writes.
        load: bytes of merged weights that go into a running engine.
        read: bytes of checkpoints that the bank takes from disk.
        work: tokens, prompts' and answers', times parameters of the model.
        engine_start: seconds until an engine answers.
    """

    device: str
    source: str
    merge: float
    load: float
    read: float
    work: float
    engine_start: float


_SHIPPED = {
    "cpu": Rates(
        device="cpu",
        source="2 cores with AVX512-bf16, as shipped",
        merge=23e9,
        load=0.85e9,
        read=1.0e9,
        work=1.9e11,
        engine_start=35.0,
    ),
    # Merging was measured on one H200; what an engine does there was not, and is an estimate for an H100.
    "gpu": Rates(
        device="gpu",
        source="H100 and H200, as shipped: engines estimated, not measured",
        merge=3.3e12,
        load=10e9,
        read=1.5e9,
        work=1.2e14,
        engine_start=60.0,
    ),
}


class Estimate(Record):
    """What a sweep costs in time.

    Attributes:
        rates: what it was reckoned by.
        tokens_per_answer: prompt and answer.
        merge_seconds: of a candidate, at the slowest shard.
        load_seconds: into the engines, from other nodes included.
        answer_seconds: of all items of a candidate, on the engines that share them.
        candidate_seconds: all three.
        hours: of the whole sweep, from and to.
    """

    rates: Rates
    tokens_per_answer: float
    merge_seconds: float
    load_seconds: float
    answer_seconds: float
    candidate_seconds: float
    hours: tuple[float, float]


def estimate(
    sweep: Sweep,
    sizes: ModelSizes,
    placement: Placement,
    items: int,
    answers: Sequence[Answers],
    together: int,
    tokens_per_answer: float = TOKENS_PER_ANSWER,
    rates: Rates | None = None,
) -> Estimate:
    """Reckon what a placed sweep takes.

    Args:
        sweep: the sweep.
        sizes: of its models.
        placement: what sits where.
        items: that a candidate is asked when it is not stopped.
        answers: of each part of the search.
        together: engines that share a candidate's items.
        tokens_per_answer: prompt and answer, on average.
        rates: to reckon by; None for those of the devices placed on.
    """
    on_gpus = any(one.devices for one in placement.of("engine"))
    rates = rates or known_rates("gpu" if on_gpus else "cpu")
    merging = known_rates("gpu" if placement.bank_on_gpu else "cpu") if rates.device == "gpu" else rates
    merge = _merge_seconds(sizes, placement, merging)
    load = _load_seconds(sizes, placement, rates)
    engines = placement.of("engine")
    beside = 1 if on_gpus else max(sum(two.node == one.node for two in engines) for one in engines)
    speed = rates.work * max(1, len(engines[0].devices)) / beside
    answer = tokens_per_answer * sizes.parameters / speed
    asked = items * answer / together
    start = rates.engine_start + sizes.parameters * _BYTES * (sizes.specialists + 1) / rates.read
    swaps = sweep.search.most_candidates * (merge + load) * together / len(engines)
    totals = [sum(counts) * answer / len(engines) + start + swaps for counts in zip(*_counts(answers), strict=True)]
    if merging.device != rates.device:
        source = f"{rates.source}; merging: {merging.source}"
        rates = rates.model_copy(update={"source": source, "merge": merging.merge})
    return Estimate(
        rates=rates,
        tokens_per_answer=tokens_per_answer,
        merge_seconds=merge,
        load_seconds=load,
        answer_seconds=asked,
        candidate_seconds=merge + load + asked,
        hours=(totals[0] / 3600, totals[-1] / 3600),
    )


def known_rates(device: str) -> Rates:
    """Those that `bench` kept on this machine, else those that ship with the package."""
    try:
        return Rates.model_validate_json(_file(device).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return _SHIPPED[device]


def keep_rates(rates: Rates) -> None:
    """Reckon by these from now on."""
    with whole_file(_file(rates.device)) as temporary:
        temporary.write_text(rates.model_dump_json(indent=2) + "\n")


def _file(device: str) -> Path:
    return cache_folder("costs") / f"{device}.json"


def _counts(answers: Sequence[Answers]) -> list[tuple[int, int]]:
    return [(one.least, one.most) for one in answers] or [(0, 0)]


def _merge_seconds(sizes: ModelSizes, placement: Placement, rates: Rates) -> float:
    """Shards on one device, or on one node's processor, share its bandwidth."""
    there: dict[tuple[int, tuple[int, ...]], int] = {}
    shards = placement.of("shard")
    for one in shards:
        key = (one.node, one.devices)
        there[key] = there.get(key, 0) + 1
    moved = (sizes.specialists + 2) * sizes.merged * _BYTES / len(shards)
    return max(there.values()) * moved / rates.merge


def _load_seconds(sizes: ModelSizes, placement: Placement, rates: Rates) -> float:
    shards = placement.of("shard")
    elsewhere = max(
        sum(shard.part.output_bytes for shard in shards if shard.node != one.node) for one in placement.of("engine")
    )
    return sizes.merged * _BYTES / rates.load + elsewhere / _NETWORK
