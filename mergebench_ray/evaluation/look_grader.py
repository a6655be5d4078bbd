"""Grading while other answers are still written: answers as they come, graded look by look."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

from lm_eval.api.instance import Instance

from mergebench_ray.engines import Generation, Likelihood
from mergebench_ray.evaluation.asked import Asked, Questions
from mergebench_ray.evaluation.graded import GradedItem, GradedItems
from mergebench_ray.evaluation.grading import Answer, grade, graded_apart, item_score, responses
from mergebench_ray.judges.judges import Judged, Judges, judge_responses
from mergebench_ray.scores import ItemRow
from mergebench_ray.tasks.scored_task import ROLLING


class LookGrader:
    """Answers of one candidate, graded in looks: items that are handed out together.

    Tasks with a scorer of their own, which runs generated programs in processes of their own, and judges are asked in
    other threads as soon as the answers are there. Other tasks are graded in the caller's thread: lm-eval's metrics may
    use signals, which only the main thread gets.

    A context manager: what is not graded at its end is dropped.

    Args:
        questions: tasks and their items.
        looks: by look, its items.
        judges: the judges that the tasks need.

    Attributes:
        handed_out: looks so far.
        judge_seconds: that judges took for these.
        judge_tokens: that they read and wrote for these.
    """

    def __init__(self, questions: Questions, looks: Sequence[Sequence[int]], judges: Judges) -> None:
        self.handed_out, self.judge_seconds, self.judge_tokens = 0, 0.0, 0
        self._judges = judges
        self._programs, self._judging = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._to_come = deque(_Look(questions, items) for items in looks)
        self._look_of = {item: look for items, look in zip(looks, self._to_come, strict=True) for item in items}
        for look in self._to_come:
            self._ask_judges(look)

    def __enter__(self) -> LookGrader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._programs, self._judging):
            pool.shutdown(wait=False, cancel_futures=True)

    def take(self, asked: Asked, answer: Generation | Likelihood) -> None:
        """Note the answer to a request; that of an item which is in no look is passed over."""
        look = self._look_of.get(asked.item)
        if look is None:
            return
        look.take(asked, answer)
        task = look.tasks[asked.task]
        if look.open[asked.task] == 0 and graded_apart(task):
            look.programs[asked.task] = self._programs.submit(grade, task, look.answers_of(asked.task))
        self._ask_judges(look)

    def graded(self, *, wait: bool = False) -> Iterator[GradedItems]:
        """The looks, one after the other, as far as they are complete.

        Args:
            wait: for programs and judges; to be asked for when everything has been answered.
        """
        while self._to_come and (wait or self._to_come[0].is_complete()):
            look = self._to_come.popleft()
            self.handed_out += 1
            judged = look.judged.result() if look.judged is not None else Judged({}, 0.0, 0)
            self.judge_seconds += judged.seconds
            self.judge_tokens += judged.tokens
            yield {item: one for number in look.tasks for item, one in look.graded(number, judged).items()}

    def _ask_judges(self, look: _Look) -> None:
        if look.judged is not None or look.open.total():
            return
        tasks = {number: task for number, task in look.tasks.items() if task.judged is not None}
        if tasks:
            shown = {number: responses(task, look.answers_of(number)) for number, task in tasks.items()}
            look.judged = self._judging.submit(judge_responses, tasks, shown, self._judges.functions)


class _Look:
    """Items that are graded together.

    Attributes:
        tasks: by number, with these items alone.
        open: by task, number of answers that are missing.
        programs: values of tasks that are graded apart.
        judged: what judges say of all the items; None until they are asked.
    """

    def __init__(self, questions: Questions, items: Sequence[int]) -> None:
        self._items: dict[int, list[int]] = defaultdict(list)
        for item in sorted(items):
            self._items[questions.task_of(item)].append(item)
        self.tasks = {
            number: replace(questions.tasks[number], items=tuple(questions.item(one) for one in some))
            for number, some in self._items.items()
        }
        self.open = Counter({questions.task_of(item): 0 for item in items})
        for item in items:
            self.open[questions.task_of(item)] += len(questions.asked[item])
        self.programs: dict[int, Future[list[Any]]] = {}
        self.judged: Future[Judged] | None = None
        self._answers: dict[int, list[list[Answer]]] = {
            item: [[] for _ in questions.item(item).instances] for item in items
        }
        self._questions = questions

    def take(self, asked: Asked, answer: Generation | Likelihood) -> None:
        given = [answer.text, *answer.others] if isinstance(answer, Generation) else [answer]
        # Sampled answers are as many as are wanted; others would come out the same each time.
        self._answers[asked.item][asked.instance] += given * (asked.repeats // len(given))
        self.open[asked.task] -= 1

    def answers_of(self, number: int) -> list[list[list[Answer]]]:
        """Answers to a task's items."""
        return [
            [
                _whole(instance, given)
                for instance, given in zip(self._questions.item(item).instances, self._answers[item], strict=True)
            ]
            for item in self._items[number]
        ]

    def is_complete(self) -> bool:
        """Whether everything is answered, and programs and judges are done."""
        judged = self.judged is None or self.judged.done()
        return judged and not self.open.total() and all(one.done() for one in self.programs.values())

    def graded(self, number: int, judged: Judged) -> GradedItems:
        """What came of a task's items."""
        task, answers = self.tasks[number], self.answers_of(number)
        judgements = judged.judgements.get(number)
        verdicts = None if judgements is None else [one.verdict for one in judgements]
        values = self.programs[number].result() if number in self.programs else grade(task, answers, verdicts)
        graded = {}
        for index, (place, item) in enumerate(zip(self._items[number], task.items, strict=True)):
            row = ItemRow(
                domain=task.domain,
                task=task.entry,
                item=task.item_name(item),
                cluster=item.cluster,
                prompt_digest=item.prompt_digest,
                answer=_answer_text(answers[index]),
                score=item_score(task, values[index]),
                judgement=judgements[index].answer if judgements else "",
            )
            parsed = None if verdicts is None else verdicts[index] is not None
            graded[place] = GradedItem(values[index], row, parsed, answers[index])
        return graded


def _whole(instance: Instance, given: list[Answer]) -> list[Answer]:
    """The answers to an instance: of a text that was scored in windows, in whatever order, their sum."""
    if instance.request_type != ROLLING:
        return given
    total = math.fsum(window[0] for window in given if isinstance(window, tuple))
    return [total] * (instance.repeats or 1)


def _answer_text(given: Sequence[Sequence[Answer]]) -> str:
    """The text of a single answer; several answers, or log-likelihoods of choices, as a JSON list."""
    answers = [answer[0] if isinstance(answer, tuple) else answer for repeats in given for answer in repeats]
    if len(answers) == 1 and isinstance(answers[0], str):
        return answers[0]
    return json.dumps(answers)
