"""`merge`, `advise` and `evaluate`: one model."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mergebench_ray.commands.terminal.completions import (
    method_completions,
    split_completions,
    suite_completions,
    task_completions,
)
from mergebench_ray.commands.terminal.options import (
    Address,
    Json,
    LocalData,
    MethodsFolder,
    Setting,
    parse_names,
    parse_pairs,
    parse_settings,
)
from mergebench_ray.errors import InputError
from mergebench_ray.markup import terminal_text

if TYPE_CHECKING:
    from mergebench_ray.commands.evaluate import EvaluationResult

Method = Annotated[
    str | None,
    typer.Option(help="Merging method; see `mergebench-ray methods`.", autocompletion=method_completions),
]
Specialists = Annotated[list[str] | None, typer.Option(metavar="NAME=REF", help="A specialist; give one for each.")]
RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]", help="Recipe file, mergekit's or mergebench-ray's, instead of all options of models."
    ),
]
Recipe = Annotated[Path | None, typer.Option(help="The same.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Merge a recipe that was changed after it was written.")
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SOURCE", help="A specialist's samples, for methods that see data; one for each."),
]
CalibrationSuite = Annotated[
    str | None,
    typer.Option(
        help="Suite whose samples are used instead, for methods that see data.", autocompletion=suite_completions
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="SETTING", help="A setting of config.json that may differ from the base's."),
]
Merged = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART=BOOL",
        help="embeddings=true merges embeddings and output head, too; towers=false keeps the base's parts that see "
        "and hear.",
    ),
]
Suite = Annotated[str, typer.Option(help="Built-in suite or suite file.", autocompletion=suite_completions)]
Split = Annotated[str, typer.Option(help="validation or test.", autocompletion=split_completions)]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Only these tasks or domains (or: forgetting), separated by commas.", autocompletion=task_completions
    ),
]
Items = Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")]
WeakSandbox = Annotated[bool, typer.Option(help="Run them even where the system cannot keep them from your files.")]
Judges = Annotated[
    list[str] | None, typer.Option(metavar="NAME=REF", help="Use this model as a judge, in place of the suite's.")
]
LmEvalFiles = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write results and samples here in lm-eval's own form.")
]
ChatTemplate = Annotated[
    bool, typer.Option("--apply-chat-template", help="Put items to the model in its own chat template.")
]
Multiturn = Annotated[
    bool | None,
    typer.Option(help="In a chat template, few-shot examples are turns (as they are by default), or one text."),
]
SystemInstruction = Annotated[str | None, typer.Option(metavar="TEXT", help="What is said to the model first.")]
GenKwargs = Annotated[
    list[str] | None,
    typer.Option("--gen-kwargs", metavar="KEY=VALUE", help="An option of generation, in place of the tasks' own."),
]
Limit = Annotated[
    float | None, typer.Option(help="Only the first items of each task: how many, or a share of them below 1.")
]
Samples = Annotated[
    str | None,
    typer.Option(metavar="JSON", help='Only these items of a task, from 0: {"TASK": [0, 5]}, or a file of that.'),
]
Scores = Annotated[Path | None, typer.Option(help="Write scores here as JSON, items beside it as Parquet.")]


def merge(
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the merged model; s3:// and gs://, too.")],
    file: RecipeFile = None,
    method: Method = None,
    base: Annotated[str | None, typer.Option(help="Reference of the base.")] = None,
    specialist: Specialists = None,
    settings: Setting = None,
    recipe: Recipe = None,
    accept_changes: AcceptChanges = False,
    shards: Annotated[int, typer.Option(help="Bank shards.")] = 1,
    merged: Merged = None,
    calibration: Calibration = None,
    suite: CalibrationSuite = None,
    allow: Allow = None,
    methods_folder: MethodsFolder = None,
    address: Address = None,
) -> None:
    """Merge once and write the model."""
    from mergebench_ray.commands.merge_checks import checked_merge

    if file is not None and recipe is not None:
        raise InputError(f"--recipe {recipe}: {file} is given, too; give one of them")
    request: dict[str, Any] = {
        "out": out,
        "method": method,
        "base": base,
        "specialists": parse_pairs(specialist, "--specialist", "NAME=REF"),
        "parameters": parse_settings(settings),
        "recipe": file or recipe,
        "calibration": parse_pairs(calibration, "--calibration", "NAME=SOURCE"),
        "suite": suite,
        "accept_changes": accept_changes,
        "shards": shards,
        "merged": parse_settings(merged, "--merged", "PART=BOOL"),
        "address": address,
        "methods_folder": methods_folder,
    }
    checked_merge(**request)

    from mergebench_ray.commands.merge import merge as run

    try:
        result = run(**request, allow=allow or (), show_progress=True)
    except KeyboardInterrupt as stopped:
        for note in getattr(stopped, "__notes__", ()):
            typer.echo(note, err=True)
        raise
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"merged in {result.merge_seconds:.2f} s, written to {result.folder}, recipe digest {result.recipe.digest}"
    )


def advise(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Reference of the base.")],
    specialists: Annotated[list[str], typer.Argument(metavar="NAME=REF...", help="The specialists.")],
    out: Annotated[Path | None, typer.Option(help="Write a page with pictures here.")] = None,
    allow: Allow = None,
    as_json: Json = False,
) -> None:
    """Say how specialists lie to each other, and where to begin, before anything is merged or scored."""
    from mergebench_ray.commands.advise import advice_tables
    from mergebench_ray.commands.advise import advise as run

    named = parse_pairs(specialists, "specialists", "NAME=REF")
    advice = run(base, named or {}, allow=allow or (), out=out, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(advice.to_dict(), indent=2))
        return
    for line in advice.notes:
        typer.echo(f"note: {line}")
    for table in advice_tables(advice):
        Console().print(table)
    for line in advice.remarks:
        typer.echo(line)
    if out is not None:
        typer.echo(f"page: {out}")


def adapter(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Reference of a merge, or of any fine-tuned model.")],
    base: Annotated[str, typer.Option(help="Reference of the base.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the adapter.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of its factors.")] = 32,
    allow: Allow = None,
) -> None:
    """Write what a model has learned as a LoRA adapter of its base, and say what that leaves out."""
    from mergebench_ray.commands.adapter import adapter as run

    result = run(model, base, out=out, rank=rank, allow=allow or (), show_progress=True)
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"adapter of rank {rank}: {result.errors}; written to {result.folder}")


def gguf(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Reference of a merge, or of any other model.")],
    like: Annotated[str, typer.Option(metavar="FILE", help="GGUF file of its base, quantised or not.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="GGUF file to write.")],
    kind: Annotated[str, typer.Option(help="What matrices are written in: bf16, f16, f32 or q8_0.")] = "bf16",
) -> None:
    """Write a model as a GGUF file for llama.cpp, with the tokenizer of a GGUF file of its base."""
    from mergebench_ray.commands.gguf import gguf as run

    result = run(model, like=like, out=out, kind=kind, show_progress=True)
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written to {result.file}, {result.file.stat().st_size:,} bytes")


def evaluate(
    model: Annotated[str, typer.Argument(help="Reference of a model.")],
    suite: Suite,
    split: Split = "test",
    tasks: Tasks = None,
    items: Items = None,
    allow_code_execution: Annotated[bool, typer.Option(help="Run generated programs in the sandbox.")] = False,
    allow_weak_sandbox: WeakSandbox = False,
    data: LocalData = None,
    judge: Judges = None,
    engines: Annotated[int, typer.Option(min=1, help="vLLM engines that share the items.")] = 1,
    dtype: Annotated[str, typer.Option(help="What engines compute in: auto, bfloat16 or float32.")] = "auto",
    apply_chat_template: ChatTemplate = False,
    fewshot_as_multiturn: Multiturn = None,
    system_instruction: SystemInstruction = None,
    gen_kwargs: GenKwargs = None,
    limit: Limit = None,
    samples: Samples = None,
    out: Scores = None,
    lm_eval_out: LmEvalFiles = None,
    address: Address = None,
) -> None:
    """Score a model on the tasks of a suite."""
    from mergebench_ray.commands.first_checks import AskedAs, checked_evaluation, evaluation_settings

    chosen, pairs = parse_names(tasks, "--tasks"), parse_pairs(data, "--data", "ID=PATH")
    judges = parse_pairs(judge, "--judge", "NAME=REF")
    asked: dict[str, Any] = {
        "apply_chat_template": apply_chat_template,
        "fewshot_as_multiturn": fewshot_as_multiturn,
        "system_instruction": system_instruction,
        "gen_kwargs": parse_settings(gen_kwargs, "--gen-kwargs"),
        "limit": limit,
        "samples": samples,
    }
    options = evaluation_settings(items, allow_code_execution, allow_weak_sandbox, pairs, judges, AskedAs(**asked))
    checked_evaluation(model, suite, split, chosen, engines, out, options, address, lm_eval_out)

    from mergebench_ray.commands.evaluate import evaluate as run

    warnings.filterwarnings("ignore", "the scores were not written")  # said at the end
    result = run(
        model,
        suite=suite,
        split=split,
        tasks=chosen,
        items=items,
        allow_code_execution=allow_code_execution,
        allow_weak_sandbox=allow_weak_sandbox,
        data=pairs,
        judges=judges,
        engines=engines,
        dtype=dtype,
        **asked,
        out=out,
        lm_eval_out=lm_eval_out,
        address=address,
        show_progress=True,
    )
    _print_scores(result, f"{model} on {suite}, {split} split")
    if result.not_written:
        typer.echo(f"error: {result.not_written}", err=True)
        raise typer.Exit(1)


def _print_scores(result: EvaluationResult, title: str) -> None:
    """Domains, tasks, and what was scored otherwise than the suite says."""
    from mergebench_ray.judges.judges import parse_error_lines

    Console().print(_domain_table(result, title))
    Console().print(_task_table(result))
    for note in [*result.notes, *parse_error_lines(result.scores)]:
        typer.echo(f"note: {note}")
    if cut := result.scores.truncated:
        typer.echo(f"note: {cut} prompts did not fit the suite's max_model_len and lost their oldest tokens")


def _domain_table(result: EvaluationResult, title: str) -> Table:
    from mergebench_ray.scores import average_score

    table = Table(title=terminal_text(title))
    for column in ("domain", "score", "standard error", "items"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain, score in result.scores.domains.items():
        table.add_row(terminal_text(domain), f"{score.score:.3f}", f"{score.standard_error:.3f}", str(score.items))
    average, error = average_score(result.scores.domains, result.scores.influences)
    if not math.isnan(average):
        table.add_row("average", f"{average:.3f}", f"{error:.3f}", "")
    return table


def _task_table(result: EvaluationResult) -> Table:
    table = Table(title="Tasks")
    for column in ("task", "counted", "score", "standard error", "items"):
        table.add_column(column, justify="left" if column in ("task", "counted") else "right")
    names = {task.task for task in result.scores.tasks.values()}
    for name, task in result.scores.tasks.items():
        texts = (
            f"  {name}" if task.group in names else name,
            task.label,
            f"{task.score:.3f}",
            f"{task.standard_error:.3f}",
            str(task.items),
        )
        table.add_row(*map(terminal_text, texts))
    return table
