"""The specialists of the built-in suite: what each is trained on, for how long, and the command that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import Suite
from mergebench_ray.suites.smollm2_mini import NAME
from mergebench_ray.suites.smollm2_mini.adapter_folders import checked_adapters
from mergebench_ray.suites.smollm2_mini.generate import GENERATORS
from mergebench_ray.suites.smollm2_mini.training.adapter import TrainingPlan, train_adapter
from mergebench_ray.suites.smollm2_mini.training.batches import encode
from mergebench_ray.suites.smollm2_mini.training.progress import TrainingProgress

PLANS: Mapping[str, TrainingPlan] = {
    "coding": TrainingPlan(num_steps=100),
    "instruction": TrainingPlan(num_steps=150),
    "math": TrainingPlan(num_steps=150),
    "multilingual": TrainingPlan(num_steps=150),
    "safety": TrainingPlan(num_steps=75),
}


def train_specialists(*, out: Path, domains: Sequence[str] | None = None) -> dict[str, Path]:
    """Train the adapters of the suite `smollm2-mini` from the train splits, one after the other.

    A run that was killed goes on where it was; an adapter that is there already is not trained again.

    Args:
        out: folder that gets one folder per domain.
        domains: some of the suite's domains; None for all five.

    Returns:
        The adapter folder of each domain.

    Raises:
        InputError: an unknown domain, a folder in the way, or a base that cannot be found; before anything is trained.
    """
    folders = checked_adapters(out, domains)
    base = Suite.load(NAME).base
    assert base is not None
    with TrainingProgress() as progress:
        for domain, folder in folders.items():
            if folder.exists():
                progress.note(f"{domain}: {folder} is there already, not trained again")
            else:
                _train(domain, resolve(base).folder, folder, progress)
                progress.note(f"{domain}: written to {folder}")
    return folders


def _train(domain: str, base: Path, out: Path, progress: TrainingProgress) -> None:
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    items = GENERATORS[domain].items("train")
    train_adapter(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, trust_remote_code=False),
        [encode(tokenizer, item["prompt"], item["gold"]) for item in items],
        PLANS[domain],
        out,
        name=domain,
        pad_id=tokenizer.pad_token_id,
        progress=progress,
    )
