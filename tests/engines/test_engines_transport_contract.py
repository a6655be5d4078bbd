"""What is asked of every transport: the contract of `WeightTransport`, with receivers and senders that need no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines.transports import WeightTransport, transport_class
from mergebench_ray.engines.transports.sender import BankSource, Rendezvous, SendingTransport
from mergebench_ray.engines.transports.shared_memory import SharedMemoryTransport
from mergebench_ray.families import family_of
from mergebench_ray.weights.manifest import WeightManifest, WeightTensor
from mergebench_ray.weights.stream import Bytes, WeightStream

NAMES = [f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("mlp.up_proj", "mlp.down_proj")]
RENDEZVOUS = Rendezvous("127.0.0.1", 29501, num_workers=1)


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


class Sender:
    """Does as vLLM's senders, without a GPU: reads the source once, calls the engine, knows nothing of versions."""

    def __init__(self, client: Any, source: BankSource) -> None:
        self.client, self.source = client, source
        self.is_open = True
        client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        self.client.start_weight_update()
        self.client.update_weights({"names": [name for name, _ in self.source]})
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.is_open = False


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[WeightTransport]:
    def made(_init_info: Any, *, client: Any, source: BankSource) -> Sender:
        return Sender(client, source)

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", staticmethod(made))
    return transport_class(request.param)


def read(names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        yield name, torch.zeros(2, 3, dtype=torch.bfloat16)


def connected(kind: type[WeightTransport], receiver: Receiver) -> WeightTransport:
    if issubclass(kind, SendingTransport):
        transport: WeightTransport = kind(receiver, BankSource(manifest("any"), read), RENDEZVOUS)
    else:
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
        assert receiver.names == (NAMES if getattr(kind, "sends_all", False) else names)


def test_tensors_arrive_in_the_manifests_order_whatever_order_names_them(kind: type[WeightTransport]) -> None:
    receiver = Receiver()
    connected(kind, receiver).send(manifest("first"), NAMES[::-1])
    assert receiver.names == NAMES


def test_buckets_arrive_one_after_the_other_within_one_update() -> None:
    receiver = Receiver()
    connected(SharedMemoryTransport, receiver).send(streamed("first"), NAMES[1:])
    assert receiver.calls == ["init", "start", "update", "update", "update", "finish"]
    assert (receiver.names, receiver.version) == (NAMES[1:], "first")


def test_where_a_bucket_does_not_come_the_update_is_ended_without_a_version() -> None:
    receiver = Receiver()
    transport = connected(SharedMemoryTransport, receiver)
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


def test_closing_lets_a_sender_go_and_hurts_nothing_before_or_twice(kind: type[WeightTransport]) -> None:
    transport = connected(kind, Receiver())
    sender = getattr(transport, "_sender", None)
    transport.close()
    transport.close()
    assert sender is None or not sender.is_open


def test_vllm_knows_each_backend_by_one_name(kind: type[WeightTransport]) -> None:
    assert [transport_class(name).backend for name in TRANSPORTS].count(kind.backend) == 1
