"""Computes the day of each row and its order within the day, from dates, times, text or numbers."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

import polars as pl

from surefoot.lab.ingest.description import Day, parsed
from surefoot.lab.ingest.numbers import Check, column_of, number

DATE, ORDER = "__date__", "__order__"
FIRST_DAY = date(1990, 1, 1)
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001, "days": 86_400_000_000}  # in microseconds
_PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000, "days": 1}
_FORMS = "2024-05-01, 20240501 or 2024-05-01 12:30:00"


class _When(NamedTuple):
    """The content of a column: times on the log's clock, or dates; null for a cell that is neither."""

    time: pl.Expr | None
    date: pl.Expr | None


def with_times(frame: pl.DataFrame, day: Day) -> pl.DataFrame:
    """Add the columns ``__date__`` and ``__order__`` (which sorts the rows of a day), if the log has them."""
    times: dict[str, pl.Expr] = {}
    if day.column is not None:
        when = _when(frame, day.column, day)
        local = [] if when.time is None else [(when.time + timedelta(hours=day.offset_hours)).dt.date()]
        times[DATE] = pl.coalesce(*local, *([] if when.date is None else [when.date]))
        if when.time is not None:
            times[ORDER] = _nanoseconds(when.time)
    if day.order is not None:
        times[ORDER] = _order(frame, day.order)
    return frame.with_columns(**times)


def time_checks(frame: pl.DataFrame, day: Day) -> Iterator[Check]:
    """Yield the checks that reject rows with an impossible day, or with a value to sort by that cannot be read."""
    if day.column is not None:
        last = date.today() + timedelta(days=1)  # the log's clock may be ahead of ours
        form = f"numbers in {day.unit} since 1970" if day.unit else day.format or _FORMS
        if frame.schema[day.column].is_numeric() and day.unit is None:
            form += " (day.unit is the unit of numbers since 1970)"
        bad = pl.col(DATE).is_null() | ~pl.col(DATE).is_between(FIRST_DAY, last)
        yield Check(day.column, bad, f"expected a day from {FIRST_DAY} to {last}, written as {form}")
    if day.order is not None and frame.schema[day.order] == pl.String:
        bad = pl.col(ORDER).is_null() & (column_of(day.order).str.strip_chars() != "")
        yield Check(day.order, bad, "expected a number or a time to sort by")


def has_year(kind: pl.DataType, value: pl.Expr) -> pl.Expr:
    """Return where a date or time is in the years 1 to 9999; Python and polars cannot format others."""
    days = value.to_physical() / _PER_DAY[getattr(kind, "time_unit", "days")]
    zone = getattr(kind, "time_zone", None) is not None  # local time may be a day off
    return days.is_between(-719_162 + zone, 2_932_897 - zone, closed="left")


def shown(values: pl.Series, i: int) -> object:
    """Return a value for a message; a date or time that cannot be formatted, as the number that stores it."""
    one = values.slice(i, 1)
    if one.dtype not in (pl.Date, pl.Datetime) or pl.select(has_year(one.dtype, pl.lit(one))).item() is not False:
        return one[0]
    return one.to_physical()[0]


def _when(frame: pl.DataFrame, column: str, day: Day) -> _When:
    kind, value = frame.schema[column], column_of(column)
    if kind == pl.Date:
        return _When(None, value)
    if isinstance(kind, pl.Datetime):
        return _When(value.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else value, None)
    if day.unit is not None:
        micro = number(frame, column) * _UNITS[day.unit]
        time = pl.when(micro.abs() < 1e16).then(micro).cast(pl.Int64).cast(pl.Datetime("us"))
        return _When(None, time.dt.date()) if day.unit == "days" else _When(time, None)
    whole = value.cast(pl.Int64, strict=False) if kind.is_float() else value  # pandas may write 20240501.0
    text = whole.cast(pl.String).str.strip_chars()
    if day.format is not None:
        time = parsed(text, day.format).dt.replace_time_zone(None)
        return _When(time, None) if day.timed else _When(None, time.dt.date())
    return _forms(frame.select(text).to_series())


def _forms(written: pl.Series) -> _When:
    """Parse text as dates or times; the length of a text tells its format. Times may lack seconds or have a zone."""
    size, text = pl.lit(written.str.len_bytes()), pl.lit(written)
    sizes = set(written.str.len_bytes().drop_nulls().unique())
    day = pl.coalesce(
        pl.when(size == len(form)).then(text).str.to_date(form_of, strict=False)
        for form, form_of in (("2024-05-01", "%Y-%m-%d"), ("20240501", "%Y%m%d"))
    )
    if not sizes - {8, 10}:
        return _When(None, day)
    seconds = pl.when(size == 19).then(text).str.replace("T", " ", literal=True)
    time = seconds.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    if sizes - {8, 10, 19}:
        other = (
            pl.when(~size.is_in([8, 10, 19])).then(text).str.replace(r" ?UTC$", "Z").str.replace("T", " ", literal=True)
        )
        zoned = other.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", strict=False, time_unit="us")
        part = other.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
        minutes = other.str.to_datetime("%Y-%m-%d %H:%M", strict=False, time_unit="us")
        time = pl.coalesce(time, part, minutes, zoned.dt.replace_time_zone(None))
    return _When(time, day)


def _order(frame: pl.DataFrame, column: str) -> pl.Expr:
    kind, value = frame.schema[column], column_of(column)
    if isinstance(kind, pl.Datetime):
        return _nanoseconds(value)
    if kind == pl.String:
        if frame.select(number(frame, column)).to_series().null_count() == frame[column].null_count():
            return number(frame, column)
        time = _forms(frame.select(value.str.strip_chars()).to_series()).time
        moments = [] if time is None else [_nanoseconds(time).cast(pl.Float64)]
        return pl.coalesce(number(frame, column), *moments)
    return value.to_physical().cast(pl.Int64) if kind.is_temporal() else value


def _nanoseconds(time: pl.Expr) -> pl.Expr:
    return time.cast(pl.Datetime("ns"), strict=False).to_physical()
