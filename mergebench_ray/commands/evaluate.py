"""Scores of one model on a suite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mergebench_ray.checkpoints import Checkpoint, check_accompanying_files, resolve
from mergebench_ray.commands.first_checks import AskedAs, checked_evaluation, evaluation_settings
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.commands.ready_sweep import load_checked_tasks
from mergebench_ray.commands.sweep_models import find_checked_judges
from mergebench_ray.config import EngineOptions, ModelRef, Suite
from mergebench_ray.config.evaluation import ModelEvaluationOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.config.reference import reference_text
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError, StoppedError
from mergebench_ray.evaluation import score_together, start_evaluator
from mergebench_ray.evaluation.evaluator import Evaluator, grade_together
from mergebench_ray.evaluation.graded import GradedItems
from mergebench_ray.evaluation.lm_eval_results import ModelFacts, lm_eval_results, write_lm_eval_files
from mergebench_ray.files import whole_file
from mergebench_ray.heartbeat import Watchdog, end_without_ray
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.judges.judges import Judges, running_judges
from mergebench_ray.placement import Placement, place_engines
from mergebench_ray.placement.changes import lack
from mergebench_ray.placement.clusters import running_cluster
from mergebench_ray.placement.starting import reserved
from mergebench_ray.ray_actors import Actor
from mergebench_ray.runs.evaluation_file import EvaluationFile, items_file
from mergebench_ray.runs.leaderboard import with_error
from mergebench_ray.runtime import ray_session
from mergebench_ray.scores import Scores
from mergebench_ray.search.losses import STRIKES, LostError
from mergebench_ray.search.supervisor import Supervisor
from mergebench_ray.tasks.chat import ChatTemplate
from mergebench_ray.tasks.data_use import check_data_is_used
from mergebench_ray.tasks.questions import QuestionRow, question_rows
from mergebench_ray.tasks.scored_task import ScoredTask, notes_of

_AGAIN = "start the same command again"
_REMEDY = f"give it more memory, and {_AGAIN}"


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """A model's scores.

    Attributes:
        model: its reference.
        digest: its content.
        suite: name of the suite.
        scores: per domain, with a row per item.
        notes: what was scored otherwise than the suite says, a line each.
        asked: how items were put to the model and which, where it is not as the suite has it: arguments of `evaluate`.
        not_written: why the scores are not in the file that was asked for; None if they are, or none was.
    """

    model: str
    digest: str
    suite: str
    scores: Scores
    notes: list[str] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)
    not_written: str | None = None

    def __repr__(self) -> str:
        lines = [f"{name} {score}, {metric}" for name, score, metric in self._rows()]
        return "\n".join([self._heading(), *lines])

    def _repr_html_(self) -> str:
        rows = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self._rows()]
        return f"<div><b>{escape(self._heading())}</b><table>{''.join(rows)}</table></div>"

    def _heading(self) -> str:
        return f"{self.model} on {self.suite}, {self.scores.split} split"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Domain, score with its standard error, and what was counted over how many items."""
        found = sorted(self.scores.domains.items())
        return [
            (
                name,
                with_error(one.score, one.standard_error),
                ", ".join(filter(None, (one.metric, f"{one.items} items"))),
            )
            for name, one in found
        ]


