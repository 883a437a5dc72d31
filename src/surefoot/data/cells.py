"""From a file's cells to a description's columns: numbers, days and labels, each cell checked, each bad row named."""

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

import polars as pl

from surefoot.data.description import CategoricalColumn, Day, DenseColumn, Description, LabelColumn
from surefoot.data.reader import ROW, Rejections, stem
from surefoot.errors import InputError

DAY, ORDER, GROUP = "day", "__order__", "__group__"
LONGEST_ID = 4096  # bytes
FIRST_DAY = date(1990, 1, 1)
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001, "days": 86_400_000_000}  # in microseconds
_WORDS = {"true": "1", "false": "0"}


class Check(NamedTuple):
    """Rows that a column rejects."""

    column: str
    bad: pl.Expr
    reason: str


def typed(frame: pl.DataFrame, description: Description, path: str, rejected: Rejections) -> pl.DataFrame:
    """Return the rows as a description's columns, by its names; the bad ones go to ``rejected``.

    ``day`` is text (none where days are positions), ``__order__`` sorts a day's rows, ``__group__`` is the value of
    the group as it is. Ids are text or ``Int64``, lists where there are several; dense columns are ``Float32`` with
    nulls where there is no value, clipped and transformed; labels are ``Float32``, NaN where the row does not count.

    Raises:
        InputError: if a column is of a type that cannot be what it is described as.
    """
    _refuse_types(frame, description, path)
    columns: dict[str, pl.Expr] = {ROW: pl.col(ROW)}
    checks: list[Check] = []
    if (day := _day(frame, description.day, path)) is not None:
        columns[DAY] = day.dt.to_string("%Y-%m-%d") if description.day.column else day
        checks += _day_checks(description.day, day)
    if (order := _order(frame, description.day)) is not None:
        columns[ORDER] = order
    if description.group is not None:
        columns[GROUP] = _id(frame, description.group)
    for column in description.categorical:
        columns[column.name] = _ids(frame, column)
        checks += _id_checks(frame, column)
    for column in description.dense:
        number = _number(frame, column.source)
        checks.append(_number_check(column.source, number))
        columns[column.name] = _dense(column, number)
    for label in description.label:
        columns[label.name], several = _label(frame, label)
        checks += several
    good = _refuse_rows(frame, checks, path, rejected)
    return frame.filter(good).select(**columns)


def count_missing(frame: pl.DataFrame, description: Description) -> Counter[str]:
    """Count, in typed rows, the dense values that are missing, and the ids beyond a column's width."""
    counts: Counter[str] = Counter()
    for column in description.dense:
        counts[f"missing {column.name}"] = frame[column.name].null_count()
    for column in description.categorical:
        if column.width > 1:
            counts[f"cut {column.name}"] = int((frame[column.name].list.len() > column.width).sum())
    return +counts


def _refuse_types(frame: pl.DataFrame, description: Description, path: str) -> None:
    wanted = {column.source: "numbers" for column in description.dense}
    wanted |= {label.source: "numbers" for label in description.label}
    for column, what in wanted.items():
        kind = frame.schema[column]
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            raise InputError(f"{path}: column {column} is of type {kind}; expected {what}")
    for column in description.categorical:
        kind = frame.schema[column.source]
        if isinstance(kind, pl.List | pl.Array) and column.width == 1:
            raise InputError(
                f"{path}: column {column.source} has lists and is described with width 1; expected a width above 1, "
                "the values kept of a list"
            )
        if kind in (pl.Binary, pl.Object) or isinstance(kind, pl.Struct):
            raise InputError(f"{path}: column {column.source} is of type {kind}; expected whole numbers or text")


def _refuse_rows(frame: pl.DataFrame, checks: list[Check], path: str, rejected: Rejections) -> pl.Series:
    """Name the rows that a check finds bad, by the first that does; return which are good."""
    bad = frame.select(check.bad.fill_null(False).alias(str(i)) for i, check in enumerate(checks))
    good = ~bad.select(any=pl.any_horizontal(pl.all()))["any"] if checks else pl.repeat(True, len(frame), eager=True)
    if good.all():
        return good
    wrong = frame.filter(~good)
    for i, row in enumerate(bad.filter(~good).iter_rows()):
        check = checks[row.index(True)]
        value = wrong[check.column][i] if check.column in frame.columns else None
        rejected.add(path, int(wrong[ROW][i]), check.column, value, check.reason)
    return good


# Days


def _day(frame: pl.DataFrame, day: Day, path: str) -> pl.Expr | None:
    """Return the rows' day as a date; as text if the files are the days; None if positions are."""
    if day.file:
        return pl.lit(stem(path))
    if day.column is None:
        return None
    kind, column = frame.schema[day.column], pl.col(day.column)
    if kind == pl.Date:
        return column
    if isinstance(kind, pl.Datetime):
        moment = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else column
        return _local(moment, day)
    if day.unit is not None:
        return _local(_moment(_number(frame, day.column), day.unit), day)
    text = column.cast(pl.String).str.strip_chars()
    if day.format is not None:
        return _local(text.str.to_datetime(day.format, strict=False, time_unit="us"), day)
    begin = text.str.slice(0, 10)
    moment = text.str.replace("T", " ").str.slice(0, 19).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
    whole = begin.str.to_date("%Y-%m-%d", strict=False)
    plain = pl.when(text.str.len_bytes() == 8).then(text).str.to_date("%Y%m%d", strict=False)
    return pl.coalesce(_local(moment, day), whole, plain)


