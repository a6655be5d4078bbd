"""What is made of task vectors is made once, kept whole, and the same whoever makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bank_in_process import LocalBank, merge_streamed
from mergebench_ray.bank import Bank, StreamedBank, kept_forms
from mergebench_ray.cache import cache_folder
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from mergebench_ray.methods import Calibrated, Transform
from tiny_models import tiny_llama, tiny_specialist

Models = tuple[Checkpoint, dict[str, Checkpoint]]


class Halves(Transform):
    """Half of each task vector; or, to be refused, what cannot be written."""

    is_shared = False
    dtype = torch.bfloat16

    def __init__(self, key: str = "halves", factor: float = 0.5) -> None:
        self.key = key
        self.factor = factor
        self.calls = 0

    def of(self, vectors: list[Tensor]) -> list[Tensor]:
        self.calls += 1
        return [self.factor * vector.float() for vector in vectors]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    base = tiny_llama(tmp_path / "base", tied=False)
    return resolve(str(base)), {
        n: resolve(str(tiny_specialist(tmp_path / n, base, seed=i))) for i, n in enumerate("ab")
    }


def contents(files: tuple[Calibrated, ...]) -> list[bytes]:
    return [file.path.read_bytes() for file in files]


def test_a_bank_and_a_merge_without_one_share_what_was_made_once(models: Models) -> None:
    first, second = Halves(), Halves()
    files = LocalBank(*models, shards=3).bank.statistics.transformed(first)
    again = StreamedBank(*models).transformed(second)
    assert files == again
    assert len(files) == 2
    assert first.calls == len({tensor.name for tensor in LocalBank(*models).bank.layout.merged})
    assert second.calls == 0


def test_what_is_damaged_is_made_again(models: Models) -> None:
    files = LocalBank(*models).bank.statistics.transformed(Halves())
    whole = contents(files)
    with files[1].path.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    assert contents(files) != whole
    assert contents(LocalBank(*models).bank.statistics.transformed(Halves())) == whole


def test_what_cannot_be_written_leaves_nothing(models: Models) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        LocalBank(*models).bank.statistics.transformed(Halves("infinite", float("inf")))
    assert not [file for file in cache_folder("transformed").rglob("*") if file.suffix == ".safetensors"]


@pytest.mark.parametrize("count", [1, 2])
def test_methods_that_share_a_function_but_read_other_forms_have_passes_of_their_own(
    models: Models, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    base, specialists = models[0], dict(list(models[1].items())[:count])
    bank = LocalBank(base, specialists)
    for method in ("tsv_m", "iso_c", "tsv_m"):
        alone = LocalBank(base, specialists).merge(method, {})
        assert all(torch.equal(bank.merge(method, {})[name], tensor) for name, tensor in alone.items()), method


class Others(Halves):
    """The same key, made by other code."""


def test_what_was_made_by_another_class_or_as_another_type_is_not_taken(models: Models) -> None:
    bank = StreamedBank(*models)
    assert bank.transformed(Halves())[0].key != bank.transformed(Others())[0].key
    single = Halves()
    single.dtype = torch.float32
    assert bank.transformed(single)[0].key != bank.transformed(Halves())[0].key


@pytest.mark.parametrize("method", ["iso_c", "task_arithmetic"])
def test_a_result_that_is_not_finite_is_refused_with_its_tensor_and_who_is_furthest_away(
    models: Models, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    name, (base, specialists) = "model.layers.1.mlp.up_proj.weight", models
    for model, value in ((base, 3e38), (specialists["a"], 3e38), (specialists["b"], -3e38)):
        file = model.folder / "model.safetensors"
        tensors = load_file(file)
        tensors[name][0, 0] = value
        save_file(tensors, file, metadata={"format": "pt"})
    others = {one: resolve(str(model.folder)) for one, model in specialists.items()}
    with pytest.raises(InputError, match=rf"tensor '{name}', in which {re.escape(str(others['b']))} is furthest"):
        merge_streamed(tmp_path / "out", resolve(str(base.folder)), others, method, {})


def test_a_bank_says_how_far_it_is_while_it_transforms(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergebench_ray.progress._WORTH_SECONDS", 0.0)
    said: list[str] = []
    base, specialists = models
    bank = Bank.load(base, specialists, in_process=True, progress=lambda _fraction, text: said.append(text))
    bank.statistics.transformed(Halves())
    num_bytes = 2 * (len(specialists) + 1) * bank.layout.size
    assert f"transforming task vectors: {num_bytes / 1e9:.2f} of {num_bytes / 1e9:.2f} GB" in said[-1]


def test_transforms_that_were_not_used_for_long_make_room_for_others_and_are_made_again(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, specialists = models
    said: list[str] = []
    bank = Bank.load(base, specialists, in_process=True, progress=lambda _fraction, text: said.append(text))
    ask = bank.statistics.transformed
    first = ask(Halves("first"))
    content, size = contents(first), sum(file.path.stat().st_size for file in first)
    monkeypatch.setattr(kept_forms, "_HELD", 1)
    monkeypatch.setenv("MERGEBENCH_RAY_TRANSFORMED_MAX_GB", str(2.5 * size / 1e9))
    second = ask(Halves("second"))
    assert ask(Halves("first")) == first  # now used later than the second
    third = ask(Halves("third"))
    assert [one[0].path.exists() for one in (first, second, third)] == [True, False, True]
    assert "1 transforms that nobody uses were removed" in said[-1]
    again = Halves("second")
    assert ask(again) == second
    assert again.calls > 0
    assert [one[0].path.exists() for one in (first, second, third)] == [False, True, True]
    monkeypatch.setenv("MERGEBENCH_RAY_TRANSFORMED_MAX_GB", "0")
    assert contents(ask(Halves("first"))) == content
    assert second[0].path.exists()  # in use when the first was made
    assert not third[0].path.exists()
