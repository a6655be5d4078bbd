"""A split, ready to be asked: requests built and tokenised once, then only new answers for each candidate."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from mergebench_ray.config.fields import Split
from mergebench_ray.digests import hashed_number
from mergebench_ray.engines import Generation, GenerationRequest, Likelihood, LoglikelihoodRequest, Request, VLLMEngine
from mergebench_ray.engines.tokens import encode_texts
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.continuations import encode_continuations
from mergebench_ray.evaluation.estimates import Estimate, influences_of_mean
from mergebench_ray.evaluation.grading import Answer, grade, graded_apart, item_score, responses, task_estimate
from mergebench_ray.judges.judges import NO_JUDGES, Judged, Judges, judge_responses
from mergebench_ray.scores import ItemRow, Scores, TaskScore, combine_tasks, in_common, task_names
from mergebench_ray.tasks.generation_options import read_generation_options
from mergebench_ray.tasks.scored_task import Item, ScoredTask
from mergebench_ray.tasks.task_files import Verdict

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Batch


@dataclass(frozen=True)
class Share:
    """Which items an engine is asked, where several engines share a candidate's.

    Attributes:
        index: of the share, from 0.
        count: number of shares.
    """

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class GradedItem:
    """What came of an item.

    Attributes:
        value: of the task's metric, as its aggregation takes it.
        row: what is kept.
        parsed: whether its judge's answer parsed; None without a judge.
    """

    value: Any
    row: ItemRow
    parsed: bool | None


@dataclass(frozen=True)
class GradedShare:
    """What one engine found of its share of the items.

    Attributes:
        items: task's number -> item's place in the task -> what came of it.
        version: weight version of the engine.
        seconds: wall time of answering and grading.
        engine_seconds: part of it in which the engine computed.
        tokens: tokens read and written by the engine.
        truncated: prompts that were cut from the left to fit the context.
        judge_seconds: in which judges computed.
        judge_tokens: tokens read and written by judges.
    """

    items: dict[int, dict[int, GradedItem]]
    version: str
    seconds: float
    engine_seconds: float
    tokens: int
    truncated: int
    judge_seconds: float
    judge_tokens: int


@dataclass(frozen=True)
class _Asked:
    """A request and where its answer belongs, which a task with `repeats` gets that many times."""

    task: int
    item: int
    instance: int
    request: Request
    truncated: bool
    repeats: int


@dataclass(frozen=True)
class _Portion:
    """Items of some tasks that are asked together.

    Attributes:
        tasks: by number, with these items alone.
        places: by task, where each of its items stands in the whole task.
        asked: their requests; `item` counts within the portion.
        batch: the requests as the engine takes them.
    """

    tasks: dict[int, ScoredTask]
    places: dict[int, list[int]]
    asked: list[_Asked]
    batch: Batch


class _Collector:
    """Answers of one candidate as they come; a task with a scorer of its own is graded when its last one is there.

    Such a scorer runs generated programs in processes of their own, which need not wait for the other tasks' answers.
    Other tasks are graded by the caller: lm-eval's metrics may use signals, which only the main thread gets.
    """

    def __init__(self, portion: _Portion, pool: Executor) -> None:
        self.answers: dict[int, list[list[list[Answer]]]] = {
            number: [[[] for _ in item.instances] for item in task.items] for number, task in portion.tasks.items()
        }
        self._tasks = portion.tasks
        self._asked = portion.asked
        self._pool = pool
        self._open = Counter(one.task for one in portion.asked)
        self._graded: dict[int, Future[list[Any]]] = {}

    def take(self, index: int, answer: Generation | Likelihood) -> None:
        """Note the answer to a request."""
        asked = self._asked[index]
        given = [answer.text, *answer.others] if isinstance(answer, Generation) else [answer]
        # Sampled answers are as many as are wanted; others would come out the same each time.
        self.answers[asked.task][asked.item][asked.instance] += given * (asked.repeats // len(given))
        self._open[asked.task] -= 1
        task = self._tasks[asked.task]
        if self._open[asked.task] == 0 and graded_apart(task):
            self._graded[asked.task] = self._pool.submit(grade, task, self.answers[asked.task])

    def values(self, number: int, verdicts: Sequence[Verdict | None] | None) -> list[Any]:
        """Values of a task's items, all of which have been answered."""
        if number in self._graded:
            return self._graded[number].result()
        return grade(self._tasks[number], self.answers[number], verdicts)


