"""What the child process does that compiles a kernel: export the function, have Inductor compile it, try it out."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.kernels.block import ZERO, BlockFunction
from mergebench_ray.kernels.compiled_kernel import CompiledKernel
from mergebench_ray.kernels.forms import Form
from mergebench_ray.kernels.pairs import WORD, first_entries, rounded_words, second_entries
from mergebench_ray.outside_code import OutsideCode

INDUCTOR_OPTIONS: dict[str, Any] = {
    # Fused multiply-adds and reordered sums would round differently from eager code, and from each other between
    # the vectorised body of a loop and its tail.
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    # The number of threads is the caller's at run time, not the one at compile time.
    "cpp.dynamic_threads": True,
    # What is around the loop, checks of arguments above all, takes longer to optimise than it ever will to run.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # One loop body from loads to store. Where Inductor cuts a function at values that are read often, its loop takes
    # half as many bf16 entries at a time, by way of the stack, and takes twice as long.
    "realize_opcount_threshold": 1 << 20,
    "realize_reads_threshold": 1 << 20,
    "realize_acc_reads_threshold": 1 << 20,
}

GPU_OPTIONS: dict[str, Any] = {
    **INDUCTOR_OPTIONS,
    # The same of Triton's code: without these it contracts multiply-adds, and divides approximately.
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
}

_TRIED = 1 << 12


class _Exported(torch.nn.Module):
    """The function with flat arguments, as `torch.export` wants it."""

    def __init__(self, function: BlockFunction, num_arrays: int, names: Sequence[str], paired: bool) -> None:
        super().__init__()
        self._function = function
        self._num_arrays = num_arrays
        self._names = names
        self._paired = paired

    def forward(self, *arguments: Tensor) -> None:
        """Take the arrays, the start where positions are used, scalars in order, out."""
        arrays = arguments[: self._num_arrays]
        *small, out = arguments[self._num_arrays :]
        if self._function.uses_position:
            start, *small = small
            lanes = torch.arange(out.shape[0], dtype=torch.int32, device=out.device)
        else:
            lanes = start = torch.zeros(1, dtype=torch.int32, device=out.device)
        scalars = dict(zip(self._names, small, strict=True))
        if not self._paired:
            out.copy_(self._function.values(arrays, lanes, start, scalars))
            return
        first, second = (
            self._function.values([part(array) for array in arrays], lanes + lanes, start + place, scalars)
            for place, part in enumerate((first_entries, second_entries))
        )
        out.copy_(rounded_words(first, second))


def export(
    function: BlockFunction,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    device: torch.device,
    form: Form,
) -> torch.export.ExportedProgram:
    """The function as what Inductor compiles, for arrays of any length that fits the form; arguments as above."""
    paired = form is Form.WORDS
    example = torch.zeros(1 << 12, dtype=torch.bfloat16, device=device)
    dtypes = function.array_dtypes(num_specialists)
    arrays = [example.to(WORD if paired else dtype, copy=True) for dtype in dtypes]
    position = [torch.zeros(1, dtype=torch.int32, device=device)] if function.uses_position else []
    out = example.to(WORD if paired else out_dtype, copy=True)
    arguments = (*arrays, *position, *scalars.values(), out)
    length = torch.export.Dim("length", min=2, max=1 << 40)
    if form.multiple > 1:
        length = form.multiple * length
    free = tuple({0: length} if argument.shape == example.shape else None for argument in arguments)
    exported = _Exported(function, len(arrays), list(scalars), paired)
    return torch.export.export(exported, arguments, dynamic_shapes=(free,))


def options_for(device: torch.device) -> dict[str, Any]:
    """How Inductor is to compile for a device."""
    return dict(INDUCTOR_OPTIONS if device.type == "cpu" else GPU_OPTIONS)


def compile_into(folder: Path, task: dict[str, Any]) -> None:
    """Compile the function that a task tells of, unpack its package into a folder, try it out."""
    if task["code"]:
        OutsideCode(*task["code"]).imported()
    function = BlockFunction(
        attrgetter(task["name"])(importlib.import_module(task["module"])),
        tuple(sorted(task["options"].items())),
        task["uses_position"],
        task["companion"] and getattr(torch, task["companion"]),
        task["shared_companion"],
    )
    device = torch.device(task["device"])
    scalars = {
        name: torch.tensor(values, dtype=getattr(torch, dtype), device=device)
        for name, (values, dtype) in task["scalars"].items()
    }
    out_dtype, form = getattr(torch, task["out_dtype"]), Form(task["form"])
    program = export(function, task["num_specialists"], scalars, out_dtype, device, form)
    package = folder.with_suffix(".pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options_for(device))
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    try_out(function, folder, task["num_specialists"], scalars, out_dtype, form)


def try_out(
    function: BlockFunction,
    folder: Path,
    num_specialists: int,
    scalars: dict[str, Tensor],
    out_dtype: torch.dtype,
    form: Form,
) -> None:
    """Run the kernel once, here where a crash harms nothing, and hold its bits against those of plain torch.

    On random numbers, but for the scalars: those that are whole numbers may mean something.

    Raises:
        SystemExit: if they differ.
    """
    device = next(iter(scalars.values())).device
    generator = torch.Generator().manual_seed(0)

    def some(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(device, dtype)
        return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(device, dtype)

    size = _TRIED + 3 if form is Form.ENTRIES else _TRIED  # a loop has a rest
    arrays = [some((size,), dtype) for dtype in function.array_dtypes(num_specialists)]
    values = {
        name: some(value.shape, value.dtype) if value.dtype.is_floating_point and name != ZERO else value
        for name, value in scalars.items()
    }
    lanes = torch.arange(size, dtype=torch.int32, device=device)
    expected = function.values(arrays, lanes, torch.zeros_like(lanes[:1]), values).to(out_dtype)
    out = torch.zeros_like(expected)
    given = form.arrays([*arrays, out])
    assert given is not None
    CompiledKernel(folder, device, function.uses_position)(given[:-1], 0, values, given[-1], 1)
    bits = torch.int16 if out_dtype == torch.bfloat16 else torch.int32
    if differ := int(((out.view(bits) != expected.view(bits)) & ~(out.isnan() & expected.isnan())).sum()):
        sys.exit(f"{differ} of {size} entries differ from what plain torch computes")


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
