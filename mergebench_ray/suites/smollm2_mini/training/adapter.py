"""Train one LoRA adapter: resumable after a kill, with the same result as a run that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from safetensors import safe_open
from safetensors.torch import save_file

from mergebench_ray.files import whole_file, whole_folder
from mergebench_ray.suites.smollm2_mini.training.batches import IGNORED, Batch, Example, collate, schedule
from mergebench_ray.suites.smollm2_mini.training.progress import TrainingProgress

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of each weight."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything that decides what an adapter becomes, besides the base and the examples."""

    num_steps: int = 150
    """Optimiser steps."""
    batch_size: int = 16
    """Examples per step."""
    learning_rate: float = 2e-3
    """Peak of the learning rate: linear warm-up over the first twentieth, then linear decay to a tenth."""
    rank: int = 4
    """Rank of every LoRA pair."""
    alpha: int = 16
    """LoRA scale: an adapter adds alpha / rank times its product."""
    seed: int = 0
    """Seeds the adapter's start and the order of the examples."""
    checkpoint_every: int = 50
    """Steps between two checkpoints."""

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = max(1, self.num_steps // 20)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (1.0 - 0.9 * (step - warmup) / max(1, self.num_steps - warmup))


def train_adapter(
    model: torch.nn.Module,
    examples: Sequence[Example],
    plan: TrainingPlan,
    out: Path,
    *,
    name: str,
    pad_id: int,
    progress: TrainingProgress,
) -> None:
    """Train one LoRA adapter on all linear layers of `model` and write it in bf16 to the folder `out`.

    The loss is the mean cross-entropy of the answer tokens. A checkpoint beside `out` is written every
    `plan.checkpoint_every` steps; a run that was killed goes on from it and ends with the same adapter as one that
    was not, and a checkpoint of another plan or other examples is not used.

    Args:
        model: the base; the adapter's layers are put into it, so it is of no other use afterwards.
        examples: what is learnt.
        plan: how.
        out: a folder that does not exist yet.
        name: what the progress calls it.
        pad_id: token that fills up short examples.
        progress: is told about every step.
    """
    set_seed(plan.seed)
    accelerator = Accelerator(mixed_precision="bf16" if _is_bfloat16(model) else "no")
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    adapted: Any = get_peft_model(model, config)
    trained = {key: weight for key, weight in adapted.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=plan.learning_rate, weight_decay=0.0)
    checkpoint = out.parent / f".{out.name}.checkpoint.safetensors"
    fingerprint = json.dumps([asdict(plan), len(examples), sum(example.length for example in examples)])
    prepared, optimizer = accelerator.prepare(adapted, optimizer)
    prepared.train()
    first = _load_checkpoint(checkpoint, trained, optimizer, fingerprint)
    order = schedule(examples, plan.batch_size, plan.num_steps, plan.seed)
    progress.start(name, plan.num_steps, first)
    with disable_input_dtype_casting(adapted):
        for step in range(first, plan.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate_at(step)
            batch = collate([examples[index] for index in order[step]], pad_id)
            with accelerator.autocast():
                loss = _loss(prepared, batch, accelerator.device)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.step(float(loss.detach()))
            if (step + 1) % plan.checkpoint_every == 0:
                _save_checkpoint(checkpoint, trained, optimizer, step + 1, fingerprint)
    _write_adapter(adapted, out)
    checkpoint.unlink(missing_ok=True)


def _is_bfloat16(model: torch.nn.Module) -> bool:
    return bool(next(model.parameters()).dtype == torch.bfloat16)


def _loss(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    # The index tensor keeps the output head to the answer tokens: a third of the time of a short prompt's step.
    logits = model(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        logits_to_keep=batch.positions.to(device),
        use_cache=False,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.to(device).flatten(), ignore_index=IGNORED
    )


def _save_checkpoint(
    path: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any, step: int, fingerprint: str
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for key, weight in trained.items():
        state = optimizer.state[weight]
        tensors[f"weight/{key}"] = weight.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{key}"] = state[moment]
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "fingerprint": fingerprint})


def _load_checkpoint(path: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any, fingerprint: str) -> int:
    """Restore weights and moments; return the step to go on with, 0 where there is no checkpoint of this plan."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        if metadata["fingerprint"] != fingerprint:
            return 0
        for key, weight in trained.items():
            weight.data.copy_(stored.get_tensor(f"weight/{key}"))
            optimizer.state[weight] = {
                moment: stored.get_tensor(f"{moment}/{key}").to(weight.device) for moment in _MOMENTS
            }
        return int(metadata["step"])


def _write_adapter(adapted: Any, out: Path) -> None:
    state = {
        key: weight.detach().to(torch.bfloat16).contiguous()
        for key, weight in get_peft_model_state_dict(adapted).items()
    }
    config = adapted.peft_config["default"]
    config.inference_mode = True
    with whole_folder(out) as temporary:
        # The base's path is this machine's own, and a set has no order of its own.
        config.base_model_name_or_path = None
        config.target_modules = sorted(config.target_modules)
        config.save_pretrained(temporary)
        save_file(state, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
