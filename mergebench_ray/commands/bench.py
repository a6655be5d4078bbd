"""What a candidate costs on this machine: the fused pass beside a plain copy, the swap into vLLM, peak memory."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergebench_ray.bank import Bank
from mergebench_ray.bank.bench import measure_methods
from mergebench_ray.commands.first_checks import check_bench
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.commands.peak_memory import interpreter_memory, peak_memory
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.engines import GenerationRequest, VLLMEngine
from mergebench_ray.files import whole_file
from mergebench_ray.methods import get_method, method_names
from mergebench_ray.progress import Progress
from mergebench_ray.runtime import ray_session
from mergebench_ray.suites import smollm2_mini

_SWAPS = 9
_BYTES = 2  # bf16
_ALLOWED_EXTRA = 500_000_000  # bytes beside (K + 2) models, for processes and small buffers
_PROMPT = "The capital of France is"


def bench(
    *, model: str | None = None, json_file: Path | str | None = None, show_progress: bool = False
) -> dict[str, Any]:
    """Measure, all sides in one run.

    - ``methods.NAME``: seconds and bytes of the fused pass, its ratio to a plain copy of the same arrays, on random
      weights in the shape of SmolLM2-135M with five specialists.
    - ``swap``: one candidate from coefficients to vLLM's first answer with the new weights, and the engine's start.
    - ``merge_memory``: peak of `mergebench-ray merge` above an interpreter with torch and Ray imported, held against
      (K + 2) x model size + 500 MB.

    Args:
        model: reference of another base. Its specialists are copies of itself: how long a pass takes does not depend on
            the values. None for the built-in suite's base and specialists.
        json_file: write the figures here.
        show_progress: print what is happening, then the figures.

    Raises:
        InputError: the models cannot be found, or the file exists.
    """
    target = None if json_file is None else Path(json_file)
    check_bench(model, json_file)
    models = _models(model)
    with progress_line(show_progress) as report:
        figures: dict[str, Any] = {"machine": _machine(), "model": _sizes(models)}
        report(0.0, "timing the fused passes beside a plain copy")
        figures["methods"] = measure_methods()
        figures |= _measure_swaps(models, report)
        figures["merge_memory"] = _measure_memory(models, report)
    if show_progress:
        _print(figures)
    if target is not None:
        with whole_file(target, new=True) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _models(model: str | None) -> Models:
    suite = Suite.load(smollm2_mini.NAME)
    if model is None:
        assert suite.base is not None
        return resolve_models(suite.base, suite.specialists)
    return resolve_models(model, dict.fromkeys(suite.specialists, model))


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _sizes(models: Models) -> dict[str, Any]:
    counts = {name: math.prod(tensor.shape) for name, tensor in models.base.tensors.items()}
    return {
        "base": str(models.base.ref),
        "specialists": len(models.specialists),
        "parameters": sum(counts.values()),
        "merged_parameters": sum(count for name, count in counts.items() if models.base.family.is_merged(name)),
        "bytes": sum(counts.values()) * _BYTES,
    }


def _measure_swaps(models: Models, report: Progress) -> dict[str, Any]:
    """Alternate between two candidates; each is merged, loaded and asked for one token."""
    with ray_session():
        report(0.4, "loading the bank")
        bank = Bank.load(models.base, models.specialists)
        report(0.5, "starting vLLM, about half a minute")
        started = time.perf_counter()
        engine = VLLMEngine(models.base.folder, EngineOptions(), max_model_len=256)
        start_seconds = time.perf_counter() - started
        report(0.6, "swapping candidates")
        swaps = [_swap(bank, engine, 0.2 + 0.1 * index) for index in range(_SWAPS + 1)][1:]
        engine.close()
        bank.close()
    medians = {name: statistics.median(swap[name] for swap in swaps) for name in swaps[0]}
    return {"engine_start_s": start_seconds, "swap": {**medians, "runs": len(swaps)}}


def _swap(bank: Bank, engine: VLLMEngine, coefficient: float) -> dict[str, float]:
    request = GenerationRequest(prompt_token_ids=tuple(engine.tokenizer(_PROMPT)["input_ids"]), max_tokens=1)
    begun = time.perf_counter()
    merged = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": coefficient}))
    merged_at = time.perf_counter()
    engine.load(merged.manifest)
    loaded_at = time.perf_counter()
    engine.generate([request])
    answered_at = time.perf_counter()
    return {
        "merge_s": merged_at - begun,
        "load_s": loaded_at - merged_at,
        "first_answer_s": answered_at - loaded_at,
        "total_s": answered_at - begun,
    }


def _measure_memory(models: Models, report: Progress) -> dict[str, Any]:
    """Run `mergebench-ray merge` as a user would, once for each method that needs no data."""
    model_bytes = sum(math.prod(tensor.shape) for tensor in models.base.tensors.values()) * _BYTES
    limit = (len(models.specialists) + 2) * model_bytes + _ALLOWED_EXTRA
    interpreter = interpreter_memory()
    figures: dict[str, Any] = {"interpreter_bytes": interpreter, "limit_bytes": limit, "methods": {}}
    found = [get_method(name) for name in method_names()]
    methods = [method.name for method in found if not method.calibration_samples(method.Parameters())]
    for index, method in enumerate(methods):
        report(0.7 + 0.3 * index / len(methods), f"peak memory of merge --method {method}")
        with tempfile.TemporaryDirectory() as folder:
            above = peak_memory(_merge_command(models, method, Path(folder) / "merged")) - interpreter
        figures["methods"][method] = {"above_interpreter_bytes": above, "share_of_limit": above / limit}
    return figures


def _merge_command(models: Models, method: str, out: Path) -> list[str]:
    command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--out", str(out)]
    command += ["--base", str(models.base.ref)]
    for name, checkpoint in models.specialists.items():
        command += ["--specialist", f"{name}={checkpoint.ref}"]
    return command


def _print(figures: dict[str, Any]) -> None:
    console = Console()
    model, swap = figures["model"], figures["swap"]
    console.print(
        escape(f"{model['base']}: ") + f"{model['merged_parameters'] / 1e6:.0f} M merged parameters, "
        f"{model['specialists']} specialists, {figures['machine']['cores']} cores"
    )
    passes = Table(title="Fused pass (medians)")
    for column in ("method", "seconds", "GB/s", "ratio to copy", "eager seconds", "eager ratio"):
        passes.add_column(column, justify="left" if column == "method" else "right")
    for name, figure in figures["methods"].items():
        passes.add_row(
            name,
            f"{figure['seconds']:.3f}",
            f"{figure['bytes'] / figure['seconds'] / 1e9:.1f}",
            f"{figure['ratio_to_copy']:.2f}",
            f"{figure['eager_seconds']:.3f}",
            f"{figure['eager_ratio_to_copy']:.2f}",
        )
    console.print(passes)
    console.print(
        f"swap: {swap['total_s']:.2f} s from coefficients to the first answer (merge {swap['merge_s']:.2f}, "
        f"load {swap['load_s']:.2f}, answer {swap['first_answer_s']:.2f}); "
        f"vLLM starts in {figures['engine_start_s']:.0f} s"
    )
    memory = figures["merge_memory"]
    for name, figure in memory["methods"].items():
        console.print(
            f"merge --method {name}: {figure['above_interpreter_bytes'] / 1e6:.0f} MB above the interpreter, "
            f"{figure['share_of_limit']:.0%} of (K + 2) x model + 500 MB"
        )
