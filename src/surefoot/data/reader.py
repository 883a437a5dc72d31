"""Rows out of text and parquet files, a piece at a time, each row with its number; what is wrong with a file, said.

A file that cannot be read at all is an ``InputError``. A row that cannot be is rejected: named, counted, left out.
"""

import csv as standard_csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from surefoot.data.description import Csv
from surefoot.errors import InputError

ROW = "__row__"
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".dat", ".inter", ".log")
PACKED = (".gz", ".zst", ".bz2", ".lz4")
LONGEST_LINE = 8 << 20  # bytes
_PIECE = 1 << 17  # rows of parquet


@dataclass
class Rejections:
    """Rows that were left out, with the reason."""

    rows: list[tuple[str, int, str, str, str]] = field(default_factory=list)

    COLUMNS = ("file", "row", "column", "value", "reason")

    def add(self, file: str, row: int, column: str, value: object, reason: str) -> None:
        text = "" if value is None else str(value)
        self.rows.append((file, row, column, text if len(text) <= 80 else f"{text[:77]}...", reason))

    def frame(self) -> pl.DataFrame:
        """Return them as a table, in the order of ``COLUMNS``."""
        types = (pl.String, pl.Int64, pl.String, pl.String, pl.String)
        return pl.DataFrame(self.rows, schema=dict(zip(self.COLUMNS, types, strict=True)), orient="row")


def sentence(file: str, row: int, column: str, value: str, reason: str) -> str:
    """Return what is wrong with one row."""
    return f"{file} row {row}{f', column {column}' if column else ''}: {value!r}; {reason}"


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system that a local path or a URL is on, and the path there.

    Raises:
        InputError: if no such file system is known.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path))
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        system, inside = fsspec.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{path} is on no file system that is known here: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), inside


def find_files(path: str) -> tuple[str, ...]:
    """Return the text and parquet files of a folder, at any depth, in natural order; of a file, itself.

    Raises:
        InputError: if there is none.
    """
    system, inside = locate(path)
    info = system.get_file_info(inside)
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path} is not there; expected a folder or a file of a log")
    prefix = path.removesuffix(inside) if "://" in path else ""
    if info.type == fs.FileType.File:
        return (path,)
    below = system.get_file_info(fs.FileSelector(inside, recursive=True))
    found = [each.path for each in below if each.type == fs.FileType.File and _is_data(inside, each.path)]
    if not found:
        raise InputError(f"{path} has no file of a log; expected names that end in {', '.join((*PARQUET, *TEXT))}")
    return tuple(prefix + each for each in sorted(found, key=natural))


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts day_2 before day_10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def stem(path: str) -> str:
    """Return a file's name without its endings.

    >>> stem("logs/day_3.csv.gz")
    'day_3'
    """
    name = PurePosixPath(path.replace("\\", "/")).name
    while (suffix := PurePosixPath(name).suffix) in (*PARQUET, *TEXT, *PACKED):
        name = name.removesuffix(suffix)
    return name


def in_path(path: str) -> dict[str, str]:
    """Return the columns that a path tells: ``{"day": "2024-05-01"}`` of ``logs/day=2024-05-01/a.parquet``."""
    parts = (part.partition("=") for part in path.replace("\\", "/").split("/")[:-1])
    return {name: value for name, equals, value in parts if equals}


def columns_of(path: str, csv: Csv) -> list[str]:
    """Return the names of a file's columns, those that its path tells at the end.

    Raises:
        InputError: if the file cannot be read, is empty, or has two columns of one name.
    """
    if _is_parquet(path):
        with _told(path), _open(path) as stream:
            names = pq.read_schema(stream).names
    else:
        names = list(csv.columns) if csv.columns is not None else _header(path, csv)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path} has column {min(twice)!r} twice; expected a name of its own for each column")
    return names + [name for name in in_path(path) if name not in names]


