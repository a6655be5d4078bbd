"""Training of the specialists: resumable, whole, loadable."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergebench_ray.errors import InputError
from mergebench_ray.suites.smollm2_mini.training import (
    PLANS,
    Example,
    TrainingPlan,
    TrainingProgress,
    train_adapter,
    train_specialists,
)
from mergebench_ray.suites.smollm2_mini.training.batches import IGNORED, collate, schedule

PLAN = TrainingPlan(num_steps=5, batch_size=2, checkpoint_every=2, learning_rate=1e-2)
EXAMPLES = [Example(tuple(range(1, 4 + n)), (20 + n, 30 + n, 0)) for n in range(6)]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


class KilledError(Exception):
    pass


class StopsAt(TrainingProgress):
    def __init__(self, steps: int) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.left = steps

    def step(self, loss: float) -> None:
        super().step(loss)
        self.left -= 1
        if self.left == 0:
            raise KilledError


def train(out: Path, *, plan: TrainingPlan = PLAN, steps: int = -1) -> None:
    train_adapter(tiny_llama(), EXAMPLES, plan, out, name="tiny", pad_id=0, progress=StopsAt(steps))


def test_an_interrupted_run_ends_with_the_same_adapter(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(KilledError):
        train(tmp_path / "resumed", steps=3)
    assert not (tmp_path / "resumed").exists(), "an adapter is written whole or not at all"
    train(tmp_path / "resumed")
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "whole"], "no checkpoint is left behind"


def test_a_checkpoint_of_another_plan_is_not_used(tmp_path: Path) -> None:
    other = replace(PLAN, learning_rate=1e-3)
    with pytest.raises(KilledError):
        train(tmp_path / "adapter", plan=other, steps=3)
    train(tmp_path / "adapter")
    train(tmp_path / "fresh")
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_an_adapter_loads_with_peft_and_changes_the_model(tmp_path: Path) -> None:
    train(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert len(stored) == 2 * 7 * 2, "two layers, seven linear layers each, A and B"
    ids = torch.tensor([[1, 2, 3]])
    before = tiny_llama()(ids).logits
    adapted = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    assert not torch.allclose(before, adapted(ids).logits)


def test_only_answer_tokens_count() -> None:
    batch = collate([Example((1, 2, 3), (4, 0)), Example((5,), (6, 7, 0))], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 0, 9]]
    assert batch.positions.tolist() == [0, 1, 2, 3]
    assert batch.targets.tolist() == [[IGNORED, IGNORED, 4, 0], [6, 7, 0, IGNORED]]


def test_every_pass_sees_every_example_once_in_batches_of_similar_length() -> None:
    examples = [Example((1,) * (1 + number % 5), (0,)) for number in range(20)]
    steps = schedule(examples, batch_size=4, num_steps=10, seed=3)
    assert sorted(index for step in steps[:5] for index in step) == list(range(20))
    assert all(len({examples[index].length for index in step}) == 1 for step in steps)
    assert steps == schedule(examples, batch_size=4, num_steps=10, seed=3)


def test_progress_is_plain_lines_when_piped() -> None:
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream)) as progress:
        progress.start("math", 10, 0)
        for _ in range(10):
            progress.step(0.5)
    assert stream.getvalue() == "math: step 10/10, loss 0.500, 0 s left\n"


def test_wrong_input_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no domain 'maths'"):
        train_specialists(out=tmp_path, domains=["maths"])
    (tmp_path / "math").mkdir()
    with pytest.raises(InputError, match="no adapter"):
        train_specialists(out=tmp_path, domains=["math"])


def test_a_finished_adapter_is_not_trained_again(tmp_path: Path) -> None:
    for domain in PLANS:
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "adapter_model.safetensors").touch()
    assert train_specialists(out=tmp_path) == {domain: tmp_path / domain for domain in PLANS}
