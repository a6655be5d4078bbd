"""`methods`, `suites`, `sweeps` and `data check`: what there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mergebench_ray.commands.terminal.completions import (
    method_completions,
    shipped_sweep_completions,
    sweep_or_suite_completions,
)
from mergebench_ray.commands.terminal.options import (
    Json,
    LocalData,
    MethodsFolder,
    parse_pairs,
)
from mergebench_ray.errors import InputError

if TYPE_CHECKING:
    from mergebench_ray.methods import Method


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Everything about this one.", autocompletion=method_completions)
    ] = None,
    methods_folder: MethodsFolder = None,
    as_json: Json = False,
) -> None:
    """List the merging methods, or say what one does, where it comes from and which hyper-parameters it takes."""
    from mergebench_ray.methods import get_method, load_methods, method_names

    if methods_folder is not None:
        load_methods(methods_folder)
    found = [get_method(one) for one in (method_names() if name is None else [name])]
    if as_json:
        listing = [_as_json(method) for method in found]
        typer.echo(json.dumps(listing if name is None else listing[0], indent=2))
    elif name is not None:
        _echo(_details(found[0]))
    else:
        Console().print(_method_table(found))


def _as_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "parameters": method.Parameters.model_json_schema(),
    }


def _method_table(found: Iterable[Method]) -> Table:
    table = Table(title="Merging methods")
    for column in ("method", "what it does", "hyper-parameters (default)"):
        table.add_column(column)
    for method in found:
        fields = method.Parameters.model_fields.items()
        table.add_row(method.name, method.summary, "\n".join(f"{name} ({field.default})" for name, field in fields))
    return table


def _details(method: Method) -> list[str]:
    lines = [f"{method.name}: {method.summary}", f"source: {method.source}"]
    schemas = method.Parameters.model_json_schema().get("properties", {})
    for name, schema in schemas.items():
        lines += ["", f"{name} (default {json.dumps(schema.get('default'))}): {schema.get('description', '')}".rstrip()]
        lines.append(f"    {', or '.join(map(_allowed, _alternatives(schema) or [schema]))}")
    return lines if schemas else [*lines, "no hyper-parameters"]


def _allowed(schema: Mapping[str, Any]) -> str:
    """In words, what the JSON schema of a hyper-parameter lets through."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind == "object":
        inside = [_form(one) for one in _alternatives(schema.get("additionalProperties", {}))]
        return ", or ".join(["such a number for each specialist", *dict.fromkeys(filter(None, inside))])
    if form := _form(schema):
        return form
    if kind not in ("number", "integer"):
        return {"boolean": "true or false", "string": "a text"}.get(str(kind), str(kind))
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    numbers = {key: schema[key] for key in words if key in schema}
    bounds = [f"{words[key]} {one if isinstance(one, int) else format(one, 'g')}" for key, one in numbers.items()]
    return " ".join(["a whole number" if kind == "integer" else "a number", *bounds])


def _form(schema: Mapping[str, Any]) -> str:
    """What stands in the place of a number where that differs between tensors; empty for what is none."""
    if schema.get("type") == "array":
        is_rules = "$ref" in schema.get("items", {})
        return "[{filter: ..., value: ...}, ...] by names of tensors" if is_rules else "a list of them for layer groups"
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    lines = {
        "LineOverLayers": "{first: ..., last: ...} for a line over the layers",
        "ByModuleKind": "any of these for each of attention, mlp, norm",
    }
    return lines.get(name, "")


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas of which a value may follow any; none where there is but one."""
    return schema.get("anyOf") or schema.get("oneOf") or []


def families(
    model: Annotated[str | None, typer.Argument(help="Reference of a model: say what its parts are.")] = None,
    as_json: Json = False,
) -> None:
    """List the model families that are known, or say what the parts of a model are and which of them are merged."""
    if model is not None:
        from mergebench_ray.checkpoints.sources import check_there
        from mergebench_ray.config import ModelRef

        check_there(ModelRef.parse(model))

    from mergebench_ray.commands.families import families as known
    from mergebench_ray.commands.families import families_table, model_parts, part_lines, parts_table

    if model is None:
        found = known()
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        else:
            Console().print(families_table(found))
        return
    parts = model_parts(model)
    if as_json:
        typer.echo(json.dumps(asdict(parts), indent=2))
    else:
        Console().print(parts_table(parts))
        _echo(part_lines(parts))
    if parts.problem is not None:
        raise InputError(parts.problem)


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


def sweeps(
    name: Annotated[
        str | None, typer.Argument(help="Print the file of this one.", autocompletion=shipped_sweep_completions)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the sweeps that ship, or print one to begin a sweep of your own with: `sweeps NAME > sweep.yaml`."""
    from mergebench_ray.config.sweep import Sweep, built_in_sweeps
    from mergebench_ray.errors import nearest

    files = built_in_sweeps()
    if name is not None:
        if name not in files:
            raise InputError(f"sweep {name!r:.300} does not ship; {nearest(name, files)}")
        typer.echo(files[name].read_text(encoding="utf-8"), nl=False)
        return
    found = {one: Sweep.from_yaml(file) for one, file in files.items()}
    if as_json:
        typer.echo(json.dumps({one: sweep.model_dump(mode="json") for one, sweep in found.items()}, indent=2))
        return
    table = Table(title="Sweeps that ship")
    for column in ("sweep", "suite", "methods", "candidates"):
        table.add_column(column, justify="left" if column in ("sweep", "suite") else "right")
    for one, sweep in found.items():
        table.add_row(one, sweep.suite, str(len(sweep.methods)), str(sweep.search.most_candidates))
    Console().print(table)


def data_check(
    sweep_or_suite: Annotated[
        str,
        typer.Argument(
            help="Sweep file, suite file, or name of one that ships.", autocompletion=sweep_or_suite_completions
        ),
    ],
    data: LocalData = None,
    as_json: Json = False,
) -> None:
    """List data sets and judges: where each would come from, its licence, whether it is there; exit 1 if one is not."""
    from mergebench_ray.commands.first_checks import read_sweep_or_suite

    pairs = parse_pairs(data, "--data", "ID=PATH")
    read_sweep_or_suite(sweep_or_suite)

    from mergebench_ray.commands.data_check import data_blocks, data_rows, is_complete, problem_lines
    from mergebench_ray.commands.data_check import data_check as run

    found = run(sweep_or_suite, pairs)
    if as_json:
        typer.echo(json.dumps([{**vars(one), "there": one.there} for one in found], indent=2))
    elif sys.stdout.isatty():
        _echo([*data_blocks(found, Console().width), *problem_lines(found)])
    else:
        _echo(data_rows(found))
        _echo(problem_lines(found), err=True)
    raise typer.Exit(0 if is_complete(found) else 1)


def _echo(lines: Iterable[str], *, err: bool = False) -> None:
    for line in lines:
        typer.echo(line, err=err)
