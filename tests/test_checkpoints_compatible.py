"""What may differ between base and specialists is ruled; everything else is found before weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

from mergebench_ray.checkpoints import check_compatible, counts_for_threshold, is_merged, require_finite, resolve
from mergebench_ray.errors import InputError

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


def test_fewer_vocabulary_rows_are_refused(models: Path, tmp_path: Path) -> None:
    larger = tiny_specialist(tmp_path / "b", models / "tied", seed=1, extra_vocabulary=64)
    with pytest.raises(InputError, match=r"embed_tokens\.weight' has shape \[320, 64\], the base's has \[384, 64\]"):
        check(larger, models / "tied")


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
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}),
            r"'model\.norm\.weight' is int8",
        ),
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


def test_embeddings_and_heads_are_not_merged_and_an_own_head_counts_for_thresholds() -> None:
    assert is_merged("model.layers.0.mlp.up_proj.weight")
    assert is_merged("model.norm.weight")
    assert not is_merged("model.embed_tokens.weight")
    assert not is_merged("lm_head.weight")
    assert counts_for_threshold("lm_head.weight")
    assert not counts_for_threshold("model.embed_tokens.weight")


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
