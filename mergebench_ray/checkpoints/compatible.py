"""Whether specialists can be merged into a base, decided from headers and configurations before weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.compatible_settings import check_allowed, compare_settings
from mergebench_ray.checkpoints.embeddings import require_known_embeddings
from mergebench_ray.checkpoints.quantised import refuse_quantised, shown
from mergebench_ray.checkpoints.tokenizer_files import renamed_tokens, renumbered_tokens, unknown_rows
from mergebench_ray.checkpoints.writer import output_config
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import ignored_tensors
from mergebench_ray.families.wrappers import unwrapped

_SAME_BASE = "give specialists that were fine-tuned from this base"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Fitted:
    """Specialists that fit a base.

    Attributes:
        specialists: by sorted name; a tensor that the base has, too, has the base's name.
        notes: a line for each rule that was applied.
    """

    specialists: dict[str, Checkpoint]
    notes: list[str]


def check_compatible(base: Checkpoint, specialists: Mapping[str, Checkpoint], allow: Collection[str] = ()) -> list[str]:
    """The notes of `fit`."""
    return fit(base, specialists, allow).notes


def fit(base: Checkpoint, specialists: Mapping[str, Checkpoint], allow: Collection[str] = ()) -> Fitted:
    """Check that specialists differ from their base only in ways that have a rule.

    Rules for settings are those of `compare_settings`, for tensors those of `fit_tensors`.

    Args:
        base: the base.
        specialists: by name.
        allow: settings that may differ although they change what a model computes.

    Raises:
        InputError: naming specialist, setting or tensor, both values or shapes, and what to do.
    """
    check_allowed(allow, base, specialists)
    notes: dict[str, list[str]] = {}
    for name in sorted(specialists):
        who = _who(name, specialists[name])
        _check_architecture(who, base, specialists[name])
        notes[name] = compare_settings(who, base, specialists[name], allow)
    return _fit_tensors(base, specialists, notes)


def fit_tensors(base: Checkpoint, specialists: Mapping[str, Checkpoint]) -> Fitted:
    """Check that specialists' tensors differ from their base's only in ways that have a rule.

    - Embeddings and output head may have more or fewer vocabulary rows: the base's are used, and a row that is not
      there counts as unchanged.
    - fp32 and fp16 weights are rounded to bf16 when they are read into the bank.
    - Masks, indices and empty tensors come from the base, as do layers that predict further tokens and parts for images
      and sound where a specialist lacks them.
    - What wrappers put before names is taken away where all names fit then.

    Everything else is refused: another architecture or shape, a tied head against an untied one, missing or further
    tensors, quantised weights.

    Raises:
        InputError: naming specialist, tensor, both shapes, and what to do.
    """
    return _fit_tensors(base, specialists, {})


def _fit_tensors(base: Checkpoint, specialists: Mapping[str, Checkpoint], further: Mapping[str, list[str]]) -> Fitted:
    ours = f"base ({base})"
    notes = [f"{ours}: {note}" for note in (*base.notes, *output_config(base)[1])]
    refuse_quantised(ours, base)
    _refuse_wrapped(ours, base)
    notes += _rounding(ours, base)
    require_known_embeddings(base)
    fitted = {}
    for name in sorted(specialists):
        who = _who(name, specialists[name])
        found, own = _fit_one(who, base, specialists[name])
        fitted[name] = found
        notes += [f"{who}: {note}" for note in (*found.notes, *further.get(name, []), *own)]
        notes += _rounding(who, found)
    return Fitted(fitted, notes)


def _refuse_wrapped(who: str, base: Checkpoint) -> None:
    wrapper, _ = next(unwrapped(base.tensors), ("", {}))
    if wrapper and not wrapper.endswith("language_model."):
        raise InputError(
            f"{who}: tensor names begin with or hold the prefix {wrapper!r} of a wrapper, by which no program finds "
            "them; save the model without it"
        )


def _who(name: str, specialist: Checkpoint) -> str:
    who, model = f"specialist {name!r}", str(specialist)
    return model if model.startswith(who) else f"{who} ({model})"  # one in memory is called by its name


def _fit_one(who: str, base: Checkpoint, specialist: Checkpoint) -> tuple[Checkpoint, list[str]]:
    notes = refuse_quantised(who, specialist)
    _check_architecture(who, base, specialist)
    specialist, unwrapping = _fit_names(who, base, specialist)
    notes += unwrapping
    specialist, heads = _fit_heads(who, base, specialist)
    notes += heads
    if base.merged_parts.embeddings:
        notes += _require_same_rows(who, base, specialist)
    missing, extra = _unfit_names(base, specialist)
    if missing or extra:
        raise InputError(f"{who}: {_misfit(missing, extra)}; {_SAME_BASE}")
    return specialist, [*notes, *_of_the_base(base, specialist), *_check_shapes(who, base, specialist)]


def _check_architecture(who: str, base: Checkpoint, specialist: Checkpoint) -> None:
    for key in ("model_type", "architectures"):
        ours, theirs = base.config.get(key), specialist.config.get(key)
        if ours is not None and theirs is not None and ours != theirs and not _same_names(ours, theirs):
            raise InputError(f"{who}: {key} is {theirs!r}, the base's is {ours!r} ({base}); {_SAME_BASE}")


def _same_names(ours: object, theirs: object) -> bool:
    return isinstance(ours, list) and isinstance(theirs, list) and sorted(map(str, ours)) == sorted(map(str, theirs))


def _fit_names(who: str, base: Checkpoint, specialist: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """Take away what a wrapper put before names, where that makes them fit."""
    if not any(_unfit_names(base, specialist)):
        return specialist, []
    last = None
    # An adapter's names are those of its base.
    for wrapper, names in unwrapped(specialist.tensors) if specialist.ref.adapter is None else ():
        last = wrapper
        candidate = _renamed(specialist, names)
        if not any(_unfit_names(base, candidate)):
            return candidate, [f"tensor names begin with or hold {wrapper!r}, which a wrapper put there: taken away"]
    if last is not None:
        missing, extra = _unfit_names(base, specialist)
        raise InputError(
            f"{who}: tensor names begin with the prefix {last!r} of a wrapper, and without it they do not fit either: "
            f"{_misfit(missing, extra)}; {_SAME_BASE}"
        )
    return specialist, []


def _renamed(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """A checkpoint with some of its tensors under other names; `names` maps old to new ones."""
    twin = copy.copy(checkpoint)
    found = {new: replace(checkpoint.tensors[old], name=new) for old, new in names.items()}
    twin.tensors = dict(sorted(found.items()))
    return twin


def _unfit_names(base: Checkpoint, specialist: Checkpoint) -> tuple[list[str], list[str]]:
    """Tensors that only the base has, and that only the specialist has, and that no rule covers; heads aside."""
    family, layers = base.family, base.num_layers

    def has_a_rule(info: TensorInfo) -> bool:
        return (
            info.numel == 0
            or not info.dtype.is_floating_point
            or family.is_buffer(info.name)
            or family.is_output_head(info.name)
            or family.is_beside_the_text(info.name, layers)
        )

    missing = [name for name, info in base.tensors.items() if name not in specialist.tensors and not has_a_rule(info)]
    extra = [name for name, info in specialist.tensors.items() if name not in base.tensors and not has_a_rule(info)]
    if missing or extra:
        # Asked last, since it imports the model's code.
        patterns = ignored_tensors(base.config)
        missing, extra = (
            [name for name in names if not any(pattern.search(name) for pattern in patterns)]
            for names in (missing, extra)
        )
    return missing, extra


def _misfit(missing: list[str], extra: list[str]) -> str:
    if missing:
        return f"tensor {missing[0]!r}{_others(missing)} of the base is missing"
    return f"tensor {extra[0]!r}{_others(extra)} is not in the base"


def _others(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _fit_heads(who: str, base: Checkpoint, specialist: Checkpoint) -> tuple[Checkpoint, list[str]]:
    ours = {name for name in base.tensors if base.family.is_output_head(name)}
    theirs = {name for name in specialist.tensors if base.family.is_output_head(name)}
    if ours == theirs:
        return specialist, []
    if not ours and theirs and _all_equal_embeddings(base, specialist, theirs):
        kept = {name: name for name in specialist.tensors if name not in theirs}
        return _renamed(specialist, kept), [f"{min(theirs)} is a copy of the embeddings: left out"]
    kind = {True: "an output head of its own", False: "its output head tied to the embeddings"}
    if bool(ours) != bool(theirs):
        raise InputError(f"{who}: has {kind[bool(theirs)]}, the base has {kind[bool(ours)]} ({base}); {_SAME_BASE}")
    raise InputError(f"{who}: {_misfit(sorted(ours - theirs), sorted(theirs - ours))}; {_SAME_BASE}")


def _all_equal_embeddings(base: Checkpoint, specialist: Checkpoint, heads: Collection[str]) -> bool:
    tables = [name for name in specialist.tensors if base.family.is_token_embedding(name)]
    return all(any(_are_equal(specialist, head, specialist, table) for table in tables) for head in heads)


def _are_equal(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Whether two tensors hold the same numbers; reads as far as the first difference."""
    info, other_info = one.tensors[name], other.tensors[other_name]
    common = torch.promote_types(info.dtype, other_info.dtype)
    if info.shape != other_info.shape:
        return False
    for start in range(0, info.numel, _BLOCK):
        count = min(_BLOCK, info.numel - start)
        values, others = one.read(name, start, count), other.read(other_name, start, count)
        if not torch.equal(values.to(common), others.to(common)):
            return False
    return True


