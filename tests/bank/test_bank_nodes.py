"""A bank over three nodes (raylets of this machine): what is on others reaches the reader through Ray, in buckets."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bank_in_process import LocalBank
from mergebench_ray.bank import Bank, Merged, NoLongerHeldError
from mergebench_ray.bank.shard import BankShard
from mergebench_ray.checkpoints import resolve
from mergebench_ray.ray_nodes import is_alive
from raylets import LEAN_HEAD, drain
from tiny_models import tiny_llama, tiny_specialist


@contextmanager
def three_nodes() -> Iterator[list[str]]:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, **LEAN_HEAD})
    nodes = [cluster.head_node, *(cluster.add_node(**node, wait=False) for _ in range(2))]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield [node.node_id for node in nodes]
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.apart
@pytest.mark.usefixtures("without_compiler")
def test_merged_tensors_of_three_nodes_are_read_on_one(tmp_path: Path) -> None:
    # In a process of its own: this one may speak with the session's Ray.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check_merges_over_three_nodes, tmp_path).result()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    bits = [torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected]
    return all(bits) and found.keys() == expected.keys()


def copied(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in tensors}


def check_merges_over_three_nodes(folder: Path) -> None:
    model = tiny_llama(folder / "base")
    base = resolve(str(model))
    specialists = {name: resolve(str(tiny_specialist(folder / name, model, seed=i))) for i, name in enumerate("ab")}
    local = LocalBank(base, specialists)
    with three_nodes() as nodes:
        where = [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in nodes]
        bank = Bank.load(base, specialists, shards=3, threads=1, where=where)
        for method in ("task_arithmetic", "dare"):
            merged = bank.merge(bank.recipe(method, {}))
            assert [place.node for place in merged.places] == nodes
            assert same(copied(bank.tensors()), local.merge(method, {}))
        check_a_lost_shard_is_noticed(bank, merged)
        bank.merge(bank.recipe("dare", {}))
        assert same(copied(bank.tensors()), local.merge("dare", {}))
        check_shards_of_a_drained_node_have_a_second_place(bank, nodes)
        assert same(copied(bank.tensors()), local.merge("ties", {}))
        bank.close()


def check_shards_of_a_drained_node_have_a_second_place(bank: Bank, nodes: list[str]) -> None:
    """Ray puts it where something may begin, and the node ends once nothing is left there."""
    drain(nodes[1])
    shards = bank.actor_shards
    [fresh] = shards.begin_elsewhere(shards.on(nodes[1]), [])
    ray.get(fresh.call(BankShard.load))
    shards.swap([1], [fresh])
    merged = bank.merge(bank.recipe("ties", {}))
    assert merged.places[1].node in {nodes[0], nodes[2]}
    until = time.monotonic() + 30
    while is_alive(nodes[1]):
        assert time.monotonic() < until
        time.sleep(0.1)


def check_a_lost_shard_is_noticed(bank: Bank, merged: Merged) -> None:
    """Whoever reads, wherever the shard is in its new life."""
    weights = bank.localise(merged.manifest, merged.places)
    names = [tensor.name for tensor in merged.manifest.tensors]
    os.kill(int(merged.places[2].path.split("/")[2]), signal.SIGKILL)
    with pytest.raises((NoLongerHeldError, ray.exceptions.RayTaskError)):
        list(weights.buckets(names))
    assert not bank.holds(merged)
    with pytest.raises(ray.exceptions.RayTaskError, match="has begun again"):
        list(weights.buckets(names))
