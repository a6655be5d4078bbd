"""What may differ between base and specialists is ruled; everything else is found before weights are loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergebench_ray.checkpoints import (
    check_compatible,
    fit,
    merged_names,
    read_in_shape_of,
    require_finite,
    resolve,
)
from mergebench_ray.errors import InputError
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "tied")
    tiny_llama(root / "untied", tied=False)
    return root


def check(base: Path, specialist: Path) -> list[str]:
    return check_compatible(resolve(str(base)), {"math": resolve(str(specialist))})


def changed(base: Path, path: Path, change: Callable[[Tensors], object], **config: object) -> Path:
    """A copy of a model with other tensors or configuration."""
    path.mkdir()
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    content = {**json.loads((base / "config.json").read_text()), **config}
    (path / "config.json").write_text(json.dumps(content))
    return path


def test_a_plain_specialist_needs_no_rule(models: Path, tmp_path: Path) -> None:
    assert check(models / "tied", tiny_specialist(tmp_path / "s", models / "tied", seed=1)) == []


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_further_vocabulary_rows_are_left_out_with_a_note(models: Path, tmp_path: Path, kind: str) -> None:
    specialist = tiny_specialist(tmp_path / "s", models / kind, seed=1, extra_vocabulary=64)
    notes = check(models / kind, specialist)
    assert len(notes) == (1 if kind == "tied" else 2)
    assert all("has 384 rows, the base's 320 are used" in note for note in notes)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_fewer_vocabulary_rows_are_the_bases_with_a_note(models: Path, tmp_path: Path, kind: str) -> None:
    larger = tiny_specialist(tmp_path / "b", models / kind, seed=1, extra_vocabulary=64)
    notes = check(larger, models / kind)
    assert len(notes) == (1 if kind == "tied" else 2)
    assert all("has 320 rows, the base's 384 are used" in note for note in notes)


def test_rows_that_a_specialist_lacks_are_read_from_the_base(models: Path, tmp_path: Path) -> None:
    larger = resolve(str(tiny_specialist(tmp_path / "b", models / "untied", seed=1, extra_vocabulary=64)))
    smaller = resolve(str(models / "untied"))
    name, columns = "lm_head.weight", 64
    whole = torch.cat([smaller.read(name), larger.read(name, 320 * columns)])
    for start, count in [(0, 384 * columns), (319 * columns + 5, 3 * columns), (330 * columns, 7), (0, 9)]:
        read = read_in_shape_of(larger, smaller, name, start, count)
        assert torch.equal(read, whole[start : start + count])


@pytest.mark.parametrize(
    "name",
    [
        "mtp.layers.0.mlp.up_proj.weight",
        "model.mtp_layers.0.up_proj.weight",
        "model.layers.2.eh_proj.weight",
        "model.layers.0.attn.masked_bias",
        "vision_tower.layers.0.mlp.weight",
        "model.visual.blocks.7.attn.qkv.weight",
    ],
)
def test_what_only_the_base_has_beside_its_text_layers_is_used_with_a_note(
    models: Path, tmp_path: Path, name: str
) -> None:
    base = changed(models / "tied", tmp_path / "b", lambda t: t.update({name: torch.ones(4, 4)}))
    (note,) = [note for note in check(base, models / "tied") if "rounded" not in note]
    assert f"{name} is not there: the base's is used, without a task vector" in note
    resolved = [resolve(str(base)), resolve(str(models / "tied"))]
    assert name not in merged_names(resolved[0], resolved[1:])


def test_masks_indices_and_empty_tensors_are_the_bases(models: Path, tmp_path: Path) -> None:
    further = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "model.layers.0.attn.masked_bias": torch.tensor(-3.4e38),
        "model.positions": torch.arange(5),
        "model.empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    base = changed(models / "tied", tmp_path / "b", lambda t: t.update(further))
    equal = changed(base, tmp_path / "e", len)
    assert check(base, equal) == []
    other = changed(base, tmp_path / "o", lambda t: t.update({"model.positions": torch.zeros(5, dtype=torch.int64)}))
    (note,) = check(base, other)
    assert "model.positions is int64 and differs: the base's is used" in note
    mask = changed(base, tmp_path / "m", lambda t: t.update({"model.layers.0.attn.masked_bias": torch.tensor(-1e4)}))
    (note,) = check(base, mask)
    assert "masked_bias is float32 and differs: the base's is used" in note
    assert merged_names(resolve(str(base)), [resolve(str(other))]) == merged_names(resolve(str(models / "tied")), [])
    assert len(check(base, models / "tied")) == 1
    assert len(check(models / "tied", base)) == 1


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "language_model.", "inside"]
)
def test_what_wrappers_put_before_names_is_taken_away(models: Path, tmp_path: Path, wrapper: str) -> None:
    def wrap(tensors: Tensors) -> None:
        old = dict(tensors)
        tensors.clear()
        for name, values in old.items():
            inside = name.replace("layers.1.", "layers.1._orig_mod.")
            tensors[inside if wrapper == "inside" else wrapper + name] = values

    wrapped = resolve(str(changed(models / "tied", tmp_path / "s", wrap)))
    base = resolve(str(models / "tied"))
    fitted = fit(base, {"math": wrapped})
    assert f"hold {'_orig_mod.' if wrapper == 'inside' else wrapper!r}".replace("'", "") in fitted.notes[0].replace(
        "'", ""
    )
    specialist = pickle.loads(pickle.dumps(fitted.specialists["math"]))
    assert list(specialist.tensors) == list(base.tensors)
    assert torch.equal(specialist.read("model.norm.weight"), base.read("model.norm.weight"))
    assert specialist.digest() == base.digest()


def test_a_base_with_a_wrappers_names_is_refused(models: Path, tmp_path: Path) -> None:
    def wrap(tensors: Tensors) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({f"_orig_mod.{name}": values for name, values in old.items()})

    wrapped = changed(models / "tied", tmp_path / "b", wrap)
    with pytest.raises(InputError, match=r"base .*: tensor names begin with or hold the prefix '_orig_mod\.'"):
        check(wrapped, wrapped)


def test_names_that_do_not_fit_without_their_prefix_are_refused_naming_it(models: Path, tmp_path: Path) -> None:
    def wrap(tensors: Tensors) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({f"module.{name}": values for name, values in old.items() if "norm" not in name})

    with pytest.raises(InputError, match=r"tensor names begin with the prefix 'module\.' .* do not fit either"):
        check(models / "tied", changed(models / "tied", tmp_path / "s", wrap))


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), {}),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}), {}),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(96)}), {}),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}), {}),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2, dtype=torch.uint8)}),
            {"quantization_config": {"quant_method": "bitsandbytes"}},
        ),
    ],
)
def test_quantised_weights_are_called_so(
    models: Path, tmp_path: Path, change: Callable[[Tensors], object], config: dict[str, object]
) -> None:
    quantised = changed(models / "tied", tmp_path / "s", change, **config)
    with pytest.raises(InputError, match=r"specialist 'math' .*: is quantised .* give its weights in bf16"):
        check(models / "tied", quantised)
    with pytest.raises(InputError, match=r"base .*: is quantised"):
        check(quantised, models / "tied")


def test_plain_weights_that_the_configuration_calls_quantised_are_noted(models: Path, tmp_path: Path) -> None:
    specialist = changed(models / "tied", tmp_path / "s", len, quantization_config={"quant_method": "gptq"})
    assert "config.json says quantised (gptq), but the weights are not" in check(models / "tied", specialist)[0]


def test_a_head_that_is_a_copy_of_the_embeddings_is_left_out_beside_a_tied_base(models: Path, tmp_path: Path) -> None:
    def copy_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    specialist = changed(models / "tied", tmp_path / "s", copy_head, tie_word_embeddings=False)
    assert "is a copy of the embeddings: left out" in check(models / "tied", specialist)[0]


@pytest.mark.parametrize(
    ("name", "known"),
    [("transformer.wte.weight", True), ("tok_embeddings.weight", True), ("tokens.weight", False)],
)
@pytest.mark.parametrize("head", ["output.weight", "transformer.output_layer.weight", "projection.weight"])
def test_embeddings_and_heads_by_other_names_are_the_bases_or_refused(
    models: Path, tmp_path: Path, name: str, known: bool, head: str
) -> None:
    def rename(tensors: Tensors) -> None:
        tensors[name] = tensors.pop("model.embed_tokens.weight")
        tensors[head] = tensors.pop("lm_head.weight")

    base = changed(models / "untied", tmp_path / "b", rename, model_type="of_remote_code", architectures=["Unknown"])
    if known and head != "projection.weight":
        check(base, base)
        assert not {name, head} & set(merged_names(resolve(str(base)), []))
    else:
        with pytest.raises(InputError, match=r"come from the base|is known to be the token embeddings"):
            check(base, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"model.norm.weight": torch.zeros(32)}), r"'model\.norm\.weight' has shape \[32\].*\[64\]"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(128)}),
            r"'model\.norm\.weight' has shape \[128\].*\[64\]",
        ),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"up_proj\.weight' of the base is missing"),
        (lambda t: t.update({"model.layers.1.mlp.extra": torch.zeros(2)}), r"mlp\.extra' is not in the base"),
        (lambda t: t.pop("model.embed_tokens.weight"), r"embed_tokens\.weight' of the base is missing"),
    ],
)
def test_other_tensors_are_refused_naming_specialist_tensor_and_shapes(
    models: Path, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    specialist = changed(models / "tied", tmp_path / "s", change)
    with pytest.raises(InputError, match=rf"specialist 'math' \(.*\): .*{message}"):
        check(models / "tied", specialist)


def test_another_architecture_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"specialist 'math' .*: model_type is 'gemma2', the base's is 'llama'"):
        check(models / "tied", tiny_gemma2(tmp_path / "g"))
    with pytest.raises(InputError, match="num_hidden_layers is 3, the base's is 2"):
        check(models / "tied", tiny_llama(tmp_path / "deep", num_hidden_layers=3))


def test_equal_shapes_with_other_heads_are_refused(models: Path, tmp_path: Path) -> None:
    specialist = changed(models / "tied", tmp_path / "s", len, num_attention_heads=4)
    with pytest.raises(InputError, match="num_attention_heads is 4, the base's is 2"):
        check(models / "tied", specialist)


def test_a_tied_head_against_one_of_its_own_is_refused(models: Path) -> None:
    with pytest.raises(InputError, match="has an output head of its own, the base has its output head tied"):
        check(models / "tied", models / "untied")
    with pytest.raises(InputError, match=r"has its output head tied .*, the base has an output head of its own"):
        check(models / "untied", models / "tied")


def test_wider_floating_point_types_are_rounded_with_a_note(models: Path, tmp_path: Path) -> None:
    specialist = tiny_llama(tmp_path / "s", dtype="float32", seed=3)
    (note,) = check(models / "tied", specialist)
    assert note.endswith("float32 weights are rounded to bfloat16")


def test_mixed_types_in_one_checkpoint_are_noted(models: Path, tmp_path: Path) -> None:
    specialist = changed(
        models / "tied", tmp_path / "s", lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.float16)})
    )
    assert check(models / "tied", specialist)[0].endswith("float16 weights are rounded to bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(models: Path, tmp_path: Path, value: float) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["model.norm.weight"][5] = value

    checkpoint = resolve(str(changed(models / "tied", tmp_path / "s", spoil)))
    for name in checkpoint.tensors:
        if name != "model.norm.weight":
            require_finite(checkpoint, name, checkpoint.read(name))
    with pytest.raises(InputError, match=r"tensor 'model\.norm\.weight' holds NaN or infinity"):
        require_finite(checkpoint, "model.norm.weight", checkpoint.read("model.norm.weight"))
