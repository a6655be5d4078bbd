"""How long a candidate and a sweep take, by rates that `bench` measures here, or that ship with the package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from pydantic import ValidationError

from mergebench_ray.cache import cache_folder
from mergebench_ray.config import Sweep
from mergebench_ray.files import whole_file
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.parts import ModelSizes
from mergebench_ray.placement.placement import Placement
from mergebench_ray.placement.records import Placed, Record
from mergebench_ray.weights.stream import BUCKET_BYTES

_BYTES = 2
_NETWORK = 1.2e9  # bytes/s in which merged weights come from another node: those of 10 Gbit/s


class Rates(Record):
    """What a kind of device does in a second.

    Attributes:
        device: "cpu" (a whole machine) or "gpu" (one).
        source: where the numbers are from.
        merge: bytes that a merging pass of task arithmetic reads and writes.
        passes: what a merge of other methods takes, in such passes, thresholds and totals included.
        merge_start: seconds that a merge of nothing would take.
        load: bytes of merged weights that go into a running engine.
        load_layer: seconds beside that for each layer.
        read: bytes of checkpoints that the bank takes from disk.
        prompts: their tokens times parameters of the model.
        prompt_token: seconds beside that for each token.
        answers: their tokens times parameters of the model, beside what every step takes.
        answer_token: seconds beside that for each token.
        weights: bytes of the model in every step, whatever it computes.
        layer: seconds beside that for each layer.
        engine_start: seconds until an engine answers.
    """

    device: str
    source: str
    merge: float
    merge_start: float
    load: float
    load_layer: float
    read: float
    prompts: float
    prompt_token: float
    answers: float
    answer_token: float
    weights: float
    layer: float
    engine_start: float
    passes: Mapping[str, float] = {}


_SHIPPED = {
    "cpu": Rates(
        device="cpu",
        source="2 cores with AVX512-bf16, as shipped",
        merge=31e9,
        merge_start=0.015,
        load=2.5e9,
        load_layer=3.4e-3,
        read=0.5e9,
        prompts=2.7e11,
        prompt_token=0.22e-3,
        answers=1.4e11,
        answer_token=0.44e-3,
        weights=50e9,
        layer=1.1e-3,
        engine_start=15.0,
        passes={
            **{"breadcrumbs": 2.7, "breadcrumbs_ties": 4.2, "consensus": 1.4, "dare": 2.9, "dare_linear": 2.9},
            **{"dare_ties": 4.8, "della": 4.5, "della_linear": 3.1, "iso_c": 0.4, "iso_cts": 0.4, "lines": 1.4},
            **{"localize_and_stitch": 1.3, "model_soup": 0.6, "ram_plus": 1.5, "regmean_plusplus": 0.6, "sce": 5.2},
            **{"ties": 3.2, "tsv_m": 0.6},
        },
    ),
    # Merging was measured on one H200; what an engine does there was not, and is an estimate for an H100.
    "gpu": Rates(
        device="gpu",
        source="H100 and H200, as shipped: engines estimated, not measured",
        merge=3.3e12,
        merge_start=0.01,
        load=10e9,
        load_layer=0.0,
        read=1.5e9,
        prompts=2e14,
        prompt_token=0.0,
        answers=1.2e14,
        answer_token=0.0,
        weights=3.3e12,
        layer=1e-4,
        engine_start=60.0,
    ),
}


class Tokens(Record):
    """What an item takes of an engine, on average.

    Attributes:
        prompt: tokens that are read.
        answer: tokens that are written.
        longest: tokens of the longest answer.
        at_once: sequences that an engine computes at a time, at most.
    """

    prompt: float = 150.0
    answer: float = 100.0
    longest: float = 200.0
    at_once: int = 128


TOKENS = Tokens()
"""Where the tasks are not at hand."""


class Estimate(Record):
    """What a sweep costs in time.

    Attributes:
        rates: what it was reckoned by.
        tokens: of an item.
        merge_seconds: of a candidate, at the slowest shard.
        load_seconds: into the engines, from other nodes included.
        answer_seconds: of all items of a candidate, on the engines that share them.
        candidate_seconds: all three.
        hours: of the whole sweep, from and to.
    """

    rates: Rates
    tokens: Tokens
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
    tokens: Tokens = TOKENS,
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
        tokens: of an item.
        rates: to reckon by; None for those of the devices placed on.
    """
    on_gpus = any(one.devices for one in placement.of("engine"))
    rates = rates or known_rates("gpu" if on_gpus else "cpu")
    # What comes through host memory with each pass is reckoned like a pass there: it was never measured.
    on_device = placement.bank_on_gpu and not placement.bank_streams
    merging = known_rates("gpu" if on_device else "cpu") if rates.device == "gpu" else rates
    merge = _merge_seconds(sizes, placement, merging, sweep.methods)
    load = _load_seconds(sizes, placement, rates)
    engines = placement.of("engine")
    beside = 1 if on_gpus else max(Counter(_machine(placement, one) for one in engines).values())
    slower = beside / max(1, len(engines[0].devices))
    asked = slower * _answer_seconds(sizes, rates, tokens, items / together)
    answer = asked * together / items if items else 0.0
    start = rates.engine_start + sizes.parameters * _BYTES * (sizes.specialists + 1) / rates.read
    swaps = sweep.search.most_candidates * (merge + load) * together / len(engines)
    totals = [sum(counts) * answer / len(engines) + start + swaps for counts in zip(*_counts(answers), strict=True)]
    if merging.device != rates.device:
        source = f"{rates.source}; merging: {merging.source}"
        rates = rates.model_copy(update={"source": source, "merge": merging.merge, "passes": merging.passes})
    return Estimate(
        rates=rates,
        tokens=tokens,
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


def _answer_seconds(sizes: ModelSizes, rates: Rates, tokens: Tokens, items: float) -> float:
    """Of so many items on one engine: what is computed, and what every step takes, so that many at once take few."""
    read = tokens.prompt * (rates.prompt_token + sizes.parameters / rates.prompts)
    written = tokens.answer * (rates.answer_token + sizes.parameters / rates.answers)
    steps = max(tokens.longest, items * tokens.answer / tokens.at_once)
    step = sizes.num_layers * rates.layer + sizes.parameters * _BYTES / rates.weights
    return items * (read + written) + steps * step


def _merge_seconds(sizes: ModelSizes, placement: Placement, rates: Rates, methods: Iterable[str]) -> float:
    """Of a candidate, the mean over methods. Shards on one device, or one machine's processor, share its bandwidth."""
    passes = mean(rates.passes.get(method, 1.0) for method in methods)
    shards = placement.of("shard")
    there = Counter((_machine(placement, one), one.devices) for one in shards)
    moved = (sizes.specialists + 2) * sizes.merged * _BYTES / len(shards)
    return rates.merge_start + max(there.values()) * moved * passes / rates.merge


def _machine(placement: Placement, one: Placed) -> str | int:
    """What tells the machine that a part is on from others."""
    return placement.cluster.nodes[one.node].host or one.node


def _load_seconds(sizes: ModelSizes, placement: Placement, rates: Rates) -> float:
    shards = placement.of("shard")
    elsewhere = max(
        sum(shard.part.output_bytes for shard in shards if shard.node != one.node) for one in placement.of("engine")
    )
    loading = sizes.num_layers * rates.load_layer + sizes.merged * _BYTES / rates.load
    # Weights come from other nodes while those before them are loaded: the first bucket alone is waited for.
    first = min(elsewhere, BUCKET_BYTES) / _NETWORK
    return first + max(loading, elsewhere / _NETWORK)
