"""Written models load again as what was written; a failure of any kind leaves nothing behind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mergebench_ray.checkpoints import (
    Checkpoint,
    check_accompanying_files,
    check_compatible,
    evaluation_result,
    model_card,
    resolve,
    write_model,
)
from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError, printable
from tiny_models import tiny_gemma2, tiny_llama

RECIPE = Recipe(
    method="ties",
    parameters={"density": 0.2},
    base="owner/base@v1",
    specialists={"math": "owner/math", "code": "./code+owner/adapter"},
    base_digest="b" * 64,
    specialist_digests={"math": "m" * 64, "code": "c" * 64},
)


@pytest.fixture(scope="module", params=["tied", "untied", "gemma", "float32"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("base") / "model"
    match request.param:
        case "gemma":
            tiny_gemma2(folder, use_cache=False)
        case "float32":
            tiny_llama(folder, dtype="float32", use_cache=False)
        case kind:
            tiny_llama(folder, tied=kind == "tied", use_cache=False)
    return resolve(str(folder))


@pytest.fixture
def llama(tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_llama(tmp_path / "base")))


def halved(base: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base, halved, in an order of its own."""
    for name in reversed(base.tensors):
        yield name, base.read(name) / 2


LARGE = torch.tensor(torch.finfo(torch.float32).min)  # infinite in bf16


def with_tensor(base: Checkpoint, name: str, values: Tensor) -> Checkpoint:
    """The base with one more tensor, or another one, in its file."""
    file = base.folder / "model.safetensors"
    save_file({**load_file(file), name: values}, file, {"format": "pt"})
    return resolve(str(base.folder))


