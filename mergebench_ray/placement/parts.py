"""What a sweep is made of, in bytes: from tensor headers, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergebench_ray.calibration.sizes import gram_bytes, job_bytes
from mergebench_ray.checkpoints import Checkpoint, merged_names
from mergebench_ray.config import Choices, Fixed, Sweep
from mergebench_ray.config.engine import EngineOptions, EngineSettings
from mergebench_ray.config.judge import Judge
from mergebench_ray.engines.environment import engine_dtype
from mergebench_ray.families.configuration import attention_heads
from mergebench_ray.kernels.passes import BROUGHT_WINDOW
from mergebench_ray.methods import get_method
from mergebench_ray.methods.statistics import transform_bytes
from mergebench_ray.placement.records import WHOLE, Part
from mergebench_ray.weights.stream import BUCKET_BYTES

_BYTES = 2  # merged weights, task vectors and base are bf16
_FLOAT = 4
_GIB = 1 << 30
PROCESS_BYTES = int(0.4 * _GIB)
"""A worker process with torch and Ray imported, before any weight."""
_ENGINE_PROCESS = int(1.75 * _GIB)  # the same with vLLM, its activations and buffers at the default batch
_ENGINE_ON_GPU = 2 * _GIB  # beside the weights: activations, graphs, and keys and values of a few sequences
LEAST_OF_GPU = 0.3
"""Of a GPU, for an engine that takes what others leave: with less, few sequences run at once."""
_SHARD_ON_GPU = int(0.7 * _GIB)  # the process's own, and blocks of a pass
_WINDOWS = 2  # that are on their way at once, and a statistic in float32 beside each task vector
_DRIVER_BYTES = int(1.3 * _GIB)  # driver, with the scorer, and trials
OBJECT_STORE_BYTES = 512 << 20
"""Of a session on one machine, where weights do not travel through it."""
_OF_LARGEST = 4  # the proof reads the largest tensor, changes a copy, and writes that beside the bucket before


@dataclass(frozen=True)
class ModelSizes:
    """What of base and specialists decides how much room a run takes.

    Attributes:
        parameters: of the base.
        merged: of those, what is merged.
        largest: parameters of the largest tensor.
        specialists: how many.
        gram: Gram matrices of all merged linear layers of one specialist.
        calibration: statistic that takes data -> bytes of a process that computes it.
        heads: attention heads, and those of keys and values, by the names of their settings.
    """

    parameters: int
    merged: int
    num_layers: int
    largest: int
    specialists: int
    gram: int
    calibration: Mapping[str, int]
    heads: Mapping[str, int]

    @classmethod
    def of(cls, sweep: Sweep, base: Checkpoint, specialists: Mapping[str, Checkpoint]) -> ModelSizes:
        """The sizes of a sweep's models, which fit together."""
        names = merged_names(base, specialists.values())
        return cls(
            parameters=base.num_parameters,
            merged=sum(base.tensors[name].numel for name in names),
            num_layers=base.num_layers,
            largest=base.largest_tensor,
            specialists=len(specialists),
            gram=gram_bytes(base),
            calibration={
                kind: job_bytes(kind, base, len(specialists), sweep.calibration.dtype)
                for kind in sorted(set(calibration_kinds(sweep)))
            },
            heads=attention_heads(base.config, base.config_file),
        )


def parts_of(
    sweep: Sweep,
    sizes: ModelSizes,
    judges: Mapping[str, tuple[Judge, int]],
    *,
    gpus: bool,
    bank_on_gpu: bool,
    bank_streams: bool = False,
    nodes: int,
    has_own_store: bool = False,
) -> list[Part]:
    """Everything that a sweep starts.

    Args:
        sweep: the sweep.
        sizes: of its models.
        judges: by name, settings and parameters of those at hand.
        gpus: whether engines and judges run on GPUs.
        bank_on_gpu: whether the bank does, too.
        bank_streams: whether it has there only what is merged.
        nodes: of the cluster: each has an object store of Ray's, and on several the driver reads weights of others.
        has_own_store: whether that is set aside already.
    """
    kinds, transforms = {*calibration_kinds(sweep)}, {*_transforms(sweep)}
    parts = [*_shards(sweep.bank.shards, kinds | transforms, sizes, bank_on_gpu, bank_streams)]
    parts += scoring_parts(sweep.engine, sizes.parameters, sizes.largest, judges, gpus=gpus, nodes=nodes)
    if kinds:
        largest = max(sizes.calibration[kind] for kind in kinds)
        parts.append(Part(kind="calibration", name="calibration of one specialist", host_memory=largest))
    if transforms:
        needed = transform_bytes(sizes.largest, sizes.specialists)
        parts.append(Part(kind="calibration", index=1, name="transforming one tensor", host_memory=needed))
    if not has_own_store:
        for node in range(nodes):
            name, store = "Ray's object store", OBJECT_STORE_BYTES
            parts.append(Part(kind="object store", index=node, name=name, host_memory=store, node=node))
    return parts


