"""A data set as it comes: its files, the tables beside them, and how their rows become those of its description."""

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
    """What ``prepare`` converts.

    Args:
        description: of the rows that ``shape`` returns.
        files: local paths or URLs, in the order in which they are read.
        columns: read from the files; by default those of the description.
        shape: from a piece of a file, as ``reader.read`` yields it, to the description's columns, ``__row__`` kept: to
            join side tables and to compute columns. It neither adds, drops nor moves rows.
        rejected: rows of side tables that were left out.
        beside: the side tables' files, so that a preparation under way sees if one changes.
        notes: sentences on what a part of the log lacks, to be shown.
    """

    description: Description
    files: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    shape: Shape = _as_is
    rejected: Rejections = field(default_factory=Rejections)
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """A table beside the log, of one row an id: kept sorted, text once for each of its values, looked up by halving.

    So it is fit for tens of millions of rows: a cell of text takes 4 bytes, and nothing is built anew for each piece of
    the log.

    Args:
        path: of its file.
        keys: (rows,) int64, ascending, each once.
        table: (rows) the other columns, text as dictionaries.
    """

    path: str
    keys: np.ndarray
    table: pa.Table

    @classmethod
    def read(
        cls, path: str, csv: Csv, columns: Sequence[str], *, key: str, rejected: Rejections, shape: Shape = _as_is
    ) -> Self:
        """Read a side table; of rows with the same key the first counts. A file that is only a header has none.

        Args:
            path: of the file.
            csv: how it is written.
            columns: what is read.
            key: the column of the ids, after ``shape``.
            rejected: takes the rows that cannot be read, have no key, or one that a row before them has.
            shape: as a source's.

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
                f"{sentence(*mine.rows[0])} ({len(mine.rows)} of {last} rows of this file are such; expected at most "
                f"{_MOST_REJECTED:.0%})"
            )
        rejected.rows.extend(mine.rows)
        return cls(path, table[key].to_numpy(), table.drop_columns([key, ROW]))

    def of(self, ids: pl.Series) -> pl.DataFrame:
        """Return the rows of ids, (n,), in their order; nulls where an id has none."""
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


def notes_on(sides: Iterable[Side]) -> tuple[str, ...]:
    """Return a sentence on each side table that has no rows."""
    return tuple(
        f"{side.path} has no rows: what it tells is missing in every row of the log"
        for side in sides
        if not len(side.keys)
    )


def as_numbers(ids: pl.Series, base: int = 10) -> pl.Series:
    """Return ids, (n,), as ``Int64``: text that is a number as it, other text as 64 bits of its hash; null for null.

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
    """Return rows that have a key, keys as numbers and text as dictionaries."""
    piece = piece.with_columns(as_numbers(piece[key]).alias(key))
    for (row,) in piece.filter(pl.col(key).is_null()).select(ROW).iter_rows():
        rejected.add(path, row, key, None, "expected an id")
    table = piece.filter(pl.col(key).is_not_null()).to_arrow(compat_level=pl.CompatLevel.oldest())
    columns = [
        column.dictionary_encode() if pa.types.is_large_string(column.type) else column for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _each_once(table: pa.Table, key: str, path: str, rejected: Rejections) -> pa.Table:
    """Return the rows in the order of their keys, of several with the same only the first."""
    order = np.argsort(table[key].to_numpy(), kind="stable")
    keys = table[key].to_numpy()[order]
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[1:] == keys[:-1]
    rows = table[ROW].to_numpy()[order[again]]
    for row, value in zip(rows.tolist(), keys[again].tolist(), strict=True):
        rejected.add(path, row, key, value, "expected no second row of an id")
    return table.take(pa.array(order[~again]))
