"""What can be known to be wrong with `merge` before models are touched; imports neither torch nor what searches use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.sources import check_there
from mergebench_ray.config import CalibrationOptions, CalibrationSource, MergedParts, ModelRef, Recipe, Suite
from mergebench_ray.config.calibration import no_calibration_data
from mergebench_ray.config.merged_parts import check_parts
from mergebench_ray.config.names import require_names
from mergebench_ray.config.recipe import WeightType
from mergebench_ray.config.sweep import BankOptions
from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_folder
from mergebench_ray.mergekit import is_mergekit, read_recipe
from mergebench_ray.methods import (
    complete_parameters,
    get_method,
    load_methods,
    method_names,
    method_source,
    parse_parameters,
)
from mergebench_ray.object_storage.address import Address, output_place
from mergebench_ray.object_storage.published import check_new_address
from mergebench_ray.outside_code import code_of
from mergebench_ray.ray_address import check_ray

_MANY_LAYERS = 1000  # before it is known how many the model has


@dataclass(frozen=True)
class MergeRequest:
    """What `merge` was asked for.

    Attributes:
        method: name of the merging method.
        base: reference of the base.
        specialists: name -> reference.
        parameters: hyper-parameters as they were given.
        recipe: where all of this comes from; None where it was given one by one.
        calibration: where samples come from.
        suite: says it too.
        merged: which parts are merged.
        notes: what was accepted, in lines.
        dtype: what is written.
        tokenizer: name of the specialist whose tokenizer comes along; None for the base's.
        chat_template: its text or name; None for the tokenizer's.
        layers: how many a recipe says that the models have; None where it says nothing.
        rules: what of a mergekit recipe is done otherwise there, in lines.
    """

    method: str
    base: str
    specialists: Mapping[str, str]
    parameters: Mapping[str, Any]
    recipe: Recipe | None
    calibration: CalibrationOptions
    suite: Suite | None
    merged: MergedParts
    notes: list[str]
    dtype: WeightType = "bfloat16"
    tokenizer: str | None = None
    chat_template: str | None = None
    layers: int | None = None
    rules: list[str] = field(default_factory=list)


def checked_merge(
    out: Path | str,
    method: str | None,
    base: str | None,
    specialists: Mapping[str, str] | None,
    parameters: Mapping[str, Any] | None,
    recipe: Recipe | Path | str | None,
    calibration: Mapping[str, Path | str | CalibrationSource] | CalibrationOptions | None,
    suite: Path | str | None,
    *,
    accept_changes: bool,
    shards: int = 1,
    merged: MergedParts | Mapping[str, bool] | None = None,
    address: str | None = None,
    methods_folder: Path | str | None = None,
) -> MergeRequest:
    """Everything about `merge` but the models themselves; arguments as there.

    Raises:
        InputError: naming option or key, value and rule.
    """
    if methods_folder is not None:
        load_methods(methods_folder)
    place = output_place(out)
    if isinstance(place, Address):
        check_new_address(place)
    else:
        check_new_folder(place)
    notes: list[str] = []
    written = recipe if isinstance(recipe, Recipe) else None
    foreign = None
    if isinstance(recipe, Path | str):
        content = read_yaml(Path(recipe))
        if is_mergekit(content):
            foreign = read_recipe(content, Path(recipe))
        else:
            written = Recipe.from_yaml(Path(recipe), accept_changes=accept_changes, note=notes.append)
    source = written or foreign
    if source is not None:
        if method is not None or base is not None or specialists or parameters or merged:
            raise InputError(
                "a recipe says everything: give either its file, or --method, --base, --specialist, --merged and --set"
            )
        method, base, specialists, parameters = source.method, source.base, source.specialists, source.parameters
    if written is None and accept_changes:
        raise InputError("--accept-changes is for a recipe of mergebench-ray that was changed; leave it out")
    if method is None or base is None or not specialists:
        raise InputError("give --method, --base and at least one --specialist NAME=REF, or a recipe's file")
    require_names(specialists, "--specialist")
    if written is not None and (problem := other_code(written)) is not None:
        if not accept_changes:
            other = ", or go on with --accept-changes" if written.method in method_names() else ""
            raise InputError(problem + other)
        notes.append(problem)
    complete = complete_parameters(method, parameters or {}, list(specialists), _MANY_LAYERS)
    parse_model(BankOptions, {"shards": shards}, "merge")
    parts = merged_parts(merged) if source is None else source.merged
    options = calibration_options(calibration, written)
    for name in options.data:
        if name not in specialists:
            raise InputError(f"--calibration {name!r}: there is no such specialist, only {', '.join(specialists)}")
    loaded = Suite.load(suite) if suite is not None else None
    sees_data = bool(get_method(method).calibration_samples(parse_parameters(method, complete)))
    check_parts(parts, method, sees_data=sees_data)
    if sees_data:
        known = {*options.data, *(loaded.calibration if loaded else ())}
        if missing := next((name for name in specialists if name not in known), None):
            raise no_calibration_data(method, missing)
    elif (calibration is not None and options.data) or suite is not None:
        option = "--calibration" if suite is None else f"--suite {suite}"
        raise InputError(f"{option}: {method} reads no data with these hyper-parameters; leave it out")
    for reference in (base, *specialists.values()):
        check_there(ModelRef.parse(reference))
    check_ray(address)
    if source is not None and source.dtype != "bfloat16" and shards > 1:
        raise InputError(f"--shards {shards}: {source.dtype} is written without shards alone; leave it out")
    return MergeRequest(
        method,
        base,
        specialists,
        parameters or {},
        written,
        options,
        loaded,
        parts,
        notes,
        *((source.dtype, source.tokenizer, source.chat_template) if source is not None else ()),
        *((foreign.layers, foreign.notes) if foreign is not None else ()),
    )


def merged_parts(given: MergedParts | Mapping[str, bool] | None) -> MergedParts:
    """Which parts are merged, from how a caller says it.

    Raises:
        InputError: naming key, value and rule.
    """
    return given if isinstance(given, MergedParts) else parse_model(MergedParts, dict(given or {}), "merged")


def other_code(recipe: Recipe) -> str | None:
    """What is wrong with the code of a recipe's method, as far as it is known here; None where it is the same."""
    if recipe.method_source is not None and recipe.method not in method_names():
        return (
            f"recipe: method {recipe.method!r} is not one of mergebench_ray's own; give the folder of its file "
            f"(SHA-256 {recipe.method_source}) with --methods-folder, or install its package"
        )
    if recipe.method_source == (found := method_source(recipe.method)):
        return None
    kind = type(get_method(recipe.method))
    code = code_of(kind)
    if recipe.method_source is None:
        return f"recipe: does not say with which code of method {recipe.method} it was made"
    return (
        f"recipe: method {recipe.method} was made with other code (SHA-256 {recipe.method_source}) than that of "
        f"{code.path if code else kind.__module__} (SHA-256 {found}); give that"
    )


def calibration_options(
    given: Mapping[str, Path | str | CalibrationSource] | CalibrationOptions | None, recipe: Recipe | None
) -> CalibrationOptions:
    """What a caller says, else what the recipe was made with, else the defaults."""
    if isinstance(given, CalibrationOptions):
        return given
    if given or recipe is None or recipe.calibration is None:
        data = {name: str(one) if isinstance(one, Path) else one for name, one in (given or {}).items()}
        return parse_model(CalibrationOptions, {"data": data}, "calibration")
    record = recipe.calibration
    sources = {
        name: CalibrationSource(**one.model_dump(exclude={"samples", "digest"})) for name, one in record.inputs.items()
    }
    return parse_model(
        CalibrationOptions, {"data": sources, "max_length": record.max_length, "dtype": record.dtype}, "recipe"
    )
