"""Scored items of several models, side by side: what the report's item browser shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mergebench_ray.runs.comparison import Run
from mergebench_ray.runs.items import read_items, read_questions
from mergebench_ray.runs.leaderboard import best_candidate, best_of_each_method, describe, on_split
from mergebench_ray.runs.trials import Trial

MAX_MODELS = 40
MAX_BYTES = 6_000_000
ITEMS_A_TASK = (2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2, 1)
MAX_ANSWER = 1000
MAX_QUESTION = 1500
DIGEST_LENGTH = 16

# Domain, task, item and digest of its prompt: items of two models are the same question only if all agree.
ItemKey = tuple[str, str, str, str]
TaskKey = tuple[str, str]
Scores = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int64]


class Answered(NamedTuple):
    """An answer, its score (None where a metric exists only over all items), and what a judge said of it, if any.

    Items with one `cluster` are not independent of each other.
    """

    answer: str
    score: float | None
    judgement: str
    cluster: str


class Question(NamedTuple):
    """What an item asks, and the answer expected; empty where the task names none."""

    prompt: str
    expected: str


@dataclass(frozen=True)
class ScoredModel:
    """A model and its items.

    Attributes:
        label: name for people.
        run: name of its run.
        trial: what it scored.
        items: what it answered.
    """

    label: str
    run: str
    trial: Trial
    items: dict[ItemKey, Answered]


@dataclass(frozen=True)
class Paired:
    """Two models on the items that both answered.

    Attributes:
        items: number of them that have scores.
        difference: mean of first score − second score.
        standard_error: of `difference`, by cluster of items; None for a single one.
        better: items on which the first scored higher.
        worse: items on which the second did.
    """

    items: int
    difference: float
    standard_error: float | None
    better: int
    worse: int


def scored_models(runs: Sequence[Run]) -> tuple[list[ScoredModel], list[str]]:
    """The models whose items are shown, and the names of those that have no items on disk.

    Of each run the best of every method, the references and the specialists, on test where they were scored there.

    Raises:
        InputError: items that are damaged.
    """
    found: list[ScoredModel] = []
    missing: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for run in runs:
        for trial in _shown(run):
            label = describe(trial)
            key = (trial.digest, trial.items_digest, trial.split)
            if trial.role != "candidate" and key in seen:
                continue
            seen.add(key)
            try:
                items = _items(run, trial)
            except FileNotFoundError:
                missing.append(f"{label} of {run.name}")
                continue
            found.append(ScoredModel(label, run.name, trial, items))
    missing += [f"{model.label} of {model.run}" for model in found[MAX_MODELS:]]
    return found[:MAX_MODELS], missing


def questions_of(runs: Sequence[Run]) -> dict[ItemKey, Question]:
    """What the items of runs ask, as far as the runs kept it."""
    found: dict[ItemKey, Question] = {}
    for run in runs:
        table = read_questions(run.folder, run.summary.last_split)
        for row in table.to_pylist() if table is not None else []:
            found[row["domain"], row["task"], row["item"], row["prompt_digest"]] = Question(
                row["prompt"], row["expected"]
            )
    return found


def paired(first: Scores, second: Scores, clusters: Clusters) -> Paired | None:
    """The difference of two models over the items that both answered; None if there are none.

    Args:
        first: scores of a model, float64, NaN where it was not asked or an item has no score of its own.
        second: scores of the other on the same items in the same order.
        clusters: number of each item's cluster, counted from 0: items of one are not independent.
    """
    differences = first - second
    both = np.isfinite(differences)
    differences, clusters = differences[both], clusters[both]
    count = len(differences)
    if count == 0:
        return None
    mean = float(differences.mean())
    off = np.bincount(clusters, differences - mean)
    independent = np.count_nonzero(np.bincount(clusters))
    error = None
    if independent > 1:
        error = math.sqrt(independent / (independent - 1) * float(off @ off)) / count
    return Paired(count, mean, error, int((differences > 0).sum()), int((differences < 0).sum()))


def item_payload(
    models: Sequence[ScoredModel], questions: Mapping[ItemKey, Question], max_bytes: int = MAX_BYTES
) -> tuple[str, int, int]:
    """What the item browser reads, as JSON: all paired differences, and answers of as many items as there is room for.

    Every task keeps the items with the smallest prompt digests: a fair sample, and the same for every model. Answers
    beyond `MAX_ANSWER` characters are cut; of a question beyond `MAX_QUESTION` its end is kept, behind the examples.

    Returns:
        the JSON, the number of items in it, and the number of items that there are.
    """
    tasks: dict[TaskKey, dict[ItemKey, None]] = {}
    for model in models:
        for key in model.items:
            tasks.setdefault(key[:2], {})[key] = None
    total = sum(len(keys) for keys in tasks.values())
    pairs = _pairs(models, [list(keys) for keys in tasks.values()])
    text, count = "", 0
    for limit in ITEMS_A_TASK:
        kept = {task: sorted(keys, key=lambda key: (key[3], key[2]))[:limit] for task, keys in tasks.items()}
        content = _content(models, questions, kept, {task: len(keys) for task, keys in tasks.items()})
        text = json.dumps(content | {"pairs": pairs}, ensure_ascii=False, separators=(",", ":"))
        count = sum(len(keys) for keys in kept.values())
        if len(text.encode()) <= max_bytes:
            break
    return text, count, total


def _shown(run: Run) -> Iterable[Trial]:
    trials, split = run.summary.trials, run.summary.last_split
    best = best_candidate(trials)
    others = [trial for trial in best_of_each_method(trials) if trial is not best]
    for trial in [*([best] if best else []), *others]:
        yield on_split(trials, trial, split) or trial
    for role in ("average", "reference", "base", "specialist"):
        yield from (trial for trial in trials if trial.role == role and trial.split == split)


def _items(run: Run, trial: Trial) -> dict[ItemKey, Answered]:
    return {
        (row["domain"], row["task"], row["item"], row["prompt_digest"]): Answered(
            row.get("answer") or "", row["score"], row.get("judgement") or "", row.get("cluster") or ""
        )
        for row in read_items(run.folder, trial).to_pylist()
    }


def _pairs(
    models: Sequence[ScoredModel], tasks: Iterable[Sequence[ItemKey]]
) -> dict[str, list[list[float | None] | None]]:
    """For models i < j under "i,j": per task [items, difference, standard error, better, worse], or None."""
    prepared = [([_scores(model, keys) for model in models], _clusters(models, keys)) for keys in tasks]
    found: dict[str, list[list[float | None] | None]] = {}
    for i, j in combinations(range(len(models)), 2):
        row = [_listed(paired(scores[i], scores[j], clusters)) for scores, clusters in prepared]
        if any(row):
            found[f"{i},{j}"] = row
    return found


def _scores(model: ScoredModel, keys: Sequence[ItemKey]) -> Scores:
    answers = [model.items.get(key) for key in keys]
    return np.array([math.nan if answer is None or answer.score is None else answer.score for answer in answers])


def _clusters(models: Sequence[ScoredModel], keys: Sequence[ItemKey]) -> Clusters:
    """A number for each item's cluster, which some runs may not have kept; where none did it is on its own."""
    kept = [next((m.items[key].cluster for m in models if key in m.items and m.items[key].cluster), "") for key in keys]
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(cluster or key, len(numbers)) for key, cluster in zip(keys, kept, strict=True)])


