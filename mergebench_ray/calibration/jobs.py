"""The statistics there are: what each computes, in one process, from one or all specialists.

What computes them is imported where it runs: it needs transformers, which takes seconds, and every search names jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mergebench_ray.calibration.samples import Encoded, Sample, batches, encode_samples
from mergebench_ray.calibration.sizes import job_bytes
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.errors import about
from mergebench_ray.kernels.regression import regression_system, solve_regression
from mergebench_ray.progress import Progress

_BATCH = 8
_SLOWEST_READ = 1e7
"""Bytes in a second, at the least."""
_SLOWEST_CPU = 5e9
"""Bytes of weights times tokens in a second, at the least, forwards and backwards on one thread."""


@dataclass(frozen=True)
class CalibrationJob:
    """One statistic to compute.

    Attributes:
        kind: which one.
        base: the base, whose tokenizer is used for all.
        specialists: those that it is of, by sorted name.
        samples: calibration data of each.
        options: hyper-parameters that it depends on.
        thresholds: of each specialist, for masks.
        max_length: longest sample in tokens.
        dtype: what to compute in.
    """

    kind: str
    base: Checkpoint
    specialists: Mapping[str, Checkpoint]
    samples: Mapping[str, Sequence[Sample]]
    options: Mapping[str, float]
    thresholds: Mapping[str, float]
    max_length: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """What to compute in."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def memory(self) -> int:
        """Bytes that it takes at most."""
        return job_bytes(self.kind, self.base, len(self.specialists), self.dtype)

    def longest_step(self, device: str) -> float:
        """Seconds from one note of its progress to the next at most, by its bytes, and on a CPU by its tokens."""
        most = self.memory / _SLOWEST_READ
        if device == "cpu":
            weights, samples = sum(info.num_bytes for info in self.base.tensors.values()), _BATCH
            if self.kind in OF_ALL_SPECIALISTS:  # all samples, layer by layer
                weights, samples = weights // self.base.num_layers, max(map(len, self.samples.values()))
            most += weights * samples * self.max_length / _SLOWEST_CPU
        return most


@dataclass(frozen=True)
class Statistic:
    """A result.

    Attributes:
        tensors: by name.
        groups: entry -> tensors of the model that share it; empty where each has its own.
        tokens: tokens that were seen.
        cut: samples that were longer than `max_length`.
    """

    tensors: dict[str, Tensor]
    groups: dict[str, list[str]]
    tokens: int
    cut: int


def run_job(job: CalibrationJob, device: torch.device, progress: Progress) -> Statistic:
    """Compute a statistic.

    Raises:
        InputError: NaN or infinity, naming specialist, tensor and sample or layer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base.folder, local_files_only=True, trust_remote_code=False)
    encoded: dict[str, list[Encoded]] = {}
    cut = 0
    for name in job.specialists:
        encoded[name], too_long = encode_samples(tokenizer, job.samples[name], job.max_length)
        cut += too_long
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    of_one = job.kind not in OF_ALL_SPECIALISTS
    with about(f"specialist {name} ({job.specialists[name]})") if of_one else nullcontext():
        tensors, groups = _KINDS[job.kind](job, encoded, pad, device, progress)
    tokens = sum(len(sample.ids) for samples in encoded.values() for sample in samples)
    return Statistic(tensors, groups, tokens, cut)


Tensors = tuple[dict[str, Tensor], dict[str, list[str]]]
Encodings = Mapping[str, list[Encoded]]


def _gram(job: CalibrationJob, encoded: Encodings, pad: int, device: torch.device, progress: Progress) -> Tensors:
    """Gram matrices of one specialist."""
    from mergebench_ray.calibration.gram import gram_matrices
    from mergebench_ray.calibration.model import load_model

    ((name, specialist),) = job.specialists.items()
    model = load_model(specialist, job.torch_dtype, device)
    grams = gram_matrices(model, batches(encoded[name], _BATCH, pad), progress)
    return grams.matrices, _by_group(grams.group_of)


def _fisher(job: CalibrationJob, encoded: Encodings, pad: int, device: torch.device, progress: Progress) -> Tensors:
    """Fisher diagonals of one specialist."""
    from mergebench_ray.calibration.fisher import fisher_diagonal
    from mergebench_ray.calibration.model import load_model

    ((name, specialist),) = job.specialists.items()
    return fisher_diagonal(load_model(specialist, job.torch_dtype, device), encoded[name], progress), {}


def _mask(job: CalibrationJob, encoded: Encodings, pad: int, device: torch.device, progress: Progress) -> Tensors:
    """A trained mask of one specialist."""
    from mergebench_ray.calibration.masks import train_mask

    ((name, specialist),) = job.specialists.items()
    mask = train_mask(
        job.base,
        specialist,
        encoded[name],
        threshold=job.thresholds[name],
        sigmoid_bias=job.options["sigmoid_bias"],
        learning_rate=job.options["learning_rate"],
        epochs=int(job.options["epochs"]),
        l1_strength=job.options["l1_strength"],
        dtype=job.torch_dtype,
        device=device,
        progress=progress,
    )
    return mask, {}


def _layerwise(job: CalibrationJob, encoded: Encodings, pad: int, device: torch.device, progress: Progress) -> Tensors:
    """The linear layers of all specialists, merged by RegMean++."""
    from mergebench_ray.calibration.layerwise import merge_layer_by_layer

    merged: dict[str, Tensor] = {}

    def solve(
        grams: Mapping[str, list[Tensor]], weights: Mapping[str, list[Tensor]], group_of: Mapping[str, str]
    ) -> dict[str, Tensor]:
        solved: dict[str, Tensor] = {}
        for entry, names in _by_group(group_of).items():
            base, *specialists = (torch.cat(stacked) for stacked in zip(*(weights[n] for n in names), strict=True))
            system = regression_system(grams[entry], base, specialists)
            outputs = [len(weights[name][0]) for name in names]
            parts = solve_regression(system, job.options["reduction"], ", ".join(names)).split(outputs)
            solved |= dict(zip(names, parts, strict=True))
        return solved

    merge_layer_by_layer(
        job.base,
        job.specialists,
        encoded,
        solve,
        batch_size=_BATCH,
        pad_id=pad,
        dtype=job.torch_dtype,
        device=device,
        progress=progress,
        emit=merged.__setitem__,
    )
    return merged, {name: [name] for name in merged}


def _by_group(group_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, entry in group_of.items():
        groups.setdefault(entry, []).append(name)
    return groups


_KINDS: dict[str, Callable[[CalibrationJob, Encodings, int, torch.device, Progress], Tensors]] = {
    "gram": _gram,
    "fisher": _fisher,
    "mask": _mask,
    "layerwise": _layerwise,
}
OF_ALL_SPECIALISTS = frozenset({"layerwise"})
"""Kinds that take all specialists at once; the others are of one."""
