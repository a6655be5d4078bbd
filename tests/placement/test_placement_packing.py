"""Every placement that is found holds when it is added up by hand; what is said not to fit does not, whichever way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from added_up import holds
from mergebench_ray.placement.packing import pack
from mergebench_ray.placement.records import Cluster, Node, Part, Placed


@st.composite
def clusters(draw: st.DrawFn, most_nodes: int = 6, most_gpus: int = 4) -> Cluster:
    kinds = draw(st.integers(0, 1))
    nodes = []
    for index in range(draw(st.integers(1, most_nodes))):
        gpus = draw(st.integers(0, most_gpus)) if kinds else 0
        nodes.append(
            Node(
                name=str(index),
                host_memory=draw(st.integers(0, 60)),
                gpu_memory=tuple(draw(st.integers(1, 40)) for _ in range(gpus)),
                cores=draw(st.none() | st.integers(0, 6).map(float)),
            )
        )
    return Cluster(nodes=tuple(nodes))


@st.composite
def parts(draw: st.DrawFn, most: int = 10) -> list[Part]:
    on_gpus = draw(st.booleans())
    output = draw(st.integers(0, 6))
    found = []
    for index in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["shard", "shard", "engine", "engine", "judge", "calibration", "driver"]))
        gpu = on_gpus and kind in ("shard", "engine", "judge")
        engine = kind in ("engine", "judge")
        found.append(
            Part(
                kind=kind,
                index=index,
                name=kind,
                host_memory=draw(st.integers(0, 20)),
                gpus=(draw(st.integers(1, 2)) if engine else 1) if gpu else 0,
                gpu_memory=draw(st.integers(0, 20)) if gpu else 0,
                gpu_fraction=draw(st.sampled_from([0.25, 0.5, 0.9])) if gpu and engine else 0.0,
                gpu_rest=draw(st.sampled_from([0.0, 0.3])) if gpu and engine else 0.0,
                gpu_share=draw(st.sampled_from([0, 0, 5000, 10_000])) if gpu and engine else 0,
                cores=1.0 if kind == "engine" else 0.0,
                output_bytes=output if kind == "shard" else 0,
                node=0 if kind == "driver" else None,
            )
        )
    return found


def every_way(needs: Sequence[Part], cluster: Cluster) -> Iterator[list[Placed]]:
    choices = []
    for part in needs:
        choices.append(
            [
                Placed(part=part, node=index, devices=devices)
                for index, node in enumerate(cluster.nodes)
                for devices in itertools.combinations(range(len(node.gpu_memory)), part.gpus)
            ]
        )
    yield from map(list, itertools.product(*choices))


@settings(max_examples=100)
@given(parts(), clusters())
def test_a_placement_that_is_found_holds(needs: list[Part], cluster: Cluster) -> None:
    placed = pack(needs, cluster)
    if placed is not None:
        assert [one.part for one in placed] == needs
        assert holds(placed, cluster)


@settings(max_examples=100)
@given(parts(most=4), clusters(most_nodes=3, most_gpus=2))
def test_what_does_not_fit_fits_in_no_way(needs: list[Part], cluster: Cluster) -> None:
    fits = any(holds(placed, cluster) for placed in every_way(needs, cluster))
    assert (pack(needs, cluster) is not None) == fits


def test_tensor_parallel_engines_are_whole_on_a_node_and_alone_on_their_devices() -> None:
    engine = Part(kind="engine", name="engine", gpus=2, gpu_memory=20, gpu_fraction=0.5, gpu_share=10_000)
    shards = [Part(kind="shard", index=index, name="shard", gpus=1, gpu_memory=30) for index in range(2)]
    needs = [engine, engine.model_copy(update={"index": 1}), *shards]
    assert pack(needs, Cluster.alike(2, 100, 2, 80)) is None
    placed = pack(needs, Cluster.alike(2, 100, 3, 80))
    assert placed is not None
    assert all(len(one.devices) == one.part.gpus for one in placed)
    assert len({(one.node, device) for one in placed for device in one.devices}) == 6


def test_shards_and_engines_are_spread_while_there_is_room_and_share_where_there_is_not() -> None:
    engine = Part(kind="engine", name="engine", gpus=1, gpu_memory=20, gpu_fraction=0.5)
    shard = Part(kind="shard", name="shard", gpus=1, gpu_memory=30)
    apart, together = (pack([engine, shard], Cluster.alike(1, 100, gpus, 80)) for gpus in (2, 1))
    assert apart is not None
    assert together is not None
    assert {one.devices for one in apart} == {(0,), (1,)}
    assert {one.devices for one in together} == {(0,)}
    assert pack([engine, shard], Cluster.alike(1, 100, 1, 59)) is None


def test_shards_are_put_beside_engines_where_those_read_from_them_and_engines_stay_apart() -> None:
    def where(gpus: int, engines: int, shards: int) -> dict[str, list[tuple[int, ...]]]:
        engine = Part(kind="engine", name="engine", gpus=1, gpu_memory=20, gpu_fraction=0.4)
        shard = Part(kind="shard", name="shard", gpus=1, gpu_memory=10)
        needs = [engine.model_copy(update={"index": index}) for index in range(engines)]
        needs += [shard.model_copy(update={"index": index}) for index in range(shards)]
        placed = pack(needs, Cluster.alike(1, 100, gpus, 80), beside=True)
        assert placed is not None
        return {kind: [one.devices for one in placed if one.part.kind == kind] for kind in ("engine", "shard")}

    assert where(4, 1, 2) == {"engine": [(0,)], "shard": [(0,), (0,)]}
    assert where(2, 2, 2) == {"engine": [(0,), (1,)], "shard": [(0,), (1,)]}
    assert where(4, 3, 1) == {"engine": [(0,), (1,), (2,)], "shard": [(0,)]}
    assert where(1, 1, 4) == {"engine": [(0,)], "shard": [(0,)] * 4}
    assert where(2, 1, 6) == {"engine": [(0,)], "shard": [(0,)] * 4 + [(1,)] * 2}  # 48 of 80 beside the engine


def test_engines_go_to_nodes_that_may_be_taken_away_and_the_bank_stays() -> None:
    engine = Part(kind="engine", name="engine", host_memory=10, gpus=1, gpu_memory=20, gpu_fraction=0.5)
    shard = Part(kind="shard", name="shard", host_memory=30)
    roomy = {"host_memory": 100, "gpu_memory": (80, 80)}
    stays, goes = Node(name="stays", **roomy), Node(name="goes", spot=True, **{**roomy, "host_memory": 200})
    for nodes in ((stays, goes), (goes, stays)):
        placed = pack([engine, shard], Cluster(nodes=nodes))
        assert placed is not None
        assert [nodes[one.node].name for one in placed] == ["goes", "stays"]
    assert pack([engine, shard], Cluster(nodes=(goes,))) is not None
    without = Node(name="without GPUs", host_memory=100)
    assert [Cluster(nodes=nodes).only_spot_gpus for nodes in ((goes, without), (goes, stays), (goes,))] == [1, 0, 0]
