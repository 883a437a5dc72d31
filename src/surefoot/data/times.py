"""Which day a row belongs to, and which place on it: out of dates, times, texts and numbers."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

import polars as pl

from surefoot.data.description import Day
from surefoot.data.numbers import Check, number
from surefoot.data.places import stem

FIRST_DAY = date(1990, 1, 1)
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001, "days": 86_400_000_000}  # in microseconds
_FORMS = "2024-05-01, 20240501 or 2024-05-01 12:30:00"


class _When(NamedTuple):
    """What a column tells: times on the log's clock, and dates; nulls where a cell is none of it."""

    time: pl.Expr | None
    date: pl.Expr | None


def day_of(frame: pl.DataFrame, day: Day, path: str) -> pl.Expr | None:
    """Return the rows' day as text, the name of the file if files are the days; None if positions are."""
    if day.file:
        return pl.lit(stem(path))
    return None if day.column is None else _date(frame, day.column, day).dt.to_string("%Y-%m-%d")


def day_checks(frame: pl.DataFrame, day: Day) -> Iterator[Check]:
    """Yield what rejects rows whose day cannot be."""
    if day.column is None:
        return
    last = date.today() + timedelta(days=1)  # a clock may be ahead
    form = f"numbers in {day.unit} since 1970" if day.unit else day.format or _FORMS
    if frame.schema[day.column].is_numeric() and day.unit is None:
        form += " (day.unit says what a number since 1970 counts)"
    value = _date(frame, day.column, day)
    reason = f"expected a day from {FIRST_DAY} to {last}, written as {form}"
    yield Check(day.column, value.is_null() | ~value.is_between(FIRST_DAY, last), reason)


def order_of(frame: pl.DataFrame, day: Day) -> pl.Expr | None:
    """Return what sorts the rows of a day: a column named for it, or the times that days come from; None: nothing."""
    if day.order is not None:
        return _order(frame, day.order)
    if day.column is None or (time := _when(frame, day.column, day).time) is None:
        return None
    written = frame[day.column]
    if day.unit is None and day.format is None and written.dtype == pl.String:
        longest = written.str.len_bytes().max()
        if not isinstance(longest, int) or longest <= len("2024-05-01"):
            return None  # dates only
    return _nanoseconds(time)


def order_checks(frame: pl.DataFrame, day: Day) -> Iterator[Check]:
    """Yield what rejects rows whose place on the day cannot be told."""
    if day.order is not None and frame.schema[day.order] == pl.String:
        given = pl.col(day.order).str.strip_chars() != ""
        yield Check(day.order, given & _order(frame, day.order).is_null(), "expected a number or a time to sort by")


def _date(frame: pl.DataFrame, column: str, day: Day) -> pl.Expr:
    time, dates = _when(frame, column, day)
    local = [] if time is None else [(time + timedelta(hours=day.offset_hours)).dt.date()]
    return pl.coalesce(*local, *([] if dates is None else [dates]))


def _when(frame: pl.DataFrame, column: str, day: Day) -> _When:
    kind, value = frame.schema[column], pl.col(column)
    if kind == pl.Date:
        return _When(None, value)
    if isinstance(kind, pl.Datetime):
        return _When(value.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else value, None)
    if day.unit is not None:
        micro = number(frame, column) * _UNITS[day.unit]
        time = pl.when(micro.abs() < 1e16).then(micro).cast(pl.Int64).cast(pl.Datetime("us"))
        return _When(None, time.dt.date()) if day.unit == "days" else _When(time, None)
    whole = value.cast(pl.Int64, strict=False) if kind.is_float() else value  # 20240501.0, as pandas keeps it with gaps
    text = whole.cast(pl.String).str.strip_chars()
    if day.format is not None:
        time = text.str.to_datetime(day.format, strict=False, time_unit="us").dt.replace_time_zone(None)
        return _When(time, None) if day.timed else _When(None, time.dt.date())
    return _When(_time(text), _plain_date(text))


def _plain_date(text: pl.Expr) -> pl.Expr:
    dashed = pl.when(text.str.len_bytes() == 10).then(text).str.to_date("%Y-%m-%d", strict=False)
    plain = pl.when(text.str.len_bytes() == 8).then(text).str.to_date("%Y%m%d", strict=False)
    return pl.coalesce(dashed, plain)


def _time(text: pl.Expr) -> pl.Expr:
    """Return the time of texts such as 2024-05-01T12:30:00, without seconds, with parts of them, or with a zone."""
    size, spaced = text.str.len_bytes(), text.str.replace("T", " ", literal=True)
    seconds = pl.when(size == 19).then(spaced)
    other = pl.when(~size.is_in([8, 10, 19])).then(spaced.str.replace(r" ?UTC$", "Z"))
    zoned = other.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", strict=False, time_unit="us").dt.replace_time_zone(None)
    return pl.coalesce(
        seconds.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us"),
        other.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us"),
        other.str.to_datetime("%Y-%m-%d %H:%M", strict=False, time_unit="us"),
        zoned,
    )


def _order(frame: pl.DataFrame, column: str) -> pl.Expr:
    kind, value = frame.schema[column], pl.col(column)
    if isinstance(kind, pl.Datetime):
        return _nanoseconds(value)
    if kind == pl.String:
        return pl.coalesce(number(frame, column), _nanoseconds(_time(value.str.strip_chars())).cast(pl.Float64))
    return value.to_physical().cast(pl.Int64) if kind.is_temporal() else value


def _nanoseconds(time: pl.Expr) -> pl.Expr:
    return time.cast(pl.Datetime("ns"), strict=False).to_physical()
