"""Which of a LoRA adapter's tensors changes what of its base, and by how much.

Shapes: a linear layer's weight is [outputs, inputs], its factors are A [rank, inputs] and B [outputs, rank]. Experts
[experts, outputs, inputs] share A [experts · rank, inputs], an expert after the other, and B [outputs, rank · experts],
in which experts alternate. Matrices that are stored transposed are [inputs, outputs].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mergebench_ray.checkpoints.adapter_options import REMEDY, AdapterOptions
from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.checkpoints.safetensors_file import read_elements
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import transposed_experts

_PREFIX = "base_model.model."
_WRAPPED = ".base_layer"
# What peft calls a module that it saves whole, and one that it wraps.
_WITHIN = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_OF_EMBEDDINGS = re.compile(r"\.lora_embedding_[AB]$|\.token_adapter\.\w+$")
_MAGNITUDE, _BIAS = "magnitude_vector", "bias"


@dataclass(frozen=True)
class Factors:
    """What changes a matrix, or each of the matrices of experts.

    Attributes:
        a: A.
        b: B.
        scale: what the product is multiplied with.
        rank: of the factors.
        is_transposed: whether matrices are stored [inputs, outputs].
        experts: how many matrices there are.
        magnitudes: length of each row, [outputs]; None where rows keep the length that they get.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    rank: int
    is_transposed: bool
    experts: int = 1
    magnitudes: TensorInfo | None = None

    def sides(self, expert: int) -> tuple[Tensor, Callable[[range], Tensor]]:
        """A matrix's factors in float32: [rank, columns], and what gives [rows, rank] for some rows."""
        size = self.rank * self.a.shape[1]
        inputs = read_elements(self.a, expert * size, size).view(self.rank, -1).float()
        if self.experts == 1 and not self.is_transposed:
            return inputs, self._some_outputs
        whole = read_elements(self.b, 0, self.b.numel).view(-1, self.rank, self.experts)[:, :, expert].float()
        if self.is_transposed:
            return whole.T.contiguous(), lambda rows: inputs[:, rows.start : rows.stop].T
        return inputs, lambda rows: whole[rows.start : rows.stop]

    def _some_outputs(self, rows: range) -> Tensor:
        found = read_elements(self.b, rows.start * self.rank, len(rows) * self.rank)
        return found.view(len(rows), self.rank).float()


@dataclass(frozen=True)
class Sorted:
    """An adapter's tensors, by the base's names.

    Attributes:
        whole: what takes the place of the base's.
        factors: what changes the base's, or what takes its place.
        biases: what is added to biases, multiplied with the number.
        left_out: names of the adapter's own that have no place among the base's tensors.
    """

    whole: Mapping[str, TensorInfo]
    factors: Mapping[str, Factors]
    biases: Mapping[str, tuple[TensorInfo, float]]
    left_out: tuple[str, ...]


def sort_tensors(file: Path, stored: Mapping[str, TensorInfo], base: Checkpoint, options: AdapterOptions) -> Sorted:
    """Find what each tensor of an adapter is.

    Raises:
        InputError: naming a tensor that is not understood or does not fit the base.
    """
    whole, others, left_out = _apart(file, stored, base, options)
    targets = _targeted(file, base, options)
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in others.items():
        target, side = _target(file, name, targets, options)
        if target not in base.tensors:
            raise InputError(f"{file}: tensor {name!r} has no {target!r} in {base}; give the base it was trained on")
        if side in found.setdefault(target, {}):
            raise InputError(f"{file}: holds factor {side} of {target!r} twice; {REMEDY}")
        found[target][side] = info
    if not found:
        raise InputError(f"{file}: holds no LoRA factors; train or fetch the adapter again")
    transposed = {name: is_transposed for of_module in targets.values() for name, is_transposed in of_module}
    factors, biases = {}, {}
    for target, sides in found.items():
        if target in whole and _WRAPPED not in whole[target].name:
            raise InputError(f"{file}: holds {target!r} whole and factors for it; {REMEDY}")
        shape = whole.get(target, base.tensors[target]).shape
        factors[target] = _factors(file, target, shape, sides, transposed.get(target), base, options)
        if _BIAS in sides:
            bias = f"{target.removesuffix('.weight')}.bias"
            _check_bias(file, bias, sides[_BIAS], base)
            biases[bias] = sides[_BIAS], factors[target].scale
    return Sorted(whole, factors, biases, left_out)