class PreparedSplit:
    """All tasks of a split as token ids, for any number of candidates.

    Prompts longer than the context lose their oldest tokens in the engine, as in lm-eval; they are counted here.

    Args:
        split: name of the split, for the results.
        tasks: the tasks with their items.
        tokenizer: the engine's.
        max_model_len: longest prompt plus answer, in tokens.
        judges: the judges that tasks need.
    """

    def __init__(
        self,
        split: Split,
        tasks: Sequence[ScoredTask],
        tokenizer: Any,
        max_model_len: int,
        judges: Judges = NO_JUDGES,
    ) -> None:
        self._split = split
        self._tasks = list(tasks)
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._judges = judges
        self._asked = [*self._prepare_generations(), *self._prepare_loglikelihoods()]
        self._order = _longest_first(self._asked)
        self._portions: dict[tuple[frozenset[int], Share], _Portion] = {}

    def score(self, engine: VLLMEngine, domains: Sequence[str] | None = None) -> Scores:
        """Ask the engine's present weights everything, in one batch, and grade the answers.

        Args:
            engine: answers with whatever weights it holds now.
            domains: some of the prepared domains; None for all.
        """
        return self.combine([self.grade_share(engine, Share(), domains)])

    def grade_share(self, engine: VLLMEngine, share: Share, domains: Sequence[str] | None = None) -> GradedShare:
        """Ask the engine's present weights a share of the items, in one batch, and grade the answers.

        Args:
            engine: answers with whatever weights it holds now.
            share: which items; all shares of one count together are all items.
            domains: some of the prepared domains; None for all.
        """
        started, busy, tokens = time.perf_counter(), engine.busy_seconds, engine.tokens
        chosen = frozenset(
            number for number, task in enumerate(self._tasks) if domains is None or task.domain in domains
        )
        portion = self._portion(engine, chosen, share)
        with ThreadPoolExecutor(1) as pool:
            collector = _Collector(portion, pool)
            engine.forget_prefixes()
            engine.answer(portion.batch, collector.take)
            judged = self._judge(portion, collector.answers)
            items = {number: _graded(portion, number, collector, judged) for number in portion.tasks}
        return GradedShare(
            items=items,
            version=engine.weight_version,
            seconds=time.perf_counter() - started,
            engine_seconds=engine.busy_seconds - busy,
            tokens=engine.tokens - tokens,
            truncated=sum(one.truncated for one in portion.asked),
            judge_seconds=judged.seconds,
            judge_tokens=judged.tokens,
        )

    def combine(self, shares: Sequence[GradedShare]) -> Scores:
        """Scores from all shares of one candidate's items."""
        assert len({share.version for share in shares}) == 1, "engines hold different weights"
        by_domain: dict[str, list[TaskScore]] = {}
        estimates: dict[str, list[Estimate]] = {}
        rows: list[ItemRow] = []
        for number in sorted({number for share in shares for number in share.items}):
            task = self._tasks[number]
            found = {place: item for share in shares for place, item in share.items.get(number, {}).items()}
            items = [found[place] for place in range(len(task.items))]
            estimate, scored = task_estimate(task, [item.value for item in items])
            unparsed = sum(item.parsed is False for item in items) if task.judged else None
            score = TaskScore(
                task=task.name,
                metric=task.metric,
                value=estimate.value,
                standard_error=estimate.standard_error,
                items=scored,
                one_minus=task.one_minus,
                judge_errors=unparsed,
                higher_is_better=task.higher_is_better,
                domain=task.domain,
            )
            by_domain.setdefault(task.domain, []).append(score)
            estimates.setdefault(task.domain, []).append(estimate.turned() if task.one_minus else estimate)
            rows += [item.row for item in items]
        influences = {domain: influences_of_mean(some) for domain, some in estimates.items()}
        known = {domain: one for domain, one in influences.items() if one is not None}
        return Scores(
            split=self._split,
            domains={domain: combine_tasks(tasks, influences[domain]) for domain, tasks in by_domain.items()},
            items=rows,
            version=shares[0].version,
            seconds=max(share.seconds for share in shares),
            engine_seconds=sum(share.engine_seconds for share in shares),
            tokens=sum(share.tokens for share in shares),
            truncated=sum(share.truncated for share in shares),
            tasks=task_names([task for tasks in by_domain.values() for task in tasks]),
            judge_seconds=sum(share.judge_seconds for share in shares),
            judge_tokens=sum(share.judge_tokens for share in shares),
            influences=dict(zip(known, in_common(list(known.values())), strict=True)),
        )

    def _portion(self, engine: VLLMEngine, chosen: frozenset[int], share: Share) -> _Portion:
        """A share of these tasks' items; made once. What is graded apart is asked first."""
        key = (chosen, share)
        if key not in self._portions:
            items = [one for one in self._order if one[0] in chosen][share.index :: share.count]
            places: dict[int, list[int]] = defaultdict(list)
            for number, place in sorted(items):
                places[number].append(place)
            within = {(number, place): i for number, taken in places.items() for i, place in enumerate(taken)}
            asked = [
                replace(one, item=within[one.task, one.item]) for one in self._asked if (one.task, one.item) in within
            ]
            urgent = {index for index, one in enumerate(asked) if graded_apart(self._tasks[one.task])}
            tasks = {
                number: replace(self._tasks[number], items=tuple(self._tasks[number].items[place] for place in taken))
                for number, taken in places.items()
            }
            batch = engine.batch([one.request for one in asked], urgent)
            self._portions[key] = _Portion(tasks, dict(places), asked, batch)
        return self._portions[key]

    def _judge(self, portion: _Portion, answers: Mapping[int, list[list[list[Answer]]]]) -> Judged:
        """Judgements by task, of those that need a judge."""
        tasks = {number: task for number, task in portion.tasks.items() if task.judged is not None}
        shown = {number: responses(task, answers[number]) for number, task in tasks.items()}
        return judge_responses(tasks, shown, self._judges.functions)

    def _prepare_generations(self) -> list[_Asked]:
        prepared = []
        for number, task in enumerate(self._tasks):
            asked = [
                (position, index, instance)
                for position, item in enumerate(task.items)
                for index, instance in enumerate(item.instances)
                if instance.request_type == "generate_until"
            ]
            prompts = encode_texts(self._tokenizer, [instance.args[0] for _, _, instance in asked])
            for (position, index, instance), prompt in zip(asked, prompts, strict=True):
                request = _generation_request(task, task.items[position], instance, prompt, self._max_model_len)
                too_long = len(prompt) > len(request.prompt_token_ids)
                prepared.append(_Asked(number, position, index, request, too_long, _repeats(instance)))
        return prepared

    def _prepare_loglikelihoods(self) -> list[_Asked]:
        prepared = []
        for number, task in enumerate(self._tasks):
            asked = [
                (position, index, instance)
                for position, item in enumerate(task.items)
                for index, instance in enumerate(item.instances)
                if instance.request_type == "loglikelihood"
            ]
            texts = [(task.items[position].id, instance.args) for position, _, instance in asked]
            pairs = encode_continuations(task, texts, self._tokenizer, self._max_model_len)
            for (position, index, instance), (context, continuation) in zip(asked, pairs, strict=True):
                request = LoglikelihoodRequest(context, continuation, _needs_greedy(task))
                # The last token is not read.
                too_long = len(context) + len(continuation) - 1 > self._max_model_len
                prepared.append(_Asked(number, position, index, request, too_long, _repeats(instance)))
        return prepared


