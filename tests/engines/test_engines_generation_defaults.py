from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.engines.generation_defaults import GenerationDefaults, generation_defaults
from mergebench_ray.errors import InputError


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_without_a_file_they_are_those_of_transformers(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path) == GenerationDefaults(top_k=50)
    assert generation_defaults(written(tmp_path, {"eos_token_id": [2, 3]})) == GenerationDefaults()


def test_a_models_own_hold_where_a_task_says_nothing(tmp_path: Path) -> None:
    own = {"repetition_penalty": 1.1, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "do_sample": True, "min_p": None}
    assert generation_defaults(written(tmp_path, own)) == GenerationDefaults(
        top_p=0.8, top_k=20, repetition_penalty=1.1
    )


@pytest.mark.parametrize("option", [{"num_beams": 4}, {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[5]]}], ids=str)
def test_what_vllm_lacks_is_refused_by_name(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"generation_config\.json: {next(iter(option))}: .* changes answers"):
        generation_defaults(written(tmp_path, option))


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"top_k": "many"}', '{"top_p": [1]}', ""])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json: "):
        generation_defaults(tmp_path)
