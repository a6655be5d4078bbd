"""Merging models that are in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mergebench_ray import InputError, merge
from mergebench_ray.checkpoints import resolve
from mergebench_ray.checkpoints.in_memory import MemoryCheckpoint
from tiny_models import tiny_llama, tiny_specialist

pytestmark = pytest.mark.usefixtures("without_compiler")
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scaling_coef": {"math": 0.3, "law": 0.7}},
    "ties": {"density": 0.4},
    "dare": {"p": 0.5},  # random
    "slerp": {},  # inner products
    "iso_c": {},  # transformed tensors
}


class Models:
    """A base and two specialists, on disk and in memory."""

    def __init__(self, folder: Path, *, tied: bool, dtype: str = "bfloat16") -> None:
        self.base = tiny_llama(folder / "base", tied=tied, dtype=dtype)
        self.specialists = {
            name: tiny_specialist(folder / name, self.base, seed=seed) for seed, name in enumerate(("math", "law"))
        }
        self.loaded = loaded(self.base)
        self.loaded_specialists = {name: loaded(path) for name, path in self.specialists.items()}

    @property
    def states(self) -> dict[str, dict[str, Tensor]]:
        return {name: model.state_dict() for name, model in self.loaded_specialists.items()}


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tied=True)


def specialists_for(method: str, some: dict[str, Any]) -> dict[str, Any]:
    return {"math": some["math"]} if method == "slerp" else some


def assert_same(found: dict[str, Tensor], folder: Path) -> None:
    written = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
    assert written.keys() <= found.keys()
    for name, values in written.items():
        assert found[name].dtype == values.dtype == torch.bfloat16
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_has_the_bits_of_the_same_models_on_disk(method: str, models: Models, tmp_path: Path) -> None:
    parameters = METHODS[method]
    on_disk: dict[str, Any] = specialists_for(method, models.specialists)
    merge(out=tmp_path / "out", method=method, base=models.base, specialists=on_disk, parameters=parameters)
    in_memory = specialists_for(method, models.states)
    before = {name: one.clone() for name, one in models.loaded.state_dict().items()}
    found = merge(method=method, base=models.loaded, specialists=in_memory, parameters=parameters)
    assert_same(found, tmp_path / "out")
    assert all(torch.equal(one, models.loaded.state_dict()[name]) for name, one in before.items())


def test_a_model_loads_the_merge_and_computes_what_the_written_one_does(models: Models, tmp_path: Path) -> None:
    request: dict[str, Any] = {"method": "model_soup"}
    written = merge(out=str(tmp_path / "out"), base=models.base, specialists=models.specialists, **request)
    assert repr(written).splitlines()[0].startswith("model_soup of law, math, merged in ")
    found = merge(base=models.loaded, specialists=models.loaded_specialists, **request)
    assert [*found] == [*models.loaded.state_dict()]
    model = loaded(models.base)
    model.load_state_dict(found)
    tokens = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tmp_path / "out")(tokens).logits)


def test_fp32_weights_and_a_head_of_its_own_are_merged_as_on_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models(tmp_path / "models", tied=False, dtype="float32")
    parameters = {"scaling_coef": 0.6}
    merge(
        out=tmp_path / "out",
        method="task_arithmetic",
        base=models.base,
        specialists=models.specialists,
        parameters=parameters,
    )
    with caplog.at_level(logging.WARNING):
        found = merge(
            method="task_arithmetic",
            base=models.loaded.state_dict(),
            specialists=models.states,
            parameters=parameters,
            config=models.loaded.config,
        )
    assert_same(found, tmp_path / "out")
    assert "float32 weights are rounded to bfloat16" in caplog.text


def test_a_model_in_memory_has_the_digest_of_the_same_on_disk(models: Models) -> None:
    config = models.loaded.config.to_dict()
    assert MemoryCheckpoint("base", models.loaded.state_dict(), config).digest() == resolve(models.base).digest()


def test_a_state_dict_without_a_configuration_is_refused(models: Models) -> None:
    with pytest.raises(InputError, match=r"^config: base is a state dict.*give its configuration$"):
        merge(method="ties", base=models.loaded.state_dict(), specialists=models.states)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"out": "merged"}, "out: is for models on disk"),
        ({"shards": 2}, "shards: is for models on disk"),
        ({"calibration": {"math": "math.jsonl"}}, "calibration: is for models on disk"),
        ({"method": "fisher"}, "fisher reads data, for which models must be on disk"),
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"parameters": {"density": 3.0}}, "density"),
        ({"specialists": {}}, "at least one specialist"),
        ({"specialists": {"math": "models/math"}}, "specialist 'math': is a reference to disk, others are in memory"),
        ({"specialists": {"math": {}}}, "specialist 'math': is empty"),
        ({"base": "models/base"}, "base: is a reference to disk"),
        ({"base": [1]}, "base: is of type list"),
        ({"specialists": {"math": 1}}, "specialist 'math': is of type int"),
        ({"specialists": [{}]}, "specialists: must be a mapping, of name to model, not of type list"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], said: str, models: Models) -> None:
    request: dict[str, Any] = {"method": "ties", "base": models.loaded, "specialists": models.states}
    with pytest.raises(InputError) as refused:
        merge(**{**request, **given})
    assert said in str(refused.value)


def test_weights_that_do_not_fit_or_are_not_there_are_refused(models: Models) -> None:
    state = models.states["math"]
    request: dict[str, Any] = {"method": "ties", "base": models.loaded}
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(InputError, match=rf"^specialist 'math', in memory: tensor '{name}' of the base is missing"):
        merge(**request, specialists={"math": {key: one for key, one in state.items() if key != name}})
    with pytest.raises(InputError, match=rf"tensor '{name}' has shape \[2, 2\]"):
        merge(**request, specialists={"math": {**state, name: torch.zeros(2, 2)}})
    with pytest.raises(InputError, match=rf"tensor '{name}' holds NaN or infinity"):
        merge(**request, specialists={"math": {**state, name: state[name] / 0}})
    with pytest.raises(InputError, match=rf"specialist 'math': '{name}' has no values"):
        merge(**request, specialists={"math": {**state, name: state[name].to("meta")}})
    with pytest.raises(InputError, match=rf"specialist 'math': '{name}' is sparse; give it as tensor.to_dense\(\)"):
        merge(**request, specialists={"math": {**state, name: state[name].to_sparse()}})
    with pytest.raises(InputError, match="'further' is no tensor but of type dict"):
        merge(**request, specialists={"math": {**state, "further": {}}})


def test_a_configuration_is_for_models_in_memory(models: Models, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config: is for models in memory"):
        merge(out=tmp_path / "out", method="ties", base=models.base, specialists=models.specialists, config={})  # type: ignore[call-overload]
    with pytest.raises(InputError, match="out: give the folder"):
        merge(method="ties", base=str(models.base), specialists={"math": str(models.specialists["math"])})  # type: ignore[call-overload]