def read(path: str, csv: Csv, columns: Sequence[str], rejected: Rejections, *, skip: int = 0) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file in pieces: the columns asked for, and ``__row__``, 1 for the first row of data.

    Text columns come as ``pl.String``, with nulls; those of parquet as they are.

    Args:
        path: a local path or a URL; by its end parquet or text, packed or not.
        csv: how text is written.
        columns: what is read.
        rejected: takes the rows that cannot be.
        skip: rows at the beginning that are left out, because they have been read before.

    Raises:
        InputError: naming the file, and the row or the column where there is one.
    """
    known = columns_of(path, csv)
    missing = [column for column in columns if column not in known]
    if missing:
        hint = ""
        if len(known) == 1 and not _is_parquet(path):
            other = next((mark for mark in (",", "\t", ";", "|") if mark in known[0] and mark != csv.separator), None)
            hint = f"; is the separator {other!r} and not {csv.separator!r}?" if other else ""
        raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(known) or 'none'}{hint}")
    told = {name: value for name, value in in_path(path).items() if name in columns}
    inside = [column for column in columns if column not in told]
    pieces = _read_parquet(path, inside, skip) if _is_parquet(path) else _read_text(path, csv, inside, rejected, skip)
    for piece in pieces:
        yield piece.with_columns(pl.lit(value, pl.String).alias(name) for name, value in told.items())


def _is_parquet(path: str) -> bool:
    return path.endswith(PARQUET)


def _is_data(folder: str, path: str) -> bool:
    name, below = PurePosixPath(path).name, path.removeprefix(folder)
    hidden = any(part.startswith((".", "_")) for part in below.split("/"))
    return not hidden and (name.endswith((*PARQUET, *TEXT, *PACKED)) or "." not in name)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn what a reader raises into a sentence about the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a file of the log") from None
    except (EOFError, OSError, UnicodeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for part, meaning in {
        "straddling object": f"a line is longer than {LONGEST_LINE >> 20} MiB; expected a row a line",
        "Truncated compressed stream": "the packed file ends too early, it was cut short",
        "inflate failed": "it is named as a packed file and is none, or is damaged",
        "Parquet magic bytes": "it does not end as a parquet file does, it was cut short or is none",
        "Parquet file size is 0": "it is empty",
    }.items():
        if part in text:
            return meaning
    return text


def _open(path: str) -> pa.NativeFile:
    system, inside = locate(path)
    return system.open_input_file(inside)


def _open_text(path: str, csv: Csv) -> Any:
    """Open a text file, unpacked, with a separator of one character."""
    system, inside = locate(path)
    with system.open_input_stream(inside, compression=None) as raw:
        start = raw.read(4)
    if not start:
        raise InputError(f"{path} is empty; expected rows")
    if start == b"PAR1":
        raise InputError(f"{path} is a parquet file by its first bytes; expected a name that ends in .parquet")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and not csv.encoding.lower().startswith("utf-16"):
        raise InputError(f"{path} is UTF-16 by its first bytes; expected {csv.encoding} (csv.encoding says which)")
    packed = "gzip" if start[:2] == b"\x1f\x8b" else "detect"
    stream = system.open_input_stream(inside, compression=packed)
    return stream if len(csv.separator) == 1 else pa.PythonFile(_OneCharacter(stream, csv), mode="r")


class _OneCharacter:
    """A stream in which a separator of several characters is one: the unit separator."""

    MARK = "\x1f"

    def __init__(self, stream: pa.NativeFile, csv: Csv) -> None:
        self._stream, self._separator = stream, csv.separator.encode(csv.encoding)
        self._mark, self._kept, self.closed = self.MARK.encode(csv.encoding), b"", False

    def read(self, size: int = -1) -> bytes:
        out = b""
        while not out:
            data = self._stream.read(size if size and size > 0 else None)
            whole = self._kept + data
            keep = (
                0
                if not data
                else next(  # what may be the beginning of a separator
                    (n for n in range(len(self._separator) - 1, 0, -1) if whole.endswith(self._separator[:n])), 0
                )
            )
            self._kept = whole[len(whole) - keep :]
            out = whole[: len(whole) - keep].replace(self._separator, self._mark)
            if not data:
                break
        return out

    def close(self) -> None:
        self._stream.close()
        self.closed = True


def _mark(csv: Csv) -> str:
    return csv.separator if len(csv.separator) == 1 else _OneCharacter.MARK


def _header(path: str, csv: Csv) -> list[str]:
    with _told(path):
        stream = _open_text(path, csv)
        try:
            start = bytes(stream.read(1 << 20))
        finally:
            stream.close()
        line = start.split(b"\n")[0] if not csv.encoding.lower().startswith("utf-16") else start
        text = line.decode(csv.encoding, errors="replace").removeprefix("\ufeff").splitlines()
    if not text or not text[0].strip():
        raise InputError(f"{path} begins with an empty line; expected a header with the names of the columns")
    return next(standard_csv.reader([text[0]], delimiter=_mark(csv)))


def _read_text(path: str, csv: Csv, columns: Sequence[str], rejected: Rejections, skip: int) -> Iterator[pl.DataFrame]:
    bad: list[int] = []  # numbers of rows with too few or too many cells
    header = csv.columns is None

    def refuse(row: Any) -> str:
        number = row.number - header
        bad.append(number)
        if number > skip:
            expected = f"expected {row.expected_columns} cells, found {row.actual_columns}"
            rejected.add(path, number, "", row.text, expected)
        return "skip"

    names = list(csv.columns) if csv.columns is not None else None
    with _told(path):
        stream = pyarrow.csv.open_csv(
            _open_text(path, csv),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=LONGEST_LINE, column_names=names, encoding=_codec(csv.encoding)
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=_mark(csv), invalid_row_handler=refuse),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.binary()),
                null_values=list(csv.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    seen, empty = 0, True
    while True:
        try:
            with _told(path):
                batch = stream.read_next_batch()
        except StopIteration:
            break
        except InputError as error:
            raise InputError(f"{error} (after row {seen + len(bad)})") from None
        empty = empty and not batch.num_rows
        numbers = _numbers(seen, batch.num_rows, bad)
        seen += batch.num_rows
        frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).with_columns(pl.Series(ROW, numbers))
        if skip:
            frame = frame.filter(pl.col(ROW) > skip)
        if len(frame):
            yield _decoded(path, frame, columns, rejected)
    if empty and not bad:
        raise InputError(f"{path} has a header and no rows; expected rows")


def _codec(encoding: str) -> str:
    return "utf8" if encoding.lower().replace("-", "").replace("_", "") == "utf8" else encoding


def _numbers(seen: int, count: int, bad: list[int]) -> np.ndarray:
    """Return the numbers in the file, (count,), of the rows after ``seen`` whole ones, ``bad`` ones not counted."""
    index = np.arange(seen + 1, seen + count + 1)
    gaps = np.asarray(bad) - np.arange(len(bad))  # the whole row that each bad one stands before
    return index + np.searchsorted(gaps, index, side="right")


def _decoded(path: str, frame: pl.DataFrame, columns: Sequence[str], rejected: Rejections) -> pl.DataFrame:
    """Turn bytes into text; reject rows with bytes that are none."""
    try:
        return frame.with_columns(pl.col(columns).cast(pl.String)) if columns else frame
    except pl.exceptions.ComputeError:
        pass
    good = np.ones(len(frame), dtype=bool)
    for column in columns:
        for i, (row, value) in enumerate(frame.select(ROW, column).iter_rows()):
            if good[i] and value is not None and not _is_text(value):
                rejected.add(path, row, column, value, "expected UTF-8 (csv.encoding says which)")
                good[i] = False
    return frame.filter(pl.Series(good)).with_columns(pl.col(columns).cast(pl.String))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_parquet(path: str, columns: Sequence[str], skip: int) -> Iterator[pl.DataFrame]:
    with _told(path), _open(path) as stream:
        file = pq.ParquetFile(stream)
        if not file.metadata.num_rows:
            raise InputError(f"{path} has no rows; expected some")
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > skip:
                yield from _pieces_of(file, group, columns, first, skip)
            first += rows


def _pieces_of(
    file: pq.ParquetFile, group: int, columns: Sequence[str], first: int, skip: int
) -> Iterator[pl.DataFrame]:
    for batch in file.iter_batches(_PIECE, row_groups=[group], columns=list(columns)):
        numbers = np.arange(first + 1, first + batch.num_rows + 1)
        first += batch.num_rows
        frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).with_columns(pl.Series(ROW, numbers))
        if len(frame := frame.filter(pl.col(ROW) > skip)):
            yield frame
