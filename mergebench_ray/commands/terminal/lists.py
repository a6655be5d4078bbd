"""`methods`, `suites` and `data check`: what there is."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mergebench_ray.commands.terminal.options import Json, LocalData, parse_pairs


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


def data_check(
    sweep_or_suite: Annotated[str, typer.Argument(help="Sweep file, suite file or built-in suite.")],
    data: LocalData = None,
    as_json: Json = False,
) -> None:
    """List data sets and judges: where each would come from, its licence, whether it is there; exit 1 if one is not."""
    from mergebench_ray.commands.first_checks import read_sweep_or_suite

    pairs = parse_pairs(data, "--data", "ID=PATH")
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
