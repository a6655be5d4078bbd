from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.generation_options import read_generation_options
from mergebench_ray.tasks.loading import load_tasks
from task_files import write_generation_task, write_suite

READ: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"stop": (), "max_tokens": 256, "temperature": 0.0, "top_k": None, "special_tokens": False}),
    ({"until": "\n"}, {"stop": ("\n",), "first_token_only": False}),
    ({"until": [""]}, {"stop": (), "first_token_only": True}),
    ({"max_tokens": 5, "max_new_tokens": "7"}, {"max_tokens": 7}),
    ({"max_gen_toks": None, "max_completion_tokens": 9.0}, {"max_tokens": 9}),
    ({"temperature": "2e-1"}, {"temperature": 0.2}),
    ({"temperature": 1, "do_sample": False}, {"temperature": 0.0}),
    ({"temperature": 0.5, "do_sample": None, "top_k": None, "top_p": None}, {"top_k": 0, "top_p": 1.0}),
    ({"repetition_penalty": 2, "min_p": 0, "min_new_tokens": 3}, {"repetition_penalty": 2.0, "min_tokens": 3}),
    (
        {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "use_cache": False, "early_stopping": False},
        {},
    ),
    ({"skip_special_tokens": False, "max_total_tokens": 64}, {"special_tokens": True, "max_total_tokens": 64}),
]


@pytest.mark.parametrize(("options", "expected"), READ, ids=lambda value: str(value)[:40])
def test_options_mean_what_they_mean_to_lm_eval(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = vars(read_generation_options("t", options))
    assert {name: found[name] for name in expected} == expected


REFUSED: list[dict[str, Any]] = [
    {"until": None},
    {"until": 3},
    {"until": ["a", None]},
    {"until": {"a": 1}},
    {"max_gen_toks": 0},
    {"max_gen_toks": -1},
    {"max_new_tokens": "many"},
    {"max_gen_toks": 1.5},
    {"max_gen_toks": float("inf")},
    {"max_gen_toks": True},
    {"max_length": 20},
    {"max_length": 100},
    {"temperature": -1},
    {"temperature": None},
    {"temperature": float("nan")},
    {"temperature": 0.001},
    {"do_sample": "yes"},
    {"do_sample": True},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_k": -1},
    {"top_k": 2.5},
    {"min_p": -0.1},
    {"min_p": 2},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("inf")},
    {"min_new_tokens": 300},
    {"num_beams": 2},
    {"num_return_sequences": 2},
    {"length_penalty": 2.0},
    {"no_repeat_ngram_size": 3},
    {"penalty_alpha": 0.6},
    {"presence_penalty": 0.5},
    {"stop": ["a"]},
    {"pad_token_id": 1},
    {"use_cache": "yes"},
    {"images": 1},
]


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused_by_the_options_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^task t: generation_kwargs\.{next(iter(options))}: "):
        read_generation_options("t", options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation_kwargs": {"num_beams": 4}}, "capital_text: generation_kwargs.num_beams: 4: cannot be honoured"),
        ({"generation_kwargs": "greedy"}, "capital_text: generation_kwargs: give keys, each with its value"),
        ({"repeats": 0}, "capital_text: repeats: 0: give an integer"),
        ({"repeats": "two"}, "capital_text: repeats: two: give an integer"),
        ({"doc_to_image": "image"}, "capital_text: doc_to_image: only text can be asked"),
        ({"doc_to_audio": ["sound"]}, "capital_text: doc_to_audio: only text can be asked"),
    ],
    ids=str,
)
def test_they_are_refused_before_any_data_is_read(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_generation_task(folder, **settings)
    for file in folder.glob("*.jsonl"):
        file.unlink()
    suite = write_suite(tmp_path, {"facts": {"capital_text": "exact_match"}})
    with pytest.raises(InputError, match=message):
        load_tasks(suite, "test", EvaluationOptions())