def _apart(
    file: Path, stored: Mapping[str, TensorInfo], base: Checkpoint, options: AdapterOptions
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], tuple[str, ...]]:
    """What is stored whole by the base's names, the other tensors by their own, and what is left out.

    A head where the base's is tied, and factors of embeddings, have no place among the base's tensors: left out.
    """
    whole: dict[str, TensorInfo] = {}
    others: dict[str, TensorInfo] = {}
    left_out = []
    for name, info in stored.items():
        target = _WITHIN.sub("", name.removeprefix(_PREFIX))
        module = target.partition(".lora_")[0] + ".weight"
        is_merged = base.family.is_merged(target) and not (target in base.tensors and options.stores_whole(target))
        if is_merged or (".lora_" in target and module in base.tensors and not _OF_EMBEDDINGS.search(target)):
            others[name] = info
        elif ".lora_" in target or target not in base.tensors:
            left_out.append(name.removeprefix(_PREFIX))
        elif target in whole:
            raise InputError(f"{file}: holds {target!r} twice; {REMEDY}")
        elif len(info.shape) != len(base.tensors[target].shape) or not info.dtype.is_floating_point:
            raise InputError(
                f"{file}: tensor {name!r} is {info.dtype} of shape {list(info.shape)}, the base's is "
                f"{list(base.tensors[target].shape)}; give the base it was trained on"
            )
        else:
            whole[target] = info
    return whole, others, tuple(sorted(left_out))


def _targeted(file: Path, base: Checkpoint, options: AdapterOptions) -> dict[str, list[tuple[str, bool]]]:
    """Modules of which parameters have factors of their own: these, in order, and whether they are transposed."""
    if not options.parameters:
        return {}
    found: dict[str, list[tuple[str, bool]]] = {}
    for name, is_transposed in transposed_experts(base.config, base.config_file).items():
        if options.targets(name):
            if name not in base.tensors:
                raise InputError(f"{file}: target_parameters: {name!r} is not stored so in {base}; {REMEDY}")
            found.setdefault(name.rpartition(".")[0], []).append((name, is_transposed))
    return found


def _target(
    file: Path, name: str, targets: Mapping[str, list[tuple[str, bool]]], options: AdapterOptions
) -> tuple[str, str]:
    """The base's tensor that a factor changes, and which factor it is."""
    module, separator, side = name.removeprefix(_PREFIX).rpartition(".lora_")
    sides = {"A.weight": "A", "B.weight": "B"}
    if options.changes_biases:
        sides["B.bias"] = _BIAS
    if options.has_magnitudes:
        sides |= {_MAGNITUDE: _MAGNITUDE, f"{_MAGNITUDE}.weight": _MAGNITUDE}
    if not separator or side not in sides:
        raise InputError(f"{file}: tensor {name!r} is not a factor of a linear layer; {REMEDY}")
    plain = _WITHIN.sub("", f"{module}.")[:-1]
    if plain not in targets:
        return f"{plain}.weight", sides[side]
    # Of several parameters of a module, peft wraps one after the other: the first is the innermost.
    of_module = targets[plain]
    place = len(of_module) - 1 - module.count(_WRAPPED)
    if place < 0:
        raise InputError(f"{file}: tensor {name!r} is of none of target_parameters; mend the file")
    return of_module[place][0], sides[side]


def _factors(
    file: Path,
    target: str,
    shape: tuple[int, ...],
    sides: Mapping[str, TensorInfo],
    experts_are_transposed: bool | None,
    base: Checkpoint,
    options: AdapterOptions,
) -> Factors:
    has_experts = len(shape) == 3 and experts_are_transposed is not None
    if (len(shape) != 2 and not has_experts) or not base.tensors[target].dtype.is_floating_point:
        raise InputError(f"{file}: {target!r} is no linear layer of {base}; give the base it was trained on")
    module = target.removesuffix(".weight")
    rank, experts = options.rank_of(module), shape[0] if has_experts else 1
    # Whatever the adapter says of linear layers: peft looks at the module.
    is_transposed = bool(experts_are_transposed) if has_experts else base.family.is_transposed(target)
    if is_transposed and options.has_magnitudes:
        raise InputError(f"{file}: lengths of rows of {target!r}, which is stored transposed, are not known; {REMEDY}")
    outputs, inputs = reversed(shape[-2:]) if is_transposed else shape[-2:]
    expected: dict[str, tuple[int, ...]] = {"A": (experts * rank, inputs), "B": (outputs, rank * experts)}
    if options.has_magnitudes:
        expected[_MAGNITUDE] = (outputs,)
    if options.changes_biases:
        expected[_BIAS] = (outputs,)
    for side, wanted in expected.items():
        found = sides[side].shape if side in sides else None
        if found != wanted:
            raise InputError(
                f"{file}: factor {side} of {target!r} has shape {_shown(found)}, but rank {rank} on {base}'s "
                f"{_shown(shape)} needs {_shown(wanted)}; give the base it was trained on"
            )
        if not sides[side].dtype.is_floating_point:
            raise InputError(f"{file}: factor {side} of {target!r} is {sides[side].dtype}; save it in floating point")
    scale = options.scale_of(module)
    return Factors(sides["A"], sides["B"], scale, rank, is_transposed, experts, sides.get(_MAGNITUDE))


def _check_bias(file: Path, name: str, added: TensorInfo, base: Checkpoint) -> None:
    there = base.tensors.get(name)
    if there is None or there.shape != added.shape or not there.dtype.is_floating_point:
        raise InputError(f"{file}: {added.name!r} has no {name!r} in {base}; give the base it was trained on")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
