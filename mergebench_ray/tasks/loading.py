"""Tasks of a suite: lm-eval tasks with a chosen split, as items that can be asked and graded."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from mergebench_ray.config.evaluation import EvaluationOptions, ModelEvaluationOptions
from mergebench_ray.config.fields import SPLITS, DataSplit, Split, data_split_of
from mergebench_ray.config.suite import Suite, TaskSettings
from mergebench_ray.errors import InputError, about, nearest
from mergebench_ray.scores import check_directions
from mergebench_ray.tasks.chat import ChatTemplate, Conversation
from mergebench_ray.tasks.code_execution import check_code_execution
from mergebench_ray.tasks.data_errors import data_source, explain_data_errors
from mergebench_ray.tasks.examples import check_examples, scored_splits
from mergebench_ray.tasks.generation_options import read_generation_options
from mergebench_ray.tasks.groups import PlannedTask, planned_tasks
from mergebench_ray.tasks.held_back import hold_back, most_items
from mergebench_ray.tasks.items import ItemMaker
from mergebench_ray.tasks.local_data import check_data_files, dataset_id, local_datasets, local_source, missing_file
from mergebench_ray.tasks.metrics import check_metrics_and_filters, find_direction, try_metric
from mergebench_ray.tasks.protocol import data_split, is_generated, overrides
from mergebench_ray.tasks.scored_task import ROLLING, Item, JudgedBy, ScoredTask
from mergebench_ray.tasks.splits import with_note
from mergebench_ray.tasks.task_files import (
    import_functions,
    load_task,
    metadata_function,
    quiet_lm_eval,
    task_manager,
)

_MOST_REPEATS = 10_000
_NUM_ARGUMENTS = {"generate_until": 2, "loglikelihood": 2, ROLLING: 1}
"""What can be asked of an engine, and of how many parts such a request of lm-eval's is."""


def load_tasks(
    suite: Suite,
    split: Split,
    options: EvaluationOptions,
    domains: Sequence[str] | None = None,
    judges: Mapping[str, str] = MappingProxyType({}),
    template: ChatTemplate | None = None,
) -> list[ScoredTask]:
    """Build the tasks of a suite on one split, without any engine.

    Args:
        suite: names the tasks of each domain.
        split: which items; a task's others are never asked.
        options: how many items, which domains, and whether generated programs may run.
        domains: some of the chosen domains; None for all of them.
        judges: judges at hand, name -> digest. A task whose judge is missing counts its `without_judge` metric.
        template: the model's, where the options ask for it.

    Raises:
        InputError: unknown task, metric or domain; a task without that split; programs that are not allowed to run or
            cannot be isolated; data that is missing or lacks a field. All task files are checked before any data.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    from_data = data_split_of(split)
    chosen = chosen_domains(suite, options, domains)
    check_programs_may_run(suite, from_data, options, chosen)
    check_task_files(suite, from_data, chosen, judges, options.gen_kwargs)
    manager = task_manager(suite)
    wanted = [(domain, task) for domain in chosen for task in planned_tasks(suite, domain, split)]
    for _, one in wanted:
        if problem := missing_file(one.name, one.file(manager, suite)):
            raise InputError(problem)
    _check_asking(options, {one.name: one.file(manager, suite) for _, one in wanted})
    conversation = Conversation.of(options, template)
    tasks = [_build(manager, suite, domain, one, from_data, options, judges, conversation) for domain, one in wanted]
    if template is not None and template.drops_system:
        note = "the model's chat template refuses system messages, so that they are left out, as in lm-eval"
        tasks[0] = replace(tasks[0], notes=(*tasks[0].notes, note))
    for domain in dict.fromkeys(task.domain for task in tasks):
        check_directions(
            domain, {one.name: (one.counted, one.higher_is_better) for one in tasks if one.domain == domain}
        )
    if split == "test":
        return with_note(tasks, [one for _, one in wanted], suite)
    if split == "validation" and options.final_items == 0:
        return tasks
    searched, held_back = hold_back(tasks, options)
    return held_back if split == "final" else searched


def check_task_files(
    suite: Suite,
    split: DataSplit,
    domains: Iterable[str],
    judges: Collection[str],
    gen_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Everything that task files alone can tell, without any data.

    Args:
        suite: names the tasks.
        split: whose items will be asked.
        domains: of the suite.
        judges: names of those at hand.
        gen_kwargs: options of generation that replace those of task files and suite.

    Raises:
        InputError: an unknown task or metric, a task without that split, or settings that cannot be honoured.
    """
    manager = task_manager(suite)
    for domain in domains:
        for task in planned_tasks(suite, domain, split):
            name, settings, config = task.name, task.settings, task.file(manager, suite)
            _check_task_file(name, config, settings, split)
            changed = {**config, **overrides(config, settings, split, False, gen_kwargs)}
            with about("gen_kwargs") if gen_kwargs else nullcontext():
                _check_decoding(suite, name, changed)
            check_examples(name, changed, scored_splits(config, settings))
            _check_counted(manager, name, config, _counted(name, config, settings, judges)[0])


