"""One merge, written as a model."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from mergebench_ray.bank import Bank, compiled_ahead
from mergebench_ray.checkpoints import Checkpoint, model_card, write_model
from mergebench_ray.commands.calibration import load_calibration
from mergebench_ray.commands.first_checks import checked_merge
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.config import CalibrationOptions, CalibrationSource, Recipe
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_folder
from mergebench_ray.methods import complete_parameters
from mergebench_ray.placement import Machine
from mergebench_ray.placement.plan import PROCESS_BYTES, gibibytes
from mergebench_ray.runtime import ray_session

_ITEM_BYTES = 2  # bf16


@dataclass(frozen=True)
class MergeResult:
    """A merged model on disk.

    Attributes:
        folder: where it is.
        recipe: what determines it.
        merge_seconds: the fused pass, with what had to be prepared for it.
        notes: rules that were applied where checkpoints differ, a line each.
    """

    folder: Path
    recipe: Recipe
    merge_seconds: float
    notes: list[str] = field(default_factory=list)


def merge(
    *,
    out: Path | str,
    method: str | None = None,
    base: str | None = None,
    specialists: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    recipe: Recipe | Path | str | None = None,
    accept_changes: bool = False,
    shards: int = 1,
    calibration: Mapping[str, str | CalibrationSource] | CalibrationOptions | None = None,
    suite: str | None = None,
    allow: Collection[str] = (),
    address: str | None = None,
    show_progress: bool = False,
) -> MergeResult:
    """Merge specialists into a base and write the model.

    Give `method`, `base`, `specialists` and `parameters`, or a `recipe`, whose digests must match the models.

    Args:
        out: folder of the model; must not exist, or be empty.
        method: name of the merging method.
        base: reference of the base.
        specialists: name -> reference.
        parameters: hyper-parameters that differ from the defaults.
        recipe: a recipe, or the path of its file.
        accept_changes: merge a recipe also where its file was changed after it was written.
        shards: bank shards.
        calibration: specialist -> its samples, for methods that see data; or more options.
        suite: built-in suite or suite file that says where samples are.
        allow: settings of config.json that specialists may have otherwise than the base although they change what a
            model computes, such as "rope_parameters".
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        show_progress: print what is happening.

    Raises:
        InputError: wrong input; nothing is written.
    """
    out = Path(out)
    request = checked_merge(
        out,
        method,
        base,
        specialists,
        parameters,
        recipe,
        calibration,
        suite,
        accept_changes=accept_changes,
        shards=shards,
        address=address,
    )
    models = resolve_models(request.base, request.specialists, allow)
    merge = (
        request.method,
        complete_parameters(request.method, request.parameters, list(models.specialists), models.num_layers),
    )
    check_new_folder(out, num_bytes=sum(info.numel * _ITEM_BYTES for info in models.base.tensors.values()))
    if request.recipe is not None:
        _check_digests(request.recipe, models)
        if merge[1] != request.recipe.parameters and not accept_changes:
            raise InputError(
                "recipe: 'parameters' are not written out with every default and for every specialist, so the merge "
                "would have another digest; write them out, or go on with --accept-changes"
            )
    # One shard on this machine needs no cluster.
    here = address is None and "RAY_ADDRESS" not in os.environ and not ray.is_initialized()
    alone = shards == 1 and here
    if here and not alone:
        _check_shards(shards)
    with ExitStack() as stack:
        report = stack.enter_context(progress_line(show_progress))
        for note in request.notes:
            report(0.0, note)
        calibrator = load_calibration(models, [merge], request.calibration, request.suite)
        if calibrator is not None:
            calibrator.report_to(report)
        with compiled_ahead([merge], list(models.specialists)):
            if not alone or calibrator is not None:
                # Ray starts a worker ahead for each core; only calibration has use for them.
                stack.enter_context(ray_session(address, num_cpus=0 if calibrator is None else None))
        bank = Bank.load(
            models.base,
            models.specialists,
            shards=shards,
            in_process=alone,
            calibrator=calibrator,
            progress=report,
        )
        try:
            final = bank.recipe(*merge)
            if request.recipe is not None and not accept_changes:
                _check_same(request.recipe, final)
            merged = bank.merge(final)
            report(1.0, "writing the model")
            write_merged(out, bank, models.base, model_card(final, None, models.notes))
        finally:
            bank.close()
    return MergeResult(out, final, merged.seconds, models.notes)


def _check_shards(shards: int) -> None:
    free = Machine.this().host_memory
    if shards * PROCESS_BYTES > free:
        raise InputError(
            f"--shards {shards}: their processes take {gibibytes(shards * PROCESS_BYTES)} before any weight, and "
            f"{gibibytes(free)} are free here; give fewer, or a cluster with --address"
        )


def write_merged(out: Path, bank: Bank, base: Checkpoint, card: str) -> None:
    """Write the bank's last merge as a model; embeddings and output head are the base's."""
    write_model(out, _all_tensors(bank, base), base, card)


def _all_tensors(bank: Bank, base: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    merged = set()
    for name, values in bank.tensors():
        merged.add(name)
        yield name, values
    for name, tensor in base.tensors.items():
        if name not in merged:
            yield name, base.read(name).reshape(tensor.shape)


def _check_digests(recipe: Recipe, models: Models) -> None:
    if models.base.digest() != recipe.base_digest:
        raise InputError(
            f"recipe: the base {recipe.base} is not the one it was made with (another digest); give that one"
        )
    for name, checkpoint in models.specialists.items():
        if checkpoint.digest() != recipe.specialist_digests.get(name):
            raise InputError(
                f"recipe: specialist {name} ({recipe.specialists[name]}) is not the one it was made with "
                "(another digest); give that one"
            )


def _check_same(recipe: Recipe, final: Recipe) -> None:
    """Refuse to write something else than a recipe says."""
    if (difference := recipe.difference(final)) is not None:
        raise InputError(f"recipe: made with other calibration data ({difference}); give that")
