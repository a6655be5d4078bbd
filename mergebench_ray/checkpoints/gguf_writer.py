"""Writing a model as a GGUF file like one of its base, of which all but the weights is taken: the tokenizer above all.

How llama.cpp cuts text before its merges (`tokenizer.ggml.pre`) stands in no file of a model, only in such a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.checkpoints.chat_template import chat_template_of
from mergebench_ray.checkpoints.checkpoint import Checkpoint, require_finite
from mergebench_ray.checkpoints.gguf_header import read_gguf_header
from mergebench_ray.checkpoints.gguf_settings import COMPUTED, REMEDY, GgufSettings
from mergebench_ray.checkpoints.tokenizer_files import tokens_by_number
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.families.configuration import attention_heads
from mergebench_ray.files import whole_file
from mergebench_ray.progress import Meter, Progress, silent

KINDS = ("bf16", "f16", "f32", "q8_0")
"""What matrices may be written in; vectors are in float32, as llama.cpp has them."""
_FILE_TYPES = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
_BYTES = 2  # of an element that is read
_BLOCK = 32  # entries of q8_0 that share a scale
_EMBEDDINGS, _HEAD = "token_embd.weight", "output.weight"
_KEPT = ("general.type", "general.license", "general.languages", "general.sampling.")
_TOKENS, _TOKEN_TYPES, _TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.chat_template"
_NORMAL = 1
_ENDS = ("bos", "eos")

Change = Callable[[str, Tensor, Mapping[str, int]], Tensor]
"""From a tensor's GGUF name, its values and numbers of attention heads to what llama.cpp takes."""


def _as_it_is(name: str, values: Tensor, heads: Mapping[str, int]) -> Tensor:
    return values


