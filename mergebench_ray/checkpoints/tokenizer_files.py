"""Whether two models read texts alike: their tokenizers and chat templates, compared file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.checkpoint import Checkpoint
from mergebench_ray.checkpoints.json_files import read_json_object
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_FILE = "tokenizer.json"
# What a tokenizer is made of; truncation and padding are left behind by training.
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MODEL_OPTIONS = ("type", "byte_fallback", "unk_token", "ignore_merges", "continuing_subword_prefix")
# The older forms, in the order in which they are looked for.
_OLDER = (("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))
_MAX_BYTES = 100_000_000


def compare_tokenizers(base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """What differs in how a specialist reads texts; an adapter may bring files of its own.

    Raises:
        InputError: a file that is there but cannot be read.
    """
    ours, theirs = base.folder, specialist.tokenizer_folder
    if ours == theirs or not _kinds(ours):
        return []
    found = []
    if difference := _difference(ours, theirs):
        found.append(f"its tokenizer is another ({difference})")
    templates = [_templates(folder) for folder in (ours, theirs)]
    if templates[1] and templates[0] != templates[1]:
        found.append("its chat template is another")
    return found


def renumbered_tokens(base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """Tokens that have another number in a specialist, so that its rows of that number are of other tokens."""
    ours, theirs = base.folder / _FILE, specialist.tokenizer_folder / _FILE
    if ours == theirs or not (ours.is_file() and theirs.is_file()) or _content(ours) == _content(theirs):
        return []
    known, its = _vocabulary(read_json_object(ours)), _vocabulary(read_json_object(theirs))
    return sorted(token for token, index in its.items() if token in known and known[token] != index)


def renamed_tokens(base: Checkpoint, specialist: Checkpoint) -> list[str]:
    """Numbers that are of other tokens in a specialist, a text each; where both have a tokenizer.json."""
    ours, theirs = base.folder / _FILE, specialist.tokenizer_folder / _FILE
    if ours == theirs or not (ours.is_file() and theirs.is_file()) or _content(ours) == _content(theirs):
        return []
    known = {index: token for token, index in _vocabulary(read_json_object(ours)).items()}
    its = _vocabulary(read_json_object(theirs)).items()
    return [
        f"{index} is {token!r}, {known[index]!r} in the base"
        for token, index in its
        if known.get(index) != token and index in known
    ]


def unknown_rows(base: Checkpoint, specialist: Checkpoint) -> str:
    """How a tokenizer of an older form differs, of which it is not known whether it numbers tokens alike."""
    both = [(one / _FILE).is_file() for one in (base.folder, specialist.tokenizer_folder)]
    same = base.folder == specialist.tokenizer_folder
    return "" if all(both) or same or not _kinds(base.folder) else _difference(base.folder, specialist.tokenizer_folder)


def tokens_by_number(folder: Path) -> dict[int, str] | None:
    """The tokens of a folder's tokenizer.json, added ones included; None where there is none.

    Raises:
        InputError: a file that is there but cannot be read.
    """
    file = folder / _FILE
    return {index: token for token, index in _vocabulary(read_json_object(file)).items()} if file.is_file() else None


def require_rows_for(who: str, base: Checkpoint, specialist: Checkpoint) -> None:
    """Refuse a tokenizer for a merge into a base whose rows of embeddings are of other tokens, or too few.

    Raises:
        InputError: naming `who`.
    """
    remedy = "take the base's tokenizer"
    if tokens := renumbered_tokens(base, specialist):
        raise InputError(f"{who}: token {tokens[0]!r:.80} has another number than in the base's tokenizer; {remedy}")
    file = specialist.tokenizer_folder / _FILE
    if not file.is_file():
        if difference := _difference(base.folder, specialist.tokenizer_folder):
            raise InputError(f"{who}: its tokenizer is another ({difference}); {remedy}")
        return
    tables = [info.shape for name, info in base.tensors.items() if base.family.is_token_embedding(name)]
    rows = min((shape[0] for shape in tables if shape), default=0)
    beyond = [token for token, index in _vocabulary(read_json_object(file)).items() if index >= rows]
    if beyond:
        raise InputError(
            f"{who}: its tokenizer has {len(beyond)} tokens, such as {beyond[0]!r:.80}, beyond the {rows} rows of "
            f"the base's embeddings; {remedy}"
        )


def _difference(ours: Path, theirs: Path) -> str:
    if (ours / _FILE).is_file() and (theirs / _FILE).is_file():
        if _content(ours / _FILE) == _content(theirs / _FILE):
            return ""
        return _difference_of_json(read_json_object(ours / _FILE), read_json_object(theirs / _FILE))
    for names in _OLDER:
        if all((folder / name).is_file() for folder in (ours, theirs) for name in names):
            other = [name for name in names if _content(ours / name) != _content(theirs / name)]
            return f"another {' and '.join(other)}" if other else ""
    kinds = [_kinds(folder) for folder in (ours, theirs)]
    return "of another kind, so not compared" if all(kinds) else ""


def _difference_of_json(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    known, its = _vocabulary(ours), _vocabulary(theirs)
    counts = {
        "tokens with another number": sum(known[token] != index for token, index in its.items() if token in known),
        "further tokens": len(its.keys() - known.keys()),
        "fewer tokens": len(known.keys() - its.keys()),
    }
    found = [f"{count} {what}" for what, count in counts.items() if count]
    if _merges(ours) != _merges(theirs):
        found.append("other merges")
    if _model_options(ours) != _model_options(theirs):
        found.append("other options of its model")
    found += [f"another {part}" for part in _PARTS if _text(ours.get(part)) != _text(theirs.get(part))]
    return ", ".join(found)


def _vocabulary(content: Mapping[str, Any]) -> dict[str, Any]:
    """Number of each token, added ones included."""
    model = content.get("model")
    table = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(table, list):
        table = {str(entry[0]): index for index, entry in enumerate(table) if isinstance(entry, list) and entry}
    found = dict(table) if isinstance(table, dict) else {}
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            found[token["content"]] = token.get("id")
    return found


def _merges(content: Mapping[str, Any]) -> list[Any]:
    """Pairs, which older files write as one text."""
    model = content.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    pairs = merges if isinstance(merges, list) else []
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


def _model_options(content: Mapping[str, Any]) -> dict[str, Any]:
    model = content.get("model")
    return {key: model[key] for key in _MODEL_OPTIONS if model.get(key)} if isinstance(model, dict) else {}


def _templates(folder: Path) -> list[Any]:
    """The chat templates of a folder, wherever they lie; empty where there are none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return [_content(file).decode(errors="replace").strip()]
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json_object(folder / name).get("chat_template")
            if template:
                return [template.strip() if isinstance(template, str) else _text(template)]
    return []


def _kinds(folder: Path) -> list[str]:
    names = [_FILE, *(name for names in _OLDER for name in names)]
    return [name for name in names if (folder / name).is_file()]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _content(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{file}: larger than {_MAX_BYTES} bytes; check the file")
    return content
