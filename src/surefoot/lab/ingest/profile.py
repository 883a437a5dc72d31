"""Summarises a log in one pass and bounded memory: rows and labels by day, distinct values, gaps and drift."""

import math
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from surefoot.lab.file_discovery import natural
from surefoot.lab.ingest.column_parsing import DAY, typed
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.leakage import leaks
from surefoot.lab.ingest.reader import ROW, NoRowsError, Rejections, read, sentence
from surefoot.lab.ingest.source import Source
from surefoot.lab.ingest.vocabularies import hashed

_KEPT = 20_000  # distinct values of a column that are counted exactly
_SAMPLE = 100_000  # rows on which features are compared with labels


@dataclass
class ColumnProfile:
    """One column: number of missing or non-finite values, and of distinct ids; mean and bounds of a dense column.

    ``kind`` is "id" or "dense". For a dense column, "clip" and the transform follow if the description has them; mean
    and bounds are those after both.
    """

    name: str
    kind: str
    missing: int = 0
    values: int | None = None
    estimated: bool = False  # whether ``values`` is an estimate, as it is above 20,000
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def told_values(self) -> str:
        """Number of distinct values, as text; with "about" if it is an estimate."""
        return _told_count(self.values or 0, self.estimated)


@dataclass
class DayProfile:
    """One day: rows, the mean of each label, the share of ids that no earlier day had, the largest shift of a mean."""

    day: str
    rows: int
    labels: dict[str, float] = field(default_factory=dict)
    unseen: float = math.nan  # share of rows with an id that no earlier day had, in the column with the largest share
    unseen_in: str = ""
    shift: float = math.nan  # in standard deviations over the earlier days
    shift_of: str = ""


@dataclass
class Profile:
    """The result of ``profile``.

    Args:
        rows: number of good rows.
        rejected: number of bad rows, by column and reason.
        first_rejected: a sentence on one bad row for each column and reason.
        columns: ids and dense columns, in the description's order.
        days: oldest first.
        warnings: sentences on problems to look at before training.
    """

    rows: int
    rejected: dict[str, int]
    first_rejected: list[str]
    columns: list[ColumnProfile]
    days: list[DayProfile]
    warnings: list[str]


class _Values:
    """Counts the rows of each value of a column by day; if there are many values, of a sample of the values.

    Reference: P. Flajolet, "On Adaptive Sampling", Computing 43 (1990).
    """

    def __init__(self) -> None:
        self._level = 0
        self._seen = pl.DataFrame(schema={"hash": pl.UInt64, DAY: pl.String, "rows": pl.Int64})

    def add(self, values: pl.Series, days: pl.Series) -> None:
        """Count values or lists of values, (rows,), on their days, (rows,)."""
        rows = pl.DataFrame({"value": values, DAY: days})
        if values.dtype == pl.List:
            rows = rows.explode("value", empty_as_null=True)
        hashes = hashed(rows["value"]).alias("hash")
        if hashes.dtype != pl.UInt64:
            hashes = hashes.cast(pl.UInt64)
        rows = pl.DataFrame([hashes, rows[DAY]]).drop_nulls("hash").filter(self._kept())
        counts = rows.group_by("hash", DAY).agg(pl.len().cast(pl.Int64).alias("rows"))
        self._seen = pl.concat([self._seen, counts]).group_by("hash", DAY).agg(pl.col("rows").sum())
        while self._seen["hash"].n_unique() > _KEPT:
            self._level += 1
            self._seen = self._seen.filter(self._kept())

    def _kept(self) -> pl.Expr:
        return pl.col("hash") % (1 << self._level) == 0

    @property
    def count(self) -> int:
        """Number of distinct values; an estimate if ``estimated``."""
        return self._seen["hash"].n_unique() << self._level

    @property
    def estimated(self) -> bool:
        """Whether only a sample of the values was counted, as there are more than 20,000."""
        return self._level > 0

    @property
    def repeated(self) -> int:
        """Number of rows whose value an earlier row of their day has; an estimate if ``estimated``."""
        return (int(self._seen["rows"].sum()) - len(self._seen)) << self._level

    def unseen(self, days: list[str]) -> dict[str, float]:
        """Return, for each day but the first, the share of its rows whose value no earlier day had."""
        order = {day: i for i, day in enumerate(days)}
        seen = self._seen.with_columns(pl.col(DAY).replace_strict(order, return_dtype=pl.Int64).alias("at"))
        seen = seen.with_columns(new=pl.col("at") == pl.col("at").min().over("hash"))
        by_day = seen.group_by(DAY).agg((pl.col("rows") * pl.col("new")).sum() / pl.col("rows").sum())
        return {day: share for day, share in by_day.iter_rows() if order[day] > 0}


