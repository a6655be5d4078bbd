"""The command line: each command is one public function of `mergebench_ray.commands`."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from mergebench_ray import interrupts
from mergebench_ray.errors import InputError
from mergebench_ray.markup import terminal_text

app = typer.Typer(
    help="Merge domain-specialised language models and search for the best merge, in parallel on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Value as YAML; may be given several times.")
]
LocalData = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="ID=PATH", help="Read a hub's data set (ID or ID:CONFIG) from a file or folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use (as in ray.init); default: RAY_ADDRESS, else a local one.")
]


@app.command()
def tune(
    sweep: Annotated[Path, typer.Argument(help="Sweep file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted.")] = False,
    settings: Setting = None,
    address: Address = None,
    dashboard_port: Annotated[int | None, typer.Option(help="Show Ray's dashboard on this loopback port.")] = None,
) -> None:
    """Search for the best merge that a sweep file describes."""
    from mergebench_ray.commands.first_checks import checked_run

    checked, folder = checked_run(
        sweep, _parse_settings(settings), out, resume=resume, address=address, dashboard_port=dashboard_port
    )

    from mergebench_ray.commands.tune import tune as run

    run(
        checked,
        folder,
        resume=resume,
        address=address,
        dashboard_port=dashboard_port,
        show_progress=True,
    )


@app.command()
def merge(
    out: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    method: Annotated[str | None, typer.Option(help="Merging method; see `mergebench-ray methods`.")] = None,
    base: Annotated[str | None, typer.Option(help="Reference of the base.")] = None,
    specialist: Annotated[
        list[str] | None, typer.Option(metavar="NAME=REF", help="A specialist; give one for each.")
    ] = None,
    settings: Setting = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe file, instead of all of these.")] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Merge a recipe that was changed after it was written.")
    ] = False,
    shards: Annotated[int, typer.Option(help="Bank shards.")] = 1,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SOURCE", help="A specialist's samples, for methods that see data; one for each."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite whose samples are used instead, for methods that see data.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help="A setting of config.json that may differ from the base's."),
    ] = None,
    address: Address = None,
) -> None:
    """Merge once and write the model."""
    from mergebench_ray.commands.first_checks import checked_merge

    request: dict[str, Any] = {
        "out": out,
        "method": method,
        "base": base,
        "specialists": _parse_pairs(specialist, "--specialist", "NAME=REF"),
        "parameters": _parse_settings(settings),
        "recipe": recipe,
        "calibration": _parse_pairs(calibration, "--calibration", "NAME=SOURCE"),
        "suite": suite,
        "accept_changes": accept_changes,
        "shards": shards,
        "address": address,
    }
    checked_merge(**request)

    from mergebench_ray.commands.merge import merge as run

    result = run(**request, allow=allow or (), show_progress=True)
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"merged in {result.merge_seconds:.2f} s, written to {result.folder}, recipe digest {result.recipe.digest}"
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Reference of a model.")],
    suite: Annotated[str, typer.Option(help="Built-in suite or suite file.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    tasks: Annotated[
        str | None, typer.Option(help="Only these tasks or domains (or: forgetting), separated by commas.")
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    allow_code_execution: Annotated[bool, typer.Option(help="Run generated programs in the sandbox.")] = False,
    allow_weak_sandbox: Annotated[
        bool, typer.Option(help="Run them even where the system cannot keep them from your files.")
    ] = False,
    data: LocalData = None,
    judge: Annotated[
        list[str] | None, typer.Option(metavar="NAME=REF", help="Use this model as a judge, in place of the suite's.")
    ] = None,
    engines: Annotated[int, typer.Option(min=1, help="vLLM engines that share the items.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write scores here as JSON, items beside it as Parquet.")] = None,
    address: Address = None,
) -> None:
    """Score a model on the tasks of a suite."""
    from mergebench_ray.commands.first_checks import checked_evaluation, evaluation_settings

    chosen, pairs = _names(tasks, "--tasks"), _parse_pairs(data, "--data", "ID=PATH")
    judges = _parse_pairs(judge, "--judge", "NAME=REF")
    options = evaluation_settings(items, allow_code_execution, allow_weak_sandbox, pairs, judges)
    checked_evaluation(model, suite, split, chosen, engines, out, options, address)

    from mergebench_ray.commands.evaluate import evaluate as run
    from mergebench_ray.judges.judges import parse_error_lines
    from mergebench_ray.scores import average_score

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
        out=out,
        address=address,
        show_progress=True,
    )
    table = Table(title=terminal_text(f"{model} on {suite}, {split} split"))
    for column in ("domain", "score", "standard error", "items"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain, score in result.scores.domains.items():
        table.add_row(terminal_text(domain), f"{score.score:.3f}", f"{score.standard_error:.3f}", str(score.items))
    average, error = average_score(result.scores.domains, result.scores.influences)
    if not math.isnan(average):
        table.add_row("average", f"{average:.3f}", f"{error:.3f}", "")
    Console().print(table)
    table = Table(title="Tasks")
    for column in ("task", "counted", "score", "standard error", "items"):
        table.add_column(column, justify="left" if column in ("task", "counted") else "right")
    for name, task in result.scores.tasks.items():
        texts = (name, task.label, f"{task.score:.3f}", f"{task.standard_error:.3f}", str(task.items))
        table.add_row(*map(terminal_text, texts))
    Console().print(table)
    for note in [*result.notes, *parse_error_lines(result.scores)]:
        typer.echo(f"note: {note}")
    if cut := result.scores.truncated:
        typer.echo(f"note: {cut} prompts did not fit the suite's max_model_len and lost their oldest tokens")
    if result.not_written:
        typer.echo(f"error: {result.not_written}", err=True)
        raise typer.Exit(1)


@app.command()
def plan(
    sweep: Annotated[Path, typer.Argument(help="Sweep file.")],
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes to plan for; default: this machine.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=0)] = 0,
    gpu_memory: Annotated[float, typer.Option(min=0, help="GiB a GPU.")] = 80.0,
    host_memory: Annotated[float | None, typer.Option(min=0, help="GiB a node.")] = None,
    settings: Setting = None,
    as_json: Json = False,
) -> None:
    """Print what a sweep would run and how much memory it takes, without loading weights."""
    from mergebench_ray.search.checks import read_sweep

    checked = read_sweep(sweep, _parse_settings(settings))

    from mergebench_ray.commands.plan import plan as run
    from mergebench_ray.commands.plan import plan_table

    result = run(
        checked,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu_memory_gib=gpu_memory,
        host_memory_gib=host_memory,
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    Console().print(plan_table(result))
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"does not fit: {result.problem}" if result.problem else "fits")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="File of the page; default: report.html, in the run's folder if it is one run.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the leaderboard here as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it here as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write it here as LaTeX (booktabs).")] = None,
) -> None:
    """Write the report of a run again, or one that compares several."""
    from mergebench_ray.commands.report import report as run

    for name, path in run(runs, out=out, csv=csv, markdown=markdown, latex=latex).items():
        typer.echo(f"{name}: {path}")


@app.command()
def methods(as_json: Json = False) -> None:
    """List the merging methods and their hyper-parameters."""
    from mergebench_ray.methods import get_method, method_names

    found = [get_method(name) for name in method_names()]
    if as_json:
        listing = [
            {
                "name": method.name,
                "summary": method.summary,
                "source": method.source,
                "parameters": method.Parameters.model_json_schema(),
            }
            for method in found
        ]
        typer.echo(json.dumps(listing, indent=2))
        return
    table = Table(title="Merging methods")
    for column in ("method", "what it does", "hyper-parameters (default)"):
        table.add_column(column)
    for method in found:
        fields = method.Parameters.model_fields.items()
        table.add_row(method.name, method.summary, "\n".join(f"{name} ({field.default})" for name, field in fields))
    Console().print(table)


@app.command()
def suites(as_json: Json = False) -> None:
    """List the built-in suites."""
    from mergebench_ray.config import Suite
    from mergebench_ray.config.suite import built_in_suites

    found = [Suite.load(name) for name in built_in_suites()]
    if as_json:
        typer.echo(json.dumps([suite.model_dump() for suite in found], indent=2))
        return
    table = Table(title="Built-in suites")
    for column in ("suite", "domains", "what it is"):
        table.add_column(column)
    for suite in found:
        table.add_row(suite.name, ", ".join(suite.domains), suite.description)
    Console().print(table)


data_app = typer.Typer(help="The data that tasks are made of.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    sweep_or_suite: Annotated[str, typer.Argument(help="Sweep file, suite file or built-in suite.")],
    data: LocalData = None,
    as_json: Json = False,
) -> None:
    """List data sets and judges: where each would come from, its licence, whether it is there; exit 1 if one is not."""
    from mergebench_ray.commands.first_checks import read_sweep_or_suite

    pairs = _parse_pairs(data, "--data", "ID=PATH")
    read_sweep_or_suite(sweep_or_suite)

    from mergebench_ray.commands.data_check import data_check as run
    from mergebench_ray.commands.data_check import data_table, is_complete, problem_lines

    found = run(sweep_or_suite, pairs)
    if as_json:
        typer.echo(json.dumps([{**vars(one), "there": one.there} for one in found], indent=2))
    else:
        # A pipe is no terminal with 80 columns.
        Console(width=None if sys.stdout.isatty() else 160).print(data_table(found))
        for line in problem_lines(found):
            typer.echo(line)
    raise typer.Exit(0 if is_complete(found) else 1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this installation and say what is missing and how to mend it."""
    from mergebench_ray.commands.doctor import doctor as run

    findings = []
    for finding in run():
        findings.append(finding)
        if not as_json:
            typer.echo(f"{'ok    ' if finding.good else 'MEND  '}{finding.what}: {finding.found}")
            if not finding.good:
                typer.echo(f"      -> {finding.remedy}")
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    raise typer.Exit(0 if all(finding.good for finding in findings) else 1)


