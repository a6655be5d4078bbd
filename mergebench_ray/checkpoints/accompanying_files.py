"""What lies beside a model's weights and comes along into a merge: tokenizer, processors, templates, licence, code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.json_files import read_json_object, require_json
from mergebench_ray.files import open_regular

ACCOMPANYING = (
    "tokenizer*.json",
    "*_tokenizer_config.json",
    "*.model",
    "tokenizer.model.*",
    "*.tokenizer",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "*vocab*.json",
    "vocab-*.json",
    "*vocab*.txt",
    "vocab.bpe",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "byte_maps.json",
    "normalizer.json",
    "word_shape.json",
    "word_pronunciation.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "chat_template.*",
    "*processor_config.json",
    "generation_config.json",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "*USE_POLICY*",
)
"""Patterns of their names: every tokenizer and processor file that transformers and vLLM look for, and licences."""

FURTHER_TEMPLATES = "additional_chat_templates"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_MODULE = re.compile(r"[A-Za-z_]\w*")


def is_accompanying(name: str) -> bool:
    """Whether a file of this name comes along."""
    return not name.startswith(".") and any(fnmatch(name.lower(), pattern.lower()) for pattern in ACCOMPANYING)


def accompanying_files(folder: Path) -> Iterator[Path]:
    """The files of a model's folder that come along, with the chat templates in their folder; sorted."""
    yield from (entry for entry in sorted(folder.iterdir()) if is_accompanying(entry.name) and not entry.is_dir())
    if (folder / FURTHER_TEMPLATES).is_dir():
        yield from sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))


def check_accompanying_files(folder: Path) -> list[str]:
    """Read those that are JSON, and say what will be left out of them.

    Raises:
        InputError: one of them is not JSON, so that the model could not be started, nor what is merged from it.
    """
    for file in accompanying_files(folder):
        if file.suffix == ".json":
            require_json(file)
    _, notes = _tokenizer_config(folder)
    return notes


def copy_accompanying_files(source: Path, out: Path, config: Mapping[str, Any]) -> None:
    """Copy them, and the code that the written configuration or the tokenizer's names; nothing is run.

    A tokenizer configuration that names code which is not there is written without it.

    Raises:
        InputError: one of them is a folder, pipe or device.
    """
    for file in accompanying_files(source):
        _copy(file, out / file.relative_to(source))
    tokenizer, notes = _tokenizer_config(source)
    if notes:
        (out / _TOKENIZER_CONFIG).write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")
    if any(_code_files(content) for content in (config, tokenizer)):
        # A module that is named may import its neighbours.
        for file in sorted(source.glob("*.py")):
            _copy(file, out / file.name)


def _tokenizer_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer's configuration without code that is not there, and a note if some is not."""
    file = folder / _TOKENIZER_CONFIG
    config = read_json_object(file) if file.exists() else {}
    if "auto_map" not in config or code_is_there(folder, config):
        return config, []
    del config["auto_map"]
    return config, [f"auto_map is left out of the written {_TOKENIZER_CONFIG}; the code that it names is not there"]


def code_is_there(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether all modules that a configuration's `auto_map` names lie in the folder."""
    return all((folder / name).is_file() for name in _code_files(config))


def _code_files(config: Mapping[str, Any]) -> set[str]:
    """Files of modules that `auto_map` takes from the model's own folder, not from OWNER/NAME--."""
    named = config.get("auto_map")
    entries = list(named.values()) if isinstance(named, dict) else []
    texts = [text for entry in entries for text in (entry if isinstance(entry, list) else [entry])]
    modules = {text.partition(".")[0] for text in texts if isinstance(text, str)}
    return {f"{module}.py" for module in modules if _MODULE.fullmatch(module)}


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with open_regular(file) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)
