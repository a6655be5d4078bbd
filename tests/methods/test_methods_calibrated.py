"""Every method that sees data against its naive reference, on a Llama with an output head of its own and a Gemma-2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import naive_calibrated as naive
from bank_in_process import LocalBank, files_of, merge_streamed, write_from_bank
from mergebench_ray.calibration import Calibration, Sample
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.config import CalibrationOptions, CalibrationSource
from mergebench_ray.errors import InputError
from mergebench_ray.methods import CalibrationRequest, get_method, method_names, parse_parameters
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")

SPECIALISTS = ["coding", "math", "safety"]
TRAINING = {"sigmoid_bias": 3.0, "learning_rate": 1e7, "epochs": 2, "l1_strength": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "fisher": {"weight": {"coding": 1.0, "math": 2.5, "safety": 0.3}},
    "regmean": {"reduction": 0.7},
    "regmean_plusplus": {"reduction": 0.4},
    "localize_and_stitch": {"trained": True, "sparsity": 0.3, **TRAINING},
}


@dataclass
class Models:
    base: Checkpoint
    specialists: dict[str, Checkpoint]
    samples: dict[str, list[Sample]]
    folder: Path

    def calibration(self, folder: Path | None = None, **options: Any) -> Calibration:
        sources = {name: CalibrationSource(data=f"{name}.jsonl") for name in self.samples}
        settings = CalibrationOptions(folder=str(folder or self.folder), **options)
        return Calibration(self.base, self.specialists, sources, self.samples, settings)

    def bank(self, **options: Any) -> LocalBank:
        return LocalBank(self.base, self.specialists, calibrator=self.calibration(), **options)

    def loaded(self) -> tuple[Any, dict[str, Any]]:
        return naive.load(self.base.folder), {name: naive.load(c.folder) for name, c in self.specialists.items()}

    def texts(self) -> naive.Texts:
        tokenizer = AutoTokenizer.from_pretrained(self.base.folder, trust_remote_code=False)

        def ids(sample: Sample) -> Tensor:
            prompt = tokenizer(sample.prompt)["input_ids"]
            return torch.tensor([prompt + tokenizer(sample.response, add_special_tokens=False)["input_ids"]])

        return {name: [ids(sample) for sample in samples] for name, samples in self.samples.items()}


@pytest.fixture(scope="module", params=["llama", "gemma"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_gemma2(folder / "base") if request.param == "gemma" else tiny_llama(folder / "base", tied=False)
    specialists = {n: resolve(str(tiny_specialist(folder / n, base, seed=i))) for i, n in enumerate(SPECIALISTS)}
    samples = {
        name: [Sample(f"{name} question {i} " * (1 + i % 4), f"answer {7 * i + k}") for i in range(6)]
        for k, name in enumerate(SPECIALISTS)
    }
    return Models(resolve(str(base)), specialists, samples, folder / "statistics")


def test_every_method_that_sees_data_has_a_reference() -> None:
    calibrated = set()
    for name in method_names():
        method = get_method(name)
        trained = {"trained": True} if "trained" in method.Parameters.model_fields else {}
        if method.calibration_samples(parse_parameters(name, trained)):
            calibrated.add(name)
    assert calibrated == set(CASES)


@pytest.mark.parametrize("method", CASES)
def test_a_merge_in_windows_writes_the_files_of_the_bank(models: Models, tmp_path: Path, method: str) -> None:
    given = (models.base, models.specialists, method, CASES[method])
    merge_streamed(tmp_path / "streamed", *given, calibrator=models.calibration(), window=1000, threads=2)
    write_from_bank(tmp_path / "bank", *given, calibrator=models.calibration())
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "bank")


@pytest.mark.parametrize("method", ["fisher", "regmean", "regmean_plusplus"])
def test_method_equals_its_definition(models: Models, method: str) -> None:
    expected = getattr(naive, method)(*models.loaded(), models.texts(), **CASES[method])
    merged = models.bank().merge(method, CASES[method])
    assert set(merged) == set(expected)
    for name, tensor in merged.items():
        if method == "fisher" or tensor.dim() == 1:
            # Where a sum nearly cancels, float32's own rounding counts.
            close = (tensor.float() - expected[name]).abs() <= 2**-20
            assert bool(((bf16_distance(tensor, expected[name].bfloat16()) <= 2) | close).all()), name
        else:
            error = (tensor.float() - expected[name]).norm() / expected[name].norm()
            assert float(error) < 1e-2, f"{name}: relative error {error}"


def test_regmean_in_float32_equals_its_definition(models: Models) -> None:
    """What is solved for, before it is rounded to the type of the checkpoint."""
    bank = models.bank().bank
    parameters = parse_parameters("regmean", CASES["regmean"])
    solver = get_method("regmean").solver(parameters, get_method("regmean").prepare(parameters, bank.statistics))
    checkpoints = [models.base, *(models.specialists[name] for name in SPECIALISTS)]
    shapes = {name: info.shape for name, info in models.base.tensors.items()}
    expected = naive.regmean(*models.loaded(), models.texts(), **CASES["regmean"])
    for group in solver.groups:
        system = solver.system(group, lambda n: [c.read(n).view(shapes[n]) for c in checkpoints], torch.device("cpu"))
        for name, tensor in zip(group, solver.solve(group, system), strict=True):
            assert float((tensor - expected[name]).norm() / expected[name].norm()) < 1e-5, name


def test_trained_masks_equal_their_definition(models: Models) -> None:
    expected, masks = naive.localize_and_stitch(*models.loaded(), models.texts(), sparsity=0.3, **TRAINING)
    bank = models.bank()
    merged = bank.merge("localize_and_stitch", CASES["localize_and_stitch"])
    parameters = parse_parameters("localize_and_stitch", CASES["localize_and_stitch"])
    files = get_method("localize_and_stitch").prepare(parameters, bank.bank.statistics).trained
    for file, mask in zip(files, masks, strict=True):
        found = load_file(file.path)
        assert set(found) == set(mask)
        differing = sum(int((found[name] != mask[name]).sum()) for name in mask)
        # A logit that ends within rounding of 0 may fall on either side.
        assert differing <= 1e-4 * sum(m.numel() for m in mask.values()), differing
        moved = sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
        assert abs(moved - 0.3) > 0.005, "training did not change the mask"
    same = sum(int((bf16_distance(merged[n], expected[n].bfloat16()) <= 2).sum()) for n in merged)
    assert same >= (1 - 3e-4) * sum(t.numel() for t in merged.values())


@pytest.mark.parametrize("method", sorted(CASES))
def test_bits_do_not_depend_on_shards_or_threads(models: Models, method: str) -> None:
    one = models.bank().merge(method, CASES[method])
    for shards, threads in [(3, 1), (7, 2)]:
        cut = models.bank(shards=shards, threads=threads).merge(method, CASES[method])
        different = [name for name in one if not torch.equal(one[name].view(torch.int16), cut[name].view(torch.int16))]
        assert not different, f"{shards} shards: {different}"


def test_merges_in_turn_give_what_each_gives_alone(models: Models) -> None:
    bank = models.bank(shards=3)
    merges = [*CASES.items(), ("task_arithmetic", {"scaling_coef": 0.3}), ("regmean", {"reduction": 0.2})]
    expected = [models.bank().merge(method, parameters) for method, parameters in merges]
    in_turn = [*zip(merges, expected, strict=True)]
    for (method, parameters), alone in [*in_turn, *reversed(in_turn)]:
        merged = bank.merge(method, parameters)
        assert all(torch.equal(merged[name].view(torch.int16), alone[name].view(torch.int16)) for name in alone), method


def test_another_reduction_computes_no_statistic(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = models.bank()
    bank.merge("regmean", {"reduction": 0.5})
    monkeypatch.setattr("mergebench_ray.calibration.calibration.run_job", _fail)
    bank.merge("regmean", {"reduction": 0.6})
    models.bank().merge("regmean", {"reduction": 0.6})


def _fail(*_: object) -> None:
    raise AssertionError("a statistic was computed again")


def test_the_digest_depends_on_the_data_and_only_where_data_counts(models: Models) -> None:
    other = {**models.samples, "math": models.samples["math"][::-1]}
    here, there = models.bank().bank, Models(models.base, models.specialists, other, models.folder).bank().bank
    assert here.recipe("regmean", {}).digest != there.recipe("regmean", {}).digest
    assert here.recipe("ties", {}).digest == there.recipe("ties", {}).digest
    same = {"calibration_samples": 4}
    assert here.recipe("regmean", same).digest != here.recipe("regmean", {"calibration_samples": 5}).digest
    assert here.recipe("localize_and_stitch", same) == here.recipe("localize_and_stitch", {})


def test_a_recipe_of_other_data_is_refused(models: Models) -> None:
    other = {**models.samples, "math": models.samples["math"][::-1]}
    recipe = Models(models.base, models.specialists, other, models.folder).bank().bank.recipe("regmean", {})
    with pytest.raises(InputError, match=r"calibration\.digests\.math"):
        models.bank().bank.merge(recipe)


def test_a_specialist_without_data_is_named(models: Models) -> None:
    lacking = {name: texts for name, texts in models.samples.items() if name != "math"}
    bank = Models(models.base, models.specialists, lacking, models.folder).bank().bank
    with pytest.raises(InputError, match="no calibration data for specialist math"):
        bank.recipe("fisher", {})
    bank.recipe("ties", {})


def test_fewer_samples_than_asked_for_are_reported(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = models.bank().bank.recipe("fisher", {"calibration_samples": 50})
    assert "6 calibration samples of the 50 asked for" in caplog.text
    assert recipe.calibration is not None
    assert recipe.calibration.inputs["math"].samples == 6


def test_cut_samples_are_counted_and_reported(models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        models.calibration(tmp_path, max_length=40).statistics(CalibrationRequest("gram", 6))
    assert "math: 3 of 6 calibration samples were longer than 40 tokens and were cut" in caplog.text


def _of_another_model(folder: Path, others: Path) -> None:
    (folder / "manifest.json").write_bytes((others / "manifest.json").read_bytes())


def _cut(folder: Path, _: Path) -> None:
    file = folder / "statistics.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flipped(folder: Path, _: Path) -> None:
    file = folder / "statistics.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _without_manifest(folder: Path, _: Path) -> None:
    (folder / "manifest.json").unlink()


def _broken_manifest(folder: Path, _: Path) -> None:
    (folder / "manifest.json").write_text('{"of": []}')


@pytest.mark.parametrize("damage", [_of_another_model, _cut, _flipped, _without_manifest, _broken_manifest])
def test_damaged_statistics_are_made_again(
    models: Models, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    request = CalibrationRequest("gram", 2)
    files = models.calibration(tmp_path).statistics(request)
    whole = [file.path.read_bytes() for file in files]
    damage(files[0].path.parent, files[1].path.parent)
    assert models.calibration(tmp_path).statistics(request) == files
    assert [file.path.read_bytes() for file in files] == whole


def test_a_singular_gram_matrix_is_solved_and_its_layer_named(
    models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = {name: [Sample("ab", "c")] for name in models.samples}
    lacking = Models(models.base, models.specialists, few, tmp_path)
    with caplog.at_level(logging.WARNING):
        merged = lacking.bank().merge("regmean", {"reduction": 1.0})
    assert "layers.0.self_attn.q_proj.weight" in caplog.text
    assert "pseudo-inverse" in caplog.text
    expected = naive.regmean(*lacking.loaded(), lacking.texts(), reduction=1.0)
    for name, tensor in merged.items():
        assert float((tensor.float() - expected[name]).norm() / expected[name].norm()) < 1e-2, name


def bf16_distance(first: Tensor, second: Tensor) -> Tensor:
    """How many bf16 numbers lie between."""
    return (_order(first) - _order(second)).abs()


def _order(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
