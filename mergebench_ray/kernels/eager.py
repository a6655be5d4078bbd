"""Element-wise functions without a compiler: traced once, then run block by block in buffers that stay in the cache.

Plain eager code allocates a tensor per operation, which costs many times the arithmetic. Here the function is traced
into aten operations, each of which writes into one of a few preallocated block-sized buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mergebench_ray.kernels.block import BlockFunction

CPU_BLOCK = 1 << 17
"""Entries of a block: few enough that its buffers stay in the second-level caches, enough that the cost of starting
an operation is small beside its work, which torch spreads over its threads."""

GPU_BLOCK = 1 << 24


class EagerKernel:
    """Runs a `BlockFunction` over arrays of any length.

    Args:
        function: what to run.
        num_specialists: K.
        scalars: an example of the scalars; later ones must have the same names, lengths and dtypes.
        device: where the arrays lie.

    Attributes:
        signature: text that determines what the function computes.
    """

    def __init__(
        self,
        function: BlockFunction,
        num_specialists: int,
        scalars: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self._block = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
        self._lanes = torch.arange(self._block, dtype=torch.int32, device=device)
        self._traced = _trace(function, num_specialists, scalars, self._lanes)
        self._num_block_inputs = num_specialists + 3
        self.signature = _signature(self._traced)
        self._programs: dict[bool, _Program] = {}

    def __call__(
        self, base: Tensor, task_vectors: Sequence[Tensor], start: int, scalars: dict[str, Tensor], out: Tensor
    ) -> None:
        """Run over [n]; `start` is the position of the first entry."""
        for offset in range(0, len(base), self._block):
            end = min(offset + self._block, len(base))
            first = torch.tensor([start + offset], dtype=torch.int32, device=base.device)
            vectors = [vector[offset:end] for vector in task_vectors]
            program = self._program(end - offset)
            program.bind(scalars)
            out[offset:end].copy_(program.run([base[offset:end], *vectors, self._lanes[: end - offset], first]))

    def _program(self, length: int) -> _Program:
        """One program for full blocks, one for the latest shorter length."""
        full = length == self._block
        if full not in self._programs or self._programs[full].length != length:
            self._programs[full] = _Program(self._traced, length, self._lanes.device, self._num_block_inputs)
        return self._programs[full]


def _trace(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    lanes: Tensor,
) -> fx.GraphModule:
    """The function as a graph of aten operations on [base, vectors..., lanes, start, scalars...]."""

    def flat(*arguments: Tensor) -> Tensor:
        base, *vectors = arguments[: num_specialists + 1]
        lanes, start, *small = arguments[num_specialists + 1 :]
        return function.values(base, vectors, lanes, start, dict(zip(scalars, small, strict=True)))

    arguments = [torch.zeros_like(lanes, dtype=torch.bfloat16) for _ in range(num_specialists + 1)]
    arguments += [lanes, torch.zeros_like(lanes[:1]), *scalars.values()]
    traced = make_fx(torch.func.functionalize(flat, remove="mutations_and_views"))(*arguments)
    traced.graph.eliminate_dead_code()
    return traced


def _signature(traced: fx.GraphModule) -> str:
    """Text that is equal for equal computations: the operations and the constants they use."""
    constants = {node.target: getattr(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"}
    return f"{traced.code}\n{ {name: value.tolist() for name, value in sorted(constants.items())} }"


@dataclass
class _Step:
    """One operation: its arguments are slots of the program's values, its result goes into a slot.

    One that `writes` fills the buffer that is in that slot already; any other allocates its result.
    """

    run: Callable[..., Any]
    slots: tuple[int, ...]
    keywords: dict[str, Any]
    result: int
    writes: bool = False


class _Program:
    """The traced graph with its buffers, for one block length.

    Operations that depend on scalars alone run once per `bind`; those on blocks write into buffers, which are handed
    on as soon as their last reader is done.
    """

    def __init__(self, traced: fx.GraphModule, length: int, device: torch.device, num_block_inputs: int) -> None:
        self.length = length
        self._values: list[Any] = []
        self._inputs: list[int] = []
        self._num_block_inputs = num_block_inputs
        self._result = -1
        self._bound: dict[str, Tensor] | None = None
        self._small_steps: list[_Step] = []
        self._block_steps: list[_Step] = []
        self._build(traced, device, num_block_inputs)

    def bind(self, scalars: dict[str, Tensor]) -> None:
        """Use these scalars from now on."""
        if scalars is self._bound:
            return
        for slot, value in zip(self._inputs[self._num_block_inputs :], scalars.values(), strict=True):
            self._values[slot] = value
        _run(self._small_steps, self._values)
        self._bound = scalars

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run on one block: [base, vectors..., lanes, start]; the result is valid until the next run."""
        for slot, value in zip(self._inputs[: self._num_block_inputs], inputs, strict=True):
            self._values[slot] = value
        _run(self._block_steps, self._values)
        result: Tensor = self._values[self._result]
        return result

    def _build(self, traced: fx.GraphModule, device: torch.device, num_block_inputs: int) -> None:
        nodes = list(traced.graph.nodes)
        last_use = {argument: node for node in nodes for argument in node.all_input_nodes}
        slots: dict[fx.Node, int] = {}
        on_blocks: set[fx.Node] = set()
        constants: set[fx.Node] = set()
        buffers: dict[fx.Node, Tensor] = {}
        free: dict[torch.dtype, list[Tensor]] = {}
        for node in nodes:
            if node.op == "output":
                self._result = slots[node.args[0]]
                break
            if node.op == "placeholder":
                slots[node] = self._slot(None)
                if len(self._inputs) < num_block_inputs:
                    on_blocks.add(node)
                self._inputs.append(slots[node])
                continue
            if node.op == "get_attr":
                slots[node] = self._slot(getattr(traced, str(node.target)))
                constants.add(node)
                continue
            arguments = tuple(slots[a] if isinstance(a, fx.Node) else self._slot(a) for a in node.args)
            if not on_blocks.intersection(node.all_input_nodes):
                slots[node] = self._slot(None)
                step = _Step(node.target, arguments, dict(node.kwargs), slots[node])
                if constants.issuperset(node.all_input_nodes):
                    constants.add(node)
                    _run([step], self._values)
                else:
                    self._small_steps.append(step)
                continue
            on_blocks.add(node)
            for argument in node.all_input_nodes:
                if last_use[argument] is node and argument in buffers:
                    buffer = buffers.pop(argument)
                    free.setdefault(buffer.dtype, []).append(buffer)
            slots[node] = self._slot(None)
            step = _block_step(node, arguments, slots[node])
            if step.writes:
                dtype = node.meta["val"].dtype
                spare = free.setdefault(dtype, [])
                buffers[node] = spare.pop() if spare else torch.empty(self.length, dtype=dtype, device=device)
                self._values[slots[node]] = buffers[node]
                if "out" in step.keywords:
                    step.keywords["out"] = buffers[node]
            self._block_steps.append(step)

    def _slot(self, value: Any) -> int:
        self._values.append(value)
        return len(self._values) - 1


