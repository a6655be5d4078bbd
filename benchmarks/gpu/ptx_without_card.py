"""The code that a GPU would run for a pass, made and looked at on a machine that has none.

    python benchmarks/gpu/ptx_without_card.py task_arithmetic dare
    python benchmarks/gpu/ptx_without_card.py ties --parameters '{"merge_func": "mean"}' --keep code/

The pass is exported as the product does it, its graph is told that it lies on a GPU, and Inductor and Triton compile it
for one whose properties are given here. Printed are the instructions of each kernel that say whether its bits can be
those of the CPU (`fma` rounds once where a product and a sum round twice; `div.full` is no exact division) and how wide
it reads and writes. Takes torch and Triton, not a build of torch for CUDA. Exit status 1 if an instruction rounds
otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
import triton.runtime.driver
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode, fake_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mergebench_ray.bank.rehearsal import RehearsalArrays, smollm2_layout
from mergebench_ray.bank.work import plan_work
from mergebench_ray.kernels.block import BlockFunction, scalar_tensors
from mergebench_ray.kernels.compiling import GPU_OPTIONS, export
from mergebench_ray.kernels.forms import Form
from mergebench_ray.methods import complete_parameters, get_method, parse_parameters

CARD = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
    is_integrated=0,
)
CAPABILITY = 10 * CARD.major + CARD.minor
TARGET = GPUTarget("cuda", CAPABILITY, CARD.warp_size)
ROUND_OTHERWISE = ("fma", "mad.rn.f32", "div.full", "div.approx", "rcp.approx", "sqrt.approx")
COUNTED = re.compile(r"(fma|mad|mul|add|sub|div|rcp|sqrt|ld\.global|st\.global)\.")
SPECIALISTS = [f"specialist {index}" for index in range(5)]
_BLOCK = 1024


def function_of(method: str, given: dict[str, Any]) -> tuple[BlockFunction, dict[str, torch.Tensor]]:
    """What a merge runs, and an example of its scalars."""
    chosen = get_method(method)
    arrays = RehearsalArrays(smollm2_layout(1), SPECIALISTS, 1)
    parameters = parse_parameters(method, complete_parameters(method, given, SPECIALISTS, arrays.layout.num_layers))
    prepared = chosen.prepare(parameters, arrays)
    work = plan_work(arrays.layout, chosen, parameters, prepared, SPECIALISTS, {})
    (scalars,) = scalar_tensors([work.scalars[0]], torch.device("cpu"))
    return work.kernel, scalars


def exported(function: BlockFunction, scalars: dict[str, torch.Tensor]) -> torch.fx.GraphModule:
    """The graph that the product hands to Inductor, for any length."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        small = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in scalars.items()}
        program = export(function, len(SPECIALISTS), small, torch.bfloat16, torch.device("cpu"), Form.ALIGNED)
    return program.run_decompositions(select_decomp_table()).graph_module


def pretend_there_is_a_card() -> None:
    """For as long as this process lives, torch and Triton find `CARD`."""

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return TARGET

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    triton.runtime.driver.set_active(Driver())
    answers: list[tuple[Any, dict[str, Any]]] = [
        (
            torch.cuda,
            {
                "is_available": True,
                "device_count": 1,
                "current_device": 0,
                "get_device_properties": CARD,
                "get_device_capability": (CARD.major, CARD.minor),
                "get_device_name": CARD.name,
                "_lazy_init": None,
            },
        ),
        (fake_tensor, {"init_gpu_context": None}),
        (
            CudaInterface,
            {
                "is_available": True,
                "device_count": 1,
                "current_device": 0,
                "get_device_properties": CARD,
                "get_compute_capability": CAPABILITY,
            },
        ),
        (CudaInterface.Worker, {"current_device": 0, "get_device_properties": CARD}),
    ]
    for owner, values in answers:
        for name, value in values.items():
            patch.object(owner, name, lambda *_, value=value, **__: value).start()


def inductor_code(graph: torch.fx.GraphModule) -> str:
    """Inductor's code for the graph on the card."""
    device = torch.device("cuda", 0)
    for node in graph.graph.nodes:
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            value.fake_device = device
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
        node.meta.pop("tensor_meta", None)
    graph.recompile()
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    mode = inputs[0].fake_mode
    with inductor.patch({**GPU_OPTIONS, "fx_graph_cache": False}):
        lowering = GraphLowering(graph, example_inputs=inputs, shape_env=mode.shape_env)
        with V.set_fake_mode(mode), V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            # What calls the kernels is not looked at; a wrapper in Python has no place for lengths like 16 * n.
            with patch.object(PythonWrapperCodegen, "codegen_inputs", lambda _: None):
                code, _ = lowering.codegen()
    return str(code.value)


def ptx_of(name: str, source: str, folder: Path) -> str:
    """Compile one of Inductor's Triton kernels for the card."""
    found = re.search(r"triton_meta=(\{.*?\}),\n\s+inductor_meta", source, re.DOTALL)
    assert found is not None, f"{name}: Inductor writes its kernels otherwise than this script knows"
    meta = eval(found.group(1), {"DeviceProperties": DeviceProperties})
    # Its decorator launches kernels, for which there is nothing to launch them on; Triton reads functions from files.
    bare = re.sub(r"@triton_heuristics\.\w+\(.*?\n\)\n", "", source, flags=re.DOTALL)
    file = folder / f"{name}.py"
    file.write_text(bare.replace("triton_helpers.set_driver_to_gpu()", ""))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name)
    constants = {**meta["constants"], "XBLOCK": _BLOCK}
    indices = {(function.arg_names.index(key),): value for key, value in constants.items()}
    kernel = ASTSource(function, {**meta["signature"], "XBLOCK": "constexpr"}, indices, meta["configs"][0])
    options = {"num_warps": 4, "enable_fp_fusion": meta.get("enable_fp_fusion", True)}
    return str(triton.compile(kernel, target=TARGET, options=options).asm["ptx"])


def instructions(ptx: str) -> Counter[str]:
    """How often each instruction occurs that computes with numbers, or moves them."""
    words = ([word for word in line.split() if not word.startswith("@")] for line in ptx.splitlines())
    return Counter(found[0] for found in words if found and COUNTED.match(found[0]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="method")
    parser.add_argument("--parameters", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave Inductor's code and the PTX here")
    given = parser.parse_args(arguments)
    graphs = {method: exported(*function_of(method, given.parameters)) for method in given.methods}
    pretend_there_is_a_card()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return max(look_at(method, graph, folder) for method, graph in graphs.items())


def look_at(method: str, graph: torch.fx.GraphModule, folder: Path) -> int:
    """Print what a method's kernels consist of; 1 if they round otherwise than a CPU."""
    code = inductor_code(graph)
    (folder / f"{method}.py").write_text(code)
    kernels = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", code, re.DOTALL)
    status = 0 if kernels else 1
    for name, source in kernels:
        ptx = ptx_of(name, source, folder)
        (folder / f"{name}.ptx").write_text(ptx)
        counts = instructions(ptx)
        other = sum(number for word, number in counts.items() if word.startswith(ROUND_OTHERWISE))
        status |= int(other > 0)
        print(f"{method}, {name}: {other} instructions round otherwise than a CPU")
        for word, number in sorted(counts.items()):
            print(f"  {number:5} {word}")
    return status


if __name__ == "__main__":
    sys.exit(main())
