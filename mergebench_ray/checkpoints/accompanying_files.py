"""What lies beside a model's weights and comes along into a merge: tokenizer, processors, templates, licence, code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.json_files import read_json_object, require_json
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "*USE_POLICY*")
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
    *_LICENCES,
)
"""Patterns of their names: every tokenizer and processor file that transformers and vLLM look for, and licences."""

_OF_THE_MODEL = ("*processor_config.json", "generation_config.json", *_LICENCES)
"""Those of them that are no part of a tokenizer."""
_READ_BY_ENGINES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_WHERE_IT_LAY = ("name_or_path", "special_tokens_map_file")
"""Keys of a tokenizer's configuration with paths of whoever saved it, which nothing is read from."""
FURTHER_TEMPLATES = "additional_chat_templates"
RECIPE_NAME = "recipe.yaml"
"""How a merge was made; lies beside its weights, and does not come along into a further one."""
_MODULE = re.compile(r"[A-Za-z_]\w*")


def is_accompanying(name: str) -> bool:
    """Whether a file of this name comes along."""
    return not name.startswith(".") and _matches(name, ACCOMPANYING)


def is_licence(name: str) -> bool:
    """Whether a file or folder of this name holds a licence or notices."""
    return _matches(name, _LICENCES)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)


def accompanying_files(folder: Path) -> Iterator[Path]:
    """The files of a model's folder that come along, with the chat templates in their folder; sorted."""
    yield from (entry for entry in sorted(folder.iterdir()) if is_accompanying(entry.name) and not entry.is_dir())
    if (folder / FURTHER_TEMPLATES).is_dir():
        yield from sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))


def recipe_file(folder: Path, model: str) -> Path:
    """The file that says how the merge in a folder was made.

    Args:
        folder: the folder.
        model: what a message calls it.

    Raises:
        InputError: there is none.
    """
    file = folder / RECIPE_NAME
    if not file.is_file():
        raise InputError(
            f"{model}: holds no {RECIPE_NAME}, which would say how it was merged; give a folder that `merge` wrote, "
            "the folder of a run, or a repository that `push` filled"
        )
    return file


def check_accompanying_files(folder: Path) -> list[str]:
    """Read those that every engine reads, and say what will be left out of any.

    Raises:
        InputError: one of them is not JSON, so that the model could not be started, nor what is merged from it.
    """
    for name in _READ_BY_ENGINES:
        if (folder / name).exists():
            require_json(folder / name)
    return [
        f"auto_map is left out of the written {name}; the code that it names is not there"
        for name, config in _configurations_with_code(folder).items()
        if not code_is_there(folder, config)
    ]


def copy_licences(source: Path, out: Path) -> None:
    """Copy the licence and notices that lie beside a file of a model."""
    for file in sorted(source.iterdir()):
        if is_licence(file.name) and file.is_file():
            _copy(file, out / file.name)


def copy_accompanying_files(source: Path, out: Path, config: Mapping[str, Any], tokenizer: Path | None = None) -> None:
    """Copy them, and the code that the written configuration or one of theirs names; nothing is run.

    A configuration of a tokenizer or processor that names code which is not there is written without it, one of a
    tokenizer without the paths of whoever saved it.

    Args:
        source: folder of the model.
        out: where to.
        config: the written configuration.
        tokenizer: folder of another model, whose tokenizer is copied in the place of this one's, without code.

    Raises:
        InputError: one of them is a folder, pipe or device.
    """
    for folder, is_copied in _sources(source, tokenizer):
        for file in filter(is_copied, accompanying_files(folder)):
            _copy(file, out / file.relative_to(folder))
            _leave_paths_out(out / file.relative_to(folder))
    needed = _code_files(config)
    if tokenizer is not None:
        for name, other in _configurations_with_code(tokenizer).items():
            if _is_of_tokenizer(tokenizer / name):
                _write_without_code(out / name, other)
    for name, other in _configurations_with_code(source).items():
        if tokenizer is not None and _is_of_tokenizer(source / name):
            continue
        if code_is_there(source, other):
            needed |= _code_files(other)
        else:
            _write_without_code(out / name, other)
    if needed:
        # A module that is named may import its neighbours.
        for file in sorted(source.glob("*.py")):
            _copy(file, out / file.name)


def _sources(source: Path, tokenizer: Path | None) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
    """Folders to copy from, with which of their files."""
    yield source, lambda file: tokenizer is None or not _is_of_tokenizer(file)
    if tokenizer is not None:
        yield tokenizer, _is_of_tokenizer


def _is_of_tokenizer(file: Path) -> bool:
    return not _matches(file.name, _OF_THE_MODEL)


def _write_without_code(file: Path, config: Mapping[str, Any]) -> None:
    _write_without(file, config, ("auto_map", *_WHERE_IT_LAY))


def _leave_paths_out(file: Path) -> None:
    if not fnmatch(file.name, "*tokenizer_config.json"):
        return
    with suppress(InputError):  # as it is; whoever reads it says so
        config = read_json_object(file)
        if any(key in config for key in _WHERE_IT_LAY):
            _write_without(file, config, _WHERE_IT_LAY)


def _write_without(file: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    rest = {key: value for key, value in config.items() if key not in keys}
    file.write_text(json.dumps(rest, indent=2) + "\n", encoding="utf-8")


def _configurations_with_code(folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations of tokenizers and processors that name code, by file name."""
    files = [file for file in accompanying_files(folder) if fnmatch(file.name, "*config*.json")]
    found = {}
    for file in files:
        # What is no object names no code; it is none of ours what else it may be.
        with suppress(InputError):
            found[file.name] = read_json_object(file)
    return {name: config for name, config in found.items() if "auto_map" in config}


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
