"""Judges: found before anything starts, run in actors of their own, asked once a candidate about all of its answers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError

from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.config.engine import EngineSettings
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.engines.environment import ACTOR_ENVIRONMENT
from mergebench_ray.engines.of_checkpoint import engine_of
from mergebench_ray.errors import InputError, StoppedError, nearest
from mergebench_ray.heartbeat import beat
from mergebench_ray.judges.judge_engine import (
    FoundJudge,
    JudgedPairs,
    JudgeEngine,
    Judgement,
    Pair,
    check_parser_name,
)
from mergebench_ray.ray_actors import Actor, actors_of, by_value, from_values
from mergebench_ray.ray_errors import lost_actor, why_lost
from mergebench_ray.scores import Scores
from mergebench_ray.tasks.groups import planned_tasks
from mergebench_ray.tasks.loading import chosen_domains, needed_judge
from mergebench_ray.tasks.scored_task import ScoredTask
from mergebench_ray.tasks.task_files import task_manager

_RETRIES = 3
"""So many times a judge may be lost under the same responses."""


class Judged(NamedTuple):
    """Judgements, and what they took.

    Attributes:
        judgements: of the tasks' items, by the tasks' numbers.
        seconds: in which judges computed.
        tokens: tokens that they read and wrote.
    """

    judgements: dict[int, list[Judgement]]
    seconds: float
    tokens: int


JudgeFunction = Callable[[Sequence[Pair]], JudgedPairs]
"""Judges all pairs in one batch."""


@dataclass(frozen=True)
class Judges:
    """Judges that can be asked.

    Attributes:
        functions: ask one, by name.
        digests: of what its verdicts depend on, by name.
        actors: Ray's ids of those that give signs of life.
    """

    functions: Mapping[str, JudgeFunction]
    digests: Mapping[str, str]
    actors: tuple[str, ...] = ()


NO_JUDGES = Judges({}, {})


def find_judges(
    suite: Suite,
    options: EvaluationOptions,
    splits: Sequence[Split],
    find: Callable[[str], Checkpoint] = resolve,
) -> tuple[dict[str, FoundJudge], list[str]]:
    """The judges that the chosen tasks of some splits need, with their models found (from the hub: fetched).

    A judge that only the suite names may be out of reach, such as a gated model: then its tasks count their metrics
    without a judge, and a note says so.

    Args:
        suite: says which tasks there are.
        options: of them, and settings of judges.
        splits: of the items.
        find: finds a judge's model by its reference.

    Returns:
        found judges by name, and a line for each that will be missing.

    Raises:
        InputError: if a judge that the user asked for cannot be had, no task or suite knows it, or a setting is wrong.
    """
    needed = check_judge_settings(suite, options, chosen_domains(suite, options), splits)
    found: dict[str, FoundJudge] = {}
    notes = []
    for name, instead in needed.items():
        try:
            found[name] = _find(name, suite, options, find)
        except _MissingError as missing:
            counted = ", ".join(f"{task} counts {metric}" for task, metric in instead.items())
            notes.append(f"without judge {name} ({missing}): {counted}")
    return found, notes


def check_judge_settings(
    suite: Suite, options: EvaluationOptions, domains: Iterable[str], splits: Sequence[Split]
) -> dict[str, dict[str, str | None]]:
    """Check what suite and options say of judges, without looking for their models.

    Returns:
        as `judged_tasks`.

    Raises:
        InputError: if no task or suite knows a judge, or a setting is wrong.
    """
    needed = judged_tasks(suite, domains, splits)
    known = {*needed, *suite.judges}
    for name in options.judges:
        if name not in known:
            there = nearest(name, known) if known else "its tasks need none"
            raise InputError(f"suite {suite.name} has no judge {name!r}; {there}")
    for name, judge in suite.judges.items():
        check_parser_name(name, judge.parser)
    for name in needed:
        if (settings := judge_settings(name, suite, options)) is not None:
            check_parser_name(name, settings.parser)
    return needed


def digests(found: Mapping[str, FoundJudge]) -> dict[str, str]:
    """Digest of each judge, as `load_tasks` takes them."""
    return {name: one.digest for name, one in found.items()}


class _MissingError(Exception):
    """A judge is not at hand, which nobody asked for."""


def judged_tasks(suite: Suite, domains: Iterable[str], splits: Sequence[Split]) -> dict[str, dict[str, str | None]]:
    """Judges that tasks name -> those tasks, each with what it counts without the judge."""
    manager = task_manager(suite)
    needed: dict[str, dict[str, str | None]] = {}
    for split in splits:
        for domain in domains:
            for task in planned_tasks(suite, domain, split):
                judge = needed_judge(task.file(manager, suite))
                if judge is not None:
                    needed.setdefault(judge, {})[task.name] = task.settings.without_judge
    return needed


def judge_settings(name: str, suite: Suite, options: EvaluationOptions) -> Judge | None:
    """Settings of a judge; None where it is switched off, or neither suite nor options name a model.

    Raises:
        InputError: if a setting is wrong.
    """
    changes = options.judges.get(name, {})
    own = suite.judges.get(name)
    if changes is None or (own is None and not changes):
        return None
    where = f"evaluation.judges.{name}"
    if own is None:
        return parse_model(Judge, changes, where)
    # What the suite says of its own model is not true of another.
    return own.changed({"gated": False, **changes} if "model" in changes else changes, where)


def _find(name: str, suite: Suite, options: EvaluationOptions, find: Callable[[str], Checkpoint]) -> FoundJudge:
    judge = judge_settings(name, suite, options)
    if judge is None:
        raise _MissingError("no model is named for it" if name not in options.judges else "switched off")
    try:
        checkpoint = find(judge.model)
    except InputError as error:
        if options.judges.get(name):
            raise InputError(f"judge {name}: {error}") from error
        raise _MissingError(str(error)) from error
    if checkpoint.ref.adapter is not None:
        raise InputError(f"judge {name}: {checkpoint} is an adapter on another model; merge it into a folder first")
    found = FoundJudge(name, judge, checkpoint, _parser_folder(judge, suite))
    found.find_parser()
    if judge.max_answer_tokens >= found.max_model_len:
        raise InputError(
            f"judge {name}: max_answer_tokens {judge.max_answer_tokens} leaves no room for a prompt in the "
            f"{found.max_model_len} tokens of its model; lower it"
        )
    return found


def _parser_folder(judge: Judge, suite: Suite) -> Path:
    """The folder of task files that has the module of a judge's parser; the suite's own where none has."""
    file = f"{judge.parser.rpartition('.')[0].replace('.', '/')}.py"
    folders = suite.tasks_paths[::-1] or (Path(),)
    return next((folder for folder in folders if (folder / file).is_file()), folders[0])


class JudgeActor(JudgeEngine):
    """A judge in an actor that Ray may start again: it starts its engine again, and is asked again.

    Args:
        pieces: what a `JudgeEngine` is made of, as `by_value` takes it apart.
    """

    def __init__(self, *pieces: bytes) -> None:
        beat(lambda: self._engine.present_step if "_engine" in vars(self) else (0.0, 0.0))
        super().__init__(*from_values(pieces))


@dataclass(frozen=True)
class RemoteJudge:
    """A judge that runs in a Ray actor; a `JudgeFunction`.

    Attributes:
        name: the judge's.
        actor: its actor.
        remedy: what to do where it is lost again and again.
    """

    name: str
    actor: Actor[JudgeActor]
    remedy: str

    def __call__(self, pairs: Sequence[Pair]) -> JudgedPairs:
        """Judge all pairs in one call of the actor.

        Raises:
            StoppedError: it is lost under them again and again.
        """
        try:
            return ray.get(self.actor.call(JudgeEngine.judge, list(pairs)))
        except RayActorError as error:
            if lost_actor(error) is None:
                raise
            raise StoppedError(
                f"judge {self.name} was lost {_RETRIES + 1} times under the same answers ({why_lost(error)}): "
                f"{self.remedy}"
            ) from error


@contextlib.contextmanager
def running_judges(
    found: Mapping[str, FoundJudge],
    engine_options: EngineOptions,
    log_file: Callable[[str], Path] | None = None,
    where: Sequence[Mapping[str, Any]] = (),
    *,
    remedy: str,
) -> Iterator[Judges]:
    """Start the judges, each in an actor of its own; they end with the block.

    They start before the engines that answer: two that share a GPU measure its free memory one after the other. On a
    CPU nothing is measured, and they go on starting beside them.

    Args:
        found: the judges.
        engine_options: of the engines that answer, which take GPUs too.
        log_file: judge -> file for what its vLLM says; None drops it.
        where: Ray's options for the actor of each judge, as a reservation says; else Ray may put it anywhere.
        remedy: what to do where one is lost again and again.

    Raises:
        InputError: if the cluster has too few GPUs for engines and judges.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus and found and not where:
        _check_gpus(found, engine_options, gpus)
    actors: dict[str, Actor[JudgeActor]] = {}
    try:
        for (name, one), place in zip(found.items(), where or [{}] * len(found), strict=True):
            options = EngineOptions(**one.judge.model_dump(include=set(EngineSettings.model_fields)))
            log = None if log_file is None else log_file(name)
            make_engine = functools.partial(engine_of, one.checkpoint, options, one.max_model_len, log)
            counted = {"num_cpus": 0, "num_gpus": one.judge.gpus if gpus else 0, **place}
            make = actors_of(
                JudgeActor,
                max_concurrency=engine_options.count + 1,
                max_restarts=-1,
                max_task_retries=_RETRIES,
                runtime_env={"env_vars": ACTOR_ENVIRONMENT},
                **counted,
            )
            actors[name] = make(*by_value(one, make_engine))
            started = actors[name].call(JudgeEngine.start)
            if gpus:
                ray.get(started)
        functions = {name: RemoteJudge(name, actor, remedy) for name, actor in actors.items()}
        yield Judges(functions, digests(found), tuple(actor.id for actor in actors.values()))
    finally:
        for actor in actors.values():
            actor.kill()