def evaluate(
    model: Path | str,
    *,
    suite: Path | str,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    items: int | None = None,
    allow_code_execution: bool = False,
    allow_weak_sandbox: bool = False,
    data: Mapping[str, Path | str] | None = None,
    judges: Mapping[str, Path | str] | None = None,
    engines: int = 1,
    dtype: str = "auto",
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool | None = None,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    limit: float | None = None,
    samples: Mapping[str, Sequence[int]] | str | None = None,
    out: Path | str | None = None,
    lm_eval_out: Path | str | None = None,
    address: str | None = None,
    show_progress: bool | None = None,
) -> EvaluationResult:
    """Score a model.

    Args:
        model: reference of the model.
        suite: built-in suite, or path of a suite file.
        split: "validation" or "test".
        tasks: only these tasks, or all tasks of these domains, or of "forgetting"; None for all domains.
        items: only the first items of each task; None for all.
        allow_code_execution: run generated programs in the sandbox.
        allow_weak_sandbox: run them even where the system cannot keep them from this user's files.
        data: data set id of the hub (or `id:config`) -> local file or folder that is read instead.
        judges: judge -> reference of the model to use instead of the suite's.
        engines: vLLM engines that share the items.
        dtype: what they compute in, "bfloat16" or "float32"; "auto" is bfloat16, but float32 on a CPU slow in it.
        apply_chat_template: put items to the model in its chat template. This and what follows up to `samples` is as in
            lm-eval.
        fewshot_as_multiturn: whether few-shot examples are turns of the conversation; None for yes, in a chat template.
        system_instruction: what is said first.
        gen_kwargs: options of generation that replace those of all tasks.
        limit: only the first items of each task: a number, or a share below 1.
        samples: task -> places of its items, from 0, of other tasks all; or JSON of that, or its file.
        out: file for the scores as JSON; a row per item goes beside it as Parquet.
        lm_eval_out: folder for results and samples in lm-eval's own form, as its `--output_path` with `--log_samples`.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Raises:
        InputError: wrong input; nothing is started or written. That a file of scores cannot be written once there are
            scores is a warning, and `not_written` says why.
        StoppedError: engines are lost again and again.
    """
    model = reference_text(model)
    target = None if out is None else Path(out)
    chosen, which, options = checked_evaluation(
        model,
        suite,
        split,
        tasks,
        engines,
        out,
        evaluation_settings(
            items,
            allow_code_execution,
            allow_weak_sandbox,
            data,
            judges,
            AskedAs(apply_chat_template, fewshot_as_multiturn, system_instruction, gen_kwargs, limit, samples),
        ),
        address,
        lm_eval_out,
    )
    if lm_eval_out is not None:
        options = options.model_copy(update={"all_greedy": True})
    engine = parse_model(EngineOptions, {"count": engines, "dtype": dtype}, "evaluate")
    check_data_is_used(Suite.load(suite), options.data)
    found, notes = find_checked_judges(chosen, options, [which])
    checkpoint, base = resolve(model), resolve(ModelRef.parse(model).model)
    loaded = load_checked_tasks(chosen, options, [which], found, base)[which]
    notes += notes_of(loaded)
    check_accompanying_files(checkpoint.folder)
    with progress_line(show_progress) as report:
        checkpoint.fetch(report)
    # Reads every byte, where it is not remembered: what is not finite is refused before an engine starts.
    digest = checkpoint.digest()
    # On a GPU the engine leaves half of it to a judge.
    engine_options = engine.model_copy(update={"num_gpus": 0.5 if found else None})
    with (
        progress_line(show_progress) as report,
        ray_session(address),
        reserved(placement := _placement(engine_options, base, found)) as places,
        running_judges(found, engine_options, None, places.all_of("judge"), remedy=_REMEDY) as running,
    ):
        notes = [*checkpoint.notes, *placement.cluster.notes, *notes]
        for note in notes:
            report(0.0, note)
        report(0.1, "starting vLLM, about half a minute")

        def start(index: int) -> Actor[Evaluator]:
            where = places.of("engine", index)
            given = placement.engine_options(engine_options, index)
            return start_evaluator(chosen, base, given, options, None, running, where)

        def say(line: str) -> None:
            notes.append(line)
            report(0.5, line)

        with _running(start, engines, placement.shares_devices, running, say) as started:
            notes.append(started.stats[min(started.stats)].proof)
            report(0.5, f"scoring {model} on {chosen.name}, {split} split")
            scores, graded = _score(started, checkpoint, base, which, with_items=lm_eval_out is not None)
            computed_in = started.stats[min(started.stats)].dtype
    result = EvaluationResult(model, digest, chosen.name, scores, notes, options.asked)
    if target is not None:
        result = keep(result, target, question_rows(loaded))
    if lm_eval_out is not None:
        place, facts = Path(lm_eval_out), _facts(model, base, options, computed_in)
        result = _kept(result, place, partial(_write_as_lm_eval, place, chosen, loaded, graded, facts))
    return result