def unchanged(base: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name in base.tensors:
        yield name, base.read(name)


def test_a_mask_keeps_its_type_and_so_numbers_that_bf16_has_no_room_for(llama: Checkpoint, tmp_path: Path) -> None:
    name = "model.layers.0.attn.masked_bias"
    base = with_tensor(llama, name, LARGE)
    write_model(tmp_path / "out", unchanged(base), base, "card")
    written = resolve(str(tmp_path / "out"))
    assert (written.tensors[name].dtype, written.read(name).item()) == (torch.float32, LARGE.item())


def test_weights_that_bf16_has_no_room_for_are_not_blamed_on_coefficients(llama: Checkpoint, tmp_path: Path) -> None:
    base = with_tensor(llama, "model.norm.weight", LARGE.expand(64).clone())
    with pytest.raises(InputError, match=r"too large for torch.bfloat16; give a base without"):
        write_model(tmp_path / "out", unchanged(base), base, "card")


@pytest.mark.parametrize("max_file_bytes", [1, 20_000, 5 << 30])
def test_a_written_model_loads_with_transformers_as_what_was_written(
    base: Checkpoint, tmp_path: Path, max_file_bytes: int
) -> None:
    write_model(tmp_path / "out", halved(base), base, "card", max_file_bytes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", trust_remote_code=False)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.use_cache is True
    weights = loaded.state_dict()
    again = resolve(str(tmp_path / "out"))
    assert list(again.tensors) == list(base.tensors)
    for name, info in base.tensors.items():
        expected = (base.read(name) / 2).bfloat16()
        assert torch.equal(weights[name], expected.view(info.shape))
        assert torch.equal(again.read(name), expected)


def test_files_are_split_at_the_given_size_and_indexed(llama: Checkpoint, tmp_path: Path) -> None:
    write_model(tmp_path / "out", halved(llama), llama, "card", max_file_bytes=20_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    largest = max(info.num_bytes for info in llama.tensors.values())
    assert all(file.stat().st_size <= max(20_000, largest) + 4096 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == list(llama.tensors)
    assert index["metadata"]["total_size"] == sum(info.num_bytes for info in llama.tensors.values())


def test_tokenizer_chat_template_generation_settings_and_card_come_along(llama: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_model(out, halved(llama), llama, "# the card\n")
    messages = [{"role": "user", "content": "hi"}]
    assert (
        AutoTokenizer.from_pretrained(out, trust_remote_code=False).apply_chat_template(messages, tokenize=False)
        == "<s>user: hi</s>"
    )
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    assert (out / "README.md").read_text() == "# the card\n"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


ALONGSIDE = [
    "tekken.json",
    "tiktoken.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.bpe",
    "qwen.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "LICENSE",
    "NOTICE.txt",
    "USE_POLICY.md",
    "additional_chat_templates/tool_use.jinja",
]
LEFT_BEHIND = ["README.md", "pytorch_model.bin", "optimizer.pt", "trainer_state.json", ".cache/x.json", "train.py"]


def test_all_that_a_tokenizer_or_processor_reads_comes_along_and_nothing_else(
    llama: Checkpoint, tmp_path: Path
) -> None:
    before = {file.name for file in llama.folder.iterdir()}
    for name in (*ALONGSIDE, *LEFT_BEHIND):
        (llama.folder / name).parent.mkdir(exist_ok=True)
        (llama.folder / name).write_text(f'"{name}"')
    out = tmp_path / "out"
    write_model(out, halved(llama), llama, "card")
    assert {name: (out / name).read_text() for name in ALONGSIDE} == {name: f'"{name}"' for name in ALONGSIDE}
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    weights = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert written == before - {"model.safetensors"} | weights | {"README.md", *ALONGSIDE}
    assert (out / "README.md").read_text() == "card"


def test_the_configuration_says_what_was_written(llama: Checkpoint, tmp_path: Path) -> None:
    edit_config(
        llama.folder,
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        torch_dtype="float32",
        text_config={"dtype": "float16", "quantization_config": {}, "hidden_size": 64},
    )
    base = resolve(str(llama.folder))
    assert [note for note in check_compatible(base, {"a": base}) if "quantization_config" in note]
    write_model(tmp_path / "out", halved(base), base, "card")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["text_config"] == {"dtype": "bfloat16", "hidden_size": 64}


def test_where_the_base_lay_is_not_written(llama: Checkpoint, tmp_path: Path) -> None:
    edit_config(llama.folder, _name_or_path="/home/me/base", text_config={"_name_or_path": "/home/me/text"})
    file = llama.folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "name_or_path": "/home/me/base"}))
    base = resolve(str(llama.folder))
    write_model(tmp_path / "out", halved(base), base, "card")
    assert "/home/me" not in "".join(one.read_text() for one in (tmp_path / "out").glob("*config.json"))
    assert json.loads((tmp_path / "out" / file.name).read_text()) == settings


def test_code_that_transformers_has_itself_is_not_asked_for(llama: Checkpoint, tmp_path: Path) -> None:
    edit_config(llama.folder, auto_map={"AutoConfig": "configuration_x.X"})
    (llama.folder / "configuration_x.py").write_text("raise SystemExit('run')")
    base = resolve(str(llama.folder))
    assert [note for note in check_compatible(base, {"a": llama}) if "auto_map" in note]
    write_model(tmp_path / "out", halved(base), base, "card")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list((tmp_path / "out").glob("*.py"))


def test_code_of_another_architecture_comes_along_unrun_or_is_not_named(llama: Checkpoint, tmp_path: Path) -> None:
    edit_config(llama.folder, model_type="x", auto_map={"AutoConfig": "configuration_x.X", "AutoModel": "o/r--m.M"})
    base = resolve(str(llama.folder))
    write_model(tmp_path / "without", halved(base), base, "card")
    assert "auto_map" not in json.loads((tmp_path / "without" / "config.json").read_text())
    for name in ("configuration_x.py", "imported_by_it.py"):
        (llama.folder / name).write_text("raise SystemExit('run')")
    write_model(tmp_path / "with", halved(base), base, "card")
    assert sorted(file.name for file in (tmp_path / "with").glob("*.py")) == ["configuration_x.py", "imported_by_it.py"]
    assert "auto_map" in json.loads((tmp_path / "with" / "config.json").read_text())


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "video_preprocessor_config.json"])
def test_code_of_a_tokenizer_or_processor_comes_along_or_is_not_named(
    llama: Checkpoint, tmp_path: Path, name: str
) -> None:
    file = llama.folder / name
    settings = json.loads(file.read_text()) if file.exists() else {"size": 8}
    file.write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["its_code.X", None]}}))
    (note,) = check_accompanying_files(llama.folder)
    assert name in note
    write_model(tmp_path / "without", halved(llama), llama, "card")
    assert json.loads((tmp_path / "without" / file.name).read_text()) == settings
    (llama.folder / "its_code.py").write_text("raise SystemExit('run')")
    assert check_accompanying_files(llama.folder) == []
    write_model(tmp_path / "with", halved(llama), llama, "card")
    assert (tmp_path / "with" / "its_code.py").is_file()
    assert "auto_map" in json.loads((tmp_path / "with" / file.name).read_text())


