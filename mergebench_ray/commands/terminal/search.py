"""`tune`, `plan`, `status`, `replay` and `report`: a search before, while and after it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mergebench_ray.commands.terminal.completions import run_completions, sweep_completions
from mergebench_ray.commands.terminal.options import Address, Json, Setting, parse_settings
from mergebench_ray.errors import InputError

if TYPE_CHECKING:
    from mergebench_ray.config import Sweep

_STANDARD_INPUT = Path("-")

OptionalSweep = Annotated[
    Path | None,
    typer.Argument(
        metavar="[SWEEP]",
        help="Sweep file, or name of one that ships; - for standard input.",
        autocompletion=sweep_completions,
    ),
]
FromRecipe = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RECIPE",
        help="Search around a recipe, mergekit's or mergebench-ray's: its models, its method, ranges around its "
        "numbers, and these first; a sweep file, if there is one, says the rest.",
    ),
]


def tune(
    sweep: OptionalSweep = None,
    recipe: FromRecipe = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted.")] = False,
    settings: Setting = None,
    address: Address = None,
    dashboard_port: Annotated[int | None, typer.Option(help="Show Ray's dashboard on this loopback port.")] = None,
) -> None:
    """Search for the best merge that a sweep file describes."""
    from mergebench_ray.commands.first_checks import checked_run

    opened, overrides = _opened(sweep, recipe, parse_settings(settings))
    checked, folder = checked_run(opened, overrides, out, resume=resume, address=address, dashboard_port=dashboard_port)

    from mergebench_ray.commands.tune import tune as run

    run(
        checked,
        folder,
        resume=resume,
        address=address,
        dashboard_port=dashboard_port,
        show_progress=True,
    )


def plan(
    sweep: OptionalSweep = None,
    recipe: FromRecipe = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes to plan for; default: the cluster, else this machine.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=0)] = 0,
    gpu_memory: Annotated[float, typer.Option(min=0, help="GiB a GPU.")] = 80.0,
    host_memory: Annotated[float | None, typer.Option(min=0, help="GiB a node.")] = None,
    settings: Setting = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Print what a sweep would run, what that takes, and what sits where; no weights; exit 2 if it does not fit."""
    from mergebench_ray.search.checks import read_sweep

    checked = read_sweep(*_opened(sweep, recipe, parse_settings(settings)))

    from mergebench_ray.commands.plan import does_not_fit, plan_tables
    from mergebench_ray.commands.plan import plan as run

    result = run(
        checked,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu_memory_gib=gpu_memory,
        host_memory_gib=host_memory,
        address=address,
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        Console().print(*plan_tables(result))
        for note in result.notes:
            typer.echo(f"note: {note}")
    if result.problem:
        raise InputError(does_not_fit(result))
    if not as_json:
        typer.echo("fits")


def _opened(
    sweep: Path | None, recipe: Path | None, settings: dict[str, Any]
) -> tuple[Path | Sweep, dict[str, Any] | None]:
    """A sweep's file with what replaces its values, or the sweep around a recipe."""
    if recipe is None:
        if sweep is None:
            raise InputError("give a sweep, or --from RECIPE")
        if sweep == _STANDARD_INPUT:
            from mergebench_ray.config import Sweep

            return Sweep.from_stream(sys.stdin.buffer, settings), None
        return sweep, settings
    from mergebench_ray.search.from_recipe import sweep_from_recipe

    made, notes = sweep_from_recipe(recipe, sweep, settings)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return made, None


def replay(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run that is over.", autocompletion=run_completions)
    ],
    races: Annotated[
        list[str] | None,
        typer.Option(
            "--race",
            metavar="KIND[,KEY=VALUE...]",
            help="What to race by: pool, sparing, halving, exact, none, fewer, asha, wilcoxon, such as "
            "pool,p=0.05; may be given several times; default: a selection.",
        ),
    ] = None,
    orders: Annotated[int, typer.Option(help="Seeded orders of candidates and items to try each on.")] = 200,
    seed: Annotated[int, typer.Option(help="Fixes the orders.")] = 0,
    items: Annotated[
        int | None, typer.Option(help="As if there were so many items, drawn with replacement; default: the run's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
    as_json: Json = False,
) -> None:
    """Say what racing candidates, or fewer items, would have cost and chosen in a run that is over."""
    from mergebench_ray.commands.replay import replay as run_again
    from mergebench_ray.commands.replay import replay_table

    result = run_again(run, races=races, orders=orders, seed=seed, items=items, out=out, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        Console().print(replay_table(result))
        if out is not None:
            typer.echo(f"page: {out}")


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", autocompletion=run_completions)],
    as_json: Json = False,
) -> None:
    """Say how a run is getting on, from its folder alone, on any machine that sees it."""
    from mergebench_ray.runs.status import run_status

    found = run_status(run)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return

    for line in found.lines():
        typer.echo(line)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", autocompletion=run_completions)
    ],
    out: Annotated[
        Path | None, typer.Option(help="File of the page; default: report.html, in the run's folder if it is one run.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the leaderboard here as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it here as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write it here as LaTeX (booktabs).")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the report of one run in a browser while it goes on; writes nothing.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="With --serve: address to listen on; default: loopback.")] = None,
    port: Annotated[int | None, typer.Option(help="With --serve: port; default: one that is free.")] = None,
) -> None:
    """Write the report of a run again, or one that compares several."""
    if serve:
        if len(runs) > 1 or any((out, csv, markdown, latex)):
            raise InputError("--serve shows one run and writes no files: leave the others out")
        _serve(runs[0], host, port)
        return
    if host is not None or port is not None:
        raise InputError("--host and --port are for --serve: add it, or leave them out")
    from mergebench_ray.runs.comparison import read_runs

    found = read_runs(runs)

    from mergebench_ray.commands.report import report_on
    from mergebench_ray.report.terminal_table import terminal_table

    written, rows = report_on(found, out=out, csv=csv, markdown=markdown, latex=latex)
    Console().print(terminal_table(rows))
    for name, path in written.items():
        typer.echo(f"{name}: {path}")


def _serve(run: Path, host: str | None, port: int | None) -> None:
    from mergebench_ray.commands.live_report import report_server

    with report_server(run, host=host, port=port) as server:
        typer.echo(f"the report, until Ctrl-C: {server.url}")
        server.serve_forever()