@app.command()
def bench(
    model: Annotated[
        str | None, typer.Option(help="Base to measure with, five made-up specialists; default: the built-in suite.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as JSON.")] = None,
) -> None:
    """Measure what a candidate costs on this machine, side by side with a plain copy."""
    # As in the actors of a sweep, threads sleep while they wait; torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mergebench_ray.commands.first_checks import check_bench

    check_bench(model, json_file)

    from mergebench_ray.commands.bench import bench as run

    run(model=model, json_file=json_file, show_progress=True)


@app.command("train-specialists")
def train_specialists(
    out: Annotated[Path, typer.Option(help="Folder of the adapters.")],
    domains: Annotated[str | None, typer.Option(help="Only these domains, separated by commas.")] = None,
) -> None:
    """Train the LoRA specialists of the built-in suite; goes on where it was interrupted."""
    from mergebench_ray.suites.smollm2_mini.adapter_folders import checked_adapters

    chosen = _names(domains, "--domains")
    checked_adapters(out, chosen)

    from mergebench_ray.suites.smollm2_mini.training.specialists import train_specialists as run

    run(domains=chosen, out=out)


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> NoReturn:
    """Run a command: exit status 0 if done, 2 if the input was wrong (one line says how), 1 for anything else."""
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _stop(f"error: {error}", 2)
    except typer.TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        _stop(" ".join(f"error: {text} (see --help)".split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _stop(None, 1)
    except Exception:
        # An interrupt inside foreign code may come out as any other error.
        if not interrupts.received():
            traceback.print_exc()
            _stop(None, 1)
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        _stop("stopped", interrupts.STATUS)
    _stop(None, status if isinstance(status, int) else 0)


def _stop(message: str | None, status: int) -> NoReturn:
    interrupts.leave()
    with suppress(OSError):
        if message is not None:
            typer.echo(terminal_text(message), err=True)
    sys.exit(status)


def _parse_pairs(texts: list[str] | None, option: str, form: str) -> dict[str, str]:
    from mergebench_ray.config.storage_url import hide_passwords_in

    pairs: dict[str, str] = {}
    for text in texts or []:
        key, separator, value = text.partition("=")
        if not (key and separator and value):
            raise InputError(f"{option} {hide_passwords_in(repr(text)):.120}: write {form}")
        if key in pairs:
            raise InputError(f"{option} {key!r:.120} is given twice: give it once")
        pairs[key] = value
    return pairs


def _names(text: str | None, option: str) -> list[str] | None:
    """Names that are separated by commas; None where the option was not given."""
    if text is None:
        return None
    names = text.split(",")
    if not all(names):
        raise InputError(f"{option} {text!r:.120}: an empty name; write A,B")
    if twice := next((name for index, name in enumerate(names) if name in names[:index]), None):
        raise InputError(f"{option} {text!r:.120}: {twice!r:.80} is given twice")
    return names


def _parse_settings(texts: list[str] | None) -> dict[str, Any]:
    from mergebench_ray.config.sweep import check_settings
    from mergebench_ray.config.yaml_files import parse_setting

    pairs = _parse_pairs(texts, "--set", "KEY=VALUE")
    check_settings(pairs)
    return {key: parse_setting(value, f"--set {key}={value}") for key, value in pairs.items()}