def check_programs_may_run(suite: Suite, split: DataSplit, options: EvaluationOptions, domains: Iterable[str]) -> None:
    """Let this process run generated programs as the options allow it, if tasks ask for that.

    Raises:
        InputError: it is not allowed, or the system cannot isolate programs and a weak sandbox is not allowed.
    """
    manager = task_manager(suite)
    for domain in domains:
        for task in planned_tasks(suite, domain, split):
            if task.file(manager, suite).get("unsafe_code"):
                check_code_execution(task.name, options)


def chosen_domains(suite: Suite, options: EvaluationOptions, domains: Sequence[str] | None = None) -> list[str]:
    """Domains to score, in the suite's order; what must not be forgotten only if it is named.

    Raises:
        InputError: if one is not a domain of the suite.
    """
    chosen = domains or options.domains or list(suite.domains)
    for domain in chosen:
        if domain not in suite.scored:
            raise InputError(f"suite {suite.name} has no domain {domain!r}; {nearest(domain, suite.scored)}")
    return [domain for domain in suite.scored if domain in chosen]


def _check_task_file(name: str, config: Mapping[str, Any], settings: TaskSettings, split: DataSplit) -> None:
    for option in ("doc_to_image", "doc_to_audio"):
        if config.get(option):
            raise InputError(f"task {name}: {option}: only text can be asked; leave the task out")
    check_data_files(name, config)
    kind = config.get("output_type", "generate_until")
    if kind == ROLLING and settings.num_fewshot:
        raise InputError(
            f"task {name}: num_fewshot: {settings.num_fewshot}: texts are scored by themselves, without examples; "
            "leave it out"
        )
    if "class" not in config and not data_split(config, settings, split):
        raise InputError(f"task {name} has no {split} split; add {split}_split to its task file")


