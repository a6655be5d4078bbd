"""What is known of model families, and what the parts of a model are, from its headers and configuration alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mergebench_ray.checkpoints import Checkpoint, fit_tensors, merged_names, resolve
from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.config.reference import reference_text
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily
from mergebench_ray.families.configuration import full_config, has_tied_head
from mergebench_ray.families.family import own_words
from mergebench_ray.markup import terminal_text

DEFAULT = "default"


@dataclass(frozen=True)
class KnownFamily:
    """A family with words of its own, or all others.

    Attributes:
        name: its `model_type`, or ``default``.
        words: keys that mean something else there; of the default all.
        covers: the values of `model_type` of transformers' language models that it is for.
    """

    name: str
    words: list[str]
    covers: list[str]


@dataclass(frozen=True)
class ModelPart:
    """Tensors of one kind.

    Attributes:
        part: what they are.
        tensors: how many.
        parameters: their elements.
        merged: how many of the tensors are merged; the others come from the base.
        example: one of them.
    """

    part: str
    tensors: int
    parameters: int
    merged: int
    example: str


@dataclass(frozen=True)
class ModelParts:
    """What a model is made of.

    Attributes:
        model: its reference.
        model_type: as its configuration says.
        family: whose words its names are read by.
        has_class: whether transformers has a class of its own for the configuration.
        num_layers: layers for text.
        has_tied_head: whether the output head is the table of token embeddings.
        parts: of which there are any, in the order of their meaning.
        notes: what a merge would note of it as a base, a line each.
        problem: why it cannot be a base, naming what is not understood; None if it can.
    """

    model: str
    model_type: str | None
    family: str
    has_class: bool
    num_layers: int
    has_tied_head: bool
    parts: list[ModelPart]
    notes: list[str]
    problem: str | None


def families() -> list[KnownFamily]:
    """The families that are known: those with words of their own, then all others."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = own_words()
    others = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*own})
    return [
        *(KnownFamily(name, sorted(words), [name]) for name, words in sorted(own.items())),
        KnownFamily(DEFAULT, sorted(ModelFamily.model_fields), others),
    ]


def model_parts(model: Path | str) -> ModelParts:
    """Say what each tensor of a model is; reads headers and configuration.

    Args:
        model: reference.

    Raises:
        InputError: there is no such model, or it is damaged.
    """
    found = resolve(reference_text(model))
    kind = found.config.get("model_type")
    notes, problem = [], None
    try:
        notes = fit_tensors(found, {}).notes
    except InputError as error:
        problem = str(error)
    return ModelParts(
        model=str(found),
        model_type=kind if isinstance(kind, str) else None,
        family=kind if isinstance(kind, str) and kind in own_words() else DEFAULT,
        has_class=full_config(found.config, found.config_file) is not None,
        num_layers=found.num_layers,
        has_tied_head=has_tied_head(found.config, found.config_file),
        parts=list(_parts(found)),
        notes=notes,
        problem=problem,
    )


def _parts(model: Checkpoint) -> Iterator[ModelPart]:
    merged = {*merged_names(model, ())}
    by_part: dict[str, list[TensorInfo]] = {}
    for info in model.tensors.values():
        by_part.setdefault(_part_of(info, model.family, model.num_layers), []).append(info)
    for part in [one for one in _ORDER if one in by_part]:
        some = by_part[part]
        count, size = sum(info.name in merged for info in some), sum(info.numel for info in some)
        yield ModelPart(part, len(some), size, count, some[0].name)


_MASKS, _TABLES, _HEAD = "masks, indices, empty tensors", "embeddings", "output head"
_FURTHER, _TOWERS = "layers that predict further tokens", "towers for pictures and sound"
_EXPERTS, _ROUTERS, _OUTSIDE, _IN_LAYERS = "experts", "routers", "beside the layers", "layers"
_KINDS = ("attention", "mlp", "norm")
_ORDER = [
    _TABLES,
    *(f"{_IN_LAYERS}, {kind}{fused}" for kind, fused in itertools.product(_KINDS, ("", ", fused"))),
    *(f"{_IN_LAYERS}, {one}{fused}" for one, fused in itertools.product((_EXPERTS, _ROUTERS), ("", ", fused"))),
    *(f"{_OUTSIDE}, {kind}" for kind in _KINDS),
    *(_HEAD, _FURTHER, _TOWERS, _MASKS),
]


def _part_of(info: TensorInfo, family: ModelFamily, num_layers: int) -> str:
    name = info.name
    if not info.numel or not info.dtype.is_floating_point or family.is_buffer(name):
        return _MASKS
    if family.is_of_another_sense(name):
        return _TOWERS
    if family.is_embedding(name) or family.is_output_head(name):
        return _TABLES if family.is_embedding(name) else _HEAD
    if family.is_beside_the_text(name, num_layers):
        return _FURTHER
    if family.layer_of(name, num_layers) is None:
        return f"{_OUTSIDE}, {family.module_kind(name)}"
    modules = name.split(".")
    kind: str = family.module_kind(name)
    if any(map(family.experts.fullmatch, modules)):
        kind = _EXPERTS
    elif any(map(family.routers.fullmatch, modules)):
        kind = _ROUTERS
    fused = ", fused" if any(map(family.fused.fullmatch, modules)) else ""
    return f"{_IN_LAYERS}, {kind}{fused}"


def families_table(found: list[KnownFamily]) -> Table:
    """The families, a row each."""
    table = Table(title="Model families")
    for column in ("family", "words of its own", "language models of transformers"):
        table.add_column(column)
    for one in found:
        rest = one.name == DEFAULT
        table.add_row(one.name, "all" if rest else ", ".join(one.words), f"{len(one.covers)} others" if rest else "1")
    return table


def parts_table(found: ModelParts) -> Table:
    """A model's parts, a row each."""
    kind = f"model_type {found.model_type}, family {found.family}, {found.num_layers} layers"
    table = Table(title=terminal_text(f"{found.model}: {kind}"))
    for column in ("part", "tensors", "parameters", "", "such as"):
        table.add_column(column, justify="right" if column in ("tensors", "parameters") else "left")
    for one in found.parts:
        where = "merged" if one.merged == one.tensors else f"{one.merged} merged" if one.merged else "from the base"
        table.add_row(one.part, str(one.tensors), f"{one.parameters:,}", where, terminal_text(one.example))
    return table


def part_lines(found: ModelParts) -> list[str]:
    """What is to be said of a model beside its parts."""
    lines = ["the output head is the table of token embeddings"] if found.has_tied_head else []
    if not found.has_class:
        lines.append("transformers has no class for this model_type: settings are compared as they are written")
    return [*lines, *(f"note: {note}" for note in found.notes)]
