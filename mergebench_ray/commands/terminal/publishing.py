"""`push` and `verify`: a model that others can have, and whether it is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergebench_ray.commands.terminal.options import Json, LocalData, MethodsFolder, parse_pairs

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
    methods_folder: MethodsFolder = None,
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
        methods_folder=methods_folder,
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


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a merge, or of a run, for its best model.")],
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="OWNER/NAME on the hub; s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Send it to the hub; without, it is only said what would go.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it; a repository is private else.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is in the repository.")] = False,
    scores: Annotated[Path | None, typer.Option(metavar="FILE", help="What `evaluate --out` wrote about it.")] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=DATASET:TASK", help="A benchmark of the hub that a domain's score counts for."),
    ] = None,
) -> None:
    """Publish a merge on the hub with its card and how to make it again; or upload a model to object storage."""
    benchmarks = parse_pairs(benchmark, "--benchmark", "DOMAIN=DATASET:TASK")

    from mergebench_ray.commands.push import push as run

    result = run(
        model,
        place,
        yes=yes,
        public=public,
        replace=replace,
        scores=scores,
        benchmarks=benchmarks,
        show_progress=True,
    )
    for note in result.notes:
        typer.echo(f"note: {note}")
    if result.commit is None and result.is_sent:
        typer.echo(f"written to {result.place}")
        return
    for name, size in result.files.items():
        typer.echo(f"{size:>15,}  {name}")
    who = "private" if result.private else "public"
    what = f"{len(result.files)} files, {sum(result.files.values()):,} bytes"
    if result.is_sent:
        typer.echo(f"{what}: published in {result.place} ({who}), commit {result.commit}")
        return
    where = {True: "whose content they replace", False: "a new repository", None: "which was not looked at"}[
        result.exists
    ]
    typer.echo(f"{what}: would go to {result.place} ({who}), {where}; nothing was sent, --yes does")
