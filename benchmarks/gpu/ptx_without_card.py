"""The code that a GPU would run for a pass, made and looked at on a machine that has none.

    python benchmarks/gpu/ptx_without_card.py                      # all methods, with each of their choices
    python benchmarks/gpu/ptx_without_card.py task_arithmetic dare
    python benchmarks/gpu/ptx_without_card.py ties --parameters '{"merge_func": "mean"}' --keep code/

The pass is exported as the product does it, its graph is told that it lies on a GPU, and Inductor and Triton compile it
for one whose properties are given here. Printed are the instructions of each kernel that say whether its bits can be
those of the CPU (`fma` rounds once where a product and a sum round twice; `div.full` is no exact division) and how wide
it reads and writes. Takes torch and Triton, not a build of torch for CUDA. Exit status 1 if an instruction rounds
otherwise, or moves fewer than 4 bytes, or none writes 16.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
import triton
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
from mergebench_ray.cache import cache_folder
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_file
from mergebench_ray.kernels import block, compiling, forms, pairs
from mergebench_ray.kernels.block import BlockFunction, scalar_tensors
from mergebench_ray.kernels.compiling import GPU_OPTIONS, export
from mergebench_ray.kernels.eager import EagerKernel
from mergebench_ray.kernels.forms import Form
from mergebench_ray.methods import complete_parameters, get_method, method_names, parse_parameters

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
NARROW = (".b8", ".u8", ".s8", ".b16", ".u16")
"""Ends of what moves less than a word at a time, to or from memory."""
COUNTED = re.compile(r"(fma|mad|mul|add|sub|div|rcp|sqrt|ld\.global|st\.global)\.")
SOURCES = (block, compiling, forms, pairs)
"""What says how a function is exported, and compiled."""
SPECIALISTS = [f"specialist {index}" for index in range(5)]
_BLOCK = 1024


Example = tuple[BlockFunction, int, dict[str, torch.Tensor]]
"""A function, for how many specialists, and its scalars."""
Kernel = tuple[str, str, str]
"""Its name, Triton's code of its body, the PTX."""


def choices(method: str) -> Iterator[dict[str, Any]]:
    """Hyper-parameters that may change what a method's function is: its defaults, and each other choice alone."""
    yield {}
    for name, field in get_method(method).Parameters.model_fields.items():
        known = (True, False) if field.annotation is bool else get_args(field.annotation)
        if all(isinstance(one, str | bool) for one in known):
            yield from ({name: one} for one in known if one != field.default)


def merges(methods: Iterable[str], given: dict[str, Any], arrays: RehearsalArrays) -> dict[str, Example]:
    """What merges run, once each: methods that are the same function of as many specialists are one."""
    found: dict[tuple[BlockFunction, int], tuple[list[str], Example]] = {}
    for method in methods:
        for chosen in [given] if given else choices(method):
            label = " ".join([method, *(f"{name}={value}" for name, value in chosen.items())])
            try:
                example = example_of(method, chosen, arrays)
            except InputError as error:
                if given or not chosen:
                    raise
                print(f"{label}: no merge ({error})")
                continue
            labels, _ = found.setdefault(example[:2], ([], example))
            labels.append(label)
    return {", ".join(labels): example for labels, example in found.values()}


def example_of(method: str, given: dict[str, Any], arrays: RehearsalArrays) -> Example:
    chosen = get_method(method)
    some = arrays.of(chosen.Parameters.as_many(arrays.specialists))
    completed = complete_parameters(method, given, some.specialists, some.layout.num_layers)
    parameters = parse_parameters(method, completed)
    prepared = chosen.prepare(parameters, some)
    work = plan_work(some.layout, chosen, parameters, prepared, some.specialists, {})
    (scalars,) = scalar_tensors([work.scalars[0]], torch.device("cpu"))
    return work.kernel, len(some.specialists), scalars


