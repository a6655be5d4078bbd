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
from datetime import date
from pathlib import Path
from random import Random
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
from mergebench_ray.engines.of_checkpoint import engine_of
from mergebench_ray.files import whole_file
from mergebench_ray.machine import computing_device
from mergebench_ray.methods import get_method, method_names
from mergebench_ray.placement.costs import Rates, keep_rates
from mergebench_ray.progress import Progress
from mergebench_ray.runtime import ray_session
from mergebench_ray.suites import smollm2_mini

_SWAPS = 9
_BYTES = 2  # bf16
_ALLOWED_EXTRA = 500_000_000  # bytes beside (K + 2) models, for processes and small buffers
_REQUESTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 64, 48, 32  # about what a short question and its answer take
_PROMPT = "The capital of France is"


def bench(
    *, model: str | None = None, json_file: Path | str | None = None, show_progress: bool = False
) -> dict[str, Any]:
    """Measure, all sides in one run.

    - ``methods.NAME``: seconds and bytes of the fused pass, its ratio to a plain copy of the same arrays, on random
      weights in the shape of SmolLM2-135M with five specialists.
    - ``rates``: what the planner reckons time by from now on, kept in the cache folder.
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
        models.fetch(report)
        figures: dict[str, Any] = {"machine": _machine(), "model": _sizes(models)}
        report(0.0, "timing the fused passes beside a plain copy")
        figures["methods"] = measure_methods()
        figures |= _measure_swaps(models, report)
        rates = _rates(figures)
        keep_rates(rates)
        figures["rates"] = rates.model_dump()
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
        started = time.perf_counter()
        bank = Bank.load(models.base, models.specialists)
        bank_seconds = time.perf_counter() - started
        report(0.5, "starting vLLM, about half a minute")
        started = time.perf_counter()
        engine = engine_of(models.base, EngineOptions(), max_model_len=256)
        start_seconds = time.perf_counter() - started
        report(0.6, "swapping candidates")
        swaps = [_swap(bank, engine, 0.2 + 0.1 * index) for index in range(_SWAPS + 1)][1:]
        tokens_per_second = _tokens_per_second(engine)
        engine.close()
        bank.close()
    medians = {name: statistics.median(swap[name] for swap in swaps) for name in swaps[0]}
    return {
        "device": "gpu" if torch.cuda.is_available() else "cpu",
        "engine_start_s": start_seconds,
        "bank_load_s": bank_seconds,
        "tokens_per_second": tokens_per_second,
        "swap": {**medians, "runs": len(swaps)},
    }


def _tokens_per_second(engine: VLLMEngine) -> float:
    """Tokens, of prompts and answers, that the engine does in a second with many requests, no two of them alike."""
    random = Random(0)
    requests = [
        GenerationRequest(
            prompt_token_ids=tuple(random.randrange(100, 1000) for _ in range(_PROMPT_TOKENS)),
            max_tokens=_ANSWER_TOKENS,
            min_tokens=_ANSWER_TOKENS,
        )
        for _ in range(_REQUESTS)
    ]
    tokens, seconds = engine.tokens, engine.busy_seconds
    engine.generate(requests)
    return (engine.tokens - tokens) / (engine.busy_seconds - seconds)


def _rates(figures: dict[str, Any]) -> Rates:
    model, swap = figures["model"], figures["swap"]
    merged = model["merged_parameters"] * _BYTES
    return Rates(
        device=figures["device"],
        source=f"{computing_device()}, {os.cpu_count()} cores, measured by bench on {date.today()}",
        merge=(model["specialists"] + 2) * merged / swap["merge_s"],
        load=merged / swap["load_s"],
        read=(model["specialists"] + 1) * model["bytes"] / figures["bank_load_s"],
        work=figures["tokens_per_second"] * model["parameters"],
        engine_start=figures["engine_start_s"],
    )


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
        f"vLLM starts in {figures['engine_start_s']:.0f} s and does {figures['tokens_per_second']:.0f} tokens/s"
    )
    memory = figures["merge_memory"]
    for name, figure in memory["methods"].items():
        console.print(
            f"merge --method {name}: {figure['above_interpreter_bytes'] / 1e6:.0f} MB above the interpreter, "
            f"{figure['share_of_limit']:.0%} of (K + 2) x model + 500 MB"
        )
