"""One merge, written as a model."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from mergebench_ray.cache import cache_folder
from mergebench_ray.checkpoints import Checkpoint, reserved_model, write_model
from mergebench_ray.checkpoints.read_once import digests_are_remembered
from mergebench_ray.checkpoints.reproduction import CARD_NAME, texts_beside
from mergebench_ray.checkpoints.writer import AS_THE_BASE, Written
from mergebench_ray.commands.merge_checks import MergeRequest, checked_merge, merged_parts
from mergebench_ray.commands.merge_in_memory import ModelInMemory, merge_in_memory, refuse_of_memory
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.commands.outputs import fitted_output, for_mergekit
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.commands.push import push_command
from mergebench_ray.config import CalibrationOptions, CalibrationSource, MergedParts, Recipe
from mergebench_ray.config.reference import reference_text
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_folder, scratch_folder, workplace_of
from mergebench_ray.machine import connected_ray
from mergebench_ray.methods import complete_parameters, get_method, load_methods, parse_parameters
from mergebench_ray.object_storage.address import Address, output_place
from mergebench_ray.object_storage.published import publish
from mergebench_ray.progress import Progress

if TYPE_CHECKING:
    from mergebench_ray.bank import Bank
    from mergebench_ray.bank.calls import Calls
    from mergebench_ray.calibration import Calibration


@dataclass(frozen=True, repr=False)
class MergeResult:
    """A merged model.

    Attributes:
        folder: where it is; of object storage, its address.
        recipe: what determines it.
        merge_seconds: the fused pass, with what had to be prepared for it.
        notes: rules that were applied where checkpoints differ, a line each.
    """

    folder: Path | str
    recipe: Recipe
    merge_seconds: float
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        made = f"{self.recipe.method} of {', '.join(self.recipe.specialists)}, merged in {self.merge_seconds:.2f} s"
        return "\n".join([made, f"folder: {self.folder}", *(f"note: {note}" for note in self.notes)])


@overload
def merge(
    *,
    out: Path | str,
    method: str | None = None,
    base: Path | str | None = None,
    specialists: Mapping[str, Path | str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    recipe: Recipe | Path | str | None = None,
    accept_changes: bool = False,
    shards: int = 1,
    merged: MergedParts | Mapping[str, bool] | None = None,
    calibration: Mapping[str, Path | str | CalibrationSource] | CalibrationOptions | None = None,
    suite: Path | str | None = None,
    allow: Collection[str] = (),
    address: str | None = None,
    methods_folder: Path | str | None = None,
    show_progress: bool | None = None,
) -> MergeResult: ...


@overload
def merge(
    *,
    method: str,
    base: ModelInMemory,
    specialists: Mapping[str, ModelInMemory],
    parameters: Mapping[str, Any] | None = None,
    merged: MergedParts | Mapping[str, bool] | None = None,
    allow: Collection[str] = (),
    config: Any = None,
    methods_folder: Path | str | None = None,
    show_progress: bool | None = None,
) -> dict[str, Tensor]: ...


def merge(
    *,
    out: Path | str | None = None,
    method: str | None = None,
    base: Path | str | ModelInMemory | None = None,
    specialists: Mapping[str, Path | str] | Mapping[str, ModelInMemory] | None = None,
    parameters: Mapping[str, Any] | None = None,
    recipe: Recipe | Path | str | None = None,
    accept_changes: bool = False,
    shards: int = 1,
    merged: MergedParts | Mapping[str, bool] | None = None,
    calibration: Mapping[str, Path | str | CalibrationSource] | CalibrationOptions | None = None,
    suite: Path | str | None = None,
    allow: Collection[str] = (),
    address: str | None = None,
    config: Any = None,
    methods_folder: Path | str | None = None,
    show_progress: bool | None = None,
) -> MergeResult | dict[str, Tensor]:
    """Merge specialists into a base: models on disk to a model on disk, models in memory to a state dict.

    Give `method`, `base`, `specialists` and `parameters`, or a `recipe`: of ours, whose digests must match the models,
    or mergekit's.

    A model in memory is a state dict, or a model of transformers. Of these nothing is written, and no Ray is started;
    methods that read data are for models on disk. Rules that were applied where models differ are logged, a line each.

    Args:
        out: folder of the model, where they are on disk; must not exist, or be empty. Of
            s3://bucket/folder and gs://bucket/folder, too.
        method: name of the merging method.
        base: reference of the base, or a model in memory.
        specialists: name -> the same.
        parameters: hyper-parameters that differ from the defaults.
        recipe: a recipe, or the path of its file, which may be one for mergekit.
        accept_changes: merge a recipe also where its file was changed after it was written.
        shards: bank shards.
        merged: which parts are merged, such as {"embeddings": True}; None for the layers, and what sees and hears.
        calibration: specialist -> its samples, for methods that see data; or more options.
        suite: built-in suite or suite file that says where samples are.
        allow: settings of config.json that specialists may have otherwise than the base although they change what a
            model computes, such as "rope_parameters".
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        config: of models in memory that are state dicts, their configuration: of transformers, or a mapping.
        methods_folder: folder whose *.py define methods of your own; they run as your own code does.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Returns:
        what was written; of models in memory the merge: every tensor of the base by name, bf16 (indices and masks in
        their own type), on the CPU.

    Raises:
        InputError: wrong input; nothing is written. Where a merge cannot be uploaded, the message says where it is.
    """
    models_given = {} if specialists is None else specialists
    if not isinstance(models_given, Mapping):
        kind = type(models_given).__name__
        raise InputError(f"specialists: must be a mapping, of name to model, not of type {kind}")
    base_reference = reference_text(base) if isinstance(base, str | Path) else None
    references = {name: reference_text(one) for name, one in models_given.items() if isinstance(one, str | Path)}
    if (base is not None and base_reference is None) or len(references) < len(models_given):
        given = {"out": out, "recipe": recipe, "calibration": calibration, "suite": suite, "address": address}
        refuse_of_memory([name for name, one in given.items() if one is not None])
        refuse_of_memory(["shards"] * (shards != 1) + ["accept_changes"] * accept_changes)
        if methods_folder is not None:
            load_methods(methods_folder)
        with progress_line(show_progress) as report:
            return merge_in_memory(
                method, base, models_given, parameters or {}, config, allow, merged_parts(merged), report
            )
    if config is not None:
        raise InputError("config: is for models in memory; a model on disk has its own")
    if out is None:
        raise InputError("out: give the folder of the merged model")
    place = output_place(out)
    request = checked_merge(
        out,
        method,
        base_reference,
        references,
        parameters,
        recipe,
        calibration,
        suite,
        accept_changes=accept_changes,
        shards=shards,
        merged=merged,
        address=address,
        methods_folder=methods_folder,
    )
    models = resolve_models(request.base, request.specialists, allow, request.merged)
    models, written = fitted_output(models, request)
    parameters = complete_parameters(request.method, request.parameters, list(models.specialists), models.num_layers)
    folder = place if isinstance(place, Path) else cache_folder("outputs") / "model"
    option = "--out" if isinstance(place, Path) else "MERGEBENCH_RAY_CACHE"
    check_new_folder(
        folder, option, num_bytes=sum(info.numel * written.dtype.itemsize for info in models.base.tensors.values())
    )
    if request.recipe is not None and parameters != request.recipe.parameters and not accept_changes:
        raise InputError(
            "recipe: 'parameters' are not written out as this version does, with every default, for every specialist, "
            "and what is the same once, so the merge would have another digest; its weights are those that the recipe "
            "says: go on with --accept-changes"
        )
    expected = _Expected(request.recipe, accept_changes)
    here = address is None and "RAY_ADDRESS" not in os.environ and connected_ray() is None
    # One shard on this machine needs no cluster.
    streamed = shards == 1 and here
    every = [models.base, *models.specialists.values()]
    with ExitStack() as stack:
        report = stack.enter_context(progress_line(show_progress))
        models.fetch(report)
        if request.recipe is not None and (not streamed or digests_are_remembered(every)):
            digests = {name: one.digest() for name, one in models.specialists.items()}
            expected.check_models(models.base.digest(), digests)
        for note in request.notes:
            report(0.0, note)
        folder = stack.enter_context(_brought_to(place, report))
        calibrator = _calibrator(models, request, parameters)
        if calibrator is not None:
            calibrator.report_to(report)
        if here and not streamed:
            _check_shards(shards)
        if calibrator is not None or not streamed:
            # Ray starts a worker ahead for each core; only calibration has use for them.
            stack.enter_context(_ray(address, 0 if calibrator is None else None))
        calls = None if here else _calls_on_cluster(folder)
        if streamed or (shards == 1 and calls is not None):
            result = _merge_streamed(folder, models, request, written, parameters, calibrator, expected, report, calls)
        else:
            result = _merge_in_bank(folder, models, request, written, parameters, calibrator, expected, report, shards)
    return result if isinstance(place, Path) else replace(result, folder=str(place))


@contextmanager
def _brought_to(place: Path | Address, report: Progress) -> Iterator[Path]:
    """The folder to write a model to, which goes to object storage at the end of the block where it is to be there.

    Where it cannot, or is stopped on its way, it stays on this machine, and the error says where.
    """
    if isinstance(place, Path):
        yield place
        return
    outputs = cache_folder("outputs")
    merged = outputs / f"{place.file_name}-{secrets.token_hex(4)}"
    with scratch_folder(outputs / "model") as scratch:
        yield scratch / "model"
        os.replace(scratch / "model", merged)
        try:
            publish(merged, place, report)
        except BaseException as error:
            remedy = f"the merge is kept: upload it with {push_command(merged, place)}, then remove {merged}"
            if isinstance(error, InputError):
                raise InputError(f"{error}; {remedy}") from error
            error.add_note(remedy)
            raise
        os.replace(merged, scratch / "model")


@dataclass(frozen=True)
class _Expected:
    """What a recipe says of a merge.

    Attributes:
        recipe: the recipe, where there is one.
        accept_changes: whether its file may have been changed.
    """

    recipe: Recipe | None
    accept_changes: bool

    def check_models(self, base_digest: str, specialist_digests: Mapping[str, str]) -> None:
        """Refuse other models than those it was made with."""
        if self.recipe is None:
            return
        if base_digest != self.recipe.base_digest:
            raise InputError(
                f"recipe: the base {self.recipe.base} is not the one it was made with (another digest); give that one"
            )
        for name, digest in specialist_digests.items():
            if digest != self.recipe.specialist_digests.get(name):
                raise InputError(
                    f"recipe: specialist {name} ({self.recipe.specialists[name]}) is not the one it was made with "
                    "(another digest); give that one"
                )

    def check_same(self, final: Recipe) -> None:
        """Refuse to write something else than it says."""
        if self.recipe is None or self.accept_changes:
            return
        if (difference := self.recipe.difference(final)) is not None:
            raise InputError(f"recipe: made with other calibration data ({difference}); give that")


def _merge_streamed(
    out: Path,
    models: Models,
    request: MergeRequest,
    written: Written,
    parameters: Mapping[str, Any],
    calibrator: Calibration | None,
    expected: _Expected,
    report: Progress,
    calls: Calls | None,
) -> MergeResult:
    """Merge in windows, with no more in memory than a few of them: in this process, or in tasks of a cluster."""
    from mergebench_ray.bank import StreamedBank
    from mergebench_ray.bank.calibrator import calibration_record

    method = request.method
    if expected.recipe is not None:
        record = calibration_record(calibrator, method, parameters)
        expected.check_same(expected.recipe.model_copy(update={"calibration": record}))
    began = time.perf_counter()
    bank = StreamedBank(models.base, models.specialists, calibrator=calibrator, calls=calls, progress=report)

    with reserved_model(out, models.base, keep_out_of_memory=bank.exceeds_memory, written=written) as model:
        bank.merge(method, parameters, model.files, written.dtype)
        final = _with_output(bank.recipe(method, parameters), request, written)
        expected.check_models(final.base_digest, final.specialist_digests)
        expected.check_same(final)
        for_others, why_not = for_mergekit(final, models.base, bank.layout)
        model.texts = {**texts_beside(final, models.reproduction(final)), **for_others}
        report(1.0, "writing the model")
    return MergeResult(out, final, time.perf_counter() - began, [*models.notes, *why_not])


def _merge_in_bank(
    out: Path,
    models: Models,
    request: MergeRequest,
    written: Written,
    parameters: Mapping[str, Any],
    calibrator: Calibration | None,
    expected: _Expected,
    report: Progress,
    shards: int,
) -> MergeResult:
    """Merge in shards of a cluster, which hold the models."""
    from mergebench_ray.bank import Bank

    if written.dtype != torch.bfloat16:
        raise InputError(f"{request.dtype} cannot be written here: nodes of the cluster do not see the output's folder")
    bank = Bank.load(models.base, models.specialists, shards=shards, calibrator=calibrator, progress=report)
    try:
        final = _with_output(bank.recipe(request.method, parameters), request, written)
        expected.check_same(final)
        merged = bank.merge(final)
        report(1.0, "writing the model")
        for_others, why_not = for_mergekit(final, models.base, bank.layout)
        texts = {**texts_beside(final, models.reproduction(final)), **for_others}
        write_merged(out, bank, models.base, texts, written)
    finally:
        bank.close()
    return MergeResult(out, final, merged.seconds, [*models.notes, *why_not])


def _calibrator(models: Models, request: MergeRequest, parameters: Mapping[str, Any]) -> Calibration | None:
    if not get_method(request.method).calibration_samples(parse_parameters(request.method, parameters)):
        return None
    from mergebench_ray.commands.calibration import load_calibration  # seconds, for what reads data

    return load_calibration(models, [(request.method, parameters)], request.calibration, request.suite)


def _calls_on_cluster(out: Path) -> Calls | None:
    """Tasks of a cluster, where all its nodes can write what they are to write."""
    from mergebench_ray.bank.calls import RayCalls

    return RayCalls() if RayCalls.can_write(workplace_of(out)) else None


def _ray(address: str | None, num_cpus: int | None) -> AbstractContextManager[None]:
    from mergebench_ray.runtime import ray_session  # a second, for Ray

    return ray_session(address, num_cpus=num_cpus)


def _check_shards(shards: int) -> None:
    from mergebench_ray.machine import available_memory
    from mergebench_ray.placement.parts import PROCESS_BYTES
    from mergebench_ray.placement.records import gibibytes

    free = available_memory()
    if shards * PROCESS_BYTES > free:
        raise InputError(
            f"--shards {shards}: their processes take {gibibytes(shards * PROCESS_BYTES)} before any weight, and "
            f"{gibibytes(free)} are free here; give fewer, or a cluster with --address"
        )


def _with_output(recipe: Recipe, request: MergeRequest, written: Written) -> Recipe:
    """A recipe that says what lies beside the weights, too."""
    beside = {"tokenizer": request.tokenizer, "chat_template": written.chat_template}
    return recipe.model_copy(update={"dtype": request.dtype, **beside})


def write_merged(
    out: Path, bank: Bank, base: Checkpoint, texts: Mapping[str, str], written: Written = AS_THE_BASE
) -> None:
    """Write the bank's last merge as a model, with texts beside it; what is not merged is the base's."""
    write_model(out, _all_tensors(bank, base), base, texts[CARD_NAME], beside=texts, written=written)


def _all_tensors(bank: Bank, base: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    merged = set()
    for name, values in bank.tensors():
        merged.add(name)
        yield name, values
    for name, tensor in base.tensors.items():
        if name not in merged:
            yield name, base.read(name).reshape(tensor.shape)
