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
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mergebench_ray.bank import Bank
from mergebench_ray.bank.bench import measure_methods
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.commands.first_checks import check_bench
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.commands.peak_memory import interpreter_memory, peak_memory
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import Suite
from mergebench_ray.engines.bench import WIDE_LAYERS, BenchEngine, Pace, write_wide_model
from mergebench_ray.engines.environment import ACTOR_ENVIRONMENT
from mergebench_ray.files import whole_file
from mergebench_ray.machine import computing_device
from mergebench_ray.methods import get_method, method_names
from mergebench_ray.placement.costs import Rates, keep_rates
from mergebench_ray.progress import Progress
from mergebench_ray.ray_actors import Actor, actors_of
from mergebench_ray.runtime import ray_session
from mergebench_ray.suites import smollm2_mini

_SWAPS = 9
_WIDE_SWAPS = 3
_BYTES = 2  # bf16
_ALLOWED_EXTRA = 500_000_000  # bytes beside (K + 2) models, for processes and small buffers


def bench(
    *,
    model: str | None = None,
    json_file: Path | str | None = None,
    methods_folder: Path | str | None = None,
    show_progress: bool = False,
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
        methods_folder: folder whose *.py define methods of your own; they run as your own code does.
        show_progress: print what is happening, then the figures.

    Raises:
        InputError: the models cannot be found, or the file exists.
    """
    target = None if json_file is None else Path(json_file)
    check_bench(model, json_file, methods_folder)
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
        figures["merge_memory"] = _measure_memory(models, methods_folder, report)
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
        "merged_parameters": sum(count for name, count in counts.items() if models.base.is_merged(name)),
        "layers": models.num_layers,
        "bytes": sum(counts.values()) * _BYTES,
    }


def _measure_swaps(models: Models, report: Progress) -> dict[str, Any]:
    """Alternate between two candidates; each is merged, loaded and asked for one token. Then a wide model's pace."""
    on_gpu = torch.cuda.is_available()
    make_engine = actors_of(BenchEngine, runtime_env={"env_vars": ACTOR_ENVIRONMENT}, num_gpus=int(on_gpu))
    with ray_session():
        report(0.4, "loading the bank")
        started = time.perf_counter()
        bank = Bank.load(models.base, models.specialists)
        bank_seconds = time.perf_counter() - started
        report(0.45, "starting vLLM, about half a minute")
        engine = make_engine(models.base)
        start_seconds = ray.get(engine.call(BenchEngine.start_seconds))
        report(0.5, "swapping candidates")
        swaps = [_swap(bank, engine, 0.2 + 0.1 * index) for index in range(_SWAPS + 1)][1:]
        pace = ray.get(engine.call(BenchEngine.pace))
        ray.get(engine.call(BenchEngine.close))
        bank.close()
        report(0.6, "the same of a model of few, wide layers")
        with tempfile.TemporaryDirectory() as folder:
            wide = _measure_wide(make_engine, Path(folder), models.base)
    medians = {name: statistics.median(swap[name] for swap in swaps) for name in swaps[0]}
    return {
        "device": "gpu" if on_gpu else "cpu",
        "engine_start_s": start_seconds,
        "bank_load_s": bank_seconds,
        "pace": asdict(pace),
        "swap": {**medians, "runs": len(swaps)},
        "wide": wide,
    }


def _measure_wide(
    make_engine: Callable[[Checkpoint], Actor[BenchEngine]], folder: Path, like: Checkpoint
) -> dict[str, Any]:
    """What loading a made-up model takes, and its pace."""
    shapes = write_wide_model(folder, like)
    wide = resolve(str(folder))
    bank, engine = Bank.load(wide, {"itself": wide}), make_engine(wide)
    loads = [_swap(bank, engine, 0.2 + 0.1 * index)["load_s"] for index in range(_WIDE_SWAPS + 1)][1:]
    pace = ray.get(engine.call(BenchEngine.pace))
    ray.get(engine.call(BenchEngine.close))
    bank.close()
    return {
        "layers": WIDE_LAYERS,
        "parameters": sum(map(math.prod, shapes.values())),
        "merged_parameters": sum(math.prod(shape) for name, shape in shapes.items() if wide.is_merged(name)),
        "load_s": statistics.median(loads),
        "pace": asdict(pace),
    }


def _rates(figures: dict[str, Any]) -> Rates:
    """From what a real and a wide model took: what a layer or a token takes whatever its size, and what bytes do."""
    model, swap, wide = figures["model"], figures["swap"], figures["wide"]
    pace, wide_pace = Pace(**figures["pace"]), Pace(**wide["pace"])
    passed = figures["methods"]["task_arithmetic"]
    merge = passed["bytes"] / passed["seconds"]
    moved = (model["specialists"] + 2) * model["merged_parameters"] * _BYTES

    def through(count: str, size: str, of_model: float, of_wide: float) -> tuple[float, float]:
        return _through((model.get(count, 1), model[size], of_model), (wide.get(count, 1), wide[size], of_wide))

    load_layer, load = through("layers", "merged_parameters", swap["load_s"], wide["load_s"])
    layer, reading = through("layers", "parameters", pace.of_a_step, wide_pace.of_a_step)
    prompt, prompts = through("one", "parameters", pace.of_a_prompt_token, wide_pace.of_a_prompt_token)
    answer, answers = through("one", "parameters", pace.of_a_token, wide_pace.of_a_token)
    return Rates(
        device=figures["device"],
        source=f"{computing_device()}, {os.cpu_count()} cores, measured by bench on {date.today()}",
        merge=merge,
        passes={
            name: (one["seconds"] + one["prepare_seconds"]) * merge / one["bytes"]
            for name, one in figures["methods"].items()
        },
        merge_start=max(0.0, swap["merge_s"] - moved / merge),
        load=_BYTES / load,
        load_layer=load_layer,
        read=(model["specialists"] + 1) * model["bytes"] / figures["bank_load_s"],
        prompts=1 / prompts,
        prompt_token=prompt,
        answers=1 / answers,
        answer_token=answer,
        weights=_BYTES / reading,
        layer=layer,
        engine_start=figures["engine_start_s"],
    )


def _through(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float]:
    """Seconds for each of a count and for each of a size, by two models of (count, size, seconds); none below 0."""
    (counts, sizes, seconds), (more_counts, more_sizes, more_seconds) = one, other
    found = np.linalg.solve([[counts, sizes], [more_counts, more_sizes]], [seconds, more_seconds])
    if found[1] <= 0:
        return 0.0, max(seconds / sizes, more_seconds / more_sizes)
    return (float(found[0]), float(found[1])) if found[0] >= 0 else (0.0, more_seconds / more_sizes)


def _swap(bank: Bank, engine: Actor[BenchEngine], coefficient: float) -> dict[str, float]:
    begun = time.perf_counter()
    merged = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": coefficient}))
    merged_at = time.perf_counter()
    ray.get(engine.call(BenchEngine.load, merged.manifest))
    loaded_at = time.perf_counter()
    ray.get(engine.call(BenchEngine.answer_one))
    answered_at = time.perf_counter()
    return {
        "merge_s": merged_at - begun,
        "load_s": loaded_at - merged_at,
        "first_answer_s": answered_at - loaded_at,
        "total_s": answered_at - begun,
    }


def _measure_memory(models: Models, methods_folder: Path | str | None, report: Progress) -> dict[str, Any]:
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
            command = _merge_command(models, method, methods_folder, Path(folder) / "merged")
            above = peak_memory(command) - interpreter
        figures["methods"][method] = {"above_interpreter_bytes": above, "share_of_limit": above / limit}
    return figures


def _merge_command(models: Models, method: str, methods_folder: Path | str | None, out: Path) -> list[str]:
    command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--out", str(out)]
    command += ["--base", str(models.base.ref)]
    if methods_folder is not None:
        command += ["--methods-folder", str(methods_folder)]
    for name, checkpoint in models.specialists.items():
        command += ["--specialist", f"{name}={checkpoint.ref}"]
    return command


def _print(figures: dict[str, Any]) -> None:
    console = Console()
    model, swap, pace = figures["model"], figures["swap"], Pace(**figures["pace"])
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
        f"vLLM starts in {figures['engine_start_s']:.0f} s, reads {pace.prompt_tokens_per_second:.0f} tokens/s, and "
        f"writes {pace.sequences / pace.together:.0f} tokens/s of {pace.sequences} answers, {1 / pace.alone:.0f} of one"
    )
    memory = figures["merge_memory"]
    for name, figure in memory["methods"].items():
        console.print(
            f"merge --method {name}: {figure['above_interpreter_bytes'] / 1e6:.0f} MB above the interpreter, "
            f"{figure['share_of_limit']:.0%} of (K + 2) x model + 500 MB"
        )
