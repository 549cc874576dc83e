"""Tables that come from many programs: text of several kinds, and parquet.

Columns of a text are separated by commas, semicolons or tabs; it is UTF-8, UTF-16 or Windows-1252.
"""

import codecs
import csv
import io
import math

import pyarrow as pa
import pyarrow.parquet as pq

from rayad import storage
from rayad.errors import DatasetError

SEPARATORS = (",", ";", "\t")
ENDINGS = (".csv", ".tsv", ".parquet")
"""Names of files that are taken for tables where images are asked for."""


def cells(url: str) -> tuple[list[str], list[list[str]], str]:
    """The names of the columns in small letters, the cells of every row that is not empty, and the separator.

    Raises:
        DatasetError: the file is no table, or two columns have one name.
        StorageError: it cannot be read.
    """
    data = storage.read_bytes(url)
    header, rows, separator = _of_parquet(data, url) if data.startswith(b"PAR1") else _of_text(data, url)
    if len(set(header)) < len(header):
        raise DatasetError(f"{url}: two columns have the same name: {', '.join(header)}")
    return header, rows, separator


def number(cell: str) -> float:
    """The number in a cell, whose decimals may follow a comma; nan where it holds none that is finite."""
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _of_text(data: bytes, url: str) -> tuple[list[str], list[list[str]], str]:
    text = _decoded(data)
    if "\0" in text:
        raise DatasetError(f"{url}: not a table of text: it has bytes of zero")
    first_line = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first_line.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator))
    except csv.Error as error:
        raise DatasetError(f"{url}: not a table of text separated by {separator!r}: {error}") from None
    header = [name.strip().lower() for name in next(iter(lines), [])]
    return header, [[cell.strip() for cell in row] for row in lines[1:] if row], separator


def _of_parquet(data: bytes, url: str) -> tuple[list[str], list[list[str]], str]:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{url}: not a parquet file: {error}") from None
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return [name.strip().lower() for name in table.column_names], [list(row) for row in zip(*columns, strict=True)], ""


def _decoded(data: bytes) -> str:
    """The text of a table in UTF-8, UTF-16 or Windows-1252, which knows a letter for nearly every byte."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
