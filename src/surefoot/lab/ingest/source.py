"""The input of a preparation: files, side tables to join, and a function that computes the described columns."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import polars as pl
import pyarrow as pa

from surefoot.errors import InputError
from surefoot.lab.ingest.description import Csv, Description
from surefoot.lab.ingest.reader import ROW, NoRowsError, Rejections, read, sentence
from surefoot.lab.ingest.vocabularies import hashed

Shape = Callable[[pl.DataFrame], pl.DataFrame]
_MOST_REJECTED = 0.01  # share of a side table's rows


def _as_is(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


@dataclass(frozen=True)
class Source:
    """A log that ``prepare`` can convert.

    Args:
        description: describes the rows that ``shape`` returns.
        files: local paths or URLs, in reading order.
        columns: columns to read from the files; by default those of the description.
        shape: takes a part of a file, as ``reader.read`` yields it, and returns the description's columns and
            ``__row__``. It can join side tables and compute columns; it must keep all rows in their order.
        rejected: rejected rows of side tables.
        beside: files of the side tables; if one changes, an interrupted preparation starts again.
        notes: sentences for the user about missing parts of the log.
    """

    description: Description
    files: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    shape: Shape = _as_is
    rejected: Rejections = field(default_factory=Rejections)
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SideTable:
    """A table with one row for each id, to join with the log: features of users or items.

    It can have tens of millions of rows: text is dictionary-encoded with 4 bytes a cell, and a binary search on sorted
    keys needs no hash table for each part of the log.

    Args:
        path: path of the file.
        keys: (rows,) int64, ascending and unique.
        table: the other columns, (rows), text as dictionaries.
    """

    path: str
    keys: np.ndarray
    table: pa.Table

    @classmethod
    def read(
        cls, path: str, csv: Csv, columns: Sequence[str], *, key: str, rejected: Rejections, shape: Shape = _as_is
    ) -> Self:
        """Read a side table; a file may have a header alone.

        Args:
            path: path of the file.
            csv: format of the file.
            columns: columns to read.
            key: the column of the ids, after ``shape``.
            rejected: gets the rows that cannot be read, have no key, or repeat the key of an earlier row.
            shape: as in ``Source``.

        Raises:
            InputError: if the file cannot be read, or more than 1 % of its rows are rejected.
        """
        mine, pieces, last = Rejections(), [], 0
        try:
            for piece in read(path, csv, columns, mine):
                last = int(piece[ROW][-1])
                pieces.append(_compact(shape(piece), key, path, mine))
        except NoRowsError:
            empty = pl.DataFrame(schema={**dict.fromkeys(columns, pl.String), ROW: pl.Int64})
            pieces.append(_compact(shape(empty), key, path, mine))
        last = max([last, *(row[1] for row in mine.rows)])
        table = pa.concat_tables(pieces).unify_dictionaries().combine_chunks() if pieces else None
        if table is not None:
            table = _each_once(table, key, path, mine)
        if table is None or len(mine.rows) > _MOST_REJECTED * last:
            raise InputError(
                f"{sentence(*mine.rows[0])} ({len(mine.rows)} of {last} rows of this file are bad; expected at most "
                f"{_MOST_REJECTED:.0%})"
            )
        rejected.rows.extend(mine.rows)
        return cls(path, table[key].to_numpy(), table.drop_columns([key, ROW]))

    def of(self, ids: pl.Series) -> pl.DataFrame:
        """Return the rows of the ids, (n,), in the given order; nulls for an id without a row."""
        wanted = as_numbers(ids)
        keys = wanted.fill_null(0).to_numpy()
        places = np.searchsorted(self.keys, keys)
        found = (places < len(self.keys)) & wanted.is_not_null().to_numpy()
        found[found] = self.keys[places[found]] == keys[found]
        taken = self.table.take(pa.array(places, mask=~found))
        plain = [
            column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column
            for column in taken.columns
        ]
        return pl.DataFrame(pl.from_arrow(pa.table(plain, names=self.table.column_names)))


def notes_on(sides: Iterable[SideTable]) -> tuple[str, ...]:
    """Return a sentence on each side table that has no rows."""
    return tuple(
        f"{side.path} has no rows: its features are missing in every row of the log"
        for side in sides
        if not len(side.keys)
    )


def as_numbers(ids: pl.Series, base: int = 10) -> pl.Series:
    """Return ids, (n,), as ``Int64``: text as its number, or as a 64-bit hash if it is not a number; null for null.

    >>> as_numbers(pl.Series(["7", "68fd1e64", None]), base=16).to_list()
    [7, 1761418852, None]
    """
    if ids.dtype != pl.String:
        return ids.cast(pl.Int64)
    numbers = ids.str.to_integer(base=base, strict=False)
    if numbers.null_count() == ids.null_count():
        return numbers
    names = pl.select(pl.when(numbers.is_null()).then(ids)).to_series()
    return pl.select(pl.coalesce(numbers, hashed(names).reinterpret(signed=True))).to_series().rename(ids.name)


def _compact(piece: pl.DataFrame, key: str, path: str, rejected: Rejections) -> pa.Table:
    """Return the rows with a key: keys as numbers, text as dictionaries."""
    piece = piece.with_columns(as_numbers(piece[key]).alias(key))
    for (row,) in piece.filter(pl.col(key).is_null()).select(ROW).iter_rows():
        rejected.add(path, row, key, None, "expected an id")
    table = piece.filter(pl.col(key).is_not_null()).to_arrow(compat_level=pl.CompatLevel.oldest())
    columns = [
        column.dictionary_encode() if pa.types.is_large_string(column.type) else column for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _each_once(table: pa.Table, key: str, path: str, rejected: Rejections) -> pa.Table:
    """Sort rows by key, and reject rows that repeat a key."""
    order = np.argsort(table[key].to_numpy(), kind="stable")
    keys = table[key].to_numpy()[order]
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[1:] == keys[:-1]
    rows = table[ROW].to_numpy()[order[again]]
    for row, value in zip(rows.tolist(), keys[again].tolist(), strict=True):
        rejected.add(path, row, key, value, "expected no second row of an id")
    return table.take(pa.array(order[~again]))
