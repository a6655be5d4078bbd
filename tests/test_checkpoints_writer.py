"""Written models load again as what was written; a failure of any kind leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import tiny_gemma2, tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mergebench_ray.checkpoints import Checkpoint, model_card, resolve, write_model
from mergebench_ray.config import Recipe
from mergebench_ray.errors import InputError

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


@pytest.mark.parametrize("max_file_bytes", [1, 20_000, 5 << 30])
def test_a_written_model_loads_with_transformers_as_what_was_written(
    base: Checkpoint, tmp_path: Path, max_file_bytes: int
) -> None:
    write_model(tmp_path / "out", halved(base), base, "card", max_file_bytes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
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
    assert AutoTokenizer.from_pretrained(out).apply_chat_template(messages, tokenize=False) == "<s>user: hi</s>"
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    assert (out / "README.md").read_text() == "# the card\n"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


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
        assert list((tmp_path / "runs").iterdir()) == []


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
    assert "|  | math | code | average |" in card
    assert "| base | 0.2500 | 0.5000 ± 0.0123 | – |" in card
    assert "| merged | 0.7500 | – | 0.9000 |" in card


def test_the_recipe_in_the_card_is_the_recipe(tmp_path: Path) -> None:
    text = model_card(RECIPE).split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(text)
    assert Recipe.from_yaml(tmp_path / "recipe.yaml").digest == RECIPE.digest


def test_a_card_without_scores_or_hub_models_is_plain() -> None:
    card = model_card(RECIPE.model_copy(update={"base": "./base", "specialists": {"math": "./x"}}), None)
    assert "base_model" not in card.split("---")[1]
    assert "## Scores" not in card
