"""A judge: a language model that is shown a request and the response to it, and answers questions about them."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from mergebench_ray.config.engine import EngineSettings
from mergebench_ray.config.fields import Line
from mergebench_ray.config.yaml_files import parse_model

_PLACES = re.compile(r"\{(request|response)\}")


class Judge(EngineSettings):
    """How a judge is asked and read, and the engine that it runs in."""

    model: Line = Field(description="Reference of the model.")
    gated: bool = Field(default=False, description="Whether its licence must be accepted on the hub first.")
    prompt: str = Field(description="What it is asked, with {request} and {response} where they belong.")
    parser: Line = Field(
        description="Built-in parser of its answers, or MODULE.FUNCTION of a file in the suite's tasks_folder.",
    )
    max_answer_tokens: int = Field(default=32, ge=1, description="Longest answer.")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end an answer.")
    max_model_len: int = Field(
        default=8192, ge=16, description="Longest prompt plus answer, in tokens; less where the model takes less."
    )
    num_gpus: float | None = Field(
        default=0.4, gt=0, le=1024, description="GPUs that Ray sets aside, where there are any; below 1 it shares one."
    )
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1, description="Share of a GPU's memory for vLLM.")

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if "{response}" not in prompt:
            raise ValueError("needs {response} where the response belongs")
        return prompt

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if "" in texts:
            raise ValueError("an empty text would end every answer; leave it out")
        return texts

    @model_validator(mode="after")
    def _check_room(self) -> Judge:
        if self.max_answer_tokens >= self.max_model_len:
            raise ValueError(
                f"max_answer_tokens {self.max_answer_tokens} leaves no room for a prompt in max_model_len "
                f"{self.max_model_len}"
            )
        return self

    def ask(self, request: str, response: str) -> str:
        """The prompt for one response; braces inside either text stay as they are."""
        texts = {"request": request, "response": response}
        return _PLACES.sub(lambda place: texts[place[1]], self.prompt)

    def changed(self, changes: dict[str, Any], where: str) -> Judge:
        """The judge with some settings replaced.

        Raises:
            InputError: naming `where`, the key and the rule.
        """
        return parse_model(Judge, {**self.model_dump(), **changes}, where)
