"""Reads text and parquet files in parts, each row with its number.

A file that cannot be read raises an ``InputError``. A row that cannot be read is rejected: recorded and left out.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from surefoot.errors import InputError
from surefoot.lab.file_discovery import PARQUET, in_path, input_errors, locate
from surefoot.lab.ingest.description import Csv
from surefoot.lab.ingest.text import KEPT, LONGEST_LINE, LOST, TextStream, header, mark, readable

ROW = "__row__"
_PIECE = 1 << 17  # rows of a part of a parquet file
_FEW = 20  # most column names in a sentence
# types that polars lacks
_UNKNOWN = (pa.types.is_decimal256, pa.types.is_interval, pa.types.is_union, pa.types.is_run_end_encoded)


class NoRowsError(InputError):
    """A file has columns but no rows; some files of a partitioned log are like this."""


@dataclass
class Rejections:
    """Rejected rows, each with the reason."""

    rows: list[tuple[str, int, str, str, str]] = field(default_factory=list)

    COLUMNS = ("file", "row", "column", "value", "reason")

    def add(self, file: str, row: int, column: str, value: object, reason: str) -> None:
        text = "" if value is None else str(value)
        self.rows.append((file, row, column, text if len(text) <= 80 else f"{text[:77]}...", reason))

    def frame(self) -> pl.DataFrame:
        """Return a table with the columns ``COLUMNS``."""
        types = (pl.String, pl.Int64, pl.String, pl.String, pl.String)
        return pl.DataFrame(self.rows, schema=dict(zip(self.COLUMNS, types, strict=True)), orient="row")


def sentence(file: str, row: int, column: str, value: str, reason: str) -> str:
    """Return a sentence on one rejected row."""
    return f"{file} row {row}{f', column {column}' if column else ''}: {value!r}; {reason}"


def columns_of(path: str, csv: Csv) -> list[str]:
    """Return the names of a file's columns, then those in its path.

    Raises:
        InputError: if the file cannot be read, is empty, or has two columns with the same name.
    """
    names = _names(path, csv)
    return names + [name for name in in_path(path) if name not in names]


def first_line(path: str, csv: Csv) -> list[str]:
    """Return the cells of a text file's first line, which are the columns' names if it has a header.

    Raises:
        InputError: if the file cannot be read, is empty, or begins with an empty line.
    """
    with input_errors(path):
        return header(_open_text(path, csv), csv, path)


def read(path: str, csv: Csv, columns: Sequence[str], rejected: Rejections, *, skip: int = 0) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file in parts: ``columns`` and ``__row__``, which is 1 for the first row of data.

    Text and dictionary columns come as ``pl.String`` with nulls, other parquet columns unchanged. Empty lines do not
    count.

    Args:
        path: a local path or a URL. The end of the name tells parquet from text; text may be compressed.
        csv: format of text files.
        columns: columns to read.
        rejected: gets the rows that cannot be read.
        skip: number of rows at the start to leave out, because they were read before.

    Raises:
        InputError: naming the file, and the row or the column where there is one; ``NoRowsError`` if it has none.
    """
    names, beside = check_columns(path, csv, columns), in_path(path)
    inside = [column for column in columns if column in names]
    if _is_parquet(path):
        pieces = _read_parquet(path, inside, rejected, skip)
    else:
        pieces = _read_text(path, csv, names, inside, rejected, skip)
    more = [pl.lit(beside[name] or None, pl.String).alias(name) for name in columns if name not in names]
    for piece in pieces:
        yield piece.with_columns(more)


def check_columns(path: str, csv: Csv, columns: Sequence[str]) -> list[str]:
    """Return the names of a file's columns; check that each of ``columns`` is in the file or in its path.

    Raises:
        InputError: as ``columns_of``, and if a column is missing.
    """
    names = _names(path, csv)
    known = [*names, *in_path(path)]
    if missing := [column for column in columns if column not in known]:
        few = ", ".join(name if name.isprintable() else repr(name) for name in known[:_FEW])
        few += f" and {len(known) - _FEW} more" if len(known) > _FEW else ""
        hint = "" if _is_parquet(path) else _hint(names, csv)
        raise InputError(f"{path} has no column {missing[0]!r}; it has {few}{hint}")
    return names


