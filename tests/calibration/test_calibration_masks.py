"""Trained masks equal those of a naive loop over whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mergebench_ray.calibration.masks import train_mask
from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.checkpoints import resolve
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

CPU = torch.device("cpu")
BIAS = 3.0
THRESHOLD = 0.005
OPTIONS = {"threshold": THRESHOLD, "sigmoid_bias": BIAS, "learning_rate": 1e6, "l1_strength": 0.0}


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base and specialist; the specialist has further vocabulary rows."""
    root = tmp_path_factory.mktemp("models")
    if request.param == "gemma2":
        base = tiny_gemma2(root / "base", attn_logit_softcapping=5.0)
    else:
        base = tiny_llama(root / "base", tied=False)
    return base, tiny_specialist(root / "specialist", base, seed=1, extra_vocabulary=2)


def samples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(3, 319, (n,), generator=generator).tolist()), 1) for n in (5, 90, 17)]


def quiet(done: float, text: str) -> None:
    pass


def train(folders: tuple[Path, Path], encoded: list[Encoded], **options: Any) -> dict[str, Tensor]:
    base, specialist = (resolve(str(folder)) for folder in folders)
    settings = {**OPTIONS, "epochs": 1, "dtype": torch.float32, "device": CPU, "progress": quiet, **options}
    return train_mask(base, specialist, encoded, **settings)


def naive_logits(
    folders: tuple[Path, Path], epochs: int, learning_rate: float, l1_strength: float
) -> dict[str, Tensor]:
    model, specialist = (
        AutoModelForCausalLM.from_pretrained(f, attn_implementation="eager", trust_remote_code=False) for f in folders
    )
    start = {name: p.detach().clone() for name, p in model.named_parameters() if family_of("llama").is_merged(name)}
    vectors = {name: (specialist.get_parameter(name) - start[name]).detach().float() for name in start}
    logits = {name: torch.where(v.abs() >= THRESHOLD, BIAS, -BIAS) for name, v in vectors.items()}
    model.float()
    for _ in range(epochs):
        for name, value in logits.items():
            model.get_parameter(name).data = start[name].float() + value.sigmoid() * vectors[name]
        model.zero_grad()
        for sample in samples():
            ids = torch.tensor([sample.ids])
            (model(ids, labels=ids).loss / len(samples())).backward()
        for name, value in logits.items():
            slope = value.sigmoid() * (1 - value.sigmoid())
            value -= learning_rate * model.get_parameter(name).grad * vectors[name] * slope + l1_strength * slope
    return logits


@pytest.mark.parametrize(("epochs", "learning_rate", "l1_strength"), [(1, 1e6, 0.0), (3, 3e5, 0.0), (2, 1e5, 20.0)])
def test_masks_are_those_of_a_naive_loop(
    folders: tuple[Path, Path], epochs: int, learning_rate: float, l1_strength: float
) -> None:
    found = train(folders, samples(), epochs=epochs, learning_rate=learning_rate, l1_strength=l1_strength)
    expected = naive_logits(folders, epochs, learning_rate, l1_strength)
    assert set(found) == set(expected)
    start = train(folders, samples(), learning_rate=1e-30)
    flipped = undecided = entries = 0
    for name, logits in expected.items():
        assert found[name].dtype == torch.bool
        clear = logits.abs() > 1e-3
        assert torch.equal(found[name][clear], logits[clear] > 0), name
        undecided += int((~clear).sum())
        flipped += int((found[name] != start[name]).sum())
        entries += logits.numel()
    assert entries / 500 < flipped < entries
    assert undecided < entries / 100


def test_without_a_step_the_mask_is_that_of_the_threshold(folders: tuple[Path, Path]) -> None:
    found = train(folders, samples(), learning_rate=1e-30)
    base, specialist = (resolve(str(folder)) for folder in folders)
    for name, mask in found.items():
        vector = specialist.read(name) - base.read(name)
        assert torch.equal(mask.flatten(), vector.float().abs() >= THRESHOLD)
    assert 0 < sum(int(mask.sum()) for mask in found.values()) < sum(mask.numel() for mask in found.values())


def test_training_in_bfloat16_decides_nearly_the_same(folders: tuple[Path, Path]) -> None:
    full, half = (train(folders, samples(), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    same = sum(int((full[name] == half[name]).sum()) for name in full)
    assert same > 0.95 * sum(mask.numel() for mask in full.values())


def test_a_sample_without_a_token_to_predict_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="sample 1 has a single token"):
        train(folders, [Encoded((4, 5), 1), Encoded((4,), 1)])


def test_a_gradient_that_is_not_finite_is_named_with_its_sample(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, specialist = (resolve(str(folder)) for folder in folders)
    read = specialist.read

    def broken(name: str, start: int = 0, count: int | None = None) -> Tensor:
        return read(name, start, count) * (float("nan") if name == "model.layers.1.mlp.up_proj.weight" else 1)

    monkeypatch.setattr(specialist, "read", broken)
    with pytest.raises(InputError, match=r"sample 0: gradient of 'model\..*' is NaN or infinite"):
        train_mask(base, specialist, samples(), **OPTIONS, epochs=1, dtype=torch.float32, device=CPU, progress=quiet)


def test_progress_is_told_about_every_sample_of_every_epoch(folders: tuple[Path, Path]) -> None:
    told: list[float] = []
    train(folders, samples(), epochs=2, progress=lambda done, text: told.append(done))
    assert told == pytest.approx([i / 6 for i in range(6)])
