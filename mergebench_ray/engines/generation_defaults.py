"""What a model's own `generation_config.json` says of decoding, as `generate` of transformers takes it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

CHANGES_ANSWERS = (
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "min_length",
    "max_time",
    "stop_strings",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "sequence_bias",
    "guidance_scale",
    "watermarking_config",
    "penalty_alpha",
    "dola_layers",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
)
"""Options that change which token comes next, or where an answer ends, and that vLLM does not have."""


@dataclass(frozen=True)
class GenerationDefaults:
    """What holds where a request does not say otherwise.

    Attributes:
        top_p: share of probability to sample from.
        top_k: number of tokens to sample from; 0 for all. transformers' own default is 50.
        min_p: probability, relative to the likeliest token's, below which no token is sampled.
        repetition_penalty: by which the scores of tokens that occurred before, in prompt or answer, are divided.
        min_tokens: shortest answer.
    """

    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0


@functools.cache
def neutral_options() -> dict[str, Any]:
    """Every option of `generate` and the value that it has where nobody sets it."""
    from transformers import GenerationConfig  # seconds; who coordinates actors imports this module, too

    unset, defaults = dict.fromkeys(GenerationConfig().to_dict()), GenerationConfig._get_default_generation_params()
    return {**unset, **defaults, "guidance_scale": None}


def generation_defaults(folder: Path) -> GenerationDefaults:
    """Read a model folder's decoding defaults.

    Its longest answer and its temperature are not looked at: a request always has its own.

    Raises:
        InputError: if the file cannot be read, or asks for something that vLLM does not have.
    """
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if not file.exists():
        return GenerationDefaults()
    try:
        with open_regular(file) as stream:
            own = GenerationConfig.from_dict(json.load(stream)).to_dict()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); mend it or remove it") from error
    neutral = neutral_options()
    for name in CHANGES_ANSWERS:
        if own.get(name) not in (None, neutral[name]):
            raise InputError(
                f"{file}: {name}: {own[name]!r} changes answers, and vLLM does not have it; remove it from that file"
            )
    try:
        return GenerationDefaults(
            top_p=float(_own(own, "top_p", 1.0)),
            top_k=int(_own(own, "top_k", 50)),
            min_p=float(_own(own, "min_p", 0.0)),
            repetition_penalty=float(_own(own, "repetition_penalty", 1.0)),
            min_tokens=int(_own(own, "min_new_tokens", 0)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file}: not a number ({error}); mend it") from error


def _own(own: dict[str, Any], name: str, default: float) -> Any:
    return default if own.get(name) is None else own[name]
