"""Element-wise functions without a compiler: traced once, then run block by block in buffers that stay in the cache.

Plain eager code allocates a tensor per operation, which costs many times the arithmetic. Here the function is traced
into aten operations, each of which writes into one of a few preallocated block-sized buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mergebench_ray.kernels.block import BlockFunction
from mergebench_ray.kernels.threads import torch_threads

CPU_BLOCK = 1 << 17
"""Entries of a block: few enough that its buffers stay in the second-level cache, enough that the cost of starting an
operation is small beside its work."""

GPU_BLOCK = 1 << 22
"""Entries of a block on a GPU: many times what starting an operation costs, and a dozen buffers are 0.2 GB."""

_EXAMPLE = 1 << 10
"""Entries that the function is traced with."""

_TRACING = threading.Lock()
"""Tracing replaces functions of the whole process while it lasts, so it is for one thread at a time."""


class EagerKernel:
    """Runs a `BlockFunction` over arrays of any length; traced once a process, which takes a second.

    Args:
        function: what to run.
        num_specialists: K.
        scalars: an example of the scalars; later ones must have the same names, lengths and dtypes.
        device: where the arrays lie.
    """

    def __init__(
        self,
        function: BlockFunction,
        num_specialists: int,
        scalars: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self._function = function
        self._num_specialists = num_specialists
        self._shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in scalars.items())
        self._dtypes = function.array_dtypes(num_specialists)
        self._longest = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
        self._lanes = torch.arange(_EXAMPLE, dtype=torch.int32, device=device)
        self._programs: list[_Program] = []
        self._running = threading.Lock()

    @property
    def signature(self) -> str:
        """Text that determines what the function computes."""
        return self._traced[1]

    @property
    def _traced(self) -> tuple[fx.GraphModule, str]:
        function, written = self._function, repr(self._function.options)
        return _traced(_AsWritten(function, written), self._num_specialists, self._shapes, self._lanes.device)

    def __call__(
        self,
        arrays: Sequence[Tensor],
        start: int,
        scalars: dict[str, Tensor],
        out: Tensor,
        threads: int,
    ) -> None:
        """Run over [n], blocks spread over threads.

        Args:
            arrays: base, task vectors and companions, as `BlockFunction.values` takes them.
            start: position of the first entry.
            scalars: small tensors by name.
            out: where the results go.
            threads: threads to use on a CPU.
        """
        with self._running:
            self._run(arrays, start, scalars, out, threads)

    def _run(self, arrays: Sequence[Tensor], start: int, scalars: dict[str, Tensor], out: Tensor, threads: int) -> None:
        self._make_room(len(out))
        block = len(self._lanes)
        offsets = iter(range(0, len(out), block))

        def work(program: _Program) -> None:
            program.bind(scalars)
            for offset in offsets:
                end = min(offset + block, len(out))
                # Positions are below 2**30 where they count; without them, a run may be longer than int32 reaches.
                position = start + offset if self._function.uses_position else 0
                first = torch.full((1,), position, dtype=torch.int32, device=out.device)
                blocks = [array[offset:end] for array in arrays]
                out[offset:end].copy_(program.run([*blocks, self._lanes[: end - offset], first]))

        workers = min(threads, -(-len(out) // block)) if out.device.type == "cpu" else 1
        while len(self._programs) < workers:
            self._programs.append(self._new_program())
        if workers == 1:
            with torch_threads(1):
                work(self._programs[0])
            return
        # Threads of our own: torch's would meet after every operation, which stalls when cores are busy elsewhere.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, self._programs[:workers]))

    def _make_room(self, entries: int) -> None:
        """Let blocks be as long as the longest run so far: beside a compiled kernel that is a few entries."""
        block = min(self._longest, 1 << (entries - 1).bit_length())
        if block > len(self._lanes):
            self._lanes = torch.arange(block, dtype=torch.int32, device=self._lanes.device)
            self._programs = []

    def _new_program(self) -> _Program:
        return _Program(self._traced[0], len(self._dtypes) + 2, len(self._lanes), self._lanes.device)


class _AsWritten:
    """A function with options that are told apart as they are written: 1 from 1.0 and True, 0.0 from -0.0; any kind."""

    def __init__(self, function: BlockFunction, options: str) -> None:
        self.function = function
        self._same = (function.function, options, function.uses_position, function.companion, function.shared_companion)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AsWritten) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)


@lru_cache(maxsize=64)
def _traced(
    written: _AsWritten,
    num_specialists: int,
    shapes: tuple[tuple[str, tuple[int, ...], torch.dtype], ...],
    device: torch.device,
) -> tuple[fx.GraphModule, str]:
    """The function as operations that are to be run, and its signature; once a process, as it takes a second.

    Args:
        written: what to trace.
        num_specialists: K.
        shapes: name, shape and dtype of each of the scalars.
        device: where the arrays lie.
    """
    function = written.function
    dtypes = function.array_dtypes(num_specialists)
    scalars = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape, dtype in shapes}
    traced = _trace(function, dtypes, scalars, torch.arange(_EXAMPLE, dtype=torch.int32, device=device))
    signature = _signature(traced, dtypes)
    _compare_into_floats(traced)
    return traced, signature


def _trace(
    function: BlockFunction,
    dtypes: Sequence[torch.dtype],
    scalars: dict[str, Tensor],
    lanes: Tensor,
) -> fx.GraphModule:
    """The function as a graph of aten operations on [arrays..., lanes, start, scalars...]."""

    def flat(*arguments: Tensor) -> Tensor:
        lanes, start, *small = arguments[len(dtypes) :]
        return function.values(arguments[: len(dtypes)], lanes, start, dict(zip(scalars, small, strict=True)))

    arguments = [torch.zeros_like(lanes, dtype=dtype) for dtype in dtypes]
    arguments += [lanes, torch.zeros_like(lanes[:1]), *scalars.values()]
    with _TRACING:
        traced = make_fx(torch.func.functionalize(flat, remove="mutations_and_views"))(*arguments)
    traced.graph.eliminate_dead_code()
    return traced


def _compare_into_floats(traced: fx.GraphModule) -> None:
    """Let comparisons that are only read as float32 write float32.

    Torch's vector code compares into the dtype that it reads; booleans, and what reads them, take several times longer.
    """
    for node in list(traced.graph.nodes):
        if node.target is not torch.ops.aten._to_copy.default or node.meta["val"].dtype != torch.float32:
            continue
        comparison = node.args[0]
        if getattr(comparison.target, "overloadpacket", None) not in _COMPARISONS or len(comparison.users) > 1:
            continue
        if {argument.meta["val"].dtype for argument in comparison.all_input_nodes} == {torch.float32}:
            comparison.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(comparison)
            traced.graph.erase_node(node)


_ATEN = torch.ops.aten
_COMPARISONS = {_ATEN.eq, _ATEN.ne, _ATEN.lt, _ATEN.le, _ATEN.gt, _ATEN.ge}


def _signature(traced: fx.GraphModule, dtypes: Sequence[torch.dtype]) -> str:
    """Text that is equal for equal computations: what they read, the operations and the constants they use."""
    constants = {node.target: getattr(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"}
    return f"{dtypes}\n{traced.code}\n{ {name: value.tolist() for name, value in sorted(constants.items())} }"


@dataclass
class _Step:
    """One operation: its arguments are slots of the program's values, its result goes into a slot.

    An operation that fills what is in that slot already has `out`; any other makes a new tensor.
    """

    run: Callable[..., Any]
    arguments: tuple[int, ...]
    keywords: dict[str, Any]
    result: int
    out: bool = False


class _Program:
    """The traced graph as a list of operations on numbered values.

    Operations that depend on scalars alone run once per `bind`; those on blocks write into buffers, which are handed
    on as soon as their last reader is done.
    """

    def __init__(self, traced: fx.GraphModule, num_block_inputs: int, block: int, device: torch.device) -> None:
        self._block = block
        self._device = device
        self._values: list[Any] = []
        self._buffers: dict[int, Tensor] = {}
        self._block_inputs: list[int] = []
        self._scalar_inputs: list[int] = []
        self._scalar_steps: list[_Step] = []
        self._block_steps: list[_Step] = []
        self._result = -1
        self._length = block
        self._build(traced, num_block_inputs)

    def bind(self, scalars: dict[str, Tensor]) -> None:
        """Use these scalars from now on."""
        for slot, value in zip(self._scalar_inputs, scalars.values(), strict=True):
            self._values[slot] = value
        _run(self._scalar_steps, self._values)

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run on one block: [arrays..., lanes, start]; the result is valid until the next run."""
        length = len(inputs[0])
        if length != self._length:
            for slot, buffer in self._buffers.items():
                self._values[slot] = buffer[:length]
            self._length = length
        for slot, value in zip(self._block_inputs, inputs, strict=True):
            self._values[slot] = value
        _run(self._block_steps, self._values)
        result: Tensor = self._values[self._result]
        return result

    def _build(self, traced: fx.GraphModule, num_block_inputs: int) -> None:
        nodes = list(traced.graph.nodes)
        last_reader = {argument: node for node in nodes for argument in node.all_input_nodes}
        slots: dict[fx.Node, int] = {}
        on_blocks: set[fx.Node] = set()
        free: dict[torch.dtype, list[Tensor]] = {}
        for node in nodes:
            if node.op == "output":
                self._result = slots[node.args[0]]
            elif node.op == "placeholder":
                slots[node] = self._slot(None)
                if len(self._block_inputs) < num_block_inputs:
                    self._block_inputs.append(slots[node])
                    on_blocks.add(node)
                else:
                    self._scalar_inputs.append(slots[node])
            elif node.op == "get_attr":
                slots[node] = self._slot(getattr(traced, str(node.target)))
            else:
                arguments = tuple(slots[a] if isinstance(a, fx.Node) else self._slot(a) for a in node.args)
                slots[node] = self._slot(None)
                if on_blocks.isdisjoint(node.all_input_nodes):
                    self._scalar_steps.append(_Step(node.target, arguments, dict(node.kwargs), slots[node]))
                    continue
                on_blocks.add(node)
                # An operation may write over an argument that nobody reads after it.
                for argument in node.all_input_nodes:
                    if last_reader[argument] is node and slots[argument] in self._buffers:
                        buffer = self._buffers[slots[argument]]
                        free.setdefault(buffer.dtype, []).append(buffer)
                self._block_steps.append(self._block_step(node, arguments, slots[node], free))

    def _block_step(
        self, node: fx.Node, arguments: tuple[int, ...], result: int, free: dict[torch.dtype, list[Tensor]]
    ) -> _Step:
        """An operation on blocks, as one that writes into a buffer where it has such a form."""
        target: Any = node.target
        is_cast = target is torch.ops.aten._to_copy.default
        variant = None if is_cast else _out_variant(target)
        if not is_cast and variant is None:
            return _Step(target, arguments, dict(node.kwargs), result)
        dtype = node.meta["val"].dtype
        spare = free.get(dtype, [])
        buffer = spare.pop() if spare else torch.empty(self._block, dtype=dtype, device=self._device)
        self._buffers[result] = self._values[result] = buffer
        if variant is None:
            return _Step(torch.ops.aten.copy_.default, (result, arguments[0]), {}, result)
        keywords = {name: value for name, value in node.kwargs.items() if name not in _TENSOR_OPTIONS}
        return _Step(variant, arguments, keywords, result, out=True)

    def _slot(self, value: Any) -> int:
        self._values.append(value)
        return len(self._values) - 1


def _run(steps: Sequence[_Step], values: list[Any]) -> None:
    for step in steps:
        arguments = [values[slot] for slot in step.arguments]
        if step.out:
            step.run(*arguments, **step.keywords, out=values[step.result])
        else:
            values[step.result] = step.run(*arguments, **step.keywords)


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
