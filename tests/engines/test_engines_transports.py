"""What is asked of every transport: the contract of `WeightTransport`, with a receiver that takes nothing in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from mergebench_ray.config import EngineOptions
from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines.transports import WeightTransport, transport_class
from mergebench_ray.families import family_of
from mergebench_ray.weights.crossing import Bytes
from mergebench_ray.weights.manifest import WeightManifest, WeightTensor
from mergebench_ray.weights.stream import WeightStream

NAMES = [f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("mlp.up_proj", "mlp.down_proj")]


def manifest(version: str) -> WeightManifest:
    tensors = tuple(WeightTensor(name, (2, 3), (), f"{version} {name}") for name in NAMES)
    return WeightManifest(version, "bfloat16", tensors)


def streamed(version: str, fails_after: int = len(NAMES)) -> WeightStream:
    """The same, each tensor in a bucket of its own."""

    def source(tensors: Sequence[WeightTensor]) -> Iterator[Bytes]:
        for number, tensor in enumerate(tensors):
            if number == fails_after:
                raise FileNotFoundError("gone")
            yield np.full(2 * tensor.count, number, np.uint8)

    plain = manifest(version)
    return WeightStream(version, plain.dtype, plain.tensors, family_of("llama"), source, bucket_bytes=1)


class Receiver:
    """An engine that notes what reaches it, and fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.calls: list[str] = []
        self.names: list[str] = []
        self.version: str | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._called("init")

    def start_weight_update(self) -> None:
        self.names = []
        self._called("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._called("update")
        self.names += update_info["names"]

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._called("finish")
        self.version = weight_version

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise RuntimeError(f"no {name}")


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest) -> type[WeightTransport]:
    return transport_class(request.param)


def connected(kind: type[WeightTransport], receiver: Receiver) -> WeightTransport:
    transport = kind(receiver)
    transport.connect()
    return transport


def test_connecting_meets_the_receiver_once_and_moves_nothing(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    connected(kind, receiver)
    assert receiver.calls == ["init"]


def test_after_a_send_the_receiver_has_the_named_tensors_and_the_manifests_version(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    transport = connected(kind, receiver)
    for version, names in [("first", NAMES), ("second", NAMES[1:3])]:
        receiver.calls.clear()
        transport.send(manifest(version), names)
        assert receiver.calls == ["start", "update", "finish"]
        assert receiver.version == version
        assert receiver.names == names


def test_tensors_arrive_in_the_manifests_order_whatever_order_names_them(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    connected(kind, receiver).send(manifest("first"), NAMES[::-1])
    assert receiver.names == NAMES


def test_buckets_arrive_one_after_the_other_within_one_update(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    connected(kind, receiver).send(streamed("first"), NAMES[1:])
    assert receiver.calls == ["init", "start", "update", "update", "update", "finish"]
    assert (receiver.names, receiver.version) == (NAMES[1:], "first")


def test_where_a_bucket_does_not_come_the_update_is_ended_without_a_version(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    transport = connected(kind, receiver)
    with pytest.raises(FileNotFoundError, match="gone"):
        transport.send(streamed("first", fails_after=2), NAMES)
    assert receiver.calls == ["init", "start", "update", "update", "finish"]
    assert receiver.version is None


@pytest.mark.parametrize("step", ["start", "update", "finish"])
def test_an_error_of_the_receiver_ends_the_send_and_sets_no_version(kind: type[WeightTransport], step: str) -> None:
    receiver = Receiver()
    transport = connected(kind, receiver)
    receiver.fails_at = step
    with pytest.raises(RuntimeError, match=f"no {step}"):
        transport.send(manifest("first"), NAMES)
    assert receiver.version is None
    receiver.fails_at = ""
    transport.send(manifest("second"), NAMES)
    assert (receiver.version, receiver.names) == ("second", NAMES)


def test_closing_moves_nothing_and_hurts_nothing_twice(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    transport = connected(kind, receiver)
    transport.close()
    transport.close()
    assert receiver.calls == ["init"]


def test_vllm_knows_each_backend_by_one_name(kind: type[WeightTransport]) -> None:
    assert [transport_class(name).backend for name in TRANSPORTS].count(kind.backend) == 1


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_sweep_can_name_it_and_vllms_workers_know_its_receiving_side(name: str) -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    assert EngineOptions(transport=name).transport == name
    assert WeightTransferEngineFactory._registry[transport_class(name).backend]().update_info_cls


def test_an_engine_is_a_client_as_vllms_transports_expect() -> None:
    from vllm.distributed.weight_transfer import VLLMWeightSyncClient

    from mergebench_ray.engines import VLLMEngine

    assert isinstance(Receiver(), VLLMWeightSyncClient)
    assert all(callable(getattr(VLLMEngine, name)) for name in Receiver.__dict__ if not name.startswith("_"))
