"""What models are scored on, and how items are put to them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mergebench_ray.config.fields import MAX_TEXT, SPLITS, Line, Plain, Split, Strict, expanded
from mergebench_ray.config.names import Name


class EvaluationOptions(Strict):
    """What candidates are scored on. The search sees validation items only."""

    domains: list[Name] | None = Field(default=None, min_length=1, description="Domains to score; None for all.")
    validation_items: int | None = Field(default=None, ge=1, le=10**9, description="First items a task; None for all.")
    test_items: int | None = Field(
        default=None, ge=1, le=10**9, description="First items a task at the end; None for all."
    )
    final_items: int | None = Field(
        default=0, ge=0, le=10**9, description="Items a task that are held back from the search."
    )
    allow_code_execution: bool = Field(default=False, description="Run generated programs, in the sandbox.")
    allow_weak_sandbox: bool = Field(
        default=False, description="Run generated programs even where the system cannot keep them from your files."
    )
    data: dict[Line, Line] = Field(
        default_factory=dict,
        description="Data set id of the hub (or ID:CONFIG) -> local file or folder that is read instead.",
    )
    judges: dict[Name, dict[str, Plain] | None] = Field(
        default_factory=dict,
        description="Judge -> settings that replace the suite's, or its model alone; null scores without it.",
    )
    apply_chat_template: bool = Field(
        default=False, description="Put items to the model in its own chat template, as lm-eval's option does."
    )
    fewshot_as_multiturn: bool | None = Field(
        default=None,
        description="Whether few-shot examples are turns of the conversation, or stand in one text with the question; "
        "None for turns. Only with apply_chat_template.",
    )
    system_instruction: str | None = Field(
        default=None, min_length=1, max_length=MAX_TEXT, description="What is said first: lm-eval's option."
    )
    gen_kwargs: dict[Line, Plain] = Field(
        default_factory=dict,
        description="Options of generation that replace those of all tasks and of the suite, under lm-eval's names.",
    )

    @field_validator("judges", mode="before")
    @classmethod
    def _accept_bare_model(cls, judges: Any) -> Any:
        if not isinstance(judges, dict):
            return judges
        return {name: {"model": one} if isinstance(one, str) else one for name, one in judges.items()}

    @model_validator(mode="after")
    def _check_conversation(self) -> EvaluationOptions:
        if self.fewshot_as_multiturn is not None and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn is about a chat template; set apply_chat_template, or leave it out")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """How items are put to a model, where it is not as the suite has it: arguments of `evaluate`."""
        names = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction", "gen_kwargs")
        values = {name: getattr(self, name) for name in names}
        return {
            name: value for name, value in values.items() if value not in (None, {}) and (value or name != names[0])
        }

    @field_validator("domains")
    @classmethod
    def _check_domains(cls, domains: list[str] | None) -> list[str] | None:
        for index, domain in enumerate(domains or []):
            if domain in (domains or [])[:index]:
                raise ValueError(f"{domain!r} is given twice")
        return domains

    @field_validator("data")
    @classmethod
    def _make_absolute(cls, data: dict[str, str]) -> dict[str, str]:
        """Actors may run in another folder than the command."""
        return {name: str(expanded(path).absolute()) for name, path in data.items()}


class ModelEvaluationOptions(EvaluationOptions):
    """What one model is scored on."""

    items_share: float | None = Field(
        default=None, gt=0, lt=1, description="Share of the items of each task, the first; None for all."
    )
    samples: dict[Line, tuple[int, ...]] | None = Field(
        default=None, min_length=1, description="Task -> places of its items in the split, from 0; of others all."
    )

    all_greedy: bool = Field(
        default=False, description="Find out of every choice whether it is what the model would write, as lm-eval does."
    )

    @field_validator("samples")
    @classmethod
    def _check_places(cls, samples: dict[str, tuple[int, ...]] | None) -> dict[str, tuple[int, ...]] | None:
        for name, places in (samples or {}).items():
            if not places or min(places) < 0:
                raise ValueError(f"{name}: give the places of its items, from 0")
        return samples

    @model_validator(mode="after")
    def _check_limits(self) -> ModelEvaluationOptions:
        limits = {"items": self.test_items, "limit": self.items_share, "samples": self.samples}
        given = [name for name, value in limits.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say which items are asked; keep one")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """How items are put to a model and which, where it is not as the suite has it: arguments of `evaluate`."""
        which = {"limit": self.items_share, "samples": self.samples}
        return {**super().asked, **{name: value for name, value in which.items() if value is not None}}


class SearchEvaluationOptions(EvaluationOptions):
    """What candidates are scored on, and what is held back to choose among the best of them."""

    final_items: int | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="Validation items a task that the search does not see: the best candidates are compared on them. "
        "None for half as many as it sees, 0 to choose by what it saw.",
    )
    reuse: bool = Field(
        default=True,
        description="Ask no model what it was asked before, under the same conditions, by a run whose folder is beside "
        "this one's or in search.warm_start.",
    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that a search scores."""
        return SPLITS if self.final_items != 0 else ("validation", "test")