def _moment(number: pl.Expr, unit: str) -> pl.Expr:
    """Return the time of so many units since 1970; null where it is out of all bounds."""
    micro = number * _UNITS[unit]
    return pl.when(micro.abs() < 1e16).then(micro).cast(pl.Int64).cast(pl.Datetime("us"))


def _local(moment: pl.Expr, day: Day) -> pl.Expr:
    return (moment + timedelta(hours=day.offset_hours)).dt.date()


def _day_checks(day: Day, value: pl.Expr) -> Iterator[Check]:
    if day.column is not None:
        last = date.today() + timedelta(days=1)  # a clock may be ahead
        form = f"numbers in {day.unit} since 1970" if day.unit else day.format or "2024-05-01 or 20240501"
        reason = f"expected a day from {FIRST_DAY} to {last}, written as {form}"
        yield Check(day.column, value.is_null() | ~value.is_between(FIRST_DAY, last), reason)


def _order(frame: pl.DataFrame, day: Day) -> pl.Expr | None:
    """Return what sorts the rows of a day: a column named for it, or the times that days come from."""
    column = day.order or day.column
    if column is None:
        return None
    kind = frame.schema[column]
    if day.order is None and not (isinstance(kind, pl.Datetime) or day.unit not in (None, "days")):
        return None
    if kind.is_integer():
        return pl.col(column).cast(pl.Int64)
    return pl.col(column).to_physical().cast(pl.Int64) if kind.is_temporal() else _number(frame, column)


# Ids


def _id(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return an id as ``Int64`` where it is a whole number, as text otherwise."""
    kind, value = frame.schema[column], pl.col(column)
    if kind == pl.UInt64:
        return value.reinterpret(signed=True)
    if kind.is_integer() or kind == pl.Boolean:
        return value.cast(pl.Int64)
    if kind.is_float():  # whole numbers with gaps, as pandas keeps them
        return value.fill_nan(None).cast(pl.Int64, strict=False)
    return value.cast(pl.String)


def _ids(frame: pl.DataFrame, column: CategoricalColumn) -> pl.Expr:
    kind = frame.schema[column.source]
    if isinstance(kind, pl.List | pl.Array):
        values = pl.col(column.source).cast(pl.List(kind.inner))
        inner = pl.Int64 if kind.inner.is_integer() else pl.String
        return values.list.drop_nulls().cast(pl.List(inner))
    if column.separator is not None:
        parts = pl.col(column.source).cast(pl.String).str.split(column.separator)
        trimmed = parts.list.eval(pl.element().str.strip_chars())
        return trimmed.list.eval(pl.element().filter(pl.element() != ""))
    value = _id(frame, column.source)
    return value if column.width == 1 else pl.concat_list(value).list.drop_nulls()


def _id_checks(frame: pl.DataFrame, column: CategoricalColumn) -> Iterator[Check]:
    kind, value = frame.schema[column.source], pl.col(column.source)
    if kind == pl.String:
        too_long = value.str.len_bytes() > LONGEST_ID
        yield Check(column.source, too_long, f"expected an id of at most {LONGEST_ID} bytes")
    if kind.is_float():
        broken = value.is_finite() & (value != value.round())
        yield Check(column.source, broken | value.is_infinite(), "expected an id, a whole number or text")


# Numbers


def _number(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column as ``Float64``, null where it has no value or is no number."""
    value = pl.col(column)
    if frame.schema[column] == pl.String:
        text = value.str.strip_chars()
        return text.str.to_lowercase().replace(_WORDS).cast(pl.Float64, strict=False)
    return value.cast(pl.Float64)


def _number_check(column: str, number: pl.Expr) -> Check:
    value = pl.col(column)
    given = value.is_not_null() & (value.cast(pl.String).str.strip_chars() != "")
    return Check(column, given & number.is_null(), "expected a number")


def _dense(column: DenseColumn, number: pl.Expr) -> pl.Expr:
    known = pl.when(number.is_finite() & ~number.is_in(list(column.missing))).then(number)
    return _transformed(known, column.clip, column.transform).cast(pl.Float32)


def _transformed(number: pl.Expr, clip: tuple[float, float] | None, transform: str) -> pl.Expr:
    number = number if clip is None else number.clip(*clip)
    return number.sign() * number.abs().log1p() if transform == "log1p" else number


def _label(frame: pl.DataFrame, label: LabelColumn) -> tuple[pl.Expr, list[Check]]:
    number = _number(frame, label.source)
    value = _transformed(number, label.clip, label.transform)
    if label.at_least is not None:
        value = (number >= label.at_least).cast(pl.Float64)
    counts = pl.lit(True)
    checks: list[Check] = []
    if label.mask is not None:
        mask = _number(frame, label.mask)
        checks.append(_number_check(label.mask, mask))
        counts = (mask != 0).fill_null(False)
    if label.optional:
        counts = counts & number.is_not_null()
    if label.kind == "binary":
        odd = (value != 0) & (value != 1)
        expected = f"expected 0 or 1, the label {label.name} is binary"
    else:
        odd, expected = ~value.is_finite(), f"expected a finite number, the label {label.name} is one"
    missing = "the row has no label; expected one (optional = true where a label may be missing)"
    checks += [
        _number_check(label.source, number),
        Check(label.source, counts & number.is_null(), missing),
        Check(label.source, counts & (odd | number.is_nan()), expected),
    ]
    return pl.when(counts).then(value).otherwise(float("nan")).cast(pl.Float32), checks