def scoring_parts(
    engine: EngineOptions,
    parameters: int,
    largest: int,
    judges: Mapping[str, tuple[Judge, int]],
    *,
    gpus: bool,
    nodes: int = 1,
) -> list[Part]:
    """Engines, judges and whoever asks them: what scores models.

    Args:
        engine: the engines' options.
        parameters: of the model that they start with.
        largest: parameters of its largest tensor.
        judges: by name, settings and parameters.
        gpus: whether they run on GPUs.
        nodes: over which a bank is spread, whose weights the driver reads.
    """
    # Weights that are not in memory of a node go through two buckets, some of a single tensor.
    parts = []
    model = parameters * engine_bytes(engine.dtype, gpus=gpus)
    for index in range(engine.count):
        part = _engine(engine, model, gpus)
        coming = max(2 * BUCKET_BYTES, _OF_LARGEST * largest * _BYTES)
        parts.append(part.model_copy(update={"index": index, "host_memory": part.host_memory + coming}))
    for index, (name, (judge, count)) in enumerate(judges.items()):
        part = _engine(judge, count * engine_bytes("auto", gpus=gpus), gpus)
        parts.append(part.model_copy(update={"kind": "judge", "index": index, "name": f"judge {name}", "cores": 0.0}))
    driver = _DRIVER_BYTES + (2 * max(BUCKET_BYTES, largest * _BYTES) if nodes > 1 else 0)
    return [*parts, Part(kind="driver", name="driver", host_memory=driver, node=0)]


def engine_bytes(dtype: str, *, gpus: bool) -> int:
    """Bytes of a parameter in an engine; nodes without GPUs are taken to be like this machine."""
    return 2 if (gpus and dtype == "auto") or engine_dtype(dtype) == "bfloat16" else 4


def calibration_kinds(sweep: Sweep) -> Iterator[str]:
    """Statistics that take data."""
    for name, parameters in sweep.methods.items():
        method = get_method(name)
        values: dict[str, Any] = {}
        for key, parameter in parameters.items():
            # The choice that needs most: a switch that is on.
            if isinstance(parameter, Choices):
                values[key] = max(parameter.choices) if all(isinstance(c, bool) for c in parameter.choices) else None
            elif isinstance(parameter, Fixed):
                values[key] = parameter.value
        known = {key: value for key, value in values.items() if value is not None}
        if method.calibration_samples(method.Parameters.model_validate(known)):
            yield from method.statistics - {"magnitude_histogram"}


def _transforms(sweep: Sweep) -> Iterator[str]:
    """What takes the place of task vectors, and is held beside them."""
    for method in map(get_method, sweep.methods):
        if "row_ranks" in method.statistics:
            yield "row ranks"
        if "spectral" in method.statistics:
            yield "shared spectral form" if method.shared_companion else "spectral forms"


def _shards(count: int, kinds: set[str], sizes: ModelSizes, on_gpu: bool, streams: bool) -> Iterator[Part]:
    vectors = math.ceil((sizes.specialists + 1) * sizes.merged * _BYTES / count)
    output = math.ceil(sizes.merged * _BYTES / count)
    statistics = math.ceil(_statistics_held(kinds, sizes) / count)
    for index in range(count):
        if on_gpu:
            held = vectors + statistics
            windows = _WINDOWS * BROUGHT_WINDOW * (_BYTES + _FLOAT) * (sizes.specialists + 1)
            yield Part(
                kind="shard",
                index=index,
                name="bank shard",
                host_memory=output + PROCESS_BYTES + (held if streams else 0),
                gpus=1,
                gpu_memory=output + _SHARD_ON_GPU + (windows if streams else held),
                output_bytes=output,
            )
        else:
            host = vectors + output + statistics + PROCESS_BYTES
            yield Part(kind="shard", index=index, name="bank shard", host_memory=host, output_bytes=output)


def _statistics_held(kinds: set[str], sizes: ModelSizes) -> int:
    """What the shards together keep between merges: entries of the last statistic, and systems of equations."""
    each = sizes.merged * sizes.specialists
    by_entry = {"fisher": _FLOAT * each, "mask": each, "row ranks": _BYTES * each, "spectral forms": _BYTES * each}
    by_entry["shared spectral form"] = _FLOAT * sizes.merged
    systems = 2 * sizes.merged * _FLOAT + 2 * sizes.merged + sizes.gram
    return max((by_entry[kind] for kind in kinds & by_entry.keys()), default=0) + systems * ("gram" in kinds)


def _engine(engine: EngineSettings, model: int, gpus: bool) -> Part:
    """An engine that holds a model of so many bytes.

    vLLM keeps its own copy of the whole model; on a CPU the linear weights are repacked into another layout. On a GPU
    it takes a share of the device, whatever it needs of it: that which its settings say, or what others leave.
    """
    parallel = engine.tensor_parallel_size
    processes = parallel * _ENGINE_PROCESS
    if not gpus:
        cache = int(engine.kv_cache_gib * _GIB)
        return Part(kind="engine", name="engine", host_memory=model + cache + processes, cores=1.0)
    shared = engine.num_gpus is not None and engine.num_gpus < 1
    own = WHOLE if parallel > 1 or (engine.num_gpus is not None and not shared) else 0
    return Part(
        kind="engine",
        name="engine",
        host_memory=processes,
        gpus=max(parallel, math.ceil(engine.gpus)),
        gpu_memory=model // parallel + _ENGINE_ON_GPU,
        gpu_fraction=engine.gpu_memory_utilization or 0.0,
        gpu_rest=0.0 if engine.gpu_memory_utilization else LEAST_OF_GPU,
        gpu_share=own or (int(engine.num_gpus * WHOLE) if shared and engine.num_gpus else 0),
        cores=1.0,
    )
