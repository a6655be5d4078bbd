"""Prompts as conversations: a model's own chat template, applied as lm-eval's runner for transformers does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError, one_line

Messages = Sequence[Mapping[str, str]]


class ChatTemplate:
    """A tokenizer's chat template, as lm-eval calls it.

    Args:
        tokenizer: of transformers.
        model: whose it is, for messages.

    Attributes:
        text: the template.
        drops_system: whether it refused a conversation for its system message, and took it without.

    Raises:
        InputError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer, self._model = tokenizer, model
        self.drops_system = False
        self.text = str(tokenizer.chat_template or "")
        if not self.text:
            raise InputError(f"{model}: its tokenizer has no chat template; leave apply_chat_template out")

    @classmethod
    def of(cls, folder: Path, model: str) -> ChatTemplate:
        """The chat template of a model in a local folder.

        Raises:
            InputError: if it has none.
        """
        from transformers import AutoTokenizer  # seconds, for what few evaluations need

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), model)

    def __call__(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """A conversation as the text of a prompt.

        Args:
            messages: each with its role and content.
            add_generation_prompt: whether an answer begins after it; else the last message goes on.

        Raises:
            InputError: if the template refuses it even without a system message.
        """
        try:
            return self._rendered(messages, add_generation_prompt)
        except TemplateError:
            self.drops_system = True
        try:
            return self._rendered([one for one in messages if one["role"] != "system"], add_generation_prompt)
        except TemplateError as error:
            raise InputError(
                f"{self._model}: its chat template refuses a conversation ({one_line(error)}); "
                "leave apply_chat_template out, or set fewshot_as_multiturn: false"
            ) from error

    def _rendered(self, messages: Messages, add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


@dataclass(frozen=True)
class Conversation:
    """How items are put to a model.

    Attributes:
        template: the model's chat template; None for plain text.
        multiturn: whether few-shot examples are turns of their own, and not one text with the question.
        system_instruction: said before each item's description and examples; None for nothing.
    """

    template: ChatTemplate | None = None
    multiturn: bool = False
    system_instruction: str | None = None

    @classmethod
    def of(cls, options: EvaluationOptions, template: ChatTemplate | None) -> Conversation:
        """As the options say; `template` is only looked at if they ask for one."""
        return cls(
            template if options.apply_chat_template else None,
            options.apply_chat_template and options.fewshot_as_multiturn is not False,
            options.system_instruction,
        )

    @property
    def is_plain(self) -> bool:
        """Whether items are asked as their task files make them."""
        return self.template is None and not self.system_instruction
