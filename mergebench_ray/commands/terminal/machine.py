"""`doctor`, `bench` and `train-specialists`: this machine, and what ships with the package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mergebench_ray.commands.terminal.options import Json, MethodsFolder, parse_names


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


def bench(
    model: Annotated[
        str | None, typer.Option(help="Base to measure with, five made-up specialists; default: the built-in suite.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as JSON.")] = None,
    methods_folder: MethodsFolder = None,
) -> None:
    """Measure what a candidate costs on this machine, side by side with a plain copy."""
    # As in the actors of a sweep, threads sleep while they wait; torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mergebench_ray.commands.first_checks import check_bench

    check_bench(model, json_file, methods_folder)

    from mergebench_ray.commands.bench import bench as run

    run(model=model, json_file=json_file, methods_folder=methods_folder, show_progress=True)


def train_specialists(
    out: Annotated[Path, typer.Option(help="Folder of the adapters.")],
    domains: Annotated[str | None, typer.Option(help="Only these domains, separated by commas.")] = None,
) -> None:
    """Train the LoRA specialists of the built-in suite; goes on where it was interrupted."""
    from mergebench_ray.suites.smollm2_mini.adapter_folders import checked_adapters

    chosen = parse_names(domains, "--domains")
    checked_adapters(out, chosen)

    from mergebench_ray.suites.smollm2_mini.training.specialists import train_specialists as run

    run(domains=chosen, out=out)
