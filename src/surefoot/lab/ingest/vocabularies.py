"""Encodes a day's rows with the earlier days alone: known ids, and the mean and deviation of each dense column."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from surefoot.lab.ingest.column_parsing import GROUP
from surefoot.lab.ingest.description import CategoricalColumn, DenseColumn, Description

MISSING, UNSEEN, FIRST = 0, 1, 2
_VALUE, _ID, _COUNT = "value", "id", "count"
_LARGEST = float(np.finfo(np.float32).max)


class Vocabulary:
    """The known values of an id column, numbered from 2 in order of appearance.

    Args:
        min_count: a value becomes known once it was in this many rows.
    """

    def __init__(self, min_count: int = 1) -> None:
        self.min_count = min_count
        self._known: pl.DataFrame | None = None  # value, id
        self._waiting: list[pl.DataFrame] = []  # value, count: of values that are not known yet, in order of appearance

    @property
    def rows(self) -> int:
        """Rows of the embedding table for the ids so far."""
        return FIRST + (0 if self._known is None else len(self._known))

    def ids(self, values: pl.Series) -> pl.Series:
        """Return the ids, (n,) int32, of values, (n,); ``UNSEEN`` for an unknown value, ``MISSING`` for null."""
        if self._known is None:
            return values.is_not_null().cast(pl.Int32) * UNSEEN
        wanted, known = values.alias(_VALUE).to_frame(), self._known
        if len(known) > len(wanted):  # a join builds a hash table of its right side
            known = known.join(wanted.unique(), on=_VALUE, how="semi")
        found = wanted.join(known, on=_VALUE, how="left", maintain_order="left")
        return found.select(pl.col(_ID).fill_null(pl.col(_VALUE).is_not_null().cast(pl.Int32) * UNSEEN))[_ID]

    def note(self, values: pl.Series) -> None:
        """Count the rows of values, (n,), that are not known."""
        new = values.alias(_VALUE).to_frame()
        if self.min_count == 1:  # one row is enough, so counting is not needed
            self._waiting.append(new.unique(maintain_order=True).with_columns(pl.lit(1, pl.Int64).alias(_COUNT)))
        else:
            new = new.group_by(_VALUE, maintain_order=True).len(_COUNT)
            self._waiting.append(new.with_columns(pl.col(_COUNT).cast(pl.Int64)))
        first, *others = map(len, self._waiting)
        if sum(others) > first:  # merge now and then, to limit the memory
            self._waiting = [self._counted()]

    def learn(self) -> None:
        """Give ids to the values that have reached ``min_count`` rows."""
        if not self._waiting:
            return
        waiting = self._counted()
        due = waiting.filter(pl.col(_COUNT) >= self.min_count).select(_VALUE)
        due = due.with_columns(pl.int_range(self.rows, self.rows + pl.len(), dtype=pl.Int32).alias(_ID))
        self._known = due if self._known is None else pl.concat([self._known, due])
        self._waiting = [waiting.filter(pl.col(_COUNT) < self.min_count)]

    def _counted(self) -> pl.DataFrame:
        return pl.concat(self._waiting).group_by(_VALUE, maintain_order=True).agg(pl.col(_COUNT).sum())

    def save(self, path: Path) -> None:
        """Write a parquet file: known values with their ids, other values with their counts."""
        waiting = [table.select(_VALUE, pl.lit(None, pl.Int32).alias(_ID), _COUNT) for table in self._waiting]
        known = [] if self._known is None else [self._known.with_columns(pl.lit(None, pl.Int64).alias(_COUNT))]
        pl.concat([*known, *waiting] or [pl.DataFrame({_VALUE: [], _ID: [], _COUNT: []})]).write_parquet(path)

    def load(self, path: Path) -> None:
        """Read the file of ``save``."""
        table = pl.read_parquet(path)
        if len(table):
            self._known = table.filter(pl.col(_ID).is_not_null()).select(_VALUE, _ID)
            self._waiting = [table.filter(pl.col(_ID).is_null()).select(_VALUE, _COUNT)]


class Moments:
    """Count, mean and standard deviation of columns over the rows added so far, without nulls."""

    def __init__(self, columns: int) -> None:
        self.count, self.mean, self.m2 = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows, (n, columns)."""
        wide = pl.all().cast(pl.Float64)
        sums = frame.lazy().select(
            wide.count().name.prefix("count "),
            wide.mean().fill_null(0.0).name.prefix("mean "),
            wide.var(ddof=0).fill_null(0.0).name.prefix("variance "),
        )
        more = Moments(len(self.mean))
        more.count, more.mean, variance = np.array(sums.collect().row(0), dtype=float).reshape(3, -1)
        more.m2 = variance * more.count
        self.merge(more)

    def merge(self, more: "Moments") -> None:
        """Add the rows of another ``Moments``.

        Reference: T. F. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
        COMPSTAT 1982.
        """
        total = np.maximum(self.count + more.count, 1)
        delta = more.mean - self.mean
        self.m2 += more.m2 + delta**2 * self.count * more.count / total
        self.mean += delta * more.count / total
        self.count += more.count

    @property
    def std(self) -> np.ndarray:
        """The standard deviation; 1 for a constant column, as its sums in float64 are exact and its variance is 0."""
        std = np.sqrt(self.m2 / np.maximum(self.count, 1))
        return np.where(std > 0, std, 1.0)

    def state(self) -> dict[str, list[float]]:
        """Return plain numbers."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "m2")}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Restore the result of ``state``."""
        for name, values in state.items():
            setattr(self, name, np.array(values))


