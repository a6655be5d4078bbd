"""Files of checkpoints, cut, damaged or made up: each gives a result or one line, and nothing is left over."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergebench_ray.checkpoints import Checkpoint, check_accompanying_files, check_compatible, resolve, write_model
from mergebench_ray.checkpoints.gguf_header import read_gguf_header
from mergebench_ray.checkpoints.safetensors_file import read_elements, read_header
from mergebench_ray.errors import InputError
from tiny_gguf import tiny_gguf
from tiny_models import tiny_llama

NAMES = st.sampled_from(["x", "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", ""])
NUMBERS = st.one_of(st.integers(-2, 20), st.sampled_from([1 << 31, 1 << 63, 10**4000, -(10**100)]), st.floats())
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["BF16", "U8", "F8_E4M3"]))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
# What json.dumps does not write.
STRANGE = st.sampled_from(
    [
        b"",
        b"{",
        b"null",
        b"[" * 3000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"rms_norm_eps": NaN}',
        b'{"model_type": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"model_type": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"{}" + b" " * 1000 + b"x",
    ]
)
TEXTS = st.one_of(JSON.map(lambda value: json.dumps(value).encode()), STRANGE, st.binary(max_size=20))

CONFIG_KEYS = st.sampled_from(
    [
        "architectures",
        "auto_map",
        "dtype",
        "head_dim",
        "hidden_size",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "quantization_config",
        "rope_parameters",
        "text_config",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_weights",
        "vocab_size",
    ]
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["BF16", "F32", "BOOL", "F4", 1, None]),
        "shape": st.lists(NUMBERS, max_size=3) | LEAVES,
        "data_offsets": st.lists(NUMBERS, max_size=3) | LEAVES,
    },
)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf").read_bytes()


@contextmanager
def copied(model: Path, **changed: bytes) -> Iterator[Path]:
    """A folder with links to a model's files, of which some have another content."""
    with tempfile.TemporaryDirectory() as name:
        for file in model.iterdir():
            if file.name not in changed:
                (Path(name) / file.name).symlink_to(file)
        for file_name, content in changed.items():
            (Path(name) / file_name).write_bytes(content)
        yield Path(name)


def use(folder: Path) -> None:
    """Everything that reads a checkpoint, as far as the first refusal, which has one line."""
    with refusals_of_one_line():
        checkpoint = resolve(str(folder))
        check_compatible(checkpoint, {"a": checkpoint})
        check_accompanying_files(checkpoint.folder)
        assert checkpoint.num_layers > 0
        write(checkpoint, folder / "out")


def write(checkpoint: Checkpoint, out: Path) -> None:
    """Nothing but the written folder is there afterwards, or nothing."""
    before = set(out.parent.iterdir())
    try:
        write_model(out, ((name, checkpoint.read(name)) for name in checkpoint.tensors), checkpoint, "card")
        before |= {out}
        resolve(str(out)).digest()
    finally:
        assert set(out.parent.iterdir()) == before