def test_buffers_of_whole_numbers_keep_their_type(llama: Checkpoint, tmp_path: Path) -> None:
    file = llama.folder / "model.safetensors"
    buffers = {"a.ids": torch.arange(5), "a.mask": torch.tensor([True, False, True]), "a.none": torch.zeros(0, 3)}
    save_file({**load_file(file), **buffers}, file)
    base = resolve(str(llama.folder))
    write_model(tmp_path / "out", ((name, base.read(name)) for name in base.tensors), base, "card")
    written = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    for name, tensor in buffers.items():
        assert torch.equal(written[name], tensor.bfloat16() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_never_written(llama: Checkpoint, tmp_path: Path, value: float) -> None:
    def spoilt() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in halved(llama):
            if name == "model.embed_tokens.weight":
                tensor[7] = value
            yield name, tensor

    with pytest.raises(InputError, match=r"'model\.embed_tokens\.weight' would be written with NaN or infinity"):
        write_model(tmp_path / "out", spoilt(), llama, "card")
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_one(llama: Checkpoint, tmp_path: Path) -> None:
    seen: list[float] = []
    write_model(tmp_path / "out", halved(llama), llama, "", progress=lambda fraction, text: seen.append(fraction))
    assert seen == sorted(seen)
    assert len(seen) == len(llama.tensors)
    assert seen[-1] == 1


def test_an_output_that_exists_is_refused_and_kept(llama: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep me")
    with pytest.raises(InputError, match="exists already"):
        write_model(tmp_path / "out", halved(llama), llama, "")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_stream_that_fails_or_does_not_match_leaves_nothing(llama: Checkpoint, tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, Tensor]]:
        yield next(halved(llama))
        raise KeyboardInterrupt

    first = next(iter(llama.tensors))
    streams = [
        (interrupted(), KeyboardInterrupt, "^$"),
        (iter([]), ValueError, "never came"),
        (iter([("other", torch.zeros(1))]), ValueError, "was not announced"),
        (iter([(first, llama.read(first))] * 2), ValueError, "comes twice"),
        (iter([(first, torch.zeros(3))]), ValueError, "has 3 elements"),
    ]
    for stream, error, message in streams:
        with pytest.raises(error, match=message):
            write_model(tmp_path / "runs" / "out", stream, llama, "")
        assert not (tmp_path / "runs").exists()


FILL = """
import sys
from pathlib import Path
from mergebench_ray.checkpoints import resolve, write_model
base = resolve(sys.argv[1])
write_model(Path(sys.argv[2]), ((name, base.read(name)) for name in base.tensors), base, "card")
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """On a real file system of 100 KB, where this system lets a test mount one."""
    model = tiny_llama(tmp_path / "base")
    disk = tmp_path / "disk"
    disk.mkdir()
    program = tmp_path / "fill.py"
    program.write_text(FILL)
    script = (
        'mount -t tmpfs -o size=100k none "$3" || exit 77; "$0" -W ignore "$1" "$2" "$3/out"; s=$?; ls -A "$3"; exit $s'
    )
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, sys.executable]
    done = subprocess.run([*command, program, model, disk], capture_output=True, text=True)
    if done.returncode in (77, 126, 127) or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("mergebench_ray.errors.InputError: no space left on the disk")
    )
    assert done.stdout == ""


def test_the_card_names_recipe_digests_and_scores() -> None:
    scores = {"base": {"math": 0.25, "code": (0.5, 0.0123)}, "merged": {"math": (0.75, None), "average": 0.9}}
    card = model_card(RECIPE, scores)
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["owner/base", "owner/adapter", "owner/math"]
    assert front["tags"] == ["merge", "mergebench-ray", "ties"]
    for text in (RECIPE.digest, "b" * 64, "m" * 64, "c" * 64, "`./code+owner/adapter`"):
        assert text in card
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    assert ["", "math", "code", "average"] in lines
    assert ["base", "0.2500", "0.5000 ± 0.0123", "–"] in lines
    assert ["merged", "0.7500", "–", "0.9000"] in lines


def test_a_score_that_is_no_number_is_a_dash_on_the_card() -> None:
    card = model_card(RECIPE, {"base": {"math": math.nan, "code": (0.5, math.nan), "text": math.inf}})
    assert "| base" in card
    assert "nan" not in card
    assert "inf" not in card


def test_hubs_read_the_models_scores_from_its_card() -> None:
    measured = [
        evaluation_result("mini", "test", "math", "acc", 0.5, 0.1, 64),
        evaluation_result("mini", "test", "code: x\n---", "", 1.0, math.nan, 1),
    ]
    data = ModelCard(model_card(RECIPE, None, (), measured)).data
    assert data.base_model == ["owner/base", "owner/adapter", "owner/math"]
    assert [(one.dataset_name, one.dataset_split, one.metric_type, one.metric_value) for one in data.eval_results] == [
        ("mini: math", "test", "acc", 0.5),
        ("mini: code: x\n---", "test", "score", 1.0),
    ]
    assert [one.metric_args for one in data.eval_results] == [{"standard_error": 0.1, "items": 64}, {"items": 1}]


HOSTILE = "a|b`c``d```\n---\n<script>x</script> [l](u) **b** _i_ $m$ &lt; \\ \x1b[2J ok_name"


def test_names_and_references_cannot_write_markdown_or_yaml_of_their_own() -> None:
    recipe = RECIPE.model_copy(update={"base": f"./{HOSTILE}", "specialists": {"math": f"./{HOSTILE}", "code": "./x"}})
    card = model_card(recipe, {HOSTILE: {HOSTILE: 0.5, "math": 0.1}})
    document = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    assert [token.tag for token in document if token.type == "heading_open"] == ["h1", "h2", "h2", "h2"]
    inline = [child for token in document for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "code_inline", "softbreak", "text_special"}
    assert not [token for token in document if token.type in ("html_block", "hr")]
    (block,) = [token for token in document if token.type == "fence"]
    assert yaml.safe_load(block.content)["base"] == recipe.base
    shown = printable(HOSTILE)
    cells = ["".join(child.content for child in token.children or ()) for token in document if token.type == "inline"]
    assert cells.count(shown) == 2
    assert cells.count(f"./{shown}") == 2
    assert yaml.safe_load(card.split("---\n", 2)[1])["library_name"] == "transformers"


def test_the_recipe_in_the_card_is_the_recipe(tmp_path: Path) -> None:
    text = model_card(RECIPE).split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(text)
    assert Recipe.from_yaml(tmp_path / "recipe.yaml").digest == RECIPE.digest


def test_a_card_without_scores_or_hub_models_is_plain() -> None:
    card = model_card(RECIPE.model_copy(update={"base": "./base", "specialists": {"math": "./x"}}), None)
    assert "base_model" not in card.split("---")[1]
    assert "## Scores" not in card
