"""What a tensor is, is told by its name, in the words of its family."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mergebench_ray.families import ModelFamily, family, family_of

LLAMA = family_of("llama")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
        "model.layers.0.attention.output.dense.weight",
        "model.layers.0.mlp.experts.3.output.weight",
    ],
)
def test_what_lies_between_embeddings_and_head_is_merged(name: str) -> None:
    assert LLAMA.is_merged(name)
    assert LLAMA.counts_for_threshold(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.word_embeddings_layernorm.weight",
        "model.decoder.embed_positions.weight",
        "gpt_neox.embed_in.weight",
    ],
)
def test_embeddings_are_neither_merged_nor_counted_for_thresholds(name: str) -> None:
    assert not LLAMA.is_merged(name)
    assert not LLAMA.counts_for_threshold(name)
    assert LLAMA.is_embedding(name)
    assert not LLAMA.is_output_head(name)


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "lm_head.bias", "transformer.output_layer.weight", "output.weight", "model.output.weight"],
)
def test_an_output_head_is_not_merged_but_counts_for_thresholds(name: str) -> None:
    assert LLAMA.is_output_head(name)
    assert not LLAMA.is_merged(name)
    assert LLAMA.counts_for_threshold(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("model.decoder.embed_positions.weight", False),
        ("transformer.word_embeddings_layernorm.weight", False),
        ("model.embed_tokens.bias", False),
    ],
)
def test_a_tied_head_shares_the_table_of_tokens_alone(name: str, expected: bool) -> None:
    assert LLAMA.is_token_embedding(name) is expected


@pytest.mark.parametrize(
    ("name", "layer", "beside"),
    [
        ("model.layers.1.self_attn.q_proj.weight", 1, False),
        ("transformer.h.0.attn.c_attn.weight", 0, False),
        ("model.layers.1.mlp.experts.7.down_proj.weight", 1, False),
        ("model.norm.weight", None, False),
        ("model.layers.2.eh_proj.weight", None, True),
        ("mtp.layers.0.mlp.up_proj.weight", None, True),
        ("model.mtp_block.weight", None, True),
        ("model.vision_tower.layers.0.fc1.weight", None, True),
        ("visual.blocks.0.mlp.fc1.weight", None, True),
        ("model.embed_audio.embedding.weight", None, True),
        ("multi_modal_projector.linear_1.weight", None, True),
        ("model.layers.12345678.weight", None, False),
    ],
)
def test_the_first_number_is_the_layer_unless_it_is_no_text_layer(name: str, layer: int | None, beside: bool) -> None:
    assert LLAMA.layer_of(name, num_layers=2) == layer
    assert LLAMA.is_beside_the_text(name, num_layers=2) is beside


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "attention",
            [
                "model.layers.1.self_attn.q_proj.weight",
                "transformer.h.0.attn.c_proj.bias",
                "gpt_neox.layers.0.attention.dense.weight",
                "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight",
                "model.layers.0.self_attn.sinks",
                "model.layers.0.linear_attn.conv1d.weight",
                "model.layers.0.mamba.A_log",
                "backbone.layers.0.mixer.in_proj.weight",
                "model.layers.0.conv.in_proj.weight",
            ],
        ),
        (
            "norm",
            [
                "model.norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                "model.layers.0.self_attn.q_norm.weight",
                "model.layers.0.attention_norm.weight",
                "transformer.h.0.ln_1.bias",
                "model.layers.0.mamba.norm.weight",
            ],
        ),
        (
            "mlp",
            [
                "model.layers.0.mlp.down_proj.weight",
                "model.layers.0.mlp.experts.3.w1.weight",
                "model.layers.0.mlp.gate.e_score_correction_bias",
                "model.decoder.layers.0.fc1.bias",
                "backbone.layers.0.mixer.up_proj.weight",
            ],
        ),
    ],
)
def test_a_tensor_is_of_attention_or_a_norm_or_of_everything_else(kind: str, names: list[str]) -> None:
    assert {name: LLAMA.module_kind(name) for name in names} == dict.fromkeys(names, kind)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3"),
        ("model.layers.11.mlp.experts.7.w1.weight", "model.layers.11"),
        ("transformer.h.0.attn.bias", "transformer.h.0"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_what_an_engine_loads_as_a_whole_is_a_layer_or_a_tensor_outside_the_layers(name: str, layer: str) -> None:
    assert LLAMA.load_group(name) == layer


def test_masks_that_older_versions_saved_are_buffers_and_biases_of_projections_are_not() -> None:
    assert LLAMA.is_buffer("transformer.h.0.attn.bias")
    assert LLAMA.is_buffer("gpt_neox.layers.0.attention.masked_bias")
    assert not LLAMA.is_buffer("transformer.h.0.attn.c_attn.bias")


def test_rotary_frequencies_that_older_versions_saved_are_read_by_nobody() -> None:
    assert LLAMA.is_recomputed("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not LLAMA.is_recomputed("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("model_type", ["of_remote_code", "../family", "", None, ["llama"], 7])
def test_a_model_type_without_a_file_has_the_default(model_type: object) -> None:
    assert family_of(model_type) == LLAMA


def test_a_file_by_model_type_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Path(family.__file__).parent / "default.yaml"
    (tmp_path / "default.yaml").write_text(default.read_text())
    (tmp_path / "other.yaml").write_text("output_heads: [score]\nsettings: {of_the_base: anything}\n")
    monkeypatch.setattr(family, "_FOLDER", tmp_path)
    family._known.cache_clear()
    family._family.cache_clear()
    try:
        other = family_of("other")
        assert other.is_output_head("score.weight")
        assert other.is_merged("lm_head.weight")
        assert other.token_embeddings == LLAMA.token_embeddings
        assert other.settings.changes_nothing("anything")
        assert other.settings.rotary == LLAMA.settings.rotary
    finally:
        family._known.cache_clear()
        family._family.cache_clear()


def test_a_family_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(LLAMA))
    assert isinstance(copy, ModelFamily)
    assert copy == LLAMA


def test_patches_of_pictures_are_merged_and_a_table_that_predicts_further_tokens_is_an_embedding() -> None:
    assert LLAMA.is_merged("model.visual.patch_embed.proj.weight")
    assert LLAMA.is_merged("vision_tower.embeddings.position_embedding.weight")
    assert LLAMA.is_embedding("model.mtp.embed_tokens.weight")


def test_the_last_norm_of_lfm2_is_merged_although_it_is_called_embedding_norm() -> None:
    assert family_of("lfm2").is_merged("model.embedding_norm.weight")
    assert not LLAMA.is_merged("model.embedding_norm.weight")


@pytest.mark.parametrize(
    "name",
    [
        "vpm.encoder.layers.3.mlp.fc1.weight",
        "apm.layers.3.fc1.weight",
        "talker.model.layers.3.mlp.up_proj.weight",
        "code2wav.layers.2.mlp.fc1.weight",
        "sam_model.blocks.3.mlp.lin1.weight",
        "model.vit.blocks.3.mlp.fc1.weight",
        "sound_encoder.layers.2.fc1.weight",
        "model.qformer.encoder.layer.3.output.dense.weight",
        "resampler.layers.0.weight",
        "model.connector.layers.1.weight",
    ],
)
def test_a_numbered_layer_of_a_tower_is_no_layer_of_the_text(name: str) -> None:
    assert LLAMA.layer_of(name, 8) is None
    assert LLAMA.is_beside_the_text(name, 8)
    assert LLAMA.is_merged(name)
