"""A published merge, made again from its own recipe and compared byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mergebench_ray.cache import cache_folder
from mergebench_ray.checkpoints import Checkpoint, merged_names, resolve
from mergebench_ray.checkpoints.accompanying_files import RECIPE_NAME
from mergebench_ray.checkpoints.comparing import differing_files, differing_tensors
from mergebench_ray.checkpoints.reproduction import (
    REPRODUCTION_NAME,
    RecordedEvaluation,
    Reproduction,
    installed_versions,
    read_recipe,
)
from mergebench_ray.checkpoints.sources import check_there, fetch_files, is_on_hub
from mergebench_ray.checkpoints.writer import written_layout
from mergebench_ray.commands.first_checks import checked_merge_of
from mergebench_ray.commands.merge import merge
from mergebench_ray.commands.merge_checks import other_code
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import CalibrationOptions, ModelRef, Recipe
from mergebench_ray.config.suite import built_in_suites
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_folder, scratch_folder
from mergebench_ray.methods import load_methods
from mergebench_ray.progress import Meter, Progress
from mergebench_ray.runs.recorded import compared_scores

if TYPE_CHECKING:
    from mergebench_ray.scores import DomainScore

_FETCHED_FIRST = (RECIPE_NAME, REPRODUCTION_NAME, "*.py")
"""Of a model on the hub; nobody else is given its code, which is compared and never run."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as the model says.

    Attributes:
        kind: an input of the merge (a model, or calibration data), a file or tensor of the model, or a score.
        name: which one.
        what: how it differs, in a few words.
    """

    kind: Literal["input", "file", "tensor", "score"]
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.what}"


@dataclass(frozen=True)
class VerifyResult:
    """What came of a verification.

    Attributes:
        model: what was verified.
        recipe: how it was merged, with the references that were used.
        differences: what is not as the model says; empty where all is. Where an input differs nothing was merged.
        tensors: tensors that were compared.
        num_bytes: bytes of them.
        versions: package -> version that merged, and version here, of those that differ.
        scores: domain -> score that the model says, and score here; None where scores were not asked for.
    """

    model: str
    recipe: Recipe
    differences: list[Difference]
    tensors: int = 0
    num_bytes: int = 0
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    scores: dict[str, tuple[float, float]] | None = None

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(
    model: str | Path,
    *,
    base: str | None = None,
    specialists: Mapping[str, str] | None = None,
    calibration: Mapping[str, str] | None = None,
    scores: bool = False,
    suite: str | None = None,
    data: Mapping[str, str] | None = None,
    allow_code_execution: bool = False,
    methods_folder: Path | str | None = None,
    show_progress: bool | None = None,
) -> VerifyResult:
    """Make a merge again from the recipe in its folder, and compare every byte of every tensor.

    The digests of base and specialists are compared first. The merge is made in the cache folder, takes as much of that
    disk as the model, and is removed; neither model is held in memory.

    Args:
        model: a folder, as `merge` writes one, a run's folder, or a model on the hub or in object storage.
        base: where the base lies, if not where the recipe says.
        specialists: the same of specialists, by name.
        calibration: specialist -> where its samples lie, the same.
        scores: also score the model again as it says that it was.
        suite: the suite's file, where it is none of the built-in ones.
        data: data set id of the hub -> local file or folder, for scores.
        allow_code_execution: run generated programs in the sandbox, for scores.
        methods_folder: folder whose *.py define methods of your own; they run as your own code does.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Raises:
        InputError: there is no model or recipe, an input is not there, there are no scores to compare with, or an
            option would do nothing.
    """
    if methods_folder is not None:
        load_methods(methods_folder)
    ref, recipe, record = _published(model)
    if (problem := other_code(recipe)) is not None:
        raise InputError(problem)
    _check_options(recipe, calibration, scores, suite, data, allow_code_execution)
    recipe = _with_references(recipe, base, specialists or {})
    evaluation = _evaluation(ref, record, suite) if scores else None
    versions = _other_versions(record)
    published = resolve(ref)  # its weights are fetched only now, when the inputs are known to be there
    models = resolve_models(recipe.base, recipe.specialists, record.allow if record else (), recipe.merged)
    with progress_line(show_progress) as report:
        models.fetch(report)
        differences = _changed_inputs(recipe, models, report)
        options = None
        if not differences and recipe.calibration is not None:
            options = _calibration(recipe, calibration or {})
            differences = _changed_samples(recipe, models, options, published, record)
        if differences:
            return VerifyResult(str(model), recipe, differences, versions=versions)
        published.fetch(report)
        differences = _made_again(published, recipe, models, options, report)
    found = None
    if evaluation is not None:
        again = _scored_again(published, evaluation, suite, data, allow_code_execution, show_progress)
        found, apart = compared_scores(evaluation, again)
        differences += [Difference("score", domain, what) for domain, what in apart.items()]
    size = sum(info.num_bytes for info in published.tensors.values())
    return VerifyResult(str(model), recipe, differences, len(published.tensors), size, versions, found)


def _published(model: str | Path) -> tuple[ModelRef, Recipe, Reproduction | None]:
    """Where the model lies, how it was merged, and what else its folder says of that."""
    ref = checked_merge_of(model)
    folder = fetch_files(ref, _FETCHED_FIRST) if is_on_hub(ref) else resolve(ref).folder
    recipe, record = read_recipe(folder, str(model)), Reproduction.read(folder)
    if record is not None and record.recipe != recipe.digest:
        raise InputError(f"{model}: recipe.yaml and reproduce.json are of two merges; restore them")
    return ref, recipe, record


def _check_options(
    recipe: Recipe,
    calibration: Mapping[str, str] | None,
    scores: bool,
    suite: str | None,
    data: Mapping[str, str] | None,
    allow_code_execution: bool,
) -> None:
    """Refuse what would do nothing, of which somebody expects something."""
    for option, value in {"suite": suite, "data": data, "allow-code-execution": allow_code_execution}.items():
        if value and not scores:
            raise InputError(f"--{option}: is for --scores; give both, or leave it out")
    if calibration and recipe.calibration is None:
        raise InputError("--calibration: this merge saw no data; leave it out")


def _with_references(recipe: Recipe, base: str | None, specialists: Mapping[str, str]) -> Recipe:
    """The recipe with other places of its inputs, each of which is there as far as this machine knows."""
    for name in specialists:
        if name not in recipe.specialists:
            known = ", ".join(sorted(recipe.specialists))
            raise InputError(f"--specialist {name!r}: the recipe has no such specialist, only {known}")
    placed = recipe.model_copy(
        update={"base": base or recipe.base, "specialists": {**recipe.specialists, **specialists}}
    )
    inputs = [("base", placed.base, "--base REF", base is not None)]
    for name, reference in placed.specialists.items():
        inputs.append((f"specialist {name}", reference, f"--specialist {name}=REF", name in specialists))
    for who, reference, option, is_given in inputs:
        try:
            check_there(ModelRef.parse(reference))
        except InputError as error:
            if is_given:
                raise
            raise InputError(
                f"{who}: the recipe names {reference}, which is not here; say where it lies: {option}"
            ) from error
    return placed


def _other_versions(record: Reproduction | None) -> dict[str, tuple[str, str]]:
    here = installed_versions()
    then = record.versions if record else {}
    return {name: (one, here.get(name, "none")) for name, one in then.items() if here.get(name) != one}


def _changed_inputs(recipe: Recipe, models: Models, report: Progress) -> list[Difference]:
    inputs = [("base", recipe.base, models.base, recipe.base_digest)]
    for name, checkpoint in models.specialists.items():
        inputs.append((name, recipe.specialists[name], checkpoint, recipe.specialist_digests[name]))
    differences = []
    for name, reference, checkpoint, expected in inputs:
        report(0.0, f"reading {name}")
        if (digest := checkpoint.digest()) != expected:
            what = f"({reference}) is not what was merged: SHA-256 {digest[:12]}… instead of {expected[:12]}…"
            differences.append(Difference("input", name, what))
    return differences


def _calibration(recipe: Recipe, given: Mapping[str, str]) -> CalibrationOptions:
    """Where the samples lie, seen as they were for the recipe."""
    record = recipe.calibration
    assert record is not None
    for name in given:
        if name not in record.inputs:
            raise InputError(f"--calibration {name!r}: the recipe has samples of {', '.join(record.inputs)} only")
    sources = {
        name: {**one.model_dump(exclude={"samples", "digest"}), **({"data": given[name]} if name in given else {})}
        for name, one in record.inputs.items()
    }
    return CalibrationOptions.model_validate({"data": sources, "max_length": record.max_length, "dtype": record.dtype})


def _changed_samples(
    recipe: Recipe, models: Models, options: CalibrationOptions, published: Checkpoint, record: Reproduction | None
) -> list[Difference]:
    """Samples that are not those of the recipe.

    Raises:
        InputError: they are not there; says what holds without them.
    """
    from mergebench_ray.bank.calibrator import calibration_record
    from mergebench_ray.commands.calibration import load_calibration  # seconds, for what reads data

    assert recipe.calibration is not None
    try:
        calibration = load_calibration(models, [(recipe.method, recipe.parameters)], options)
    except InputError as error:
        if differences := _without_samples(published, models, record):
            return differences
        raise InputError(
            f"{error}; say where the samples lie with --calibration NAME=SOURCE. Without them the merge cannot be made "
            "again: verified are the digests of all inputs, and the tensors that are the base's"
            + (
                ""
                if record is None or record.weights is None
                else ", and that the weights are those that were published"
            )
        ) from error
    found = calibration_record(calibration, recipe.method, recipe.parameters)
    assert found is not None
    differences = []
    for name, one in recipe.calibration.inputs.items():
        if (digest := found.inputs[name].digest) != one.digest:
            source = options.data[name].data
            what = f"({source}) is not what was seen: SHA-256 {digest[:12]}… instead of {one.digest[:12]}…"
            differences.append(Difference("input", f"samples of {name}", what))
    return differences


def _without_samples(published: Checkpoint, models: Models, record: Reproduction | None) -> list[Difference]:
    """What can be seen to differ without a merge."""
    merged, written = {*merged_names(models.base, models.specialists.values())}, written_layout(models.base)
    # Others are the base's, but for those that are rounded.
    names = [
        name for name, info in models.base.tensors.items() if name not in merged and written[name][1] == info.dtype
    ]
    found = differing_tensors(published, models.base, names)
    differences = [Difference("tensor", one.name, one.what) for one in found]
    if record is not None and record.weights is not None and published.digest() != record.weights:
        differences.append(Difference("file", "reproduce.json", "has another SHA-256 of the weights than they have"))
    return differences


def _made_again(
    published: Checkpoint, recipe: Recipe, models: Models, options: CalibrationOptions | None, report: Progress
) -> list[Difference]:
    """Merge in the cache, and compare."""
    place = cache_folder("outputs") / "verified"
    size = sum(info.num_bytes for info in published.tensors.values())
    check_new_folder(place, "MERGEBENCH_RAY_CACHE", num_bytes=size)
    with scratch_folder(place) as scratch:
        report(0.0, "making the merge again")
        if options is not None:  # statistics are made again, too, not taken from the cache
            options = options.model_copy(update={"folder": str(scratch / "statistics")})
        # Parameters may be written out otherwise by another version; what counts are the bytes.
        made = merge(
            recipe=recipe,
            out=scratch / "model",
            accept_changes=True,
            calibration=options,
            allow=models.allow,
            show_progress=False,
        )
        again = resolve(str(made.folder))
        meter = Meter(report, "comparing", size)

        def read(num_bytes: int) -> None:
            meter.add(num_bytes)
            meter.report()

        tensors = differing_tensors(published, again, read=read)
        files = differing_files(published.folder, again.folder)
    return [
        *(Difference("tensor", one.name, one.what) for one in tensors),
        *(Difference("file", name, what) for name, what in files),
    ]


def _evaluation(ref: ModelRef, record: Reproduction | None, suite: str | None) -> RecordedEvaluation:
    """What the model says of its scores, which can be asked again."""
    evaluation = None if record is None else record.evaluation
    if evaluation is None:
        raise InputError(f"{ref}: names no scores in reproduce.json; leave out --scores")
    if suite is None and evaluation.suite not in built_in_suites():
        raise InputError(f"{ref}: was scored on the suite {evaluation.suite}, which is not built in; give --suite FILE")
    return evaluation


def _scored_again(
    published: Checkpoint,
    evaluation: RecordedEvaluation,
    suite: str | None,
    data: Mapping[str, str] | None,
    allow_code_execution: bool,
    show_progress: bool | None,
) -> Mapping[str, DomainScore]:
    from mergebench_ray.commands.evaluate import evaluate  # seconds, for vLLM

    result = evaluate(
        str(published.ref),
        suite=suite or evaluation.suite,
        split=evaluation.split,
        tasks=evaluation.tasks,
        items=evaluation.items,
        **dict(evaluation.asked),
        data=data,
        allow_code_execution=allow_code_execution,
        show_progress=show_progress,
    )
    return result.scores.domains