def _of_the_base(base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """Notes on tensors that are the base's whatever a specialist holds."""
    notes = []
    norms = [name for name, info in base.tensors.items() if base.family.is_embedding(name) and len(info.shape) == 1]
    if norms and not base.merged_parts.embeddings:
        notes.append(f"{norms[0]}{_others(norms)} goes with the embeddings: the base's is used")
    absent = [name for name, info in base.tensors.items() if name not in specialist.tensors and info.numel]
    if absent:
        notes.append(f"{absent[0]}{_others(absent)} is not there: the base's is used, without a task vector")
    unused = [name for name, info in specialist.tensors.items() if name not in base.tensors and info.numel]
    if unused:
        notes.append(f"{unused[0]}{_others(unused)} is not in the base and left out")
    other = [
        name
        for name, info in base.tensors.items()
        if (base.family.is_buffer(name) or not info.dtype.is_floating_point)
        and name in specialist.tensors
        and not _are_equal(base, name, specialist, name)
    ]
    if other:
        kind = shown(base.tensors[other[0]].dtype)
        notes.append(f"{other[0]}{_others(other)} is {kind} and differs: the base's is used")
    return notes


def _check_shapes(who: str, base: Checkpoint, specialist: Checkpoint) -> list[str]:
    notes = []
    for name, ours in base.tensors.items():
        theirs = specialist.tensors.get(name)
        if theirs is None or not ours.dtype.is_floating_point:
            continue
        if not theirs.dtype.is_floating_point:
            raise InputError(
                f"{who}: is quantised (tensor {name!r} is {shown(theirs.dtype)}, the base's {shown(ours.dtype)}); give "
                "its weights in bf16, fp16 or fp32"
            )
        if ours.shape == theirs.shape:
            continue
        if base.family.is_merged(name) or not _has_other_rows(base, ours, theirs):
            raise InputError(
                f"{who}: tensor {name!r} has shape {list(theirs.shape)}, the base's has {list(ours.shape)} ({base}); "
                f"{_SAME_BASE}"
            )
        notes.append(f"{name} has {theirs.shape[0]} rows, the base's {ours.shape[0]} are used")
    return notes


def _require_same_rows(who: str, base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """Refuse specialists whose embeddings a merge would miss, or add to those of other tokens; note renamed ones."""
    if tokens := renumbered_tokens(base, specialist):
        raise InputError(
            f"{who}: token {tokens[0]!r:.80}{_others(tokens)} has another number than in the base's tokenizer, so rows "
            "of embeddings cannot be merged; set merged.embeddings to false"
        )
    left_out = getattr(specialist, "left_out", ())
    if left_out:
        raise InputError(
            f"{who}: {', '.join(left_out)} of the adapter cannot be merged; set merged.embeddings to false, or save "
            "the model with the adapter merged into it"
        )
    if difference := unknown_rows(base, specialist):
        raise InputError(
            f"{who}: its tokenizer is another ({difference}), and whether it numbers tokens alike is not known; set "
            "merged.embeddings to false"
        )
    renamed = renamed_tokens(base, specialist)
    return [f"token {renamed[0]}{_others(renamed)}: their rows are merged"] if renamed else []


def _has_other_rows(base: Checkpoint, ours: TensorInfo, theirs: TensorInfo) -> bool:
    has_rows = len(ours.shape) > 1 or base.family.is_output_head(ours.name)
    return has_rows and len(ours.shape) == len(theirs.shape) and ours.shape[1:] == theirs.shape[1:]


def _rounding(who: str, checkpoint: Checkpoint) -> list[str]:
    tensors, is_buffer = checkpoint.tensors.items(), checkpoint.family.is_buffer
    found = {info.dtype for name, info in tensors if info.dtype.is_floating_point and not is_buffer(name)}
    rounded = sorted(shown(dtype) for dtype in found if dtype != torch.bfloat16)
    return [f"{who}: {' and '.join(rounded)} weights are rounded to bfloat16"] if rounded else []