def _facts(model: str, base: Checkpoint, options: ModelEvaluationOptions, dtype: str) -> ModelFacts:
    template = ChatTemplate.of(base.folder, str(base)).text if options.apply_chat_template else None
    return ModelFacts(model, dtype, options.asked, options.items_share or options.test_items, template)


def _write_as_lm_eval(
    folder: Path, suite: Suite, tasks: list[ScoredTask], items: GradedItems, facts: ModelFacts
) -> None:
    write_lm_eval_files(folder, lm_eval_results(suite, tasks, items, facts), facts)


@contextmanager
def _running(
    start: Callable[[int], Actor[Evaluator]], count: int, one_by_one: bool, judges: Judges, say: Callable[[str], None]
) -> Iterator[Supervisor]:
    """Engines that share the items, until the block ends; what hangs is killed, and another one takes its place."""
    engines = Supervisor(
        start,
        prepare=lambda actor: ray.get(actor.call(Evaluator.start)),
        count=count,
        per_candidate=1,
        say=say,
        log="",
        remedy=_REMEDY,
    )
    watch = Watchdog(
        lambda: [*(actor.id for actor in engines.actors), *judges.actors], headless=lambda: end_without_ray(_AGAIN)
    )
    try:
        engines.begin(one_by_one=one_by_one)
        engines.wait()
        yield engines
    finally:
        watch.close()
        engines.close()


def _score(
    engines: Supervisor, checkpoint: Checkpoint, base: Checkpoint, split: Split, *, with_items: bool
) -> tuple[Scores, GradedItems]:
    """Score on all engines together, again where one is lost; `with_items` what came of each item, too.

    Raises:
        StoppedError: engines are lost again and again.
    """
    lost: list[LostError] = []
    while sum(one.strike for one in lost) < STRIKES:
        try:
            with engines.lent(everything=True) as lent:
                actors = engines.of(lent)
                if checkpoint.ref.adapter is not None:
                    ray.get([one.call(Evaluator.load_checkpoint, checkpoint, base) for one in actors])
                return grade_together(actors, split) if with_items else (score_together(actors, split), {})
        except LostError as error:
            lost.append(error)
    raise StoppedError(
        f"{checkpoint}: {len(lost)} engines were lost while it was scored, the last one since {lost[-1]}; {_AGAIN}"
    )


def _placement(engine: EngineOptions, base: Checkpoint, judges: Mapping[str, FoundJudge]) -> Placement:
    """Where engines and judges go on the cluster that Ray is connected to.

    Raises:
        InputError: there is no room for them.
    """
    cluster = running_cluster()
    judged = {name: (one.judge, one.checkpoint.num_parameters) for name, one in judges.items()}
    found = place_engines(engine, base, judged, cluster)
    if isinstance(found, Placement):
        return found
    fewer = "use fewer engines, or " if engine.count > 1 else ""
    raise InputError(f"engine.count = {engine.count}: {lack(found, cluster)}: {fewer}take more or larger nodes")


def keep(result: EvaluationResult, target: Path, questions: Iterable[QuestionRow]) -> EvaluationResult:
    """Write scores and items; where that fails, the result says why, since the scores took long to get."""
    return _kept(result, target, partial(_write, result, target, questions))


def _kept(result: EvaluationResult, target: Path, write: Callable[[], None]) -> EvaluationResult:
    try:
        write()
    except Exception as error:
        problem = str(error) if isinstance(error, InputError) else f"{target}: cannot be written ({error!r})"
        warnings.warn(f"the scores were not written: {problem}", stacklevel=3)
        problems = [result.not_written, " ".join(problem.split())]
        return replace(result, not_written="; ".join(filter(None, problems)))
    return result


def _write(result: EvaluationResult, target: Path, questions: Iterable[QuestionRow]) -> None:
    scores = result.scores
    # Items come in the order of the tasks, as their questions do.
    rows = [{**question, **item} for question, item in zip(questions, scores.items, strict=True)]
    with whole_file(items_file(target), new=True) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    EvaluationFile.of(result.model, result.digest, result.suite, scores, result.notes, result.asked).write(target)
