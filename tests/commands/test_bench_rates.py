"""What `bench` tells `plan` of two models is what both were made of."""

from __future__ import annotations

from typing import Any

import pytest

from mergebench_ray.commands.bench import _rates, _through

LAYER, WEIGHTS = 1e-3, 50e9
PROMPT, PROMPTS, ANSWER, ANSWERS = 2e-4, 3e11, 4e-4, 1.5e11
LOAD_LAYER, LOAD, MERGE, MERGE_START = 3e-3, 2.5e9, 30e9, 0.02


def sizes(layers: int, parameters: int, merged: int) -> dict[str, Any]:
    return {"layers": layers, "parameters": parameters, "merged_parameters": merged}


def pace(layers: int, parameters: int) -> dict[str, Any]:
    token = ANSWER + parameters / ANSWERS
    step = LAYER * layers + 2 * parameters / WEIGHTS
    rate = 1 / (PROMPT + parameters / PROMPTS)
    return {
        "prompt_tokens_per_second": rate,
        "alone": step + token,
        "together": step + 64 * token,
        "sequences": 64,
    }


def test_what_a_layer_and_a_token_take_is_told_from_what_bytes_and_parameters_do() -> None:
    small, wide = sizes(30, 130_000_000, 100_000_000), sizes(4, 300_000_000, 200_000_000)
    found = _rates(
        {
            "device": "cpu",
            "model": {**small, "specialists": 5, "bytes": 260_000_000},
            "methods": {
                "task_arithmetic": {"bytes": 1.4e9, "seconds": 1.4e9 / MERGE, "prepare_seconds": 0.0},
                "ties": {"bytes": 1.4e9, "seconds": 2.1e9 / MERGE, "prepare_seconds": 0.7e9 / MERGE},
            },
            "swap": {"merge_s": MERGE_START + 7 * 200e6 / MERGE, "load_s": 30 * LOAD_LAYER + 200e6 / LOAD},
            "pace": pace(30, 130_000_000),
            "wide": {**wide, "load_s": 4 * LOAD_LAYER + 400e6 / LOAD, "pace": pace(4, 300_000_000)},
            "bank_load_s": 2.0,
            "engine_start_s": 11.0,
        }
    )
    assert (found.layer, found.weights) == pytest.approx((LAYER, WEIGHTS))
    assert (found.prompt_token, found.prompts) == pytest.approx((PROMPT, PROMPTS))
    assert (found.answer_token, found.answers) == pytest.approx((ANSWER, ANSWERS))
    assert (found.load_layer, found.load) == pytest.approx((LOAD_LAYER, LOAD))
    assert (found.merge_start, found.merge) == pytest.approx((MERGE_START, MERGE))
    assert found.passes == pytest.approx({"task_arithmetic": 1.0, "ties": 2.0})


def test_noise_makes_no_part_negative() -> None:
    """Where the larger model was as fast, or slower than its size explains, one part alone explains both."""
    assert _through((1, 1.0, 2.0), (1, 2.0, 1.0)) == (0.0, 2.0)
    assert _through((30, 1.0, 0.1), (4, 2.0, 3.0)) == (0.0, 1.5)
