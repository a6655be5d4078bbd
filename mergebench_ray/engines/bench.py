"""How fast an engine is: reading prompts, and its steps with one sequence and with many; of models of two shapes."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random

import torch

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.checkpoints.tensor_files import Shape, write_tensors
from mergebench_ray.config import EngineOptions
from mergebench_ray.engines.of_checkpoint import engine_of
from mergebench_ray.engines.requests import GenerationRequest
from mergebench_ray.engines.vllm_engine import VLLMEngine
from mergebench_ray.weights.manifest import WeightManifest

_TOGETHER = 64  # sequences
_PROMPT, _SHORT_PROMPT, _STEPS = 48, 8, 24  # tokens
_TOKEN_IDS = range(100, 1000)
WIDE_HIDDEN, WIDE_LAYERS = 2048, 4
_INNER, _QUERIES, _KEYS, _HEAD = 6144, 2048, 512, 64
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Pace:
    """What an engine was seen to take.

    Attributes:
        prompt_tokens_per_second: of many prompts.
        alone: seconds of a step that computes one sequence's token.
        together: seconds of a step that computes a token of each of `sequences`.
        sequences: how many those are.
    """

    prompt_tokens_per_second: float
    alone: float
    together: float
    sequences: int

    @property
    def of_a_prompt_token(self) -> float:
        """Seconds of each token of many prompts."""
        return 1 / self.prompt_tokens_per_second

    @property
    def of_a_token(self) -> float:
        """Seconds that another sequence adds to a step."""
        return (self.together - self.alone) / (self.sequences - 1)

    @property
    def of_a_step(self) -> float:
        """Seconds of a step beside those of its sequences."""
        return max(0.0, self.alone - self.of_a_token)


class BenchEngine:
    """An engine that is measured; a plain class, to be put into an actor with the environment that a sweep's have.

    Args:
        model: what it starts with.
    """

    def __init__(self, model: Checkpoint) -> None:
        began = time.perf_counter()
        self._engine = engine_of(model, EngineOptions(), max_model_len=256)
        self._start_seconds, self._random = time.perf_counter() - began, Random(0)

    def start_seconds(self) -> float:
        """What its start took."""
        return self._start_seconds

    def load(self, manifest: WeightManifest) -> None:
        """Replace the weights."""
        self._engine.load(manifest)

    def answer_one(self) -> None:
        """Compute one token."""
        _took(self._engine, self._random, 1, _SHORT_PROMPT, 1)

    def pace(self) -> Pace:
        """Measure it."""
        return pace_of(self._engine)

    def close(self) -> None:
        """Stop vLLM."""
        self._engine.close()


def pace_of(engine: VLLMEngine, sequences: int = _TOGETHER, steps: int = _STEPS) -> Pace:
    """Measure an engine with one sequence and with so many, for some steps, after as much that warms it up."""
    random = Random(0)
    for _ in range(2):
        prompts = _took(engine, random, sequences, _PROMPT, 1)
        alone, together = (
            (_took(engine, random, many, _SHORT_PROMPT, 1 + steps) - _took(engine, random, many, _SHORT_PROMPT, 1))
            / steps
            for many in (1, sequences)
        )
    return Pace(sequences * _PROMPT / prompts, alone, together, sequences)


def _took(engine: VLLMEngine, random: Random, many: int, prompt: int, answer: int) -> float:
    """Seconds in which so many prompts, no two alike, are answered."""
    requests = [
        GenerationRequest(random.choices(_TOKEN_IDS, k=prompt), max_tokens=answer, min_tokens=answer)
        for _ in range(many)
    ]
    before = engine.busy_seconds
    engine.generate(requests)
    return engine.busy_seconds - before


def write_wide_model(folder: Path, like: Checkpoint) -> dict[str, Shape]:
    """Write a made-up Llama of few, wide layers: beside a real model it tells what a layer takes from what bytes do.

    Args:
        folder: empty, for the model.
        like: whose tokenizer and vocabulary it has.

    Returns:
        its tensors.
    """
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (_QUERIES, WIDE_HIDDEN),
        "self_attn.k_proj": (_KEYS, WIDE_HIDDEN),
        "self_attn.v_proj": (_KEYS, WIDE_HIDDEN),
        "self_attn.o_proj": (WIDE_HIDDEN, _QUERIES),
        "mlp.gate_proj": (_INNER, WIDE_HIDDEN),
        "mlp.up_proj": (_INNER, WIDE_HIDDEN),
        "mlp.down_proj": (WIDE_HIDDEN, _INNER),
        "input_layernorm": (WIDE_HIDDEN,),
        "post_attention_layernorm": (WIDE_HIDDEN,),
    }
    [vocabulary] = {info.shape[0] for name, info in like.tensors.items() if like.family.is_token_embedding(name)}
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocabulary, WIDE_HIDDEN),
        "model.norm.weight": (WIDE_HIDDEN,),
    }
    shapes |= {
        f"model.layers.{index}.{name}.weight": shape for index in range(WIDE_LAYERS) for name, shape in layer.items()
    }
    drawn = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).bfloat16()
    tensors = ((name, drawn.repeat(-(-prod(shape) // len(drawn)))[: prod(shape)]) for name, shape in shapes.items())
    write_tensors(folder, {name: (shape, torch.bfloat16) for name, shape in shapes.items()}, tensors, 5 << 30)
    for name in _TOKENIZER:
        if (file := like.tokenizer_folder / name).exists():
            shutil.copy(file, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "head_dim": _HEAD,
        "hidden_size": WIDE_HIDDEN,
        "intermediate_size": _INNER,
        "max_position_embeddings": 2048,
        "num_attention_heads": _QUERIES // _HEAD,
        "num_hidden_layers": WIDE_LAYERS,
        "num_key_value_heads": _KEYS // _HEAD,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return shapes