def profile(source: Source) -> Profile:
    """Read a log once and return a summary.

    Raises:
        InputError: if a file cannot be read.
    """
    return _Pass(source.description).over(source)


class _Pass:
    def __init__(self, description: Description) -> None:
        self.description = description
        self.values = {column.name: _Values() for column in description.categorical}
        self.numbers = [column.name for column in (*description.dense, *description.label)]
        self.whole_rows = _Values()
        self.by_day: list[pl.DataFrame] = []
        self.missing = dict.fromkeys(self.values, 0)
        self.sample: list[pl.DataFrame] = []
        self.rejected: dict[str, int] = {}
        self.first_rejected: dict[str, str] = {}
        self.rows = 0

    def over(self, source: Source) -> Profile:
        columns = source.columns or tuple(self.description.columns)
        for file in source.files:
            rejected = Rejections()
            try:
                for piece in read(file, self.description.csv, columns, rejected):
                    self.add(typed(source.shape(piece), self.description, file, rejected))
                    self.note(rejected)
            except NoRowsError:
                continue  # a partition of a log may be empty
            self.note(rejected)
        return self.result()

    def note(self, rejected: Rejections) -> None:
        for row in rejected.rows:
            key = f"{row[2] + ': ' if row[2] else ''}{row[4]}"
            self.rejected[key] = self.rejected.get(key, 0) + 1
            self.first_rejected.setdefault(key, sentence(*row))
        rejected.rows.clear()

    def add(self, rows: pl.DataFrame) -> None:
        per_day = self.description.day.rows
        if per_day is not None:
            position = pl.int_range(pl.len(), dtype=pl.Int64) + self.rows
            rows = rows.with_columns(
                pl.format("rows-{}", (position // per_day).cast(pl.String).str.zfill(6)).alias(DAY)
            )
        if sum(map(len, self.sample)) < _SAMPLE:
            head = rows.head(_SAMPLE)
            ids = [hashed(head[name]).alias(name) for name in self.values if head[name].dtype != pl.List]
            self.sample.append(head.select(self.numbers).with_columns(ids))
        self.rows += len(rows)
        self.whole_rows.add(rows.drop(ROW).hash_rows(), rows[DAY])
        for name, values in self.values.items():
            values.add(rows[name], rows[DAY])
            kept = rows[name].list.len() == 0 if rows[name].dtype == pl.List else rows[name].is_null()
            self.missing[name] += int(kept.fill_null(True).sum())
        wide = rows.select(DAY, pl.col(self.numbers).cast(pl.Float64).fill_nan(None))
        self.by_day.append(
            wide.group_by(DAY).agg(
                pl.len().alias("rows"),
                pl.col(self.numbers).count().name.prefix("count "),
                pl.col(self.numbers).sum().name.prefix("sum "),
                pl.col(self.numbers).pow(2).sum().name.prefix("square "),
                pl.col(self.numbers).min().name.prefix("min "),
                pl.col(self.numbers).max().name.prefix("max "),
            )
        )
        if len(self.by_day) > 256:
            self.by_day = [self._merged()]

    def _merged(self) -> pl.DataFrame:
        if not self.by_day:
            return pl.DataFrame(schema={DAY: pl.String, "rows": pl.Int64})
        sums = pl.col("^(rows|count .*|sum .*|square .*)$").sum()
        return pl.concat(self.by_day).group_by(DAY).agg(sums, pl.col("^min .*$").min(), pl.col("^max .*$").max())

    def result(self) -> Profile:
        table = self._merged()
        order = sorted(table[DAY].to_list(), key=natural)
        table = pl.DataFrame({DAY: order}, schema={DAY: pl.String}).join(
            table, on=DAY, how="left", maintain_order="left"
        )
        days = [DayProfile(day, rows) for day, rows in table.select(DAY, "rows").iter_rows()]
        for label in self.description.label if len(table) else ():
            means = table[f"sum {label.name}"] / table[f"count {label.name}"]
            for day, mean in zip(days, means, strict=True):
                day.labels[label.name] = math.nan if mean is None else mean
        self._shifts(table, days)
        self._unseen(order, days)
        found = Profile(self.rows, self.rejected, list(self.first_rejected.values()), self._columns(table), days, [])
        found.warnings += [*_odd_days(found, self.description), *self._odd_columns(found), *self._repeated()]
        found.warnings += leaks(pl.concat(self.sample), self.description) if self.sample else []
        return found

    def _shifts(self, table: pl.DataFrame, days: list[DayProfile]) -> None:
        """Find, for each day but the first, the dense column whose mean differs most from that of the earlier days."""
        for column in self.description.dense if len(table) else ():
            count, total, square = (
                table[f"{part} {column.name}"].fill_null(0.0).to_numpy().astype(float)
                for part in ("count", "sum", "square")
            )
            before = np.maximum(count.cumsum()[:-1], 1)
            mean = total.cumsum()[:-1] / before
            std = np.sqrt(np.maximum(square.cumsum()[:-1] / before - mean**2, 0.0))
            with np.errstate(divide="ignore", invalid="ignore"):
                shift = np.where(count[1:] > 0, (total / count)[1:] - mean, 0.0) / np.where(std > 0, std, 1.0)
            for day, value in zip(days[1:], shift.tolist(), strict=True):
                if not abs(value) <= abs(day.shift):
                    day.shift, day.shift_of = value, column.name

    def _unseen(self, order: list[str], days: list[DayProfile]) -> None:
        for name, values in self.values.items():
            for day, share in ((day, values.unseen(order).get(day.day)) for day in days):
                if share is not None and not share <= day.unseen:
                    day.unseen, day.unseen_in = share, name

    def _columns(self, table: pl.DataFrame) -> list[ColumnProfile]:
        found = [
            ColumnProfile(name, "id", self.missing[name], values.count, values.estimated)
            for name, values in self.values.items()
        ]
        for column in self.description.dense if len(table) else ():
            count = int(table[f"count {column.name}"].sum())
            mean = float(table[f"sum {column.name}"].sum()) / count if count else math.nan
            low, high = table[f"min {column.name}"].min(), table[f"max {column.name}"].max()
            bounds = (math.nan if bound is None else float(bound) for bound in (low, high))  # pyright: ignore
            kind = ", ".join(["dense", *["clip"] * (column.clip is not None), *[column.transform]]).removesuffix(
                ", none"
            )
            found.append(ColumnProfile(column.name, kind, self.rows - count, None, False, mean, *bounds))
        return found

    def _odd_columns(self, found: Profile) -> list[str]:
        sentences = []
        empty = [column.name for column in found.columns if self.rows and column.missing == self.rows]
        constant = [
            column.name
            for column in found.columns
            if column.name not in empty
            and (column.values == 1 or (column.values is None and column.low == column.high))
        ]
        for names, what in ((empty, "no value in any row"), (constant, "the same value in all rows with a value")):
            if names:
                sentences.append(f"{', '.join(names)}: {what}")
        sentences += [
            f"{column.name} has a different value in nearly every row ({column.told_values}): a model cannot "
            "learn from such an id"
            for column in found.columns
            if column.values is not None and column.values > 0.9 * (self.rows - column.missing) > 1000
        ]
        return sentences

    def _repeated(self) -> list[str]:
        count, handling = self.whole_rows.repeated, self.description.repeated
        if not count:
            return []
        what = "are left out" if handling == "reject" else "are kept (repeated = 'reject' leaves them out)"
        return [
            f"{_told_count(count, self.whole_rows.estimated)} rows are equal to an earlier row of the same day in all "
            f"described columns; they {what}"
        ]


def _told_count(count: int, estimated: bool) -> str:
    return f"about {float(f'{count:.2g}'):,.0f}" if estimated else f"{count:,}"


def _odd_days(found: Profile, description: Description) -> list[str]:
    days, sentences = found.days, []
    if description.day.pseudo:
        sentences.append("the log has no time: its days are pseudo-days with equal numbers of rows")
    if len(days) < 3:
        sentences.append(f"there are {len(days)} days; a study needs 3: for training, selection and final scores")
        return sentences
    usual = float(np.median([day.rows for day in days]))
    for place, day in (("first", days[0]), ("last", days[-1])):
        if day.rows < usual / 4:
            sentences.append(
                f"the {place} day, {day.day}, has {day.rows:,} rows, while the median is {usual:,.0f}: is it complete?"
            )
    for column in dict.fromkeys(day.shift_of for day in days if abs(day.shift) > 1):
        moved = [day for day in days if day.shift_of == column and abs(day.shift) > 1]
        most = max(moved, key=lambda day: abs(day.shift))
        often = "" if len(moved) == 1 else f", and more than one on {len(moved) - 1} further days"
        sentences.append(
            f"on {most.day} the mean of {column} is {most.shift:+.1f} standard deviations from that of the earlier days"
            f"{often}"
        )
    if description.day.column is not None and (gap := _first_gap([day.day for day in days])):
        sentences.append(gap)
    return sentences


def _first_gap(days: list[str]) -> str:
    dates = pl.Series(days).str.to_date("%Y-%m-%d", strict=False)
    if dates.null_count():
        return ""
    steps = dates.diff().dt.total_days()
    gaps = (steps > 1).fill_null(False)
    if not gaps.any():
        return ""
    first = gaps.arg_true()[0]
    return (
        f"{int(gaps.sum())} gaps between days, the first from {days[first - 1]} to {days[first]}: a window of n days "
        "counts only days with rows"
    )
