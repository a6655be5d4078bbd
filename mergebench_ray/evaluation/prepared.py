"""A split, ready to be asked: requests built and tokenised once, then only new answers for each candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from mergebench_ray.config.fields import Split
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.evaluation.asked import Asked, Questions
from mergebench_ray.evaluation.estimates import Estimate, influences_of_mean
from mergebench_ray.evaluation.graded import GradedShare, Spent
from mergebench_ray.evaluation.grading import ABSENT, averaged, check_looks, graded_apart, task_estimate
from mergebench_ray.evaluation.group_scores import Part, pooled
from mergebench_ray.evaluation.look_grader import LookGrader
from mergebench_ray.evaluation.order import Order, Share
from mergebench_ray.evaluation.share_scoring import Alone, ShareScoring
from mergebench_ray.judges.judges import NO_JUDGES, Judges
from mergebench_ray.scores import ItemRow, Scores, TaskScore, combine_tasks, in_common, task_names
from mergebench_ray.tasks.scored_task import ScoredTask

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Batch


@dataclass(frozen=True)
class _Portion:
    """Items that are asked together.

    Attributes:
        items: their places in the split, in the order in which they are asked.
        asked: their requests.
        batch: the requests as the engine takes them.
    """

    items: Sequence[int]
    asked: list[Asked]
    batch: Batch


class PreparedSplit:
    """All tasks of a split as token ids, for any number of candidates.

    Prompts longer than the context lose their oldest tokens in the engine, as in lm-eval; they are counted here.

    Args:
        split: name of the split, for the results.
        tasks: the tasks with their items.
        tokenizer: the engine's.
        max_model_len: longest prompt plus answer, in tokens.
        judges: the judges that tasks need.
        all_greedy: whether it is asked of every choice if greedy decoding gives it, wanted or not.
    """

    def __init__(
        self,
        split: Split,
        tasks: Sequence[ScoredTask],
        tokenizer: Any,
        max_model_len: int,
        judges: Judges = NO_JUDGES,
        *,
        all_greedy: bool = False,
    ) -> None:
        self._split = split
        self._questions = Questions(tasks, tokenizer, max_model_len, all_greedy=all_greedy)
        self._judges = judges
        self._longest_first = self._questions.longest_first()
        self._portions: dict[tuple[frozenset[int], Share, frozenset[int]], _Portion] = {}
        self._in_order: tuple[tuple[int, ...], _Portion] | None = None

    def score(self, engine: VLLMEngine, domains: Sequence[str] | None = None) -> Scores:
        """Ask the engine's present weights everything, in one batch, and grade the answers.

        Args:
            engine: answers with whatever weights it holds now.
            domains: some of the prepared domains; None for all.
        """
        return self.combine([self.grade_share(engine, Share(), domains)])

    def grade_share(
        self,
        engine: VLLMEngine,
        share: Share,
        domains: Sequence[str] | None = None,
        without: frozenset[int] = frozenset(),
    ) -> GradedShare:
        """Ask the engine's present weights a share of the items, in one batch, and grade the answers.

        Args:
            engine: answers with whatever weights it holds now.
            share: which items; all shares of one count together are all items.
            domains: some of the prepared domains; None for all.
            without: places of items that are not asked.
        """
        tasks = self._questions.tasks
        chosen = frozenset(number for number, task in enumerate(tasks) if domains is None or task.domain in domains)
        portion = self._portion(engine, chosen, share, without)
        grader = LookGrader(self._questions, [portion.items], self._judges)
        scoring = ShareScoring(engine, portion.asked, portion.batch.prompts, None, grader)
        [items] = scoring.looks()
        return scoring.spent(items)

    def score_in_order(self, engine: VLLMEngine, order: Order, share: Share) -> ShareScoring:
        """Ask the engine's present weights items in a given order, to look at them while others are asked.

        Answers until a stop are those of the whole, bit for bit. Those from `order.start` on, which a candidate gets
        that is merged and loaded again, are not quite: the sequences that were computed beside the first of them are
        missing, and with them what the prefix cache held. In float32 that is rounding, in bf16 a near-tie between two
        tokens may fall the other way. They are always the same for equal weights, order and start, so they do not
        depend on when a candidate was stopped, only on the look from which it goes on.

        Args:
            engine: answers with whatever weights it holds now.
            order: which items, and when to look.
            share: of this engine; `Share()` is everything.

        Raises:
            InputError: if the order has looks and a task's metric exists only over all of its items.
        """
        questions, dealt = self._questions, order.dealt(share)
        if order.looks:
            check_looks(
                questions.tasks[number] for number in sorted({questions.task_of(item) for item in order.places})
            )
        if self._in_order is None or self._in_order[0] != dealt:
            asked = [one for item in dealt for one in questions.asked[item]]
            batch = engine.batch([one.request for one in asked], in_order=True)
            self._in_order = dealt, _Portion(dealt, asked, batch)
        portion = self._in_order[1]
        looks = order.by_look(share)
        wanted = {item for look in looks for item in look}
        asked = portion.asked
        prompts = [one for one in portion.batch.prompts if any(asked[index].item in wanted for index in one.requests)]
        first = order.alone_of(share)
        alone = Alone(
            prompts=sum(any(asked[index].item in first for index in one.requests) for one in prompts),
            looks=order.looks_alone,
        )
        grader = LookGrader(questions, looks, self._judges)
        return ShareScoring(engine, asked, prompts, order.in_flight, grader, alone)

    def combine(self, shares: Sequence[GradedShare], *, partial: bool = False) -> Scores:
        """Scores from all shares of one candidate's items.

        Args:
            shares: of engines that answered side by side.
            partial: whether items of the tasks may be missing, as those of a candidate that was stopped: then the
                others are what is scored, and tasks without any are left out.
        """
        assert len({share.version for share in shares}) == 1, "engines hold different weights"
        spent = reduce(Spent.beside, [share.spent for share in shares])
        found = {place: item for share in shares for place, item in share.items.items()}
        parts: dict[tuple[str, str], list[Part]] = {}
        rows: list[ItemRow] = []
        for number in sorted({self._questions.task_of(place) for place in found}):
            places = [place for place in self._questions.items[number] if not partial or place in found]
            task = replace(self._questions.tasks[number], items=tuple(self._questions.item(place) for place in places))
            items = [found[place] for place in places]
            if partial and all(item.value is ABSENT for item in items):
                continue
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
                group=task.group,
            )
            counted = estimate.turned() if task.one_minus else estimate
            means = averaged(task, [item.value for item in items]) if task.pooled else None
            parts.setdefault((task.domain, task.entry), []).append(Part(score, counted, means))
            rows += [item.row for item in items]
        tasks: list[TaskScore] = []
        by_domain: dict[str, list[TaskScore]] = {}
        estimates: dict[str, list[Estimate]] = {}
        for (domain, entry), some in parts.items():
            whole, counted = some[0][:2] if some[0].score.task == entry else pooled(entry, some)
            by_domain.setdefault(domain, []).append(whole)
            estimates.setdefault(domain, []).append(counted)
            tasks += dict.fromkeys([whole, *(part.score for part in some)])
        influences = {domain: influences_of_mean(some) for domain, some in estimates.items()}
        known = {domain: one for domain, one in influences.items() if one is not None}
        return Scores(
            split=self._split,
            domains={domain: combine_tasks(found, influences[domain]) for domain, found in by_domain.items()},
            items=rows,
            version=shares[0].version,
            seconds=spent.seconds,
            engine_seconds=spent.engine_seconds,
            tokens=spent.tokens,
            truncated=spent.truncated,
            tasks=task_names(tasks),
            judge_seconds=spent.judge_seconds,
            judge_tokens=spent.judge_tokens,
            influences=dict(zip(known, in_common(list(known.values())), strict=True)),
        )

    def _portion(self, engine: VLLMEngine, chosen: frozenset[int], share: Share, without: frozenset[int]) -> _Portion:
        """A share of these tasks' items; made once. What is graded apart is asked first."""
        key = (chosen, share, without)
        if key not in self._portions:
            questions = self._questions
            mine = [one for one in self._longest_first if questions.task_of(one) in chosen and one not in without]
            items = sorted(mine[share.index :: share.count])
            asked = [one for item in items for one in questions.asked[item]]
            urgent = {index for index, one in enumerate(asked) if graded_apart(questions.tasks[one.task])}
            self._portions[key] = _Portion(items, asked, engine.batch([one.request for one in asked], urgent))
        return self._portions[key]
