"""What the days before a row's own tell: which ids are known, and how large numbers usually are."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from surefoot.data.description import CategoricalColumn, Description

MISSING, UNSEEN, FIRST = 0, 1, 2
_VALUE = "value"


class Vocabulary:
    """The ids of a column that are known by now, numbered from 2 in order of appearance.

    Args:
        min_count: rows from which on a value is known.
    """

    def __init__(self, min_count: int = 1) -> None:
        self.min_count = min_count
        self._seen: pl.DataFrame | None = None  # value, count, id (null below min_count)
        self.rows = FIRST  # of the embedding table, for the ids given out so far

    def add(self, values: pl.Series) -> None:
        """Count a day's values, (n,), in order of appearance, nulls left out; give ids to those that are enough."""
        new = values.drop_nulls().alias(_VALUE).to_frame()
        new = new.group_by(_VALUE, maintain_order=True).len("count").with_columns(pl.col("count").cast(pl.Int64))
        if self._seen is None:
            seen = new.with_columns(id=pl.lit(None, pl.Int32))
        elif self.min_count == 1:  # counts decide nothing
            fresh = new.join(self._seen, on=_VALUE, how="anti", maintain_order="left")
            seen = pl.concat([self._seen, fresh.with_columns(id=pl.lit(None, pl.Int32))])
        else:
            both = pl.concat([self._seen, new.with_columns(id=pl.lit(None, pl.Int32))])
            seen = both.group_by(_VALUE, maintain_order=True).agg(pl.col("count").sum(), pl.col("id").max())
        due = pl.col("id").is_null() & (pl.col("count") >= self.min_count)
        fresh_id = self.rows - 1 + due.cum_sum()
        seen = seen.with_columns(id=pl.when(due).then(fresh_id).otherwise(pl.col("id")).cast(pl.Int32))
        self._seen, self.rows = seen, FIRST + int(seen["id"].is_not_null().sum())

    def ids(self, values: pl.Series) -> np.ndarray:
        """Return the ids, (n,) int32, of values, (n,)."""
        if self._seen is None or not len(self._seen):
            return values.is_not_null().cast(pl.Int32).to_numpy() * np.int32(UNSEEN)
        wanted = values.alias(_VALUE).to_frame()
        found = wanted.join(self._seen, on=_VALUE, how="left", maintain_order="left").select(
            pl.when(pl.col(_VALUE).is_null()).then(MISSING).otherwise(pl.col("id").fill_null(UNSEEN)).cast(pl.Int32)
        )
        return found.to_series().to_numpy()

    def save(self, path: Path) -> None:
        """Write it as parquet."""
        seen = self._seen if self._seen is not None else pl.DataFrame({_VALUE: [], "count": [], "id": []})
        seen.write_parquet(path)

    def load(self, path: Path) -> None:
        """Read it back."""
        seen = pl.read_parquet(path)
        self._seen = seen if len(seen) else None
        self.rows = FIRST + int(seen["id"].is_not_null().sum())


class Moments:
    """Count, mean and standard deviation of some columns, over the rows added so far; nulls do not count."""

    def __init__(self, columns: int) -> None:
        self.count, self.mean, self.m2 = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows, (n, columns).

        Reference: T. F. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
        COMPSTAT 1982.
        """
        wide = frame.select(pl.all().cast(pl.Float64))
        count = wide.select(pl.all().count()).to_numpy()[0].astype(float)
        mean = np.array(wide.select(pl.all().mean().fill_null(0.0)).row(0))
        m2 = np.array(wide.select(pl.all().var(ddof=0).fill_null(0.0)).row(0)) * count
        total = np.maximum(self.count + count, 1)
        delta = mean - self.mean
        self.m2 += m2 + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count += count

    @property
    def std(self) -> np.ndarray:
        """The standard deviation; 1 where it would be 0."""
        std = np.sqrt(self.m2 / np.maximum(self.count, 1))
        return np.where(std > 0, std, 1.0)

    def state(self) -> dict[str, list[float]]:
        """Return plain numbers."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "m2")}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Take the numbers of ``state``."""
        for name, values in state.items():
            setattr(self, name, np.array(values))


def hashed(values: pl.Series) -> pl.Series:
    """Return 64 bits of each value, (n,) ``UInt64``, the same everywhere and for ever; null for null."""
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


class Past:
    """All that is known before a day, for every column of a description."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._dense = [column.name for column in description.dense]
        self._moments = Moments(len(self._dense))
        self._vocabularies = {
            column.name: Vocabulary(column.min_count) for column in description.categorical if column.hash is None
        }

    def add(self, day: Iterable[pl.DataFrame]) -> None:
        """Learn a day, given in pieces of typed rows."""
        for piece in day:
            for name, vocabulary in self._vocabularies.items():
                values = piece[name]
                vocabulary.add(values.explode(empty_as_null=True) if values.dtype == pl.List else values)
            if self._dense:
                self._moments.add(piece.select(self._dense))

    def rows(self, column: CategoricalColumn) -> int:
        """Return the rows of a column's table that ids given out so far need."""
        return column.hash or self._vocabularies[column.name].rows

    def encoded(self, piece: pl.DataFrame) -> pl.DataFrame:
        """Return typed rows as numbers by what is known: ids, standardised dense columns, labels, the group."""
        columns: dict[str, Any] = {}
        for column in self.description.categorical:
            columns[column.name] = self._ids(piece[column.name], column)
        for i, column in enumerate(self.description.dense):
            value = piece[column.name].to_numpy().astype(np.float64)  # nulls are NaN here
            if column.standardise:
                value = (value - self._moments.mean[i]) / self._moments.std[i]
            columns[column.name] = np.nan_to_num(value, nan=0.0).astype(np.float32)
        for label in self.description.label:
            columns[label.name] = piece[label.name]
        if self.description.group is not None:
            group = piece["__group__"]
            whole = group if group.dtype == pl.Int64 else hashed(group).reinterpret(signed=True)
            columns["__group__"] = whole.fill_null(-1)
        return pl.DataFrame(columns)

    def _ids(self, values: pl.Series, column: CategoricalColumn) -> pl.Series | np.ndarray:
        if column.width == 1:
            return self._ids_of(values, column)
        places = [values.list.get(place, null_on_oob=True) for place in range(column.width)]
        ids = np.stack([self._ids_of(place, column) for place in places], axis=1)
        return pl.Series(ids, dtype=pl.Array(pl.Int32, column.width))

    def _ids_of(self, values: pl.Series, column: CategoricalColumn) -> np.ndarray:
        if column.hash is None:
            return self._vocabularies[column.name].ids(values)
        ids = hashed(values) % (column.hash - FIRST) + FIRST
        return ids.fill_null(MISSING).cast(pl.Int32).to_numpy()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the vocabularies as files of a folder; return the rest in plain numbers."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, vocabulary in enumerate(self._vocabularies.values()):
            vocabulary.save(folder / f"{i}.parquet")
        return self._moments.state()

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Read them back."""
        for i, vocabulary in enumerate(self._vocabularies.values()):
            vocabulary.load(folder / f"{i}.parquet")
        self._moments.restore(state)
