"""RegMean++ layer by layer gives what whole models give: the merged layers' own activations, each specialist's data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mergebench_ray.calibration.layerwise import merge_layer_by_layer
from mergebench_ray.calibration.samples import Encoded
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.errors import InputError
from mergebench_ray.families import family_of
from tiny_models import tiny_gemma2, tiny_llama, tiny_specialist

CPU = torch.device("cpu")
NAMES = ("code", "math")
REDUCTION = 0.1


@pytest.fixture(scope="module", params=["llama", "llama_with_biases", "gemma2"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two specialists of three layers; one has further vocabulary rows."""
    root = tmp_path_factory.mktemp("models")
    if request.param == "gemma2":
        base = tiny_gemma2(root / "base", num_hidden_layers=3, attn_logit_softcapping=5.0)
    else:
        biases = request.param == "llama_with_biases"
        base = tiny_llama(root / "base", tied=False, num_hidden_layers=3, attention_bias=biases)
    return {
        "base": base,
        "code": tiny_specialist(root / "code", base, seed=1, scale=0.3, extra_vocabulary=2),
        "math": tiny_specialist(root / "math", base, seed=2, scale=0.3),
    }


def samples(seed: int, num: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 90, (num,), generator=generator).tolist()
    return [Encoded(tuple(torch.randint(3, 320, (n,), generator=generator).tolist()), 1) for n in lengths]


def data() -> dict[str, list[Encoded]]:
    return {"code": samples(1, 6), "math": samples(2, 9)}


def regression(grams: list[Tensor], weights: list[Tensor]) -> Tensor:
    """RegMean's solution for one weight (out, in), in double precision."""
    scaled = [(g * REDUCTION + g.diag().diag() * (1 - REDUCTION)).double() for g in grams]
    return torch.linalg.solve(sum(scaled), sum(g @ w.double().T for g, w in zip(scaled, weights))).T.float()


def solve(
    grams: dict[str, list[Tensor]], weights: dict[str, list[Tensor]], group_of: dict[str, str]
) -> dict[str, Tensor]:
    """The base's weight comes first and plays no part in the definition."""
    return {name: regression(grams[group_of[name]], stacked[1:]) for name, stacked in weights.items()}


def merge(folders: dict[str, Path], encoded: dict[str, list[Encoded]], **options: Any) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    settings = {"batch_size": 4, "pad_id": 0, "dtype": torch.float32, "device": CPU, "progress": quiet, **options}
    merge_layer_by_layer(
        resolve(str(folders["base"])), specialists(folders), encoded, solve, emit=merged.__setitem__, **settings
    )
    return merged


def specialists(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    """In another order than that of their names."""
    return {name: resolve(str(folders[name])) for name in reversed(NAMES)}


def quiet(done: float, text: str) -> None:
    pass


def whole_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )


def grams_of_inputs(model: nn.Module, layer: nn.Module, encoded: list[Encoded]) -> dict[str, Tensor]:
    """Of every linear module of the layer, by its name in the layer."""
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    kept: dict[nn.Module, list[Tensor]] = {module: [] for module in linear.values()}
    hooks = [module.register_forward_hook(lambda it, args, _: kept[it].append(args[0][0])) for module in kept]
    with torch.no_grad():
        for sample in encoded:
            model(torch.tensor([sample.ids]))
    for hook in hooks:
        hook.remove()
    inputs = {name: torch.cat(kept[module]) for name, module in linear.items()}
    return {name: tokens.T @ tokens / len(tokens) for name, tokens in inputs.items()}


def naive_merge(
    folders: dict[str, Path], encoded: dict[str, list[Encoded]], own_activations: bool = False
) -> dict[str, Tensor]:
    """Whole models: specialist k's layer l after the merged layers, on the base's embeddings, one sample at a time."""
    base, models = whole_model(folders["base"]), [whole_model(folders[name]) for name in NAMES]
    merged = copy.deepcopy(base)
    emitted = {}
    for index in range(len(base.model.layers)):
        stacked: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, model in zip(NAMES, models):
            mixed = copy.deepcopy(merged)
            for replaced in range(0 if own_activations else index, index + 1):
                mixed.model.layers[replaced] = model.model.layers[replaced]
            layer = mixed.model.layers[index]
            for part, gram in grams_of_inputs(mixed, layer, encoded[name]).items():
                weight = layer.get_parameter(f"{part}.weight").detach()
                stacked.setdefault(f"{part}.weight", []).append((gram, weight))
        for name, parameter in merged.model.layers[index].named_parameters():
            if name in stacked:
                value = regression(*(list(each) for each in zip(*stacked[name])))
                emitted[f"model.layers.{index}.{name}"] = value.bfloat16()
            else:
                vectors = [m.model.layers[index].get_parameter(name).bfloat16() - parameter.bfloat16() for m in models]
                value = parameter + sum(vector.float() for vector in vectors) / len(vectors)
            parameter.data = value.detach().bfloat16().float()
    return emitted


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor], layer: int) -> float:
    """Relative to the largest entry of each weight."""
    errors = []
    for name in expected:
        if name.startswith(f"model.layers.{layer}."):
            difference = (found[name].float() - expected[name].float()).abs().max()
            errors.append(float(difference / expected[name].float().abs().max()))
    return max(errors)


@pytest.fixture(scope="module")
def found(folders: dict[str, Path]) -> dict[str, Tensor]:
    """What merging layer by layer gives."""
    return merge(folders, data())


def test_layers_are_merged_as_with_whole_models(folders: dict[str, Path], found: dict[str, Tensor]) -> None:
    expected = naive_merge(folders, data())
    assert set(found) == set(expected)
    assert all(family_of("llama").is_merged(name) and tensor.dtype == torch.bfloat16 for name, tensor in found.items())
    assert max(largest_error(found, expected, layer) for layer in range(3)) <= 1e-2


def test_later_layers_see_what_the_merged_layers_produce(folders: dict[str, Path], found: dict[str, Tensor]) -> None:
    of_specialists = naive_merge(folders, data(), own_activations=True)
    assert largest_error(found, of_specialists, 0) <= 1e-2
    assert largest_error(found, of_specialists, 2) > 5e-2


def test_the_batch_size_changes_nothing_beyond_rounding(folders: dict[str, Path]) -> None:
    one, many = (merge(folders, data(), batch_size=size) for size in (1, 9))
    for name in one:
        torch.testing.assert_close(one[name].float(), many[name].float(), rtol=2**-6, atol=1e-4)


def test_a_specialist_without_samples_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="specialist 'math' has no calibration samples"):
        merge(folders, {"code": samples(1, 2)})


def test_an_input_that_is_not_finite_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    code = resolve(str(folders["code"]))
    read = code.read

    def broken(name: str, start: int = 0, count: int | None = None) -> Tensor:
        return read(name, start, count) * (float("nan") if name == "model.layers.1.mlp.up_proj.weight" else 1)

    monkeypatch.setattr(code, "read", broken)
    with pytest.raises(InputError, match=r"^specialist code \(.*: the input of '.*\.1\.mlp\.down_proj\.weight' is NaN"):
        merge_layer_by_layer(
            resolve(str(folders["base"])),
            {**specialists(folders), "code": code},
            data(),
            solve,
            batch_size=4,
            pad_id=0,
            dtype=torch.float32,
            device=CPU,
            progress=quiet,
            emit=lambda name, value: None,
        )