def exported(function: BlockFunction, count: int, scalars: dict[str, torch.Tensor]) -> torch.fx.GraphModule:
    """The graph that the product hands to Inductor, for any length."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        small = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in scalars.items()}
        program = export(function, count, small, torch.bfloat16, torch.device("cpu"), Form.ALIGNED)
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


def wrong(counts: Counter[str]) -> tuple[int, int]:
    """How many instructions round otherwise than a CPU, and how many move fewer than 4 bytes."""
    other = sum(number for word, number in counts.items() if word.startswith(ROUND_OTHERWISE))
    moved = {word: number for word, number in counts.items() if word.startswith(("ld.", "st."))}
    return other, sum(number for word, number in moved.items() if word.endswith(NARROW))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "methods", nargs="*", metavar="method", help="all there are, with each of their choices, if none"
    )
    parser.add_argument("--parameters", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave Inductor's code and the PTX here")
    given = parser.parse_args(arguments)
    arrays = RehearsalArrays(smollm2_layout(1), SPECIALISTS, 1)
    examples = merges(given.methods or method_names(), given.parameters, arrays)
    kernels = {} if given.keep else {label: kept for label, one in examples.items() if (kept := known(one)) is not None}
    graphs = {label: exported(*one) for label, one in examples.items() if label not in kernels}
    pretend_there_is_a_card()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for label, graph in graphs.items():
            kernels[label] = kernels_of(label, graph, folder)
            with whole_file(cache_folder("ptx") / key_of(examples[label])) as temporary:
                temporary.write_text(json.dumps(kernels[label]))
    seen: dict[str, str] = {}
    return max(look_at(label, kernels[label], seen) for label in examples)


def known(example: Example) -> list[Kernel] | None:
    """The kernels that were made of a function before."""
    try:
        found = json.loads((cache_folder("ptx") / key_of(example)).read_text())
    except (OSError, ValueError):
        return None
    return [(name, body, ptx) for name, body, ptx in found]


def key_of(example: Example) -> str:
    """Digest of all that makes a function's kernels: what it computes, and how that is compiled."""
    function, count, scalars = example
    computed = EagerKernel(function, count, scalars, torch.device("cpu")).signature
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in scalars.items()]
    sources = [Path(str(one)).read_text() for one in (__file__, *(one.__file__ for one in SOURCES))]
    compilers = (torch.__version__, triton.__version__, sys.version_info[:2])
    return hashlib.sha256(repr((computed, count, shapes, sources, compilers)).encode()).hexdigest() + ".json"


def kernels_of(label: str, graph: torch.fx.GraphModule, folder: Path) -> list[Kernel]:
    """A function's kernels for the card, whose code is left in a folder."""
    code = inductor_code(graph)
    (folder / f"{label[:100].replace(' ', '_')}.py").write_text(code)
    made = []
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", code, re.DOTALL):
        ptx = ptx_of(name, source, folder)
        (folder / f"{name}.ptx").write_text(ptx)
        made.append((name, source.partition("@triton.jit")[2].replace(name, ""), ptx))
    return made


def look_at(label: str, kernels: Sequence[Kernel], seen: dict[str, str]) -> int:
    """Print what a function's kernels consist of; 1 if they round otherwise than a CPU, or read or write narrowly.

    Args:
        label: methods that run it.
        kernels: of it.
        seen: kernels that were looked at, by their text.
    """
    status = 0 if kernels else 1
    for _, body, ptx in kernels:
        if body in seen:
            print(f"{label}: the same kernel as of {seen[body]}")
            continue
        seen[body] = label
        counts = instructions(ptx)
        other, narrow = wrong(counts)
        status |= int(other > 0 or narrow > 0 or not counts["st.global.v4.b32"])
        print(f"{label}: {other} instructions round otherwise than a CPU, {narrow} move fewer than 4 bytes")
        for word, number in sorted(counts.items()):
            print(f"  {number:5} {word}")
    return status


if __name__ == "__main__":
    sys.exit(main())
