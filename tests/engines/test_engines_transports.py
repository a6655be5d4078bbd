"""The GPU transports against vLLM's real classes, as far as they go without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from vllm.distributed.weight_transfer import VLLMWeightSyncClient, WeightTransferEngineFactory
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory as SenderFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.m2n_common import check_transferable, resolve_layout, validate_layout
from vllm.distributed.weight_transfer.m2n_trainer import M2NTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferUpdateInfo

from mergebench_ray.config import EngineOptions
from mergebench_ray.config.transports import TRANSPORTS
from mergebench_ray.engines.transports import transport_class
from mergebench_ray.engines.transports.ipc import IPCTransport
from mergebench_ray.engines.transports.nccl import NCCLTransport
from mergebench_ray.engines.transports.nccl_m2n import BankM2NSource, NCCLM2NTransport
from mergebench_ray.engines.transports.sender import BankSource, Rendezvous, SendingTransport
from mergebench_ray.engines.transports.shared_memory import SharedMemoryWeightTransferEngine
from mergebench_ray.weights.manifest import WeightManifest, WeightTensor

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.post_attention_layernorm.weight": (4,),
    "model.layers.1.mlp.up_proj.weight": (6, 4),
    "model.layers.1.post_attention_layernorm.weight": (4,),
    "model.norm.weight": (4,),
}
MANIFEST = WeightManifest(
    "digest", "bfloat16", tuple(WeightTensor(name, shape, (), name) for name, shape in SHAPES.items())
)
RENDEZVOUS = Rendezvous("127.0.0.1", 29501, num_workers=2)


def read(names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        yield name, torch.full(SHAPES[name], float([*SHAPES].index(name)), dtype=torch.bfloat16)


class RecordingEngine:
    """Stands where the engine's actor would; there is no GPU to receive anything."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append(("init", init_info))

    def start_weight_update(self) -> None:
        self.calls.append(("start", None))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append(("update", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(("finish", weight_version))


def test_an_engine_is_a_client_as_vllms_senders_expect() -> None:
    from mergebench_ray.engines import VLLMEngine

    assert isinstance(RecordingEngine(), VLLMWeightSyncClient)
    assert all(callable(getattr(VLLMEngine, name)) for name in RecordingEngine.__dict__ if not name.startswith("_"))


@pytest.mark.parametrize("name", TRANSPORTS)
def test_vllm_knows_the_backend_of_every_transport_that_a_sweep_can_name(name: str) -> None:
    assert EngineOptions(transport=name).transport == name
    transport = transport_class(name)
    receiver = WeightTransferEngineFactory._registry[transport.backend]()
    assert receiver.update_info_cls
    if issubclass(transport, SendingTransport):
        init_info = transport.init_info(RENDEZVOUS)
        assert SenderFactory._registry[init_info.backend]().init_info_cls is type(init_info)
    else:
        assert receiver is SharedMemoryWeightTransferEngine


def test_what_the_source_announces_is_what_it_yields() -> None:
    source = BankSource(MANIFEST, read)
    for _ in range(2):
        checked = [*NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())]
        assert [(name, tuple(tensor.shape)) for name, tensor in checked] == [*SHAPES.items()]
    assert [names for names, _ in source.iter_groups()] == [[*SHAPES][:2], [*SHAPES][2:4], [*SHAPES][4:]]
    assert source.held_names() is None


def test_a_bank_that_streams_in_another_order_is_an_error() -> None:
    source = BankSource(MANIFEST, lambda names: read([*names][::-1]))
    with pytest.raises(RuntimeError, match="was due"):
        list(source)


def test_only_selected_tensors_are_announced_and_sent() -> None:
    source = BankSource(MANIFEST, read)
    chosen = [*SHAPES][2:4]
    source.select(chosen[::-1])
    assert [meta.name for meta in source.metadata()] == chosen
    assert [name for name, _ in source] == chosen


def test_each_sender_describes_the_whole_model_and_yields_what_it_holds() -> None:
    held = {"model.layers.1.mlp.up_proj.weight"}
    source = BankSource(MANIFEST, read, held)
    assert [meta.name for meta in source.metadata()] == [*SHAPES]
    assert source.held_names() == held
    assert [(name, tensor is not None) for name, tensor in source] == [
        ("model.layers.1.mlp.up_proj.weight", True),
        ("model.layers.1.post_attention_layernorm.weight", False),
    ]


def test_a_sending_rank_of_nccl_is_made_by_vllms_factory_and_passes_over_the_source() -> None:
    # Rank 0 opens a GPU; the other ranks of vLLM's sender only join in the iteration, which runs here.
    passes = []

    def counted(names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        passes.append(list(names))
        return read(names)

    engine = RecordingEngine()
    init_info = NCCLTransport.init_info(RENDEZVOUS, rank=1)
    sender = SenderFactory.trainer_init(init_info, client=engine, source=BankSource(MANIFEST, counted))
    sender.send_weights()
    assert passes == [[*SHAPES]]
    assert engine.calls == []


def test_vllms_workers_understand_what_nccl_announces() -> None:
    metas = BankSource(MANIFEST, read).metadata()
    update = NCCLWeightTransferUpdateInfo(
        names=[meta.name for meta in metas],
        dtype_names=[str(meta.dtype).split(".")[-1] for meta in metas],
        shapes=[list(meta.shape) for meta in metas],
    )
    receiver = WeightTransferEngineFactory._registry["nccl"]()
    assert receiver.parse_update_info(receiver.__new__(receiver), dataclasses.asdict(update)) == update


def test_nccl_m2n_accepts_the_layout_and_stops_only_at_its_missing_package() -> None:
    source = BankM2NSource(MANIFEST, read)
    for meta in source.metadata():
        check_transferable(meta.name, meta.dtype, meta.shape)
        mesh, placements = resolve_layout(source.mesh(), meta.placements)
        validate_layout(mesh, placements, meta.shape, "source")
    init_info = NCCLM2NTransport.init_info(RENDEZVOUS)
    with pytest.raises(ImportError, match="nccl-extensions"):
        M2NTrainerWeightTransferEngine.trainer_init(init_info, client=RecordingEngine(), source=source)
    with pytest.raises(TypeError, match="M2NWeightSource"):
        M2NTrainerWeightTransferEngine.trainer_init(
            init_info, client=RecordingEngine(), source=BankSource(MANIFEST, read)
        )


@pytest.mark.parametrize("transport", [NCCLTransport, NCCLM2NTransport])
def test_nccl_needs_a_rendezvous(transport: type[SendingTransport]) -> None:
    with pytest.raises(ValueError, match="rendezvous"):
        transport(RecordingEngine(), BankSource(MANIFEST, read))


def test_a_send_ends_with_the_manifests_version() -> None:
    engine = RecordingEngine()
    source = BankSource(MANIFEST, read)
    transport = NCCLTransport(engine, source, RENDEZVOUS)

    class SenderWithoutGPU(NCCLTrainerWeightTransferEngine):
        def _broadcast(self, source: Any, meta: Any) -> None:
            self.sent = [name for name, _ in self._checked_iter(source, meta)]

    transport._sender = SenderWithoutGPU(client=transport._client, source=source, is_sender=True)
    transport.send(MANIFEST, [*SHAPES][:2])
    assert transport._sender.sent == [*SHAPES][:2]
    assert [call for call, _ in engine.calls] == ["start", "update", "finish"]
    assert engine.calls[1][1]["shapes"] == [[6, 4], [4]]
    assert engine.calls[2][1] == "digest"


def test_ipc_needs_no_rendezvous() -> None:
    assert IPCTransport.init_info(None) == IPCTrainerInitInfo(rank=0)
