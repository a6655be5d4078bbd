"""What vLLM keeps packed beside its parameters on a CPU, packed again with every load.

vLLM packs weights for the CPU's kernels when it starts; a later load packs those modules again that receive tensors.
Two kinds stay old that way:

- A tied head shares its parameter with the embeddings, but keeps a packed copy of its own and receives nothing.
- Experts are packed only when their kernel is first made; a later load copies unpacked weights over packed ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform


class Received:
    """What a load has brought.

    Attributes:
        names: vLLM's names of the parameters that received tensors; None where that is not known.
    """

    def __init__(self) -> None:
        self.names: Collection[str] | None = None
        self._parts = 0

    def add(self, names: Collection[str] | None) -> None:
        """Note what a part of the load has brought, as vLLM says it: of one that says nothing, nothing is known."""
        known = self.names if self._parts else ()
        self.names = None if known is None or names is None else {*known, *names}
        self._parts += 1


@contextmanager
def packed_again(model: torch.nn.Module) -> Iterator[Received]:
    """Around a load into vLLM's model: all of it is packed from the new weights at the end.

    Args:
        model: vLLM's model.

    Yields:
        where the load notes what it has brought, which spares packing what did not change.
    """
    received = Received()
    if not current_platform.is_cpu():
        yield received
        return
    with _expert_kernels_made_anew(model):
        yield received
    _pack_shared_embeddings(model, received.names)


@contextmanager
def _expert_kernels_made_anew(model: torch.nn.Module) -> Iterator[None]:
    """Let vLLM take the load for its first, in which it packs; then go on with the kernels that were there.

    Those refer to the parameters that vLLM keeps, and a layer that receives nothing makes no new kernel.
    """
    methods = {method for module in model.modules() if isinstance(method := _method(module), FusedMoEMethodBase)}
    kept = [(method, method.moe_kernel, method.moe_quant_config) for method in methods]
    for method in methods:
        method.moe_kernel = None
    try:
        yield
    finally:
        for method, kernel, config in kept:
            method.moe_kernel, method.moe_quant_config = kernel, config


def _pack_shared_embeddings(model: torch.nn.Module, names: Collection[str] | None) -> None:
    """Pack embeddings and heads whose parameter was brought by way of another module."""
    modules = dict(model.named_modules())
    receivers = set() if names is None else {name.rpartition(".")[0] for name in names} & modules.keys()
    weights = {name: getattr(modules[name], "weight", None) for name in (modules if names is None else receivers)}
    brought = {id(weight) for weight in weights.values()}
    for name, module in modules.items():
        method = _method(module)
        if isinstance(method, UnquantizedEmbeddingMethod) and id(module.weight) in brought and name not in receivers:
            method.process_weights_after_loading(module)


def _method(module: torch.nn.Module) -> object:
    return getattr(module, "quant_method", None)
