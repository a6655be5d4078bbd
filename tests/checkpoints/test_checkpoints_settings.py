"""Settings, tokenizers and end tokens that differ are refused where they change what is computed, else noted once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergebench_ray.checkpoints import check_compatible, resolve
from mergebench_ray.errors import InputError
from tiny_models import tiny_gemma2, tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "llama")
    tiny_gemma2(root / "gemma")
    return root


def edited(source: Path, path: Path, file: str = "config.json", **changes: Any) -> Path:
    """A copy of a model with other entries in one of its JSON files; None takes an entry away."""
    if not path.exists():
        shutil.copytree(source, path)
    content = {**json.loads((path / file).read_text()), **changes}
    (path / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def check(base: Path, specialist: Path, *allow: str) -> list[str]:
    return check_compatible(resolve(str(base)), {"math": resolve(str(specialist))}, allow)


CHANGES: list[tuple[str, str, Any]] = [
    ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 2e6}),
    ("llama", "rms_norm_eps", 0.1),
    ("llama", "hidden_act", "gelu"),
    ("gemma", "sliding_window", 7),
    ("gemma", "query_pre_attn_scalar", 256),
    ("gemma", "attn_logit_softcapping", 1.0),
    ("gemma", "final_logit_softcapping", 1.0),
    ("gemma", "hidden_activation", "relu"),
    ("gemma", "layer_types", ["full_attention", "full_attention"]),
]


@pytest.mark.parametrize(("model", "key", "value"), CHANGES)
def test_what_changes_the_function_is_refused_unless_it_is_allowed_by_name(
    models: Path, tmp_path: Path, model: str, key: str, value: Any
) -> None:
    specialist = edited(models / model, tmp_path / "s", **{key: value})
    with pytest.raises(InputError, match=rf"specialist 'math' .*: {key}.* is .*, the base's is .* allow: \[{key}\]"):
        check(models / model, specialist)
    (note,) = check(models / model, specialist, key)
    assert key in note
    assert "(allowed)" in note
    with pytest.raises(InputError, match="'rope_parameter' is no setting of these models"):
        check(models / model, specialist, "rope_parameter")


@pytest.mark.parametrize(
    "changes",
    [
        # Defaults unsaid and said, old spellings and new ones.
        {"mlp_bias": None, "attention_bias": None, "head_dim": 32},
        {"rope_parameters": None, "rope_theta": 10000},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
        # What says how a model was made.
        {
            "dtype": None,
            "torch_dtype": "float32",
            "use_cache": False,
            "transformers_version": "4.0",
            "_name_or_path": "x",
        },
        {"attention_dropout": 0.5, "initializer_range": 0.5, "unsloth_version": "1", "pretraining_tp": 2},
    ],
)
def test_other_words_for_the_same_and_what_has_no_effect_are_not_mentioned(
    models: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert check(models / "llama", edited(models / "llama", tmp_path / "s", **changes)) == []


def test_what_is_the_bases_in_a_merge_is_one_note(models: Path, tmp_path: Path) -> None:
    specialist = edited(models / "llama", tmp_path / "s", max_position_embeddings=4096, eos_token_id=7, made_by="me")
    edited(specialist, specialist, "generation_config.json", eos_token_id=[7, 2])
    (specialist / "chat_template.jinja").write_text("{{ messages }}")
    (note,) = check(models / "llama", specialist)
    for part in (
        "max_position_embeddings is 4096, the base's is 512",
        "eos_token_id is 7, the base's is 2",
        "eos_token_id of generation is [7, 2], the base's is 2",
        "its chat template is another",
        "made_by is 'me'",
    ):
        assert part in note


def test_positions_count_where_rotary_embeddings_are_made_from_them(models: Path, tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    base = edited(models / "llama", tmp_path / "b", rope_parameters=dynamic)
    with pytest.raises(InputError, match="max_position_embeddings is 4096"):
        check(base, edited(base, tmp_path / "s", max_position_embeddings=4096))


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ({**LLAMA3, "rope_type": "llama3"}, {**LLAMA3, "type": "llama3"}),
        ({**LONG, "rope_type": "longrope"}, {**LONG, "type": "su"}),
        ({**LONG, "rope_type": "longrope", "type": "longrope"}, {**LONG, "rope_type": "longrope"}),
    ],
)
def test_kinds_of_rotary_embeddings_have_earlier_names(
    models: Path, tmp_path: Path, now: dict[str, Any], before: dict[str, Any]
) -> None:
    base = edited(models / "llama", tmp_path / "b", rope_parameters={**now, "rope_theta": 5e5})
    older = {"rope_parameters": None, "rope_theta": 500000, "dtype": None, "torch_dtype": "bfloat16"}
    specialist = edited(models / "llama", tmp_path / "s", **older, rope_scaling=before)
    assert check(base, specialist) == []
    assert check(specialist, base) == []


def test_what_differs_in_rotary_embeddings_is_named_and_allowed_alone_or_with_all_of_them(
    models: Path, tmp_path: Path
) -> None:
    older = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}}
    base = edited(models / "llama", tmp_path / "b", **older)
    specialist = edited(base, tmp_path / "s", rope_theta=1e6)
    with pytest.raises(InputError, match=r"rope_parameters\.rope_theta is 1000000\.0, .* allow: \[rope_parameters\]$"):
        check(base, specialist)
    for name in ("rope_parameters", "rope_scaling", "rope_theta", "rope_parameters.rope_theta"):
        assert "(allowed)" in check(base, specialist, name)[0]
    with pytest.raises(InputError, match="rope_theta is"):
        check(base, specialist, "factor")


def test_positions_do_not_count_where_the_factor_of_rotary_embeddings_is_said(models: Path, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 256}
    base = edited(models / "llama", tmp_path / "b", rope_parameters=yarn)
    (note,) = check(base, edited(base, tmp_path / "s", max_position_embeddings=256))
    assert "max_position_embeddings is 256" in note


def _permute(content: dict[str, Any]) -> None:
    table = content["model"]["vocab"]
    tokens = sorted(table, key=table.get)
    content["model"]["vocab"] = dict(zip(tokens, [0, 1, 2, *range(len(tokens) - 1, 2, -1)], strict=True))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (_permute, "tokens with another number"),
        (lambda t: t["model"]["vocab"].update({"new": 300}), "1 further tokens"),
        (lambda t: t["model"]["vocab"].pop("z"), "1 fewer tokens"),
        (lambda t: t["model"].update(merges=[["a", "b"]], vocab={**t["model"]["vocab"], "ab": 299}), "other merges"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "another normalizer"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "another pre_tokenizer"),
        (lambda t: t["model"].update(byte_fallback=True), "other options of its model"),
        (lambda t: t["added_tokens"].append({"id": 310, "content": "<x>"}), "1 further tokens"),
    ],
)
def test_another_tokenizer_is_noted_whatever_its_size(
    models: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], difference: str
) -> None:
    specialist = edited(models / "llama", tmp_path / "s")
    content = json.loads((specialist / "tokenizer.json").read_text())
    change(content)
    (specialist / "tokenizer.json").write_text(json.dumps(content))
    (note,) = check(models / "llama", specialist)
    assert "its tokenizer is another" in note
    assert difference in note


def test_a_tokenizer_written_otherwise_is_the_same(models: Path, tmp_path: Path) -> None:
    specialist = edited(models / "llama", tmp_path / "s", "tokenizer.json", truncation={"max_length": 5}, padding=None)
    assert check(models / "llama", specialist) == []


def test_configurations_without_a_class_are_compared_as_they_are_written(models: Path, tmp_path: Path) -> None:
    base = edited(models / "llama", tmp_path / "b", model_type="of_remote_code", architectures=["X"])
    assert check(base, edited(base, tmp_path / "same", use_cache=False)) == []
    with pytest.raises(InputError, match="seq_bias is 3, the base's is None"):
        check(base, edited(base, tmp_path / "s", seq_bias=3))


def test_nested_settings_have_the_name_of_their_part(models: Path, tmp_path: Path) -> None:
    base = edited(models / "llama", tmp_path / "b", model_type="nested", text_config={"eps": 1, "num_layers": 2})
    specialist = edited(base, tmp_path / "s", text_config={"eps": 2, "num_layers": 2})
    with pytest.raises(InputError, match=r"text_config\.eps is 2, the base's is 1"):
        check(base, specialist)
    for name in ("eps", "text_config.eps"):
        assert "(allowed)" in check(base, specialist, name)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None, "num_layers": True},
        {"hidden_size": [3]},
        {"rope_parameters": 5},
        {"num_attention_heads": 0, "head_dim": None},
        {"layer_types": ["unheard of"]},
    ],
)
def test_configurations_that_cannot_be_are_one_clear_line(
    models: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"specialist 'math'|config\.json"):
        check(models / "llama", edited(models / "llama", tmp_path / "s", **changes))
