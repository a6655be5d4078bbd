"""Which settings must agree, by their names and values."""

from __future__ import annotations

from typing import Any

import pytest

from mergebench_ray.families import family_of

RULES = family_of("llama").settings


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, ["rms_norm_eps"]),
        ({"hidden_size": 64}, {}, ["hidden_size"]),
        ({"attention_dropout": 0.1}, {"attention_dropout": 0.0}, []),
        ({"torch_dtype": "float16"}, {"dtype": "bfloat16"}, []),
        ({"vocab_size": 320}, {"vocab_size": 384}, []),
        ({"layers": [1, 2]}, {"layers": (1, 2)}, []),
        ({"text_config.initializer_range": 1}, {"text_config.initializer_range": 2}, []),
    ],
)
def test_other_values_count_unless_they_say_nothing_of_what_is_computed(
    ours: dict[str, Any], theirs: dict[str, Any], expected: list[str]
) -> None:
    assert list(RULES.different(ours, theirs)) == expected


def test_nested_settings_have_the_name_of_their_part_and_rotary_kinds_their_present_name() -> None:
    settings = {"a": 1, "text_config": {"b": 2, "rope_scaling": {"type": "su", "factor": 4}}}
    assert RULES.flat(settings) == {
        "a": 1,
        "text_config.b": 2,
        "text_config.rope_scaling.rope_type": "longrope",
        "text_config.rope_scaling.factor": 4,
    }


def test_windows_are_read_by_nobody_where_no_layer_has_one() -> None:
    full, sliding = {"layer_types": ["full_attention"]}, {"layer_types": ["sliding_attention"]}
    assert "sliding_window" in RULES.unread(full, full)
    assert RULES.unread(full, sliding) == ()
    assert RULES.unread(full, {}) == ()


@pytest.mark.parametrize(
    ("key", "settings", "expected"),
    [
        ("eos_token_id", {}, True),
        ("max_position_embeddings", {}, True),
        ("max_position_embeddings", {"rope_scaling.rope_type": "dynamic"}, False),
        ("max_position_embeddings", {"rope_scaling.rope_type": "yarn"}, False),
        ("rms_norm_eps", {}, False),
    ],
)
def test_positions_and_tokens_are_the_bases_unless_rotary_embeddings_are_made_of_them(
    key: str, settings: dict[str, Any], expected: bool
) -> None:
    assert RULES.changes_nothing(key, {}, settings) is expected


def test_rotary_settings_are_allowed_as_a_whole_and_by_either_name() -> None:
    assert RULES.name_to_allow("text_config.rope_parameters.factor") == "text_config.rope_parameters"
    assert RULES.is_allowed("rope_parameters.factor", ["rope_scaling"])
    assert RULES.is_allowed("rope_parameters.factor", ["factor"])
    assert not RULES.is_allowed("rope_parameters.factor", ["rms_norm_eps"])