def _run(steps: Sequence[_Step], values: list[Any]) -> None:
    for step in steps:
        values[step.result] = step.run(*[values[slot] for slot in step.slots], **step.keywords)


def _block_step(node: fx.Node, arguments: tuple[int, ...], result: int) -> _Step:
    """An operation on blocks, as one that writes into the buffer at `result` where it has such a form."""
    target: Any = node.target
    if target is torch.ops.aten._to_copy.default:
        return _Step(torch.ops.aten.copy_.default, (result, arguments[0]), {}, result, writes=True)
    variant = _out_variant(target)
    if variant is None:
        return _Step(target, arguments, dict(node.kwargs), result)
    keywords = {name: value for name, value in node.kwargs.items() if name not in _TENSOR_OPTIONS}
    return _Step(variant, arguments, {**keywords, "out": None}, result, writes=True)


_TENSOR_OPTIONS = {"dtype", "layout", "device", "pin_memory"}


def _out_variant(operation: Any) -> Callable[..., Any] | None:
    """The overload of an aten operation that takes `out`, if there is one."""
    wanted = [str(argument.type) for argument in operation._schema.arguments if argument.name not in _TENSOR_OPTIONS]
    packet = operation.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments
        inputs = [str(argument.type) for argument in arguments if not argument.is_out]
        if [argument.name for argument in arguments if argument.is_out] == ["out"] and inputs == wanted:
            return overload  # type: ignore[no-any-return]
    return None
