"""What preparing spectral methods takes, beside LAPACK's decompositions alone.

    python benchmarks/spectral_forms.py

Random task vectors of five specialists in the shapes of SmolLM2-135M, one matrix of each shape, on one thread; times
are for all 30 layers. `tsv_m` and `iso_cts` are held against the decompositions of the five task vectors, in float32,
`iso_c` against that of their sum, in float64.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.methods import Transform
from mergebench_ray.methods.iso_c import IsoCTransform
from mergebench_ray.methods.iso_cts import IsoCtsTransform
from mergebench_ray.methods.tsv_m import TsvTransform

LAYERS = 30
SHAPES = {(1536, 576): 2, (576, 1536): 1, (576, 576): 2, (192, 576): 2}  # how many of each a layer has
TRANSFORMS: dict[str, tuple[Transform, str]] = {
    "tsv_m": (TsvTransform(), "of each"),
    "iso_c": (IsoCTransform(), "of the sum"),
    "iso_cts": (IsoCtsTransform(0.8), "of each"),
}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    total: defaultdict[str, float] = defaultdict(float)
    for shape, count in SHAPES.items():
        vectors = [(torch.randn(shape, generator=generator) * 0.002).bfloat16() for _ in range(5)]
        floats, whole = [vector.float() for vector in vectors], sum(vector.double() for vector in vectors)
        calls: dict[str, Callable[[], Any]] = {
            "of each": partial(decompose, floats),
            "of the sum": partial(decompose, [whole]),
        }
        for name, (transform, _) in TRANSFORMS.items():
            calls[name] = partial(transform.of, vectors)
        for name, call in calls.items():
            total[name] += LAYERS * count * seconds(call)
    print("| method | seconds | decompositions alone | ratio |\n| --- | --- | --- | --- |")
    for name, (_, alone) in TRANSFORMS.items():
        print(f"| `{name}` | {total[name]:.0f} | {total[alone]:.0f} | {total[name] / total[alone]:.2f} |")


def decompose(matrices: list[Tensor]) -> None:
    """By LAPACK."""
    for matrix in matrices:
        torch.linalg.svd(matrix, full_matrices=False)


def seconds(call: Callable[[], Any]) -> float:
    """Of the faster of two calls."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
