"""What it takes to read merged weights that lie on another node: time, bytes, and memory of the process that reads.

    python benchmarks/weights_between_nodes.py [--layers 30] [--rounds 5] [--readers 1]

Two nodes are two raylets of this machine, so the network is its loopback. A bank of a made-up Llama (212 MB of merged
weights with 30 layers) has its only shard on the second; an actor on the first reads candidates as an engine does: what
has changed, bucket by bucket, each tensor mapped and looked at; with --readers, so many of them at once, as engines
that share a candidate do: each for itself, and together. What crossed the loopback is the kernel's own count.
How fast memory is copied is measured before each reading, as other work of the machine slows down both.
Exit status 1 if a bit differs from a bank's in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mergebench_ray.bank import Bank, Merged
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.weights.held_weights import HeldWeights
from mergebench_ray.weights.memory_file import MappedFiles
from mergebench_ray.weights.together import Together, together

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


@dataclass(frozen=True)
class Reading:
    """What it took to read a candidate.

    Attributes:
        seconds: from the first request to the last tensor.
        asked: bytes of the tensors that had changed.
        peak: largest resident memory of the process above what it was before its first reading, bytes.
    """

    seconds: float
    asked: int
    peak: int


class Reader:
    """Reads candidates as an engine does, and notes what it holds."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._held = HeldWeights(bank.family)
        self._start = _resident()

    def read(self, merged: Merged, beside: Together | None) -> Reading:
        """Read what has changed."""
        changed, asked = self._held.changed(merged.manifest), 0
        began = time.perf_counter()
        with _peak() as peak:
            for _, values in _tensors(self._bank, merged, changed, beside):
                values.view(torch.int16).max()  # every page is looked at
                asked += values.nbytes
        seconds = time.perf_counter() - began
        self._held.complete(merged.manifest)
        return Reading(seconds, asked, peak[0] - self._start)

    def digest(self, merged: Merged) -> str:
        """Of all bits."""
        return _digest(self._bank, merged)


def _tensors(
    bank: Bank, merged: Merged, names: Iterable[str], beside: Together | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    files = MappedFiles()
    for bucket in bank.localise(merged.manifest, merged.places, None, beside).buckets(list(names)):
        files.forget_dead()
        for tensor in bucket.tensors:
            yield tensor.name, files.read(tensor.shape, torch.bfloat16, list(map(astuple, tensor.pieces)))


def _digest(bank: Bank, merged: Merged) -> str:
    found = hashlib.sha256()
    for name, values in _tensors(bank, merged, [tensor.name for tensor in merged.manifest.tensors]):
        found.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The largest resident memory of this process in the block, looked at every millisecond."""
    found, done = [_resident()], threading.Event()

    def look() -> None:
        while not done.wait(0.001):
            found[0] = max(found[0], _resident())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()


def _copying() -> float:
    """Bytes of memory that one thread copies in a second."""
    values = torch.ones(64 << 20, dtype=torch.uint8)
    copy, began = values.clone(), time.perf_counter()
    copy.copy_(values)
    return values.nbytes / (time.perf_counter() - began)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _loopback() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def make_models(room: Path, layers: int) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """A base and two specialists with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=320, num_hidden_layers=layers, tie_word_embeddings=True, **SHAPE)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ("base", "first", "second"):
        if name != "base":
            for parameter in model.parameters():
                parameter.data += torch.randn_like(parameter.data) * 0.01
        model.save_pretrained(room / name)
    return resolve(str(room / "base")), {name: resolve(str(room / name)) for name in ("first", "second")}


@contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Two raylets of this machine; their ids."""
    node = {"num_cpus": 2, "object_store_memory": 512 << 20}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    there = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster.head_node.node_id, there.node_id
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Print a row for each candidate."""
    parser = argparse.ArgumentParser(description="reading merged weights that lie on another node")
    parser.add_argument("--layers", type=int, default=30, help="layers of the made-up model; 30 are 212 MB")
    parser.add_argument("--rounds", type=int, default=5, help="candidates of which all weights have changed")
    parser.add_argument("--readers", type=int, default=1, help="that read at once, on one node")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as room, two_nodes() as (here, there):
        base, specialists = make_models(Path(room), arguments.layers)
        bank = Bank.load(base, specialists, shards=1, where=[{"scheduling_strategy": _on(there)}])
        made: Any = ray.remote(Reader).options(scheduling_strategy=_on(here), num_cpus=0)
        readers = [made.remote(bank) for _ in range(arguments.readers)]
        groups = [[0.5] * (base.num_layers - 1) + [last] for last in (0.7, 0.9)]
        candidates = [
            *(("all", {"scaling_coef": 0.15 + 0.1 * index}) for index in range(arguments.rounds)),
            ("all", {"scaling_coef": dict.fromkeys(specialists, groups[0])}),
            ("nothing", {"scaling_coef": dict.fromkeys(specialists, groups[0])}),
            ("one layer and the last norm", {"scaling_coef": dict.fromkeys(specialists, groups[1])}),
        ]
        print(
            "| changed | each reads | crossed loopback | merge, s | read, s | GB/s | copying | peak above the start |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        alone = [None] * arguments.readers
        for index, (kind, parameters) in enumerate(candidates):
            merged, copied = bank.merge(bank.recipe("task_arithmetic", parameters)), _copying()
            company = together([here] * arguments.readers) if index % 2 else alone
            crossed = _loopback()
            begun = [reader.read.remote(merged, beside) for reader, beside in zip(readers, company, strict=True)]
            found: Reading = max(ray.get(begun), key=lambda one: one.seconds)
            crossed = _loopback() - crossed
            print(
                f"| {kind}{', together' if any(company) else ''} | {found.asked / 1e6:.1f} MB | "
                f"{crossed / 1e6:.2f} MB | "
                f"{merged.seconds:.3f} | {found.seconds:.3f} | {found.asked / found.seconds / 1e9:.2f} | "
                f"{copied / 1e9:.1f} GB/s | {found.peak / 1e6:.0f} MB |",
                flush=True,
            )
        local = Bank.load(base, specialists, in_process=True)
        digests = [
            *ray.get([reader.digest.remote(bank.merge(bank.recipe("task_arithmetic", {}))) for reader in readers]),
            _digest(local, local.merge(local.recipe("task_arithmetic", {}))),
        ]
        print(f"{'the same bits' if len(set(digests)) == 1 else 'OTHER BITS'} as without another node")
    sys.exit(len(set(digests)) - 1)


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


if __name__ == "__main__":
    main()
