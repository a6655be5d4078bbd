"""A bank over two nodes (two raylets of this machine): parts of the other node reach the reader through Ray."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from bank_in_process import LocalBank
from mergebench_ray.bank import Bank
from mergebench_ray.checkpoints import Checkpoint, resolve
from tiny_models import tiny_llama, tiny_specialist


@contextmanager
def two_nodes() -> Iterator[None]:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    # Ray spreads actors over the nodes that the driver's own has heard of: of a new one it hears a little later.
    where = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(lambda: ray.get_runtime_context().get_node_id())
    deadline = time.monotonic() + 60
    while len(set(ray.get([where.remote(), where.remote()]))) < 2:
        assert time.monotonic() < deadline, "nothing is put on the second node"
        time.sleep(0.1)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("without_compiler")
def test_merged_tensors_of_two_nodes_are_read_on_one(tmp_path: Path) -> None:
    # In a process of its own: this one may speak with the session's Ray.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check_merges_over_two_nodes, tmp_path).result()


def spread_bank(base: Checkpoint, specialists: dict[str, Checkpoint]) -> Bank:
    """A bank whose shards are on both nodes: Ray spreads them as it can, and on a busy machine not always."""
    for _ in range(5):
        bank = Bank.load(base, specialists, shards=3, threads=1)
        merged = bank.merge(bank.recipe("task_arithmetic", {}))
        if bank.localise(merged.manifest, merged.places) != merged.manifest:
            return bank
        bank.close()
    raise AssertionError("all shards are put on one node again and again")


def check_merges_over_two_nodes(folder: Path) -> None:
    model = tiny_llama(folder / "base")
    base = resolve(str(model))
    specialists = {name: resolve(str(tiny_specialist(folder / name, model, seed=i))) for i, name in enumerate("ab")}
    local = LocalBank(base, specialists)
    with two_nodes():
        bank = spread_bank(base, specialists)
        for method in ("task_arithmetic", "dare"):
            merged = bank.merge(bank.recipe(method, {}))
            here = bank.localise(merged.manifest, merged.places)
            assert here.version == merged.manifest.version
            assert here != merged.manifest
            expected = local.merge(method, {})
            for name, tensor in bank.tensors():
                assert torch.equal(tensor.view(torch.int16), expected[name].view(torch.int16)), name
        bank.close()
