"""What passes and bank do on a GPU: bits against the CPU's, speed beside a device copy, shards, memory, CUDA IPC.

    python benchmarks/gpu/gpu_check.py --stages copy,kernels        # the passes alone: no checkpoints
    python benchmarks/gpu/gpu_check.py                              # all stages, on the shapes of Llama-3.2-3B
    python benchmarks/gpu/gpu_check.py --device cpu --shape tiny    # a rehearsal without a GPU

A stage that fails is noted, and the next one begins. The figures so far are written after every step, so that a machine
lost half-way leaves some. Exit status 1 if a stage failed, an entry was not written, or bits differ from the CPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from made_up_models import SHAPES, SPECIALISTS, layout, random_bf16, write_family
from torch import Tensor

from mergebench_ray.bank import Bank, Layout
from mergebench_ray.bank.layout import Overlap
from mergebench_ray.bank.rehearsal import RehearsalArrays
from mergebench_ray.bank.shard import BankShard
from mergebench_ray.bank.shards import LocalShards
from mergebench_ray.bank.work import Work, plan_work, segments_of
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.kernels import Pass, Segment, magnitude_histogram
from mergebench_ray.methods import complete_parameters, get_method, parse_parameters
from mergebench_ray.weights.memory_file import CardMemory, MemoryFile

Figures = dict[str, Any]
Case = tuple[str, dict[str, Any]]

CPU = torch.device("cpu")
CASES: list[Case] = [
    ("task_arithmetic", {"scaling_coef": 0.4}),
    ("ties", {"density": 0.2, "scaling_coef": 0.6}),
    ("ties", {"density": 0.2, "scaling_coef": 0.6, "merge_func": "mean"}),
    ("dare", {"p": 0.8, "scaling_coef": 0.4}),
    ("consensus", {"scaling_coef": 0.4}),
]
COMPARED = 1 << 25  # entries that are merged on the CPU, too
IPC_ENTRIES = 1 << 30
CHILD = """
import json, sys, time, torch
from mergebench_ray.weights.device_memory import DeviceMemory
from mergebench_ray.weights.memory_file import MappedFiles
device, path, count, kind = json.loads(sys.stdin.readline())
files = MappedFiles(torch.device(kind))
for _ in sys.stdin:
    began = time.perf_counter()
    if problem := files.open(DeviceMemory(device, path)):
        sys.exit(problem)
    values = files.read([count], torch.bfloat16, [[path, 0, count]])
    total = float(values[: 1 << 24].double().sum())
    print(json.dumps([total, str(values.device), time.perf_counter() - began]), flush=True)