def _check_asking(options: EvaluationOptions, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options that no task's file gives a meaning to."""
    if options.gen_kwargs and not any(map(is_generated, files.values())):
        raise InputError("gen_kwargs: none of the tasks has answers that are written; leave it out")
    for name in (options.samples if isinstance(options, ModelEvaluationOptions) else None) or ():
        if name not in files:
            raise InputError(f"samples: no task {name!r} is scored; {nearest(name, files)}")


def _limited(items: Iterator[Item], options: EvaluationOptions, split: DataSplit) -> tuple[Item, ...]:
    """The items that the options ask for: the first, by number or share."""
    if isinstance(options, ModelEvaluationOptions) and options.items_share is not None:
        found = tuple(items)
        return found[: math.ceil(len(found) * options.items_share)]
    return tuple(islice(items, most_items(options) if split == "validation" else options.test_items))


def _check_counted(manager: TaskManager, name: str, config: Mapping[str, Any], counted: str) -> None:
    try:
        check_metrics_and_filters(name, config, counted)
    except InputError:
        # It may be there once the task's own Python files are imported, which takes time.
        import_functions(manager, name)
        check_metrics_and_filters(name, config, counted)


def _build(
    manager: TaskManager,
    suite: Suite,
    domain: str,
    planned: PlannedTask,
    split: DataSplit,
    options: EvaluationOptions,
    judges: Mapping[str, str],
    conversation: Conversation,
) -> ScoredTask:
    name, settings, config = planned.name, planned.settings, planned.file(manager, suite)
    asked = data_split(config, settings, split)
    path = str(config.get("dataset_path"))
    file = local_source(options.data, path, config.get("dataset_name"))
    source = str(file or data_source(config, asked))
    changed = {**planned.changed, **overrides(config, settings, split, file is not None, options.gen_kwargs)}
    if (options_of_data := config.get("dataset_kwargs")) != (manager.task_index[name].cfg or {}).get("dataset_kwargs"):
        changed["dataset_kwargs"] = options_of_data
    samples = options.samples if isinstance(options, ModelEvaluationOptions) else None
    maker = ItemMaker(
        name, config, source, split, settings, suite.held_out_share, conversation, (samples or {}).get(name)
    )
    gated = path in suite.gated_data
    splits = [value for key, value in {**config, **changed}.items() if key.endswith("_split")]
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    known = [str(one) for one in files] if isinstance(files, Mapping) and file is None else []
    with explain_data_errors(name, source, dataset_id(config), gated, splits, known), quiet_lm_eval():
        with local_datasets(options.data, asked):
            task = load_task(manager, name, changed)
        documents = maker.documents(task)
        items = _limited(maker.items(task, documents), options, split)
        if settings.try_grading:
            _try_grading(task, name, items)
    _check_asked(suite, name, items)
    if not items:
        raise InputError(f"task {name}: {source} has no item in its {split} split; check the data")
    metric, one_minus, judge = _counted(name, config, settings, judges)
    metric, _, filter_name = metric.partition(",")
    # What counts without the judge is another metric, to which the suite's settings do not apply.
    wanted = settings.higher_is_better if metric == settings.metric.partition(",")[0] else None
    try_metric(task, name, metric, items[0].doc, len(items[0].instances))
    direction = find_direction(task, name, metric, one_minus, wanted)
    task_file = manager.task_index[name].yaml_path
    return ScoredTask(
        domain=domain,
        name=name,
        metric=metric,
        one_minus=one_minus,
        higher_is_better=direction.higher_is_better,
        notes=(*planned.notes, *direction.notes, *_unasked(task, name, conversation)),
        filter_name=_check_filter(task, name, filter_name),
        judged=None if judge is None else _judged(task, name, judge, judges[judge], items, task_file),
        task=task,
        items=items,
        num_documents=len(documents),
        batch_scorer=metadata_function(task, name, "batch_scorer", task_file),
        file=task_file,
        group=planned.group,
        pooled=planned.pooled,
    )


def _unasked(task: Task, name: str, conversation: Conversation) -> list[str]:
    """What of a conversation a task leaves out."""
    if task.OUTPUT_TYPE != ROLLING or conversation.is_plain:
        return []
    return [f"task {name}: its texts are scored by themselves, without chat template and system instruction"]


def needed_judge(config: Mapping[str, Any]) -> str | None:
    """Name of the judge that a task file asks for."""
    judge = (config.get("metadata") or {}).get("judge")
    return None if judge is None else str(judge)


def _counted(
    name: str, config: Mapping[str, Any], settings: TaskSettings, judges: Collection[str]
) -> tuple[str, bool, str | None]:
    """Metric that counts, whether it is taken from 1, and the judge it needs."""
    judge = needed_judge(config)
    if judge is None or judge in judges:
        return settings.metric, settings.one_minus, judge
    if settings.without_judge is None:
        raise InputError(
            f"task {name}: needs the judge {judge}, which is not at hand, and the suite names no without_judge metric; "
            f"give --judge {judge}=MODEL or evaluation.judges.{judge}, or leave the task out"
        )
    return settings.without_judge, False, None


def _judged(task: Task, name: str, judge: str, digest: str, items: Sequence[Item], task_file: Path | None) -> JudgedBy:
    field = str((task.config.metadata or {}).get("judged_field"))
    scorer = metadata_function(task, name, "verdict_scorer", task_file)
    if scorer is None or not all(isinstance(item.doc.get(field), str) for item in items):
        raise InputError(
            f"task {name}: its judge {judge} needs a verdict_scorer, and a judged_field (now {field}) with a text in "
            "every item; mend the task file's metadata"
        )
    return JudgedBy(judge, digest, field, scorer)


def _check_decoding(suite: Suite, name: str, config: Mapping[str, Any]) -> None:
    """What a task file, with a suite's settings over it, says of the answers and how often they are asked for."""
    repeats = config.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not 1 <= repeats <= _MOST_REPEATS:
        raise InputError(f"task {name}: repeats: {repeats}: give an integer from 1 to {_MOST_REPEATS}")
    if is_generated(config) and "class" not in config:
        _check_room(suite, name, config.get("generation_kwargs") or {})


def _check_asked(suite: Suite, name: str, items: Iterable[Item]) -> None:
    """What is asked in the end: tasks that are classes of their own may ask what no task file says."""
    known: Any = None
    for item, instance in ((one, instance) for one in items for instance in one.instances):
        arguments = instance.args
        if len(arguments) != _NUM_ARGUMENTS.get(instance.request_type):
            raise InputError(f"task {name}: asks for more than texts and their likelihoods; leave the task out")
        texts = arguments[:1] if instance.request_type == "generate_until" else arguments
        if not all(isinstance(text, str) for text in texts) or texts[1:] == ("",):
            raise InputError(f"task {name}, item {item.id}: a prompt or choice is no text, or empty; mend the data")
        if instance.request_type == "generate_until" and arguments[1] != known:
            known = arguments[1]
            _check_room(suite, name, known)


def _check_room(suite: Suite, name: str, options: Mapping[str, Any]) -> None:
    longest = read_generation_options(name, options).max_tokens
    if longest >= suite.max_model_len:
        raise InputError(
            f"task {name}: answers of {longest} tokens leave no room for a prompt in suite "
            f"{suite.name}'s max_model_len {suite.max_model_len}; lower max_gen_toks or raise max_model_len"
        )


def _try_grading(task: Task, name: str, items: Iterable[Item]) -> None:
    """Score a made-up answer to every item, for fields and resources that only scoring would miss."""
    for item in items:
        try:
            task.process_results(copy.deepcopy(item.doc), ["A sentence."] * len(item.instances))
        except (KeyError, IndexError):
            raise
        except LookupError as error:
            missing = re.search(r"Resource \W*([\w./-]+)", str(error))
            what = f"NLTK's {missing[1]}" if missing else str(error)
            raise InputError(
                f"task {name}: scoring needs {what}, which is not on this machine; "
                "run `python -m nltk.downloader punkt_tab` where there is a net and name its folder in NLTK_DATA"
            ) from error


def _check_filter(task: Task, name: str, filter_name: str) -> str:
    known = [ensemble.name for ensemble in task._filters]
    if filter_name and filter_name not in known:
        raise InputError(f"task {name} has no filter {filter_name!r}; {nearest(filter_name, known)}")
    return filter_name or known[0]