def _check_gpus(found: Mapping[str, FoundJudge], engine_options: EngineOptions, gpus: float) -> None:
    """Refuse what Ray would wait for without end."""
    engines = engine_options.count * engine_options.gpus
    judges = sum(one.judge.gpus for one in found.values())
    if engines + judges > gpus:
        raise InputError(
            f"engines take {engines:g} GPUs and judges {judges:g}, the cluster has {gpus:g}: let them share with "
            f"engine.num_gpus: 0.5, or score without a judge (evaluation.judges.{next(iter(found))}: null)"
        )


def judge_responses(
    tasks: Mapping[int, ScoredTask], responses: Mapping[int, Sequence[str]], judges: Mapping[str, JudgeFunction]
) -> Judged:
    """Ask each judge once about everything that is its to judge.

    Args:
        tasks: tasks that need a judge, by number.
        responses: by task, by item.
        judges: by name.
    """
    pairs: dict[str, list[Pair]] = {}
    starts = {}
    for number, task in tasks.items():
        assert task.judged is not None
        mine = pairs.setdefault(task.judged.judge, [])
        starts[number] = len(mine)
        mine += [(item.doc[task.judged.field], text) for item, text in zip(task.items, responses[number], strict=True)]
    answers = {name: judges[name](some) for name, some in pairs.items()}
    judgements = {
        number: answers[task.judged.judge].judgements[starts[number] : starts[number] + len(task.items)]
        for number, task in tasks.items()
        if task.judged is not None
    }
    return Judged(judgements, sum(one.seconds for one in answers.values()), sum(one.tokens for one in answers.values()))


def parse_error_lines(scores: Scores) -> list[str]:
    """A line for each task some of whose judgements did not parse."""
    return [
        f"{task.task}: {task.judge_errors} of {task.items} answers of its judge did not parse"
        for task in scores.tasks.values()
        if task.judge_errors
    ]