"""


@dataclass
class Check:
    """What all stages share.

    Attributes:
        device: where passes run.
        shape: name of the model's shape.
        layers: layers, if not the shape's own.
        threads: threads of passes on a CPU.
        cases: methods with their hyper-parameters.
        scratch: where checkpoints are written.
        out: file of the figures.
        figures: of each stage.
    """

    device: torch.device
    shape: str
    layers: int | None
    threads: int
    cases: list[Case]
    scratch: str
    out: Path
    figures: Figures = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return layout(self.shape, self.layers)

    @property
    def data_free(self) -> list[Case]:
        """The cases that need no calibration data."""
        return [case for case in self.cases if case in CASES]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def save(self) -> None:
        self.out.write_text(json.dumps(self.figures, indent=1, default=str))

    def seconds(self, call: Callable[[], Any], rounds: int = 1) -> float:
        """Median time of a call, until the device is done with it; more than one round has a warm-up before it."""
        times = []
        for _ in range(rounds + (rounds > 1)):
            began = time.perf_counter()
            call()
            if self.on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return median(times[-rounds:])

    def memory(self) -> Figures:
        """Gigabytes of this process, at most so far, and of the whole device."""
        if not self.on_gpu:
            return {}
        free, total = torch.cuda.mem_get_info()
        allocated, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return {"allocated_gb": allocated / 1e9, "peak_gb": peak / 1e9, "device_gb": (total - free) / 1e9}


def copy(check: Check, figures: Figures) -> None:
    """Copies on the device, which passes are held against, and from and to the host."""
    source = random_bf16(check.layout.size, 1.0, 0, check.device)
    target = torch.empty_like(source)
    figures["copy_gb_per_s"] = 2 * source.nbytes / check.seconds(lambda: target.copy_(source), 5) / 1e9
    if not check.on_gpu:
        return
    part = source[: 1 << 29]
    pinned, pageable = torch.empty_like(part, device=CPU, pin_memory=True), torch.zeros_like(part, device=CPU)
    for name, (to, of) in {
        "to_pinned": (pinned, part),
        "to_pageable": (pageable, part),
        "from_pageable": (part, pageable),
    }.items():
        figures[f"{name}_gb_per_s"] = part.nbytes / check.seconds(lambda to=to, of=of: to.copy_(of), 3) / 1e9


def kernels(check: Check, figures: Figures) -> None:
    """Every pass compiled and eagerly: bits against those of the CPU, bytes per second beside a copy."""
    figures["compiling_s"] = check.seconds(lambda: compile_ahead(check))
    arrays = RehearsalArrays(check.layout, SPECIALISTS, check.threads, check.device)
    sources = [arrays.base, *arrays.vectors]
    rate = 2 * len(sources) * arrays.base.nbytes / check.seconds(arrays.copy, 5) / 1e9
    figures |= {"parameters": arrays.layout.size, "copy_gb_per_s": rate}
    figures["histograms_s"] = check.seconds(arrays.magnitude_histograms)
    some = arrays.vectors[0][:COMPARED]
    figures["histograms_differ"] = differing(magnitude_histogram(some), magnitude_histogram(some.cpu()))
    for case in check.cases:
        with noted(figures, label(case)) as row:
            measure_case(check, arrays, case, rate, row)
        check.save()


def compile_ahead(check: Check) -> None:
    """Fill the cache with the passes of all cases, several at a time: each has a compiler busy for half a minute."""
    arrays = RehearsalArrays(layout("tiny"), SPECIALISTS, 1, check.device)

    def compile_one(case: Case) -> None:
        Pass(
            work_of(case, arrays).kernel,
            len(SPECIALISTS),
            work_of(case, arrays).scalars[0],
            torch.bfloat16,
            check.device,
        )

    compile_one(check.cases[0])
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(compile_one, check.cases))


def work_of(case: Case, arrays: RehearsalArrays) -> Work:
    name, parameters = case
    method = get_method(name)
    checked = parse_parameters(name, complete_parameters(name, parameters, SPECIALISTS, arrays.layout.num_layers))
    return plan_work(arrays.layout, method, checked, method.prepare(checked, arrays), SPECIALISTS, {})


def measure_case(check: Check, arrays: RehearsalArrays, case: Case, copy_rate: float, row: Figures) -> None:
    work: list[Work] = []
    row["prepare_s"] = check.seconds(lambda: work.append(work_of(case, arrays)))
    kernel, scalars = work[0].kernel, work[0].scalars[0]
    companions = arrays.companions(kernel)
    sources = [arrays.base, *arrays.vectors, *companions]
    segments = segments_over(work[0], arrays.layout, arrays.layout.size)
    eager = Pass(kernel, len(SPECIALISTS), scalars, torch.bfloat16, check.device, compiled=False)
    compiled = Pass(kernel, len(SPECIALISTS), scalars, torch.bfloat16, check.device)
    row |= {"segments": len(segments), "problem": compiled.problem}

    def merge(run: Pass) -> None:
        run.run(arrays.base, arrays.vectors, segments, arrays.out, check.threads, companions)

    # What a CPU makes of the tensors that begin the model.
    size = max(segment.stop for segment in segments_over(work[0], arrays.layout, COMPARED))
    base, *others = (array[:size].cpu() for array in sources)
    expected = torch.empty_like(base)
    on_cpu = Pass(kernel, len(SPECIALISTS), scalars, torch.bfloat16, CPU, compiled=False)
    vectors, others = others[: len(SPECIALISTS)], others[len(SPECIALISTS) :]
    on_cpu.run(base, vectors, segments_over(work[0], arrays.layout, size), expected, os.cpu_count() or 1, others)
    moved = sum(array.nbytes for array in (*sources, arrays.out))
    for form, run in {"compiled": compiled, "eager": eager}.items():
        if form == "compiled" and not compiled.is_compiled:
            continue
        before = check.memory()
        if check.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        arrays.out.fill_(torch.nan)
        merge(run)
        if before:
            row[f"{form}_buffers_gb"] = check.memory()["peak_gb"] - before["allocated_gb"]
        row[f"{form}_unwritten"] = sum(int(part.isnan().sum()) for part in arrays.out.split(COMPARED))
        row[f"{form}_differs"] = differing(arrays.out[:size], expected)
        row[f"{form}_s"] = check.seconds(lambda run=run: merge(run), 5 if form == "compiled" else 2)
        row[f"{form}_ratio"] = moved / row[f"{form}_s"] / 1e9 / copy_rate
    row["compared"] = size


def segments_over(work: Work, layout: Layout, size: int) -> list[Segment]:
    """Segments of the tensors that end within the first `size` entries, but of one tensor at least."""
    within = [(Overlap(t, t.start, t.stop), i) for i, t in enumerate(layout.merged) if i == 0 or t.stop <= size]
    return segments_of(work, within, 0)


def shards(check: Check, figures: Figures) -> None:
    """The same bits on any number of shards, also where a cut does not lie on 16 bytes, as on one shard of the CPU."""
    with tempfile.TemporaryDirectory(dir=check.scratch) as folder:
        models = write_family(Path(folder), "odd", None, check.device)
        reference = load(models, 1, CPU, check.threads)
        for case in check.data_free:
            recipe = reference.recipe(*case)
            reference.merge(recipe)
            expected = merged_bits(reference)
            for count, streams in ((1, False), (2, False), (3, False), (2, True)):
                name = f"{label(case)}, {count} shards" + (" that bring what they read" if streams else "")
                with noted(figures, name) as row:
                    bank = load(models, count, check.device, check.threads, streams=streams)
                    bank.merge(recipe)
                    row["differs"] = differing(merged_bits(bank), expected)
                    bank.close()
            check.save()
        reference.close()


def ipc(check: Check, figures: Figures) -> None:
    """Another process reads two candidates where a shard writes them, as an engine does by the transport `gpu`."""
    size = min(check.layout.size, IPC_ENTRIES)
    file = MemoryFile(1 if check.on_gpu else size)
    memory = CardMemory(size, check.device, file.path) if check.on_gpu else file
    shared = memory.shared()
    figures |= {"device": shared.device, "entries": size, "path_characters": len(shared.path), "sums_differ": 0}
    if shared.problem:
        raise RuntimeError(shared.problem)
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps([shared.device, shared.path, size, check.device.type]) + "\n")
        for turn in (1, 2):
            memory.tensor.copy_(random_bf16(size, float(turn), turn, check.device))
            if check.on_gpu:
                torch.cuda.synchronize()
            child.stdin.write("\n")
            child.stdin.flush()
            if not (line := child.stdout.readline()):
                raise RuntimeError(f"the other process ended: {child.wait(30)}")
            total, figures["there"], figures[f"open_and_read_{turn}_s"] = json.loads(line)
            figures["sums_differ"] += int(total != float(memory.tensor[: 1 << 24].double().sum()))
        child.stdin.close()
    file.close()


def bank(check: Check, figures: Figures) -> None:
    """A family of real size on disk, one shard on the device, three candidates of every method, and what goes back."""
    with tempfile.TemporaryDirectory(dir=check.scratch) as folder:
        models: list[Any] = []
        figures["write_family_s"] = check.seconds(
            lambda: models.append(write_family(Path(folder), check.shape, check.layers, check.device))
        )
        base, specialists = models[0]
        figures["digests_s"] = check.seconds(lambda: [one.digest() for one in (base, *specialists.values())])
        if check.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        banks: list[Bank] = []
        figures["load_s"] = check.seconds(lambda: banks.append(load(models[0], 1, check.device, check.threads)))
        figures["model_gb"] = banks[0].layout.size * torch.bfloat16.itemsize / 1e9
        figures |= {f"loaded_{name}": value for name, value in check.memory().items()}
        figures["histograms_s"] = check.seconds(banks[0].statistics.magnitude_histograms)
        for name, parameters in check.data_free:
            with noted(figures, label((name, parameters))) as row:
                for turn in range(3):
                    recipe = banks[0].recipe(name, {**parameters, "scaling_coef": 0.3 + 0.1 * turn})
                    merged = banks[0].merge(recipe)
                    row[f"merge_{turn}_s"] = merged.seconds
                    row[f"to_host_{turn}_s"] = check.seconds(partial(banks[0].localise, merged.manifest, merged.places))
                row |= check.memory()
            check.save()
        banks[0].close()


def load(
    models: tuple[Checkpoint, dict[str, Checkpoint]],
    count: int,
    device: torch.device,
    threads: int,
    *,
    streams: bool = False,
) -> Bank:
    """A bank in this process; `Bank.load` has its shards there on the CPU alone."""
    base, specialists = models
    order = Layout.of(base, specialists.values())
    made = LocalShards(
        [
            BankShard(base, specialists, order, i, count, threads, device.type == "cuda", None, streams)
            for i in range(count)
        ]
    )
    return Bank(base, specialists, order, made, made.load(lambda _: None), None)


def merged_bits(bank: Bank) -> Tensor:
    return torch.cat([tensor.flatten().view(torch.int16) for _, tensor in bank.tensors()])


def differing(found: Tensor, expected: Tensor) -> int:
    """Entries whose bits differ."""
    first, second = (one.cpu() for one in (found, expected))
    if first.dtype == torch.bfloat16:
        first, second = first.view(torch.int16), second.view(torch.int16)
    return int((first != second).sum())


def label(case: Case) -> str:
    name, parameters = case
    return " ".join([name, *([parameters["merge_func"]] if "merge_func" in parameters else [])])


class noted:  # noqa: N801 - reads as what it does
    """The figures of a step, with the error that ended it."""

    def __init__(self, figures: Figures, name: str) -> None:
        self._row: Figures = figures.setdefault(name, {})

    def __enter__(self) -> Figures:
        return self._row

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error)
        self._row["error"] = f"{type(error).__name__}: {error}"[:500]
        return True


def findings(figures: Figures, where: str = "") -> Iterator[str]:
    """What is wrong: errors, entries that were not written, bits that differ."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from findings(value, f"{where}{name}: ")
        elif name == "error" or (value and name.endswith(("unwritten", "differ", "differs"))):
            yield f"{where}{name} {value}"