def _graded(portion: _Portion, number: int, collector: _Collector, judged: Judged) -> dict[int, GradedItem]:
    """Items of a task by their places in the whole task."""
    task, answers = portion.tasks[number], collector.answers[number]
    judgements = judged.judgements.get(number)
    verdicts = None if judgements is None else [one.verdict for one in judgements]
    values = collector.values(number, verdicts)
    graded = {}
    for index, (place, item) in enumerate(zip(portion.places[number], task.items, strict=True)):
        row = ItemRow(
            domain=task.domain,
            task=task.name,
            item=item.id,
            cluster=item.cluster,
            prompt_digest=item.prompt_digest,
            answer=_answer_text(answers[index]),
            score=item_score(task, values[index]),
            judgement=judgements[index].answer if judgements else "",
        )
        parsed = None if verdicts is None else verdicts[index] is not None
        graded[place] = GradedItem(values[index], row, parsed)
    return graded


def _longest_first(asked: Sequence[_Asked]) -> list[tuple[int, int]]:
    """(Task, item) by the tokens they may take, most first: dealt out in turn, shares are about as long."""
    lengths: Counter[tuple[int, int]] = Counter()
    for one in asked:
        request = one.request
        if isinstance(request, GenerationRequest):
            length = len(request.prompt_token_ids) + request.max_tokens * request.n
        else:
            length = len(request.context_token_ids) + len(request.continuation_token_ids)
        lengths[one.task, one.item] += length
    return sorted(lengths, key=lambda item: (-lengths[item], item))


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


def _answer_text(given: Sequence[Sequence[Answer]]) -> str:
    """The text of a single answer; several answers, or log-likelihoods of choices, as a JSON list."""
    answers = [answer if isinstance(answer, str) else answer[0] for repeats in given for answer in repeats]
    if len(answers) == 1 and isinstance(answers[0], str):
        return answers[0]
    return json.dumps(answers)
