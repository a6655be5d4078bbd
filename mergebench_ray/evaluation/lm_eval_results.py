"""Results in lm-eval's own form: its evaluator is run over answers that were given already."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lm_eval
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import sanitize_model_name

from mergebench_ray.config.suite import Suite
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem, GradedItems
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.files import scratch_folder
from mergebench_ray.tasks.groups import lm_eval_groups
from mergebench_ray.tasks.scored_task import ScoredTask
from mergebench_ray.tasks.task_files import quiet_lm_eval

_BOOTSTRAP_ITERS = 1000
"""Draws for an error that has no formula; lm-eval's default of 100,000 takes minutes, and the same to 2 %."""
_IN_ONE_PROCESS = "DISABLE_MULTIPROC"


@dataclass(frozen=True)
class ModelFacts:
    """What lm-eval's files say of the model and of how it was asked.

    Attributes:
        model: its reference.
        dtype: what it computed in.
        asked: arguments of `evaluate` that were not at their defaults.
        limit: first items of each task; None for all.
        chat_template: that was applied; None for none.
    """

    model: str
    dtype: str
    asked: Mapping[str, Any]
    limit: int | float | None
    chat_template: str | None


class _Recorded(LM):  # type: ignore[misc]
    """A model that gives answers which were given before."""

    def __init__(self, answers: Mapping[int, Sequence[Any]]) -> None:
        super().__init__()
        self._answers = {key: iter(repeats) for key, repeats in answers.items()}

    def _give(self, requests: list[Instance]) -> list[Any]:
        return [next(self._answers[id(request)]) for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until = _give


class _Answered:
    """What of a task lm-eval's evaluator asks, of a task whose items were asked: mixed into the task's own class."""

    _instances: list[Instance]
    _asked: list[tuple[int, dict[str, Any]]]
    _num_documents: int
    _values: dict[int, dict[str, Any]] | None

    def build_all_requests(self, **_options: Any) -> None:
        """Nothing: they are there."""

    def doc_iterator(self, **_options: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        """The documents that were asked, with their places in the split."""
        return iter(self._asked)

    @property
    def eval_docs(self) -> range:
        """As many as the split has documents: how many is all that is asked of it."""
        return range(self._num_documents)

    def process_results(self, document: dict[str, Any], results: Any) -> Any:
        """Metrics of an answer; of a judge, or of programs that ran in the sandbox, what these came to."""
        if self._values is not None:
            return self._values[id(document)]
        return super().process_results(document, results)  # type: ignore[misc]


def lm_eval_results(suite: Suite, tasks: Sequence[ScoredTask], items: GradedItems, facts: ModelFacts) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` returns, samples included.

    All of a task's filters and metrics are there, but of tasks that a judge or a sandbox grades: of those what counts.

    Args:
        suite: names the tasks.
        tasks: with the items that were asked.
        items: by place in the split, what came of them, answers included.
        facts: of the model.
    """
    answers: dict[int, Sequence[Any]] = {}
    answered: dict[str, Any] = {}
    place = 0
    for task in tasks:
        graded = [items[place + index] for index in range(len(task.items))]
        place += len(task.items)
        name = task.name if task.name not in answered else f"{task.domain}.{task.name}"
        answered[name] = _answered(task, graded, answers)
    in_one_process = os.environ.get(_IN_ONE_PROCESS)
    os.environ[_IN_ONE_PROCESS] = "1"  # its own would be forks of this process, which has threads
    try:
        with quiet_lm_eval():
            results: dict[str, Any] = evaluator.evaluate(
                lm=_Recorded(answers),
                task_dict={"tasks": answered, "groups": lm_eval_groups(suite, answered)},
                bootstrap_iters=_BOOTSTRAP_ITERS,
                confirm_run_unsafe_code=True,  # nothing runs: `_Answered` has the values
            )
    finally:
        if in_one_process is None:
            del os.environ[_IN_ONE_PROCESS]
        else:
            os.environ[_IN_ONE_PROCESS] = in_one_process
    return {**results, **_about_the_run(facts)}


def write_lm_eval_files(folder: Path, results: dict[str, Any], facts: ModelFacts) -> None:
    """Write what lm-eval writes with `--output_path FOLDER --log_samples`.

    Args:
        folder: gets a folder for the model, as there, with results_TIME.json and a samples_TASK_TIME.jsonl a task.
        results: as `lm_eval_results` makes them.
        facts: of the model.

    Raises:
        InputError: they cannot be written.
    """
    samples = results.pop("samples")
    target = folder / sanitize_model_name(facts.model)
    target.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target / "results") as scratch, quiet_lm_eval():
        tracker = EvaluationTracker(output_path=str(scratch))
        tracker.general_config_tracker.log_experiment_args(
            model_source="mergebench_ray",
            model_args={"pretrained": facts.model},
            system_instruction=facts.asked.get("system_instruction"),
            chat_template=facts.chat_template,
            fewshot_as_multiturn=bool(facts.chat_template) and facts.asked.get("fewshot_as_multiturn") is not False,
        )
        tracker.save_results_aggregated(results=results, samples=samples)
        for name, some in samples.items():
            tracker.save_results_samples(task_name=name, samples=some)
        written = sorted(scratch.rglob("*.json*"), key=lambda file: file.suffix == ".json")
        if len(written) < len(samples) + 1:  # lm-eval goes on where it cannot write
            raise InputError(f"{target}: lm-eval could not write its files; look for room on the disk")
        for file in written:  # the results last: where they are, all is there
            file.rename(target / file.name)


def _answered(task: ScoredTask, graded: Sequence[GradedItem], answers: dict[int, Sequence[Any]]) -> Task:
    """A copy of a task that has its items' requests, whose answers are added to `answers`."""
    made = type("Answered", (_Answered, type(task.task)), {})
    copied: Any = object.__new__(made)
    copied.__dict__.update(task.task.__dict__)
    copied._instances, copied._asked = [], []
    fixed = task.judged is not None or task.batch_scorer is not None or task.task.config.unsafe_code
    copied._values = {} if fixed else None
    for item, one in zip(task.items, graded, strict=True):
        document = copy.deepcopy(item.doc)
        copied._asked.append((item.instances[0].doc_id, document))
        if fixed:
            copied._values[id(document)] = {} if one.value is ABSENT else {task.metric: one.value}
        for instance, repeats in zip(item.instances, one.answers, strict=True):
            request = replace(instance, doc=document, resps=[], filtered_resps={})
            answers[id(request)] = repeats
            copied._instances.append(request)
    copied._num_documents = task.num_documents
    return cast(Task, copied)


def _about_the_run(facts: ModelFacts) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` adds to the results of its evaluator, as far as it is about this run."""
    return {
        "config": {
            "model": "mergebench_ray",
            "model_args": {"pretrained": facts.model},
            "model_dtype": facts.dtype,
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": facts.limit,
            "bootstrap_iters": _BOOTSTRAP_ITERS,
            "gen_kwargs": facts.asked.get("gen_kwargs"),
            "random_seed": None,
            "numpy_seed": None,
            "torch_seed": None,
            "fewshot_seed": DEFAULT_OTHER_SEED,
        },
        "git_hash": None,
        "date": time.time(),
        "lm_eval_version": lm_eval.__version__,
    }