def _higher_is_better(models: Sequence[ScoredModel], domain: str) -> bool:
    return all(model.trial.domains[domain].higher_is_better for model in models if domain in model.trial.domains)


def _listed(result: Paired | None) -> list[float | None] | None:
    if result is None:
        return None
    return [result.items, _rounded(result.difference), _rounded(result.standard_error), result.better, result.worse]


def _content(
    models: Sequence[ScoredModel],
    questions: Mapping[ItemKey, Question],
    kept: dict[TaskKey, list[ItemKey]],
    totals: dict[TaskKey, int],
) -> dict[str, Any]:
    """Each answer's text once, in `texts`; a model's answer is [position in `texts`, score], or 0 for none.

    An item is [item, digest], with the prompt and the expected answer behind them where they are known.
    """
    texts: dict[str, int] = {}
    cells = []
    for model in models:
        columns: list[Any] = []
        for keys in kept.values():
            column: list[Any] = []
            for key in keys:
                found = model.items.get(key)
                if found is None:
                    column.append(0)
                else:
                    cell = [texts.setdefault(_cut(found.answer), len(texts)), _rounded(found.score)]
                    judged = [texts.setdefault(_cut(found.judgement), len(texts))] if found.judgement else []
                    column.append([*cell, *judged])
            columns.append(column if any(column) else 0)
        cells.append(columns)
    several = len({model.run for model in models}) > 1
    return {
        "models": [
            f"{m.label} · {m.run} · {m.trial.split}" if several else f"{m.label} · {m.trial.split}" for m in models
        ],
        "tasks": [
            {
                "name": task[1],
                "domain": task[0],
                "metric": _metric(models, task),
                "lower": not _higher_is_better(models, task[0]),
                "total": totals[task],
                "items": [_listed_item(key, questions.get(key)) for key in keys],
            }
            for task, keys in kept.items()
        ],
        "texts": list(texts),
        "answers": cells,
    }


def _metric(models: Sequence[ScoredModel], task: TaskKey) -> str:
    """What was counted in a task, where a run kept it; several names if runs differ."""
    domain, name = task
    results = [model.trial.domains[domain] for model in models if domain in model.trial.domains]
    return " or ".join(dict.fromkeys(result.counted[name] for result in results if name in result.counted))


def _listed_item(key: ItemKey, question: Question | None) -> list[str]:
    name = [key[2], key[3][:DIGEST_LENGTH]]
    if question is None:
        return name
    left_out = len(question.prompt) - MAX_QUESTION
    prompt = question.prompt if left_out <= 0 else f"[{left_out} more characters] … {question.prompt[left_out:]}"
    return [*name, prompt, question.expected[:MAX_QUESTION]]


def _cut(text: str) -> str:
    left_out = len(text) - MAX_ANSWER
    return text if left_out <= 0 else f"{text[:MAX_ANSWER]} … [{left_out} more characters]"


def _rounded(value: float | None) -> float | None:
    """Four digits are what is shown; NaN is no JSON."""
    return None if value is None or not math.isfinite(value) else round(value, 4)