def _pairs_together(name: str, values: Tensor, heads: Mapping[str, int]) -> Tensor:
    """Rows of queries and keys so that those which are rotated together follow each other."""
    kinds = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
    count = next((heads[key] for kind, key in kinds.items() if kind in name), None)
    if count is None:
        return values
    return values.view(count, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def _norms_from_zero(name: str, values: Tensor, heads: Mapping[str, int]) -> Tensor:
    return values + 1 if name.endswith("norm.weight") else values


_ARCHITECTURES: dict[str, tuple[tuple[str, ...], Change]] = {
    "llama": (("llama", "mistral"), _pairs_together),
    "qwen2": (("qwen2",), _as_it_is),
    "qwen3": (("qwen3",), _as_it_is),
    "gemma2": (("gemma2",), _norms_from_zero),
    "gemma3": (("gemma3_text",), _norms_from_zero),
    "phi3": (("phi3",), _as_it_is),
}
"""`general.architecture` -> types of models that are written so, and what becomes of their weights."""


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file that is written.

    Attributes:
        name: its name there.
        source: the model's tensor; None for what is computed from settings.
        like: the tensor of the file that is followed.
        kind: what it is written in, by gguf's name.
    """

    name: str
    source: str | None
    like: Any
    kind: str


def write_gguf(out: Path, model: Checkpoint, like: Path, kind: str, progress: Progress = silent) -> list[str]:
    """Write a model's weights, and all else as a GGUF file of its base has it; one tensor is in memory at a time.

    Args:
        out: file to make.
        model: has the base's settings and tokenizer.
        like: the base, or any fine-tuned model of it with the same tokenizer, whatever its weights are quantised as.
        kind: one of `KINDS`.
        progress: told of it.

    Returns:
        a note on each thing that is not the model's or not the file's.

    Raises:
        InputError: files that do not fit together; an architecture that is not known here; the disk is full.
    """
    read_gguf_header(like)
    import gguf

    try:
        reader = gguf.GGUFReader(like)
        metadata = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        architecture = str(metadata["general.architecture"].contents())
    except Exception as error:  # other people's code on other people's data
        raise InputError(f"{like}: cannot be read ({one_line(error)}); give another GGUF file") from error
    change = _change(like, architecture, metadata, model)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    GgufSettings(like, architecture, metadata, tensors).require_those_of(model)
    notes = _compare_tokens(like, metadata, model)
    planned = list(_plan(like, tensors, architecture, model, kind))
    notes += [f"{one.name} is that of {like}" for one in planned if one.source is None]
    with whole_file(out, new=True) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            notes += _add_metadata(writer, metadata, model, out.stem, _FILE_TYPES[kind])
            _write(writer, planned, model, change, progress)
        finally:
            writer.close()
    return notes


def _change(like: Path, architecture: str, metadata: Mapping[str, Any], model: Checkpoint) -> Change:
    """What becomes of the model's weights."""
    types, change = _ARCHITECTURES.get(architecture, ((), _as_it_is))
    found = model.config.get("model_type")
    if found not in types:
        known = ", ".join(sorted(one for names, _ in _ARCHITECTURES.values() for one in names))
        raise InputError(f"{like}: is {architecture!r}, the model {found!r} ({model}); those written are {known}")
    if "split.count" in metadata and int(metadata["split.count"].contents()) > 1:
        raise InputError(f"{like}: is one of several files of a model; join them first")
    return change


def _compare_tokens(like: Path, metadata: Mapping[str, Any], model: Checkpoint) -> list[str]:
    """Refuse a file whose tokens are others; control tokens and what fills up rows are named in many ways."""
    ours = tokens_by_number(model.tokenizer_folder)
    if ours is None:
        return [f"the tokenizer is that of {like}, and was not compared: the model has no tokenizer.json"]
    if _TOKENS not in metadata:
        raise InputError(f"{like}: has no tokenizer; {REMEDY}")
    theirs = metadata[_TOKENS].contents()
    types = metadata[_TOKEN_TYPES].contents() if _TOKEN_TYPES in metadata else [_NORMAL] * len(theirs)
    for index, (token, its_type) in enumerate(zip(theirs, types, strict=False)):
        if its_type == _NORMAL and index in ours and ours[index] != token:
            raise InputError(f"{like}: token {index} is {token!r:.80}, the model's {ours[index]!r:.80}; {REMEDY}")
    return []


def _plan(like: Path, there: Mapping[str, Any], architecture: str, model: Checkpoint, kind: str) -> Iterator[_Planned]:
    import gguf

    wanted = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(wanted, model.num_layers)
    sources: dict[str, str] = {}
    for name in model.tensors:
        stem, _, leaf = name.rpartition(".")
        found = names.get_name(stem)
        if found is None:
            raise InputError(f"{model}: tensor {name!r} has no name in GGUF files of {architecture!r}; {REMEDY}")
        sources[f"{found}.{leaf}"] = name
    if missing := sorted(sources.keys() - there.keys()):
        raise InputError(f"{like}: has no {missing[0]!r}, the model's {sources[missing[0]]!r}; {REMEDY}")
    for name, tensor in there.items():
        source = sources.get(name, sources.get(_EMBEDDINGS) if name == _HEAD else None)
        shape = tuple(int(count) for count in reversed(tensor.shape))
        if source is None and not name.startswith(COMPUTED):
            raise InputError(f"{like}: tensor {name!r} has none in {model}; {REMEDY}")
        if source is not None and model.tensors[source].shape != shape:
            raise InputError(
                f"{like}: tensor {name!r} has shape {list(shape)}, the model's {source!r} "
                f"{list(model.tensors[source].shape)}; {REMEDY}"
            )
        in_blocks = kind != "q8_0" or shape[-1] % _BLOCK == 0
        yield _Planned(name, source, tensor, "F32" if len(shape) < 2 else kind.upper() if in_blocks else "F16")


def _add_metadata(writer: Any, metadata: Mapping[str, Any], model: Checkpoint, name: str, file_type: str) -> list[str]:
    """Take all that says nothing of the other file's weights or origin."""
    import gguf

    template = chat_template_of(model.tokenizer_folder)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    ends, notes = _ends_of_texts(metadata, model), []
    for key, field in metadata.items():
        kind, value = field.types[0], field.contents()
        if key.startswith(("general.", "split.", "quantize.")) and not key.startswith(_KEPT):
            continue
        if kind == gguf.GGUFValueType.ARRAY and not value:
            continue
        if key == _TEMPLATE and template is not None:
            if template.strip() != value.strip():
                notes.append("the chat template is the model's own, another than the other file's")
            continue
        if key in ends and ends[key] != value:
            notes.append(f"{key} is the model's own, {ends[key]}, another than the other file's, {value}")
            value = ends[key]
        writer.add_key_value(key, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    if template is not None:
        writer.add_chat_template(template)
    return notes


def _ends_of_texts(metadata: Mapping[str, Any], model: Checkpoint) -> dict[str, int]:
    """The tokens that begin and end the model's texts, by key; those that its tokenizer or configuration names."""
    import gguf

    rows = len(metadata[_TOKENS].contents()) if _TOKENS in metadata else None
    try:
        found = gguf.SpecialVocab(model.tokenizer_folder, special_token_types=_ENDS, n_vocab=rows).special_token_ids
    except Exception as error:  # other people's code on other people's data
        raise InputError(
            f"{model.tokenizer_folder}: its tokenizer cannot be read ({one_line(error)}); mend or fetch it again"
        ) from error
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in found.items()}


def _write(writer: Any, planned: list[_Planned], model: Checkpoint, change: Change, progress: Progress) -> None:
    import gguf
    import numpy as np

    arrays: dict[str, Any] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
    for one in planned:
        if one.source is None:
            data = one.like.data
            writer.add_tensor_info(one.name, data.shape, data.dtype, data.nbytes, raw_dtype=one.like.tensor_type)
            continue
        shape, kind = model.tensors[one.source].shape, gguf.GGMLQuantizationType[one.kind]
        dtype = arrays.get(one.kind, np.dtype(np.uint8))
        stored = shape if one.kind in arrays else gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(one.name, stored, dtype, math.prod(stored) * dtype.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = attention_heads(model.config, model.config_file)
    heads = {"num_key_value_heads": heads.get("num_attention_heads", 0), **heads}
    meter = Meter(progress, "writing the GGUF file", _BYTES * sum(one.like.n_elements for one in planned))
    for one in planned:
        if one.source is None:
            writer.write_tensor_data(one.like.data)
        else:
            values = model.read(one.source).view(model.tensors[one.source].shape).float()
            require_finite(model, one.source, values)
            changed = change(one.name, values, heads).contiguous()
            if one.kind == "F16" and not bool(torch.isfinite(changed.half()).all()):
                raise InputError(f"{model}: {one.source!r} holds numbers that are too large for f16; write bf16")
            writer.write_tensor_data(gguf.quants.quantize(changed.numpy(), gguf.GGMLQuantizationType[one.kind]))
        meter.add(_BYTES * one.like.n_elements)
        meter.report()
