"""What is planned is what is started: on its node and device, or refused at once (two raylets of this machine)."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest
import ray
from ray.cluster_utils import Cluster as Raylets

from mergebench_ray.errors import InputError
from mergebench_ray.machine import available_memory
from mergebench_ray.placement import Cluster, Node, Part, Placed, Placement
from mergebench_ray.placement.clusters import running_cluster
from mergebench_ray.placement.packing import pack
from mergebench_ray.placement.starting import reserved

MIB = 1 << 20


@contextmanager
def two_nodes() -> Iterator[None]:
    node = {"num_cpus": 1, "num_gpus": 2, "memory": 1000 * MIB, "object_store_memory": 100 * MIB}
    raylets = Raylets(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    raylets.add_node(**node)
    ray.init(address=raylets.address, log_to_driver=False)
    yield
    ray.shutdown()
    raylets.shutdown()


@pytest.mark.ray
@pytest.mark.apart
def test_parts_start_where_they_are_planned_and_what_has_no_room_is_refused_within_seconds() -> None:
    # In a process of its own: this one may speak with the session's Ray.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check_two_nodes).result()


@pytest.mark.ray
@pytest.mark.apart
def test_a_node_on_which_ray_counts_no_memory_is_planned_with_what_is_free_there() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check_uncounted_memory).result()


def check_uncounted_memory() -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _memory=0)
    assert "memory" not in ray.cluster_resources()
    cluster = running_cluster()
    free, [note] = available_memory(), cluster.notes
    assert 0.5 * free < cluster.nodes[0].host_memory < 2 * free
    assert note.startswith("Ray was told of no memory on 1 of 1 nodes")
    parts = [
        Part(kind="shard", name="bank shard", host_memory=100 * MIB),
        Part(kind="engine", name="engine", host_memory=100 * MIB, cores=1.0),
    ]
    placed = pack(parts, cluster)
    assert placed is not None
    with reserved(Placement(cluster=cluster, placed=tuple(placed), bank_on_gpu=False)) as places:
        where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
        found = [where.options(**places.of(part.kind, 0)).remote() for part in parts]
        assert set(ray.get(found, timeout=60)) == {cluster.nodes[0].node_id}
    ray.shutdown()


def check_two_nodes() -> None:
    with two_nodes():
        ids = [node["NodeID"] for node in ray.nodes()]
        nodes = tuple(
            Node(name=one, host_memory=1000 * MIB, gpu_memory=(80 * MIB,) * 2, cores=1.0, node_id=one) for one in ids
        )
        check_places(Cluster(nodes=nodes))
        check_refusals(Cluster(nodes=nodes))


def check_places(cluster: Cluster) -> None:
    shard = Part(kind="shard", name="bank shard", host_memory=100 * MIB, gpus=1, gpu_memory=30 * MIB)
    engine = Part(kind="engine", name="engine", host_memory=200 * MIB, gpus=1, gpu_fraction=0.5)
    wide = Part(kind="engine", index=1, name="engine", host_memory=200 * MIB, gpus=2, gpu_share=10_000)
    whole = [Placed(part=wide, node=1, devices=(0, 1))]
    shared = [
        Placed(part=shard, node=0, devices=(1,)),
        Placed(part=shard.model_copy(update={"index": 1}), node=0, devices=(0,)),
        Placed(part=engine, node=0, devices=(1,)),
    ]
    placement = Placement(cluster=cluster, placed=(*whole, *shared), bank_on_gpu=True)
    with reserved(placement) as places:
        where = ray.remote(lambda: (ray.get_runtime_context().get_node_id(), tuple(ray.get_gpu_ids())))
        asked = [(one.part.kind, one.part.index) for one in placement.placed]
        found = dict(zip(asked, ray.get([where.options(**places.of(*key)).remote() for key in asked]), strict=True))
        for one in placement.placed:
            assert found[one.part.kind, one.part.index][0] == cluster.nodes[one.node].node_id
        assert found["engine", 0][1] == found["shard", 0][1] != found["shard", 1][1]
        assert len(found["engine", 1][1]) == 2


def check_refusals(cluster: Cluster) -> None:
    with pytest.raises(
        InputError, match=r"Ray was told of 2 GPU\(s\), and 0 are there; start it again with --num-gpus 0"
    ):
        running_cluster()
    needs = [Part(kind="shard", index=index, name="bank shard", host_memory=600 * MIB) for index in range(2)]
    placed = pack(needs, cluster)
    assert placed is not None
    assert {one.node for one in placed} == {0, 1}
    placement = Placement(cluster=cluster, placed=tuple(placed), bank_on_gpu=False)
    began = time.monotonic()
    twice = pytest.raises(InputError, match=r"Ray did not set aside 0\.6 GiB on .* since others use it")
    with reserved(placement), twice, reserved(placement):
        pytest.fail("it was set aside twice")
    assert time.monotonic() - began < 15
