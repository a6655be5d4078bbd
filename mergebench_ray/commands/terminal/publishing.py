"""`verify`: whether a model is what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergebench_ray.commands.terminal.options import Json, LocalData, parse_pairs

if TYPE_CHECKING:
    from mergebench_ray.commands.verify import VerifyResult


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a merge, folder of a run, or model on the hub.")
    ],
    base: Annotated[
        str | None, typer.Option(metavar="REF", help="Where the base lies, if not as the recipe says.")
    ] = None,
    specialist: Annotated[
        list[str] | None, typer.Option(metavar="NAME=REF", help="Where a specialist lies, the same.")
    ] = None,
    calibration: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SOURCE", help="Where a specialist's samples lie, the same.")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Also score it again as it says that it was.")] = False,
    suite: Annotated[str | None, typer.Option(metavar="FILE", help="The suite's file, for --scores.")] = None,
    data: LocalData = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run generated programs in the sandbox, for --scores.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a published merge again from its recipe and compare every byte; status 1 where one differs."""
    places = parse_pairs(specialist, "--specialist", "NAME=REF")
    samples = parse_pairs(calibration, "--calibration", "NAME=SOURCE")
    pairs = parse_pairs(data, "--data", "ID=PATH")
    from mergebench_ray.commands.first_checks import checked_merge_of

    checked_merge_of(model)

    from mergebench_ray.commands.verify import verify as run

    result = run(
        model,
        base=base,
        specialists=places,
        calibration=samples,
        scores=scores,
        suite=suite,
        data=pairs,
        allow_code_execution=allow_code_execution,
        show_progress=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(_as_json(result), indent=2))
    else:
        _print(result)
    if not result.is_equal:
        raise typer.Exit(1)


def _as_json(result: VerifyResult) -> dict[str, Any]:
    return {
        "model": result.model,
        "recipe": result.recipe.digest,
        "equal": result.is_equal,
        "differences": [vars(one) for one in result.differences],
        "tensors": result.tensors,
        "num_bytes": result.num_bytes,
        "versions": result.versions,
        "scores": result.scores,
    }


def _print(result: VerifyResult) -> None:
    for package, (then, now) in result.versions.items():
        typer.echo(f"note: merged with {package} {then}, verified with {now}")
    for domain, (published, here) in (result.scores or {}).items():
        typer.echo(f"score of {domain}: {published:.4f}, here {here:.4f}")
    if result.is_equal:
        typer.echo(
            f"equal: {result.model} is the merge that its recipe says, {result.tensors} tensors, "
            f"{result.num_bytes:,} bytes (recipe digest {result.recipe.digest})"
        )
        return
    tensors = [one for one in result.differences if one.kind == "tensor"]
    others = [one for one in result.differences if one.kind != "tensor"]
    if tensors:
        first = f"tensor {tensors[0].name} {tensors[0].what}"
        typer.echo(f"different: {len(tensors)} of {result.tensors} tensors, the first: {first}")
    for one in others:
        typer.echo(f"different: {one}")
