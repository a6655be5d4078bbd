"""Parquet files of a run, each read from one opening: while a search goes on, its next write replaces the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_MAX_ROWS = 10_000_000  # damaged numbers may claim any


def read_parquet(
    path: Path, required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Read columns of a file, as the types that are asked for.

    Args:
        path: the file.
        required: columns that must be there; where their type is text, every row has one.
        optional: columns that are read if they are there.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is damaged, or a file of something else.
    """
    try:
        with open_regular(path) as stream, pq.ParquetFile(stream) as file:
            if file.metadata.num_rows > _MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows} rows")
            known = file.schema_arrow.names
            wanted = {name: kind for name, kind in {**required, **(optional or {})}.items() if name in known}
            for name in required:
                if known.count(name) != 1:
                    raise ValueError(f"{'no' if name not in known else 'more than one'} column {name!r}")
            table = file.read(columns=list(wanted))
        # In the order asked for; `read` keeps the file's.
        columns = {name: table.column(name).cast(kind) for name, kind in wanted.items()}
        for name, kind in required.items():
            if kind == pa.string() and columns[name].null_count:
                raise ValueError(f"rows without {name!r}")
        found = pa.Table.from_arrays(list(columns.values()), list(columns))
        found.validate(full=True)
        return found
    except (FileNotFoundError, InputError):
        raise
    # Arrow has errors of a dozen kinds, some of which are no ValueError.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or no file of a run ({error}); restore it from a copy, or start again in another folder"
        ) from error
