"""What is planned is what is started: on its node and device, or refused at once (two raylets of this machine)."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster as Raylets
from ray.util.placement_group import remove_placement_group

from mergebench_ray import ray_nodes
from mergebench_ray.config import Sweep
from mergebench_ray.config.judge import Judge
from mergebench_ray.errors import InputError
from mergebench_ray.machine import available_memory
from mergebench_ray.placement import Cluster, Node, Part, Placed, Placement, clusters, find_placement
from mergebench_ray.placement.clusters import running_cluster
from mergebench_ray.placement.packing import pack
from mergebench_ray.placement.parts import ModelSizes
from mergebench_ray.placement.starting import reserved
from mergebench_ray.ray_nodes import leaving_nodes, present_nodes
from raylets import LEAN_HEAD, drain

MIB = 1 << 20
THREE_BILLION = ModelSizes(
    parameters=3_200_000_000,
    merged=2_800_000_000,
    num_layers=28,
    largest=400_000_000,
    specialists=2,
    gram=0,
    calibration={},
    heads={"num_attention_heads": 24},
)


@contextmanager
def nodes_with(*gpus: int, cpus: int = 1, memory: int = 1000 * MIB) -> Iterator[None]:
    """A node for each number of GPUs, of which Ray is told and none is there."""
    node = {"num_cpus": cpus, "memory": memory, "object_store_memory": 100 * MIB}
    raylets = Raylets(initialize_head=True, head_node_args={**node, "num_gpus": gpus[0], **LEAN_HEAD})
    for count in gpus[1:]:
        raylets.add_node(**node, num_gpus=count)
    ray.init(address=raylets.address, log_to_driver=False)
    yield
    ray.shutdown()
    raylets.shutdown()


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process apart from this one, which may speak with the session's Ray."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.ray
@pytest.mark.apart
def test_parts_start_where_they_are_planned_and_what_has_no_room_is_refused_within_seconds(
    process: ProcessPoolExecutor,
) -> None:
    process.submit(check_two_nodes).result()


@pytest.mark.ray
@pytest.mark.apart
def test_a_node_on_which_ray_counts_no_memory_is_planned_with_what_is_free_there(process: ProcessPoolExecutor) -> None:
    process.submit(check_uncounted_memory).result()


@pytest.mark.ray
@pytest.mark.apart
def test_on_one_two_and_four_gpus_everything_starts_at_once_on_its_device_and_shards_share_with_engines(
    process: ProcessPoolExecutor,
) -> None:
    process.submit(check_gpus).result()


def test_a_command_on_a_node_that_is_to_be_taken_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": True} for name in ("here", "there")])
    monkeypatch.setattr(ray_nodes, "leaving_nodes", lambda: frozenset({"here"}))
    monkeypatch.setattr(clusters, "_memory_of_gpus", lambda _nodes: pytest.fail("what other nodes have was asked"))
    with pytest.raises(InputError, match="the node of this command will be taken away: give the command on another"):
        running_cluster()


def check_gpus() -> None:
    with nodes_with(1, 2, 4, cpus=6, memory=60 << 30):
        for node in ray.nodes():
            count = int(node["Resources"]["GPU"])
            card = (80 << 30,) * count
            one = Node(name="node", host_memory=60 << 30, gpu_memory=card, cores=6.0, node_id=node["NodeID"])
            cluster = Cluster(nodes=(one,), has_own_store=True)
            check_a_sweep(cluster, engines=count, shards=count, transport="shared_memory")
            check_a_sweep(cluster, engines=count, shards=1, transport="gpu")


def check_a_sweep(cluster: Cluster, engines: int, shards: int, transport: str) -> None:
    """Engines have a GPU each; a shard is on the one of an engine; a judge is beside, and all of them run at once."""
    content = {"name": "x", "suite": "smollm2-mini", "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}}}
    engine = {"count": engines, "transport": transport}
    sweep = Sweep.model_validate({**content, "engine": engine, "bank": {"shards": shards}})
    judge = Judge(model="judge", prompt="{response}", parser="yes_or_no")
    placement = find_placement(sweep, THREE_BILLION, {"judge": (judge, 1_000_000_000)}, cluster)
    assert placement is not None
    assert placement.bank_on_gpu
    assert len({one.devices for one in placement.of("engine")}) == engines
    assert {one.devices for one in placement.of("shard")} <= {one.devices for one in placement.of("engine")}
    for device in range(engines):
        assert placement.gpu_memory_on(0, device) <= 80 << 30
    shares = [placement.engine_options(sweep.engine, index).gpu_memory_utilization for index in range(engines)]
    assert all(share is not None and 0.1 < share <= 0.9 for share in shares)
    parts = [one for one in placement.placed if one.part.kind in ("shard", "engine", "judge")]

    def has_begun(folder: str, count: int) -> str:
        """The device that a process sees, once as many processes as that have begun."""
        tempfile.mkstemp(dir=folder)
        while len(os.listdir(folder)) < count:
            time.sleep(0.02)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with reserved(placement) as places, tempfile.TemporaryDirectory() as folder:
        begin = ray.remote(has_begun)
        options = [places.of(one.part.kind, one.part.index) for one in parts]
        found = ray.get([begin.options(**one).remote(folder, len(parts)) for one in options], timeout=60)
    stub_of = {one.devices: device for one, device in zip(parts, found, strict=True)}
    assert [
        stub_of[one.devices] for one in parts
    ] == found  # on one device where it is planned, as its processes see it
    assert len(set(stub_of.values())) == len(stub_of)


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
    with nodes_with(2, 2):
        ids = [node["NodeID"] for node in ray.nodes()]
        nodes = tuple(
            Node(name=one, host_memory=1000 * MIB, gpu_memory=(80 * MIB,) * 2, cores=1.0, node_id=one) for one in ids
        )
        check_places(Cluster(nodes=nodes))
        check_refusals(Cluster(nodes=nodes))
        check_a_node_that_leaves(Cluster(nodes=nodes))


def check_a_node_that_leaves(cluster: Cluster) -> None:
    """What was set aside on it is set aside elsewhere; but for judges, and where there is no room, all stays."""
    leaves, stays = (node.node_id for node in reversed(cluster.nodes))
    engine = Part(kind="engine", name="engine", host_memory=200 * MIB, gpus=1, gpu_fraction=0.5)
    shard = Part(kind="shard", name="bank shard", host_memory=100 * MIB)
    judge = Part(kind="judge", name="judge", host_memory=100 * MIB)
    asked: list[bool] = []

    def twice() -> bool:
        asked.append(True)
        return len(asked) % 2 == 1

    def placement(*parts: Part) -> Placement:
        placed = [Placed(part=part, node=1, devices=(0,) * part.gpus) for part in parts]
        return Placement(cluster=cluster, placed=tuple(placed), bank_on_gpu=False)

    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    with reserved(placement(engine, shard)) as places, reserved(placement(judge)) as with_judge:
        drain(leaves)
        assert leaving_nodes() == {leaves}
        assert [node["NodeID"] for node in present_nodes()] == [stays]
        assert places.leave(stays, twice) == []
        assert with_judge.leave(leaves, twice) is None
        [group] = places.leave(leaves, twice) or []
        for part in (engine, shard):
            assert ray.get(where.options(**places.of(part.kind, 0)).remote(), timeout=60) == stays
        remove_placement_group(group)


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
