"""A process that holds variants of a model's merged tensors in memory files, as a bank's shards do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from mergebench_ray.weights.manifest import Piece, WeightManifest, WeightTensor

Factors = Mapping[str, float]
"""Part of a tensor's name -> the factor that its elements are multiplied by."""


def factor_of(name: str, factors: Factors) -> float:
    return next((factor for part, factor in factors.items() if part in name), 1.0)


class WeightServer:
    """Serves variants of a checkpoint, embeddings where they differ; `variants` maps a version to its factors."""

    def __init__(self, folder: Path, variants: Mapping[str, Factors]) -> None:
        arguments = [sys.executable, __file__, str(folder), json.dumps(variants)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        tensors = json.loads(self._process.stdout.readline())
        self.manifests = {version: _manifest(version, tensors[version]) for version in variants}

    def close(self) -> None:
        self._process.communicate()


def _manifest(version: str, tensors: list[list]) -> WeightManifest:
    return WeightManifest(
        version,
        "bfloat16",
        tuple(
            WeightTensor(name, tuple(shape), tuple(Piece(*piece) for piece in pieces), f"{name} times {factor}")
            for name, shape, factor, pieces in tensors
        ),
    )


def _serve(folder: Path, variants: Mapping[str, Factors]) -> None:
    answer = {version: _write_variant(folder, factors) for version, factors in variants.items()}
    print(json.dumps(answer), flush=True)
    sys.stdin.read()


def _write_variant(folder: Path, factors: Factors) -> list[list]:
    """Write one variant over two memory files, cut in the middle of a tensor as a bank's shards cut it."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if "embed" not in name or factor_of(name, factors) != 1]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    changed = {name: tensor * factor_of(name, factors) for name, tensor in tensors.items()}
    content = torch.cat([tensor.flatten() for tensor in changed.values()])
    cut = len(content) // 2 + 1
    files = [_memory_file(content[:cut]), _memory_file(content[cut:])]
    rows, start = [], 0
    for name, tensor in changed.items():
        stop = start + tensor.numel()
        pieces = [(files[0], start, min(stop, cut) - start), (files[1], max(start, cut) - cut, stop - max(start, cut))]
        pieces = [piece for piece in pieces if piece[2] > 0]
        rows.append([name, list(tensor.shape), factor_of(name, factors), pieces])
        start = stop
    return rows


def _memory_file(content: torch.Tensor) -> str:
    path = f"/proc/{os.getpid()}/fd/{os.memfd_create('weights')}"
    os.truncate(path, content.nbytes)
    torch.from_file(path, shared=True, size=len(content), dtype=content.dtype).copy_(content)
    return path


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