STAGES = {stage.__name__: stage for stage in (copy, kernels, shards, ipc, bank)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shape", default="llama-3b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="fewer than the shape has, where time or memory is short")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--methods",
        default=",".join(dict(CASES)),
        help="names; those that see data are for the stage `kernels` alone, on made-up statistics",
    )
    parser.add_argument("--scratch", default="/dev/shm", help="where checkpoints are written")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    given = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if given.device == "cuda" else CPU
    cases = [case for case in CASES if case[0] in given.methods.split(",")]
    cases += [(name, {}) for name in given.methods.split(",") if name not in dict(CASES)]
    check = Check(device, given.shape, given.layers, given.threads, cases, given.scratch, given.out)
    check.figures["machine"] = {
        "device": torch.cuda.get_device_name(device) if check.on_gpu else "cpu",
        "torch": torch.__version__,
        "shape": given.shape,
        "layers": check.layout.num_layers,
    }
    for name in given.stages.split(","):
        with noted(check.figures, name) as row:
            began = time.perf_counter()
            STAGES[name](check, row)
            row["stage_s"] = time.perf_counter() - began
        check.save()
        if check.on_gpu:
            torch.cuda.empty_cache()
    print(json.dumps(check.figures, indent=1, default=str))
    wrong = list(findings(check.figures))
    print("\n".join(wrong) or "nothing differs")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