@contextmanager
def refusals_of_one_line() -> Iterator[None]:
    line = "refused"
    try:
        yield
    except InputError as error:
        line = str(error)
    assert 0 < len(line) < 2000
    assert line.isprintable()


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Changes at places of a file, most of them in its first part, where headers are."""
    places = st.one_of(st.floats(0, 0.02), st.floats(0, 0.2), st.floats(0, 1))
    kinds = st.sampled_from(["cut", "write", "insert", "remove"])
    numbers = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\1\0\0\0", b"\0\0\0\0\0\0\0\x80", b"\xff\xff\xff\x7f"])
    changes = st.tuples(kinds, places, numbers | st.binary(min_size=1, max_size=8))
    return draw(st.lists(changes, min_size=1, max_size=3))


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, data in changes:
        at = int(place * len(content))
        match kind:
            case "cut":
                content = content[:at]
            case "write":
                content = content[:at] + data + content[at + len(data) :]
            case "insert":
                content = content[:at] + data + content[at:]
            case "remove":
                content = content[:at] + content[at + len(data) :]
    return content


@given(changes=damages())
def test_a_damaged_safetensors_file(llama: Path, changes: list[tuple[str, float, bytes]]) -> None:
    content = (llama / "model.safetensors").read_bytes()
    with copied(llama, **{"model.safetensors": damaged(content, changes)}) as folder:
        use(folder)


@given(
    header=st.dictionaries(NAMES, ENTRIES | JSON, max_size=3).map(lambda value: json.dumps(value).encode()) | TEXTS,
    data=st.binary(max_size=30),
)
def test_a_made_up_header(header: bytes, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name, refusals_of_one_line():
        file = Path(name) / "model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
        for info in read_header(file).values():
            assert read_elements(info, 0, info.numel).numel() == info.numel


@given(text=TEXTS)
def test_a_made_up_configuration(llama: Path, text: bytes) -> None:
    with copied(llama, **{"config.json": text}) as folder:
        use(folder)


@given(changes=st.dictionaries(CONFIG_KEYS, JSON, min_size=1, max_size=3))
def test_a_configuration_with_made_up_values(llama: Path, changes: dict[str, object]) -> None:
    config = json.loads((llama / "config.json").read_text())
    with copied(llama, **{"config.json": json.dumps({**config, **changes}).encode()}) as folder:
        use(folder)


@given(text=TEXTS, name=st.sampled_from(["tokenizer_config.json", "generation_config.json", "tokenizer.json"]))
def test_made_up_files_beside_the_weights(llama: Path, text: bytes, name: str) -> None:
    with copied(llama, **{name: text}) as folder:
        use(folder)


@given(
    text=st.dictionaries(
        NAMES, st.sampled_from(["a.safetensors", "b.safetensors", "../a.safetensors", "", "\0"]) | JSON
    ).map(lambda value: json.dumps({"metadata": {}, "weight_map": value}).encode())
    | TEXTS
)
def test_a_made_up_index(llama: Path, text: bytes) -> None:
    import torch

    with copied(llama, **{"model.safetensors.index.json": text}) as folder:
        (folder / "model.safetensors").unlink()
        save_file({"x": torch.ones(2)}, folder / "a.safetensors")
        save_file({"lm_head.weight": torch.ones(2)}, folder / "b.safetensors")
        use(folder)


@given(changes=damages())
def test_a_damaged_gguf_header(gguf: bytes, changes: list[tuple[str, float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as name, refusals_of_one_line():
        (Path(name) / "m.gguf").write_bytes(damaged(gguf, changes))
        read_gguf_header(Path(name) / "m.gguf")


@given(changes=damages())
def test_a_damaged_gguf_file(gguf: bytes, changes: list[tuple[str, float, bytes]]) -> None:
    cache = Path(os.environ["MERGEBENCH_RAY_CACHE"]) / "gguf"
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "m.gguf"
        file.write_bytes(damaged(gguf, changes))
        with refusals_of_one_line():
            resolve(str(file)).digest()
        assert [entry.name for entry in Path(name).iterdir()] == ["m.gguf"]
    assert not list(cache.glob(".*"))


@given(text=TEXTS)
def test_a_damaged_entry_of_the_digest_cache(llama: Path, text: bytes) -> None:
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEBENCH_RAY_CACHE", cache)
        digest = resolve(str(llama)).digest()
        (entry,) = (Path(cache) / "digests").iterdir()
        entry.write_bytes(text)
        assert resolve(str(llama)).digest() == digest


@given(
    reference=st.text(max_size=20)
    | st.text("ab./~+@-\0\n", max_size=12)
    | st.sampled_from(["a" * 5000, "a/" * 3000, "./" + "a" * 300, "~nobody/x", "~", "~" + "a" * 5000, "\0", "package:"])
    | st.text(max_size=10).map(lambda text: f"package:{text}")
)
def test_a_made_up_reference(reference: str) -> None:
    with refusals_of_one_line():
        resolve(reference)