def hashed(values: pl.Series) -> pl.Series:
    """Return a 64-bit hash of each value, (n,) ``UInt64``, equal on all machines; null for null.

    Numbers use SplitMix64, text uses BLAKE2b; the text "7" and the number 7 differ.
    """
    if values.dtype != pl.String:
        with np.errstate(over="ignore"):
            z = values.fill_null(0).to_numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = pl.Series(z ^ (z >> np.uint64(31)))
        return pl.select(pl.when(values.is_not_null()).then(mixed)).to_series()
    unique = values.drop_nulls().unique()
    digests = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") for text in unique]
    table = pl.DataFrame({_VALUE: unique, "hash": pl.Series(digests, dtype=pl.UInt64)})
    return values.alias(_VALUE).to_frame().join(table, on=_VALUE, how="left", maintain_order="left")["hash"]


class FeatureEncoder:
    """Encodes the columns of a description with the vocabularies and moments of the earlier days."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._dense = [column.name for column in description.dense]
        self._moments, self._today = Moments(len(self._dense)), Moments(len(self._dense))
        self._vocabularies = {
            column.name: Vocabulary(column.min_count) for column in description.categorical if column.hash is None
        }

    def note(self, piece: pl.DataFrame, encoded: pl.DataFrame) -> None:
        """Record typed rows of a day and their encoding; they change nothing before ``learn``."""
        for column in self.description.categorical:
            if column.hash is None:
                values, ids = piece[column.name], encoded[column.name]
                if column.width > 1:
                    values, ids = _flat(values, column.width), ids.explode()
                    ids = ids.filter(ids != MISSING)  # drop the padding
                self._vocabularies[column.name].note(values.filter(ids == UNSEEN))
        if self._dense:
            self._today.add(piece.select(self._dense))

    def learn(self) -> None:
        """End a day: add its recorded rows to the vocabularies and moments."""
        for vocabulary in self._vocabularies.values():
            vocabulary.learn()
        self._moments.merge(self._today)
        self._today = Moments(len(self._dense))

    def rows(self, column: CategoricalColumn) -> int:
        """Return the rows of a column's embedding table for the ids so far."""
        return column.hash or self._vocabularies[column.name].rows

    def encoded(self, piece: pl.DataFrame) -> pl.DataFrame:
        """Return typed rows as numbers: ids, standardised dense columns, labels, the group."""
        columns: dict[str, Any] = {}
        for column in self.description.categorical:
            columns[column.name] = self._ids(piece[column.name], column)
        dense = zip(self.description.dense, self._moments.mean, self._moments.std, strict=True)
        columns |= piece.select(_scaled(column, mean, std) for column, mean, std in dense).to_dict()
        columns |= {label.name: piece[label.name] for label in self.description.label}
        if self.description.group is not None:
            group = piece[GROUP]
            whole = group if group.dtype == pl.Int64 else hashed(group).reinterpret(signed=True)
            columns[GROUP] = whole.fill_null(-1)
        return pl.DataFrame(columns)

    def _ids(self, values: pl.Series, column: CategoricalColumn) -> pl.Series:
        if column.width == 1:
            return self._ids_of(values, column)
        flat = self._ids_of(_flat(values, column.width), column)
        kept = values.list.len().fill_null(0).to_numpy()
        ids = np.full((len(values), column.width), MISSING, dtype=np.int32)
        ids[np.arange(column.width) < kept[:, None]] = flat.to_numpy()
        return pl.Series(ids, dtype=pl.Array(pl.Int32, column.width))

    def _ids_of(self, values: pl.Series, column: CategoricalColumn) -> pl.Series:
        if column.hash is None:
            return self._vocabularies[column.name].ids(values)
        return (hashed(values) % (column.hash - FIRST) + FIRST).fill_null(MISSING).cast(pl.Int32)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the vocabularies to a folder; return the moments as plain numbers."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, vocabulary in enumerate(self._vocabularies.values()):
            vocabulary.save(folder / f"{i}.parquet")
        return self._moments.state()

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Read the result of ``save``."""
        for i, vocabulary in enumerate(self._vocabularies.values()):
            vocabulary.load(folder / f"{i}.parquet")
        self._moments.restore(state)


def _flat(values: pl.Series, width: int) -> pl.Series:
    """Return the first ``width`` values of each list, (n,), concatenated."""
    return values.filter(values.list.len() > 0).list.head(width).explode()


def _scaled(column: DenseColumn, mean: float, std: float) -> pl.Expr:
    value = pl.col(column.name).cast(pl.Float64)
    if column.standardise:
        value = ((value - mean) / std).clip(-_LARGEST, _LARGEST)
    return value.fill_null(0.0).cast(pl.Float32)
