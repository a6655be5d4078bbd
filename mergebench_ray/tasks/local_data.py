"""Data sets of a hub read from local files instead, so that tasks run where no hub can be reached."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular
from mergebench_ray.tasks.task_files import FILE_FORMATS

# For the counts of its hub the library would tell a server of every data set that is loaded, files of this machine
# included; where no name resolves it waits for that, a task after the other.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST_CELL = 2**31 - 1  # the csv module's own limit of 128 KiB is less than some tests of programs


def dataset_id(config: Mapping[str, Any]) -> str | None:
    """`owner/name` or `owner/name:config` of the hub's data set that a task asks for; None where it brings its own."""
    path = config.get("dataset_path")
    if not path or path in FILE_FORMATS:
        return None
    name = config.get("dataset_name")
    return f"{path}:{name}" if name else str(path)


def local_source(data: Mapping[str, str], path: str, name: str | None) -> Path | None:
    """Where `data` sends a data set: an entry for its configuration first, then one for all of it."""
    for key in (f"{path}:{name}", path):
        if key in data:
            return Path(data[key])
    return None


@contextmanager
def local_datasets(data: Mapping[str, str], split: str | None) -> Iterator[None]:
    """While the context lasts, `datasets.load_dataset` reads the data sets that `data` names from local files.

    lm-eval has no other place through which every task gets its data. One task is built at a time; whatever it took is
    its own, so nothing stays replaced afterwards.

    Args:
        data: data set id, or `id:config` -> file or folder.
        split: the split that a single file stands for; None for any.
    """
    original: Callable[..., Any] = datasets.load_dataset

    def load(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
        source = local_source(data, path, name)
        if source is None:
            return original(path, name, *args, **{**options, "trust_remote_code": False})
        splits = LocalSplits(f"{path}:{name}" if name else path, name, source, split)
        return splits[options["split"]] if options.get("split") else splits

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original


class LocalSplits(dict[str, datasets.Dataset]):
    """The splits of a data set, each read when it is first asked for.

    A file holds one split. In a folder, a split is the file `SPLIT.jsonl` (or .json, .parquet, .csv) or the shards
    `SPLIT-*`, looked for in `CONFIG/`, as `CONFIG_SPLIT`, in the folder itself, and in `data/`.

    Args:
        name: id of the data set, for messages.
        config: its configuration; None where it has none.
        source: file or folder.
        only_split: the split that a file stands for; None for any.

    Raises:
        InputError: if there is no such file or folder.
    """

    def __init__(self, name: str, config: str | None, source: Path, only_split: str | None) -> None:
        super().__init__()
        self._name, self._config, self._source, self._only_split = name, config, source, only_split
        if not os.path.exists(source):
            raise InputError(f"data {name}: {source}: no such file or folder; check evaluation.data or --data")
        if not (source.is_dir() or source.is_file()):
            raise InputError(f"data {name}: {source}: a pipe or device; check evaluation.data or --data")

    def __missing__(self, split: str) -> datasets.Dataset:
        self[split] = _to_dataset(self.files(split))
        return self[split]

    def files(self, split: str) -> list[Path]:
        """The files that hold a split.

        Raises:
            InputError: if there is none.
        """
        if not self._source.is_dir():
            if self._only_split not in (None, split):
                raise InputError(
                    f"data {self._name}: {self._source} stands for the split {self._only_split!r}, but {split!r} is "
                    f"needed too; give a folder with a file for each, {self._only_split}.jsonl and {split}.jsonl"
                )
            return [self._source]
        for folder, stem in self._places(split):
            found = [
                file
                for file in sorted(folder.glob("*"))
                if file.suffix in SUFFIXES and (file.stem == stem or file.stem.startswith(f"{stem}-"))
            ]
            if found:
                return found
        names = ", ".join(sorted(file.name for file in self._source.iterdir())[:8]) or "nothing"
        raise InputError(
            f"data {self._name}: {self._source} has no file for the split {split!r}, only {names}; "
            f"add {split}.jsonl (or .json, .parquet, .csv)"
        )

    def _places(self, split: str) -> list[tuple[Path, str]]:
        """Folders to look in, and how the file is called there."""
        own = []
        if self._config:
            own = [(self._source / self._config, split), (self._source, f"{self._config}_{split}")]
        return [*own, (self._source, split), (self._source / "data", split)]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list), .csv or .parquet file.

    Raises:
        InputError: naming the file and, where it can be known, the line.
    """
    reader = {".jsonl": _read_lines, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}.get(file.suffix)
    if reader is None:
        raise InputError(f"{file}: not a data file; give one that ends in {', '.join(SUFFIXES)}")
    try:
        with open_regular(file) as stream:
            rows = reader(file, stream)
    except (OSError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error}); check the file") from error
    if not rows:
        raise InputError(f"{file}: holds no item; check the file")
    return rows


def check_data_files(task: str, config: Mapping[str, Any]) -> None:
    """Refuse pipes and devices among the files that a task file names itself: a library would wait at them for ever.

    Raises:
        InputError: naming task and file.
    """
    options = config.get("dataset_kwargs")
    if isinstance(options, Mapping):
        for path in _paths(options.get("data_files")):
            try:
                mode = path.stat().st_mode
            except (OSError, ValueError):
                continue  # not there, or a pattern: the library says which
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(f"task {task}: {path}: not a regular file (a pipe or device); check its data_files")


def missing_file(task: str, config: Mapping[str, Any]) -> str | None:
    """What is wrong, in a line, where a file that a task file names is not there; None if all are.

    Args:
        task: name of the task.
        config: its file, with absolute paths.
    """
    options = config.get("dataset_kwargs")
    if str(config.get("dataset_path")) in FILE_FORMATS and isinstance(options, Mapping) and not options.get("data_dir"):
        for path in _paths(options.get("data_files")):
            if path.is_absolute() and not (os.path.exists(path) or glob.has_magic(str(path))):
                return f"task {task}: {path}: no such file; check its data_files"
    return None


def _paths(data_files: Any) -> Iterator[Path]:
    if isinstance(data_files, str):
        yield Path(data_files)
    elif isinstance(data_files, Mapping | list):
        for one in data_files.values() if isinstance(data_files, Mapping) else data_files:
            yield from _paths(one)


def _text(stream: BinaryIO) -> TextIOWrapper:
    """UTF-8, whether or not a spreadsheet program has put its mark in front."""
    return TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _read_lines(file: Path, stream: BinaryIO) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(stream), 1):
        if line.strip():
            row = _parse(line, f"{file}, line {number}")
            if not isinstance(row, dict):
                raise InputError(
                    f"{file}, line {number}: expected an object of fields, found {type(row).__name__}; mend that line"
                )
            rows.append(row)
    return rows


def _read_json(file: Path, stream: BinaryIO) -> list[dict[str, Any]]:
    rows: Any = _parse(_text(stream).read(), str(file))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: expected a list of objects; name the file .jsonl if it has one object a line")
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        found = json.loads(text)
        if _HALF_CHARACTER.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise InputError(f"{where}{line}: not valid JSON ({error.msg}, column {error.colno}); mend it") from error
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits, half of a character
        raise InputError(f"{where}: not usable JSON ({error}); mend it") from error
    return found


def _read_csv(file: Path, stream: BinaryIO) -> list[dict[str, Any]]:
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.DictReader(_text(stream))
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise InputError(f"{file}: two columns have the same name; rename one")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise InputError(f"{file}, line {reader.line_num}: not one value for each of {len(names)} columns; mend it")
        rows.append(dict(row))
    return rows


def _read_parquet(file: Path, stream: BinaryIO) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(stream).to_pylist()
    return rows


def _to_dataset(files: Sequence[Path]) -> datasets.Dataset:
    """Rows as a data set in memory; a field that a row lacks is None there, as on the hub."""
    rows = [row for file in files for row in read_rows(file)]
    columns = {}
    if not any(rows):
        raise InputError(f"{files[0]}: its items have no field; check the file")
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise InputError(f"{files[0]}: field {name!r} mixes kinds of values ({error}); use one kind") from error
    try:
        return datasets.Dataset(pa.table(columns))
    except (pa.ArrowException, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{files[0]}: cannot be made a data set ({error}); use plain fields") from error
