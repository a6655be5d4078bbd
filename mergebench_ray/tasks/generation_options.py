"""A task's `generation_kwargs`, read as lm-eval's runner for transformers reads them: honoured, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS

from mergebench_ray.engines.generation_defaults import neutral_options
from mergebench_ray.errors import InputError

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_COLDEST = 0.01  # vLLM takes anything between 0 and this as this
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class GenerationOptions:
    """How a task's answers are generated.

    Of what is None the model's own `generation_config.json` decides, as it does for transformers.

    Attributes:
        stop: texts that end an answer, in the task's order.
        max_tokens: longest answer; prompts are cut so that it fits.
        max_total_tokens: longest prompt and answer together; None where only the model limits them.
        first_token_only: whether an answer ends with its first token, as it does where a stop text is empty.
        temperature: 0 is greedy decoding.
        top_p: share of probability to sample from.
        top_k: number of tokens to sample from; 0 for all.
        min_p: probability, relative to the likeliest token's, below which no token is sampled.
        repetition_penalty: by which the scores of tokens that occurred before are divided.
        min_tokens: shortest answer.
        special_tokens: whether special tokens are kept in answers.
    """

    stop: tuple[str, ...]
    max_tokens: int
    max_total_tokens: int | None
    first_token_only: bool
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    min_tokens: int | None
    special_tokens: bool


def read_generation_options(task: str, options: Mapping[str, Any]) -> GenerationOptions:
    """Read `generation_kwargs`.

    Beside lm-eval's and transformers' own there are `max_total_tokens`, which public harnesses of generated programs
    have, and `skip_special_tokens`, which lm-eval's runner for vLLM has.

    Raises:
        InputError: naming task and option, if it cannot be honoured.
    """
    left = _Options(task, options)
    stop = left.texts("until")
    lengths = [left.integer(name, 1) for name in _LENGTHS]
    total = left.integer("max_total_tokens", 2)
    found = GenerationOptions(
        stop=tuple(text for text in stop if text),
        max_tokens=next((length for length in lengths if length is not None), DEFAULT_MAX_GEN_TOKS),
        max_total_tokens=total,
        first_token_only="" in stop,
        temperature=left.temperature(),
        top_p=left.number("top_p", 0, 1, 1.0),
        top_k=left.integer("top_k", 0, 0),
        min_p=left.number("min_p", 0, 1, 0.0, or_lowest=True),
        repetition_penalty=left.number("repetition_penalty", 0, math.inf, 1.0),
        min_tokens=left.integer("min_new_tokens", 0, 0),
        special_tokens=not left.flag("skip_special_tokens", True),
    )
    left.flag("use_cache", True)
    left.refuse_the_rest()
    if (found.min_tokens or 0) > found.max_tokens:
        left.refuse("min_new_tokens", f"an answer may have at most {found.max_tokens} tokens")
    return found


class _Options:
    """Options that have not been taken yet; what is taken is checked."""

    def __init__(self, task: str, options: Mapping[str, Any]) -> None:
        self._task = task
        self._options = dict(options)
        self._left = dict(options)

    def refuse(self, name: str, why: str) -> NoReturn:
        value = str(self._options[name])
        shown = value if len(value) <= 40 else f"{value[:40]}..."
        raise InputError(f"task {self._task}: generation_kwargs.{name}: {shown}: {why}; change it in the task file")

    def texts(self, name: str) -> list[str]:
        value = self._left.pop(name, [])
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            self.refuse(name, "give a text, or a list of texts")
        return texts

    def number(self, name: str, low: float, high: float, if_null: float, *, or_lowest: bool = False) -> float | None:
        """A number above `low`, or that itself with `or_lowest`; None where there is none."""
        above = f"from {low:g}" if or_lowest else f"above {low:g}"
        wanted = f"a number {above}" + ("" if math.isinf(high) else f" up to {high:g}")

        def is_inside(number: float) -> bool:
            return (low < number <= high or (or_lowest and number == low)) and not math.isinf(number)

        return self._checked(name, if_null, wanted, is_inside)

    def integer(self, name: str, low: int, if_null: int | None = None) -> int | None:
        """An integer of at least `low`; None where there is none."""

        def is_inside(number: float) -> bool:
            return low <= number <= _MOST_TOKENS and number == int(number)

        found = self._checked(name, if_null, f"an integer from {low}", is_inside)
        return None if found is None else int(found)

    def _checked(
        self, name: str, if_null: float | None, wanted: str, is_inside: Callable[[float], bool]
    ) -> float | None:
        """An option that is a number, checked; None where there is none."""
        if name not in self._left:
            return None
        value = self._left.pop(name)
        if value is None:
            return if_null
        number = self._float(name, value)
        if not is_inside(number):
            self.refuse(name, f"give {wanted}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "give true or false")
        return bool(value)

    def temperature(self) -> float:
        """0 for greedy decoding, which is what `do_sample` decides where it is given."""
        sampled = self._left.pop("do_sample", None)
        if not isinstance(sampled, bool | None):
            self.refuse("do_sample", "give true or false")
        temperature = 0.0
        if "temperature" in self._left:
            temperature = self._float("temperature", self._left.pop("temperature"))
            if not 0 <= temperature < math.inf:
                self.refuse("temperature", "give a number from 0")
        if sampled is False:
            return 0.0
        if sampled and temperature == 0:
            self.refuse("do_sample", "sampling needs a temperature above 0")
        if 0 < temperature < _COLDEST:
            self.refuse("temperature", f"vLLM samples at {_COLDEST} or above; 0 is greedy")
        return temperature

    def refuse_the_rest(self) -> None:
        """Refuse every other option, unless it has the value that it has where nobody sets it."""
        neutral = neutral_options() if self._left else {}
        for name, value in self._left.items():
            if name in _INSTEAD and (name, value) != ("num_return_sequences", neutral["num_return_sequences"]):
                self.refuse(name, f"cannot be honoured here, use {_INSTEAD[name]}")
            if name not in neutral:
                self.refuse(name, "no such option of transformers' generate")
            if value != neutral[name]:
                self.refuse(name, "cannot be honoured here")

    def _float(self, name: str, value: Any) -> float:
        """YAML reads `2e-1` as a text, and lm-eval takes numbers from texts too."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isnan(number):
            self.refuse(name, "give a number")
        return number


_INSTEAD = {"max_length": "max_gen_toks", "num_return_sequences": "the task's repeats", "stop_strings": "until"}
