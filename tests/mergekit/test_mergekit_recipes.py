"""Recipes for mergekit as people write them: nine in ten merge, the others are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from mergebench_ray.commands.merge import MergeResult, merge
from mergebench_ray.config.yaml_files import read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.mergekit import FILE_NAME, read_recipe
from mergebench_ray.methods import complete_parameters
from mergekit_recipes import ALL_RECIPES, REFUSED, RUN
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, a, b and c, of which b has another chat template."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", tied=False, hidden_size=32, intermediate_size=48, head_dim=16)
    for seed, name in enumerate("abc"):
        tiny_specialist(folder / name, base, seed=seed)
    (folder / "b" / "chat_template.jinja").write_text("{{ messages[0]['content'] }} of another kind")
    return folder


@pytest.fixture(autouse=True)
def _there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


def merged(text: str, tmp_path: Path) -> MergeResult:
    (tmp_path / "recipe.yml").write_text(text)
    return merge(out=tmp_path / "out", recipe=tmp_path / "recipe.yml")


def test_there_are_sixty_and_nine_in_ten_merge() -> None:
    assert len(ALL_RECIPES) == 60
    assert len(RUN) >= 0.9 * len(ALL_RECIPES)


@pytest.mark.parametrize("title", RUN)
def test_a_recipe_merges_embeddings_and_head_too(title: str, models: Path, tmp_path: Path) -> None:
    result = merged(RUN[title], tmp_path)
    assert isinstance(result.folder, Path)
    files = [load_file(file) for file in sorted(result.folder.glob("*.safetensors"))]
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    base = load_file(models / "base" / "model.safetensors")
    assert tensors.keys() == base.keys()
    assert {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} == {result.recipe.dtype}
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight"):
        assert not torch.equal(tensors[name].float(), base[name].float())
    assert json.loads((result.folder / "config.json").read_text())["dtype"] == result.recipe.dtype
    written = result.folder / FILE_NAME
    if written.exists():
        again = read_recipe(read_yaml(written), written)
        completed = complete_parameters(again.method, again.parameters, [*again.specialists], 2)
        assert (again.method, completed) == (result.recipe.method, result.recipe.parameters)
    else:
        assert title.startswith(("DARE", "DELLA"))
        assert f"{FILE_NAME} is not written: mergekit would draw other random masks" in result.notes


def test_another_models_tokenizer_and_a_template_come_along_and_the_recipe_makes_them_again(
    models: Path, tmp_path: Path
) -> None:
    result = merged(RUN["tokenizer of a model"], tmp_path)
    assert isinstance(result.folder, Path)
    other = (models / "b" / "chat_template.jinja").read_bytes()
    assert (result.folder / "chat_template.jinja").read_bytes() == other
    again = merge(out=tmp_path / "again", recipe=result.recipe)
    assert (tmp_path / "again" / "chat_template.jinja").read_bytes() == other
    assert again.recipe.digest == result.recipe.digest
    assert "The tokenizer is b's." in (result.folder / "README.md").read_text()
    ours = merge(out=tmp_path / "chatml", recipe=result.recipe.model_copy(update={"chat_template": "chatml"}))
    assert "<|im_start|>" in str(ours.recipe.chat_template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chatml", trust_remote_code=False)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert chat == "<|im_start|>user\nx<|im_end|>\n"


def test_other_types_than_bfloat16_are_written_without_shards(tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(RUN["float32"])
    with pytest.raises(InputError, match="--shards 2: float32 is written without shards alone; leave it out"):
        merge(out=tmp_path / "out", recipe=tmp_path / "recipe.yml", shards=2)


def test_slices_that_are_not_all_layers_and_tokenizers_without_rows_are_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes layers 0 to 1 of models that have 2"):
        merged(RUN["SLERP by filters"].replace("[0, 2]", "[0, 1]"), tmp_path)
    tiny_specialist(tmp_path / "d", models / "base", seed=9)
    file = tmp_path / "d" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["beyond"] = 5000
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 tokens, such as 'beyond', beyond the 320 rows of the base's embeddings"):
        merged(RUN["tokenizer of a model"].replace("./b", str(tmp_path / "d")), tmp_path)


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_not_understood_is_refused_by_its_name(title: str, tmp_path: Path) -> None:
    text, reason = REFUSED[title]
    with pytest.raises(InputError) as refused:
        merged(text, tmp_path)
    assert reason in str(refused.value)
    assert "recipe.yml: " in str(refused.value)
    assert not (tmp_path / "out").exists()