def _names(path: str, csv: Csv) -> list[str]:
    """Return the names of a file's columns."""
    if _is_parquet(path):
        with input_errors(path), _open(path) as stream:
            names = pq.read_schema(stream).names
    else:
        names = first_line(path, csv) if csv.columns is None else list(csv.columns)
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise InputError(f"{path} has column {twice[0]!r} twice; expected different names")
    return names


def _hint(names: list[str], csv: Csv) -> str:
    """Return a guess why a column is missing in a text file, as the end of a sentence."""
    others = (other for other in (",", "\t", ";", "|") if len(names) == 1 and other in names[0])
    if (other := next(others, None)) is not None:
        return f"; is the separator {other!r} and not {csv.separator!r}?"
    if csv.columns is None and any(re.fullmatch(r"[-+]?\d+(\.\d*)?", name) for name in names):
        return "; is its first line a row? csv.columns names the columns of a file without a header"
    return ""


def _is_parquet(path: str) -> bool:
    return path.endswith(PARQUET)


def _open(path: str) -> pa.NativeFile:
    system, inside = locate(path)
    info = system.get_file_info(inside)
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path} does not exist; expected a file of the log")
    if info.type != fs.FileType.File:  # opening a pipe would block forever
        raise InputError(f"{path} is not a file; expected a file of the log")
    return system.open_input_file(inside)


def _open_text(path: str, csv: Csv) -> TextStream:
    """Open a text file and decompress it."""
    with _open(path) as raw:
        start = raw.read(4)
    if not start:
        raise InputError(f"{path} is empty; expected rows")
    if start == b"PAR1":
        raise InputError(f"{path} is a parquet file by its first bytes; expected a name that ends in .parquet")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and not csv.encoding.lower().startswith("utf-16"):
        raise InputError(f"{path} is UTF-16 by its first bytes; expected {csv.encoding} (csv.encoding says which)")
    system, inside = locate(path)
    packed = "gzip" if start[:2] == b"\x1f\x8b" else "detect"
    return TextStream(system.open_input_stream(inside, compression=packed), csv, path)


def _read_text(
    path: str, csv: Csv, names: list[str], columns: list[str], rejected: Rejections, skip: int
) -> Iterator[pl.DataFrame]:
    header, seen = csv.columns is None, 0
    bad: list[int] = []  # numbers of rows with too few or too many cells

    def refuse(row: Any) -> str:
        number = row.number - header
        bad.append(number)
        if number > skip:
            cells = readable(row.text.replace(mark(csv), csv.separator))
            rejected.add(path, number, "", cells, f"expected {row.expected_columns} cells, found {row.actual_columns}")
        return "skip"

    def so_far() -> str:
        return f" after row {seen + len(bad)}"

    with input_errors(path):
        text = _open_text(path, csv)
        stream = _open_csv(text, csv, names, columns or names[:1], refuse)
    try:
        while True:
            with input_errors(path, so_far):
                batch = next(stream, None)
            if batch is None:
                break
            numbers = _numbers(seen, batch.num_rows, bad)
            seen += batch.num_rows
            if len(frame := _frame(batch, numbers, skip)):
                yield _decoded(path, frame, columns, csv.encoding, rejected, lost=text.lost)
    finally:
        text.stop()
    if not seen and not bad:
        raise NoRowsError(f"{path} has {'a header and ' if header else ''}no rows; expected rows")


