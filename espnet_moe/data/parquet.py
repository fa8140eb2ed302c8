"""Audio files in the rows of parquet files, as the hub keeps data sets.

A column of structures has a field ``bytes`` with a whole audio file, and often ``path`` with its
name. Rows lie in groups that can be read only as a whole: the last group read is kept, so that rows
in their order cost one reading a group.
"""

import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_moe.errors import UserError

if TYPE_CHECKING:
    import pyarrow

State = tuple[int, int]  # size and time of a file: what was read of another file is of no use


class ParquetError(UserError):
    """A parquet file that is damaged, or has no audio where it should."""


def read_row(path: str, row: int) -> tuple[bytes, str]:
    """Return the audio file that a row holds, and its name (empty where it has none).

    Args:
        path: The parquet file.
        row: From 0.

    Raises:
        ParquetError: When the file is missing, damaged or has no audio column, or when the row is
            not there or empty.
    """
    try:
        status = os.stat(path)
    except OSError:
        raise ParquetError(f"{path} does not exist; fetch the corpus again") from None
    state = (status.st_size, status.st_mtime_ns)
    column, starts = _layout(path, state)
    if row >= starts[-1]:
        raise ParquetError(f"{path}#row={row}: the file has {starts[-1]} rows; fetch it again")
    group = bisect_right(starts, row) - 1
    value = _group(path, state, group, column)[row - starts[group]].as_py() or {}
    if not value.get("bytes"):
        raise ParquetError(f"{path}#row={row} is empty: no bytes in column {column}")
    return value["bytes"], value.get("path") or ""


def audio_column(path: str | Path, schema: "pyarrow.Schema") -> str:
    """Return the name of the column of audio files: structures with ``bytes``.

    Raises:
        ParquetError: When there is none.
    """
    import pyarrow

    for field in schema:
        if not pyarrow.types.is_struct(field.type):
            continue
        index = field.type.get_field_index("bytes")
        if index >= 0 and (
            pyarrow.types.is_binary(field.type.field(index).type)
            or pyarrow.types.is_large_binary(field.type.field(index).type)
        ):
            return field.name
    raise ParquetError(
        f"{path} has no column of audio (a structure with bytes) among {', '.join(schema.names)}"
    )


@lru_cache(maxsize=1)
def _layout(path: str, state: State) -> tuple[str, tuple[int, ...]]:
    """The audio column's name, and the first row of each group; after them the number of rows."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    return audio_column(path, schema), tuple(accumulate(counts, initial=0))


@lru_cache(maxsize=1)
def _group(path: str, state: State, group: int, column: str) -> Any:
    """The audio of a group of rows, an array of structures."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column]).column(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, error: Exception) -> ParquetError:
    """Return the error for a file that cannot be read."""
    return ParquetError(f"{path} is damaged or no parquet file ({error}); fetch it again")
