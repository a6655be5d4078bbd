"""What tasks ask of an engine: requests, each with the item it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from lm_eval.api.instance import Instance

from mergebench_ray.digests import hashed_number
from mergebench_ray.engines import GenerationRequest, LoglikelihoodRequest, Request
from mergebench_ray.engines.tokens import encode_texts
from mergebench_ray.errors import InputError, about
from mergebench_ray.evaluation.continuations import encode_continuations, encode_windows
from mergebench_ray.tasks.generation_options import read_generation_options
from mergebench_ray.tasks.scored_task import ROLLING, Item, ScoredTask


@dataclass(frozen=True)
class Asked:
    """A request and where its answer belongs.

    Attributes:
        task: number of the task.
        item: its place in the split.
        instance: which of the item's instances it is.
        request: what is asked.
        truncated: whether its prompt is cut from the left to fit the context.
        repeats: how often lm-eval would ask it; its task gets the answer that many times. A window of a text is asked
            once, and its likelihood is added to those of the others.
    """

    task: int
    item: int
    instance: int
    request: Request
    truncated: bool
    repeats: int


class Questions:
    """The items of all tasks of a split, and what they ask, tokenised.

    An item's place in the split counts through all tasks, as the rows of `Scores.items` do.

    Args:
        tasks: with their items.
        tokenizer: the engine's.
        max_model_len: longest prompt plus answer, in tokens.
        all_greedy: whether it is asked of every choice if greedy decoding gives it, wanted or not.

    Attributes:
        tasks: by number.
        items: by number of the task, places of its items.
        asked: by place of the item, its requests.

    Raises:
        InputError: if an item cannot be asked, by task and item.
    """

    def __init__(
        self, tasks: Sequence[ScoredTask], tokenizer: Any, max_model_len: int, *, all_greedy: bool = False
    ) -> None:
        self.tasks = list(tasks)
        ends = list(accumulate((len(task.items) for task in tasks), initial=0))
        self.items = [range(*bounds) for bounds in pairwise(ends)]
        self._where = [(number, item) for number, task in enumerate(tasks) for item in task.items]
        self.asked: list[list[Asked]] = [[] for _ in self._where]
        for number, task in enumerate(tasks):
            for place, instance, one in _requests(task, tokenizer, max_model_len, all_greedy):
                item = self.items[number][place]
                self.asked[item].append(Asked(number, item, instance, *one))

    def task_of(self, item: int) -> int:
        """Number of the task that an item belongs to."""
        return self._where[item][0]

    def item(self, item: int) -> Item:
        """An item by its place."""
        return self._where[item][1]

    def longest_first(self) -> list[int]:
        """Items by the tokens that they may take, most first: dealt out in turn, shares are about as long."""
        return sorted(range(len(self.asked)), key=lambda item: -sum(_length(one.request) for one in self.asked[item]))


def _length(request: Request) -> int:
    if isinstance(request, GenerationRequest):
        return len(request.prompt_token_ids) + request.max_tokens * request.n
    return len(request.context_token_ids) + len(request.continuation_token_ids)


_Made = tuple[int, int, tuple[Request, bool, int]]
"""Place of an item in its task, number of the instance, and the request with what belongs to it."""


def _requests(task: ScoredTask, tokenizer: Any, max_model_len: int, all_greedy: bool) -> Iterator[_Made]:
    asked = _instances(task, "generate_until")
    prompts = encode_texts(tokenizer, [instance.args[0] for _, _, instance in asked])
    for (place, number, instance), prompt in zip(asked, prompts, strict=True):
        request = _generation_request(task, task.items[place], instance, prompt, max_model_len)
        too_long = len(prompt) > len(request.prompt_token_ids)
        yield place, number, (request, too_long, _repeats(instance))
    asked = _instances(task, "loglikelihood")
    texts = [(task.items[place].id, instance.args) for place, _, instance in asked]
    pairs = encode_continuations(task, texts, tokenizer, max_model_len)
    for (place, number, instance), (context, continuation) in zip(asked, pairs, strict=True):
        # The last token is not read.
        too_long = len(context) + len(continuation) - 1 > max_model_len
        scored = LoglikelihoodRequest(context, continuation, all_greedy or _needs_greedy(task))
        yield place, number, (scored, too_long, _repeats(instance))
    asked = _instances(task, ROLLING)
    with about(f"task {task.name}"):
        windows = encode_windows([instance.args[0] for _, _, instance in asked], tokenizer, max_model_len)
    for (place, number, _), some in zip(asked, windows, strict=True):
        for context, continuation in some:
            yield place, number, (LoglikelihoodRequest(context, continuation, greedy=False), False, 1)


def _instances(task: ScoredTask, kind: str) -> list[tuple[int, int, Instance]]:
    return [
        (place, number, instance)
        for place, item in enumerate(task.items)
        for number, instance in enumerate(item.instances)
        if instance.request_type == kind
    ]


def _generation_request(
    task: ScoredTask, item: Item, instance: Instance, prompt: list[int], max_model_len: int
) -> GenerationRequest:
    """What a task's `generation_kwargs` ask for; sampling is seeded by the item: equal weights, equal answers."""
    options = read_generation_options(task.name, instance.args[1])
    if not prompt:
        raise InputError(f"task {task.name}, item {item.id}: its prompt has no token; mend the data or the task file")
    longest = options.max_tokens
    if options.max_total_tokens is not None:
        longest = max(1, min(longest, options.max_total_tokens - len(prompt)))
    sampled = options.temperature > 0
    return GenerationRequest(
        prompt_token_ids=prompt[-(max_model_len - longest) :],
        max_tokens=1 if options.first_token_only else longest,
        stop=options.stop,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        min_tokens=options.min_tokens,
        n=_repeats(instance) if sampled else 1,
        seed=hashed_number(f"{task.name}/{item.id}", 4),
        special_tokens=options.special_tokens,
    )


def _repeats(instance: Instance) -> int:
    """How often lm-eval would ask it."""
    return instance.repeats or 1


def _needs_greedy(task: ScoredTask) -> bool:
    """Whether a metric looks at what greedy decoding would have produced; most of multiple choice do not."""
    return task.task.OUTPUT_TYPE != "multiple_choice" or task.metric == "exact_match"