def _open_csv(
    text: TextStream, csv: Csv, names: list[str], columns: list[str], refuse: Callable[[Any], str]
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        pa.PythonFile(text, mode="r"),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=LONGEST_LINE,
            column_names=names,
            skip_rows_after_names=int(csv.columns is None),
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=mark(csv),
            quote_char=csv.quote or False,
            newlines_in_values=True,
            invalid_row_handler=refuse,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            check_utf8=False,
            include_columns=columns,  # none would mean all
            column_types=dict.fromkeys(columns, pa.binary()),
            null_values=list(csv.nulls),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _numbers(seen: int, count: int, bad: list[int]) -> np.ndarray:
    """Return the row numbers, (count,), of the good rows after the first ``seen``; ``bad`` are numbers of bad rows."""
    index = np.arange(seen + 1, seen + count + 1)
    gaps = np.asarray(bad) - np.arange(len(bad))  # the good row that follows each bad one
    return index + np.searchsorted(gaps, index, side="right")


def _frame(batch: pa.RecordBatch, numbers: np.ndarray, skip: int) -> pl.DataFrame:
    """Return the rows after number ``skip``, with their numbers."""
    frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).with_columns(pl.Series(ROW, numbers))
    return frame.filter(pl.col(ROW) > skip) if skip else frame


def _decoded(
    path: str, frame: pl.DataFrame, columns: Sequence[str], encoding: str, rejected: Rejections, *, lost: bool
) -> pl.DataFrame:
    """Decode bytes as text; reject rows with bytes that are not text. ``lost``: whether earlier decoding found any."""
    for column in columns:
        try:
            text = frame[column].cast(pl.String)
        except pl.exceptions.ComputeError:
            cells = (None if cell is None else cell.decode(errors=KEPT) for cell in frame[column])
            text, lost = pl.Series(column, cells, pl.String), True
        frame = frame.with_columns(text)
    for column in columns if lost else ():
        bad = frame[column].str.contains(LOST).fill_null(False)
        for row, text in frame.filter(bad).select(ROW, column).iter_rows():
            rejected.add(path, row, column, readable(text), f"expected text in {encoding}")
        frame = frame.filter(~bad)
    return frame


def _read_parquet(path: str, columns: list[str], rejected: Rejections, skip: int) -> Iterator[pl.DataFrame]:
    first = 0
    with input_errors(path, lambda: f" after row {first}"), _open(path) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        if not file.metadata.num_rows:
            raise NoRowsError(f"{path} has no rows; expected rows")
        fields = [file.schema_arrow.field(column) for column in columns]
        for field in fields:
            if _is_unknown(field.type):
                raise InputError(f"{path}: column {field.name} is of type {field.type}; expected numbers or text")
        text = [field.name for field in fields if _is_text(field.type)]
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        begin = int(np.searchsorted(ends, skip, side="right"))
        first = int(ends[begin - 1]) if begin else 0
        for batch in file.iter_batches(_PIECE, row_groups=list(range(begin, len(ends))), columns=columns):
            numbers = np.arange(first + 1, first + batch.num_rows + 1)
            if len(frame := _frame(_as_bytes(batch), numbers, skip)):
                yield _decoded(path, frame, text, "utf-8", rejected, lost=False)
            first += batch.num_rows


def _is_unknown(kind: pa.DataType) -> bool:
    return any(is_so(kind) for is_so in _UNKNOWN) or (pa.types.is_list(kind) and _is_unknown(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _in_utc(kind: pa.DataType) -> pa.DataType:
    """Return the type with UTC as time zone, since polars does not know zones such as +05:30."""
    if pa.types.is_list(kind):
        return pa.list_(_in_utc(kind.value_type))
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz is not None else kind


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return text as bytes, since parquet does not check that it is valid; dictionaries as values; times in UTC."""
    columns = []
    for column in batch.columns:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        plain = plain.cast(_in_utc(plain.type))
        if _is_text(plain.type):
            plain = plain.cast(pa.large_binary())
        elif pa.types.is_nested(plain.type):
            plain.validate(full=True)
        columns.append(plain)
    return pa.record_batch(columns, names=batch.schema.names)
