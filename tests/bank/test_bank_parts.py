"""Embeddings, output head and what sees are merged or the base's, as is asked: all of a model, or the layers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import naive_methods
from bank_in_process import LocalBank, files_of, merge_streamed, write_from_bank
from mergebench_ray.checkpoints import Checkpoint, check_compatible, merged_names, resolve
from mergebench_ray.config import MergedParts, ModelRef
from mergebench_ray.errors import InputError
from mergebench_ray.methods import complete_parameters
from tiny_architectures import ARCHITECTURES
from tiny_models import tiny_adapter, tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

WHOLE = MergedParts(embeddings=True)
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scaling_coef": {"a": 0.3, "b": 0.9}},
    "ties": {"density": 0.4},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
    "dare": {"p": 0.5, "seed": 3},
    "model_stock": {},
    "tsv_m": {},
}


@pytest.fixture(scope="module", params=["tied", "untied"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = tiny_llama(root / "base", tied=request.param == "tied")
    return {"base": base, **{name: tiny_specialist(root / name, base, seed=at) for at, name in enumerate("ab")}}


def models(folders: dict[str, Path], parts: MergedParts) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return resolve(str(folders["base"])).merging(parts), {name: resolve(str(folders[name])) for name in "ab"}


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_of_embeddings_and_head_is_the_methods_definition_over_all_tensors(
    folders: dict[str, Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naive_methods, "is_merged", lambda _name: True)
    monkeypatch.setattr(naive_methods, "flat", lambda vector: torch.cat([v.flatten().float() for v in vector.values()]))
    base, specialists = models(folders, WHOLE)
    stored = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    parameters = complete_parameters(method, METHODS[method], sorted(specialists), base.num_layers)
    naive: Callable[..., dict[str, torch.Tensor]] = getattr(naive_methods, method)
    expected = naive(stored["base"], {name: stored[name] for name in specialists}, **parameters)
    merged = LocalBank(base, specialists, shards=3).merge(method, METHODS[method])
    assert merged.keys() == expected.keys() == base.tensors.keys()
    for name, values in expected.items():
        scale = 2**-7 * values.float().abs().max()
        assert torch.allclose(merged[name].float(), values.float(), rtol=2**-7, atol=float(scale)), name
        assert "norm" in name or not torch.equal(merged[name], stored["base"][name]), name


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_merge_in_windows_writes_the_banks_embeddings(folders: dict[str, Path], tmp_path: Path, method: str) -> None:
    base, specialists = models(folders, WHOLE)
    merge_streamed(tmp_path / "streamed", base, specialists, method, METHODS[method], window=1000, threads=2)
    write_from_bank(tmp_path / "bank", base, specialists, method, METHODS[method])
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "bank")


def test_a_recipe_of_other_parts_is_another_recipe_and_merges_nothing_else(folders: dict[str, Path]) -> None:
    usual, whole = (LocalBank(*models(folders, parts)) for parts in (MergedParts(), WHOLE))
    recipes = [one.bank.recipe("model_soup", {}) for one in (usual, whole)]
    assert recipes[0].digest != recipes[1].digest
    assert "merged" not in recipes[0].content
    with pytest.raises(InputError, match=r"merged\.embeddings"):
        usual.bank.merge(recipes[1])


def test_rows_that_a_specialist_lacks_or_has_beyond_the_base_leave_the_others_merged(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    longer = tiny_specialist(tmp_path / "longer", base, seed=0, extra_vocabulary=4)
    table = "model.embed_tokens.weight"
    for first, second in ((base, longer), (longer, base)):
        own = resolve(str(first)).merging(WHOLE)
        merged = LocalBank(own, {"a": resolve(str(second))}).merge("task_arithmetic", {"scaling_coef": 1.0})[table]
        rows = own.tensors[table].shape[0]
        found, expected = load_file(second / "model.safetensors")[table], load_file(first / "model.safetensors")[table]
        shared = min(len(found), rows)
        assert torch.allclose(merged[:shared].float(), found[:shared].float(), rtol=2**-6, atol=2**-9)
        assert torch.equal(merged[shared:], expected[shared:])


def test_tokens_with_other_numbers_are_refused_where_their_rows_would_be_mixed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base, specialists = models(folders, WHOLE)
    other = tiny_specialist(tmp_path / "other", folders["base"], seed=5)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"A": content["model"]["vocab"]["B"], "B": content["model"]["vocab"]["A"]}
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert check_compatible(resolve(str(folders["base"])), {"a": resolve(str(other))})
    with pytest.raises(InputError, match=r"token 'A' \(and 1 more\) has another number .* merged\.embeddings"):
        check_compatible(base, {**specialists, "a": resolve(str(other))})


def test_tokens_with_other_names_are_noted_where_their_rows_are_merged(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base, specialists = models(folders, WHOLE)
    other = tiny_specialist(tmp_path / "other", folders["base"], seed=5)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"]["<tool>"] = content["model"]["vocab"].pop("A")
    (other / "tokenizer.json").write_text(json.dumps(content))
    notes = check_compatible(base, {**specialists, "a": resolve(str(other))})
    assert any("is '<tool>', 'A' in the base: their rows are merged" in note for note in notes)


def test_an_adapters_own_embeddings_are_merged_and_factors_of_them_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tied=False)
    saved = tiny_adapter(tmp_path / "saved", base, seed=1, modules_to_save=["embed_tokens", "lm_head"])
    ours, adapter = resolve(str(base)).merging(WHOLE), resolve(f"{base}+{saved}")
    check_compatible(ours, {"a": adapter})
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(merged_names(ours, [adapter]))
    factors = tiny_adapter(tmp_path / "factors", base, seed=1, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(InputError, match=r"embed_tokens\.lora_.* cannot be merged; set merged\.embeddings to false"):
        check_compatible(ours, {"a": resolve(ModelRef.parse(f"{base}+{factors}"))})


def test_what_sees_is_the_bases_where_towers_are_not_merged(tmp_path: Path) -> None:
    name = next(name for name in ARCHITECTURES if ARCHITECTURES[name].beside)
    folders = ARCHITECTURES[name].write(tmp_path, specialists=1)
    base, specialist = (resolve(str(folder)) for folder in folders)
    text_alone = base.merging(MergedParts(towers=False))
    left = set(merged_names(base, [specialist])) - set(merged_names(text_alone, [specialist]))
    assert left
    assert all(base.family.is_of_another_sense(one) for one in left)
    assert not any(base.family.is_of_another_sense(one) for one in merged_names(text_alone, [specialist]))
