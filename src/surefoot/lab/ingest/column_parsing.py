"""Converts a file's cells to the columns of a description: ids, numbers, labels. Rows with bad cells are rejected."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.lab.file_discovery import stem
from surefoot.lab.ingest.description import CategoricalColumn, DenseColumn, Description, LabelColumn
from surefoot.lab.ingest.numbers import Check, column_of, number, number_checks, with_numbers
from surefoot.lab.ingest.reader import ROW, Rejections
from surefoot.lab.ingest.times import DATE, ORDER, has_year, shown, time_checks, with_times

DAY, GROUP = "day", "__group__"
LONGEST_ID = 4096  # bytes


def typed(frame: pl.DataFrame, description: Description, path: str, rejected: Rejections) -> pl.DataFrame:
    """Return the good rows with the description's columns; bad rows go to ``rejected``.

    ``day`` is text (absent for pseudo-days), ``__order__`` sorts the rows of a day, ``__group__`` is the group's
    unchanged value. Ids are text or ``Int64``, or lists of these. Dense columns are ``Float32``, clipped and
    transformed, with nulls for missing values. Labels are ``Float32``, NaN where the row does not count for the task.

    Raises:
        InputError: if the type of a column does not fit its description.
    """
    _refuse_types(frame, description, path)
    times = [description.day.column] * (description.day.unit is not None) + [description.day.order]
    frame = with_numbers(frame, [*_numbers(description), *filter(None, times)])
    frame = with_times(frame, description.day)
    columns = {ROW: pl.col(ROW)} | ({ORDER: pl.col(ORDER)} if ORDER in frame.columns else {})
    if description.day.rows is None:
        columns[DAY] = pl.lit(stem(path)) if description.day.file else pl.col(DATE).dt.to_string("%Y-%m-%d")
    checks = list(time_checks(frame, description.day))
    if description.group is not None:
        columns[GROUP] = _id(frame, description.group)
        checks += _id_checks(frame, description.group)
    for column in description.categorical:
        columns[column.name] = _ids(frame, column)
        checks += _id_checks(frame, column.source, column.separator)
    for column in description.dense:
        columns[column.name] = _dense(frame, column)
        checks += number_checks(frame, column.source)
    for label in description.label:
        columns[label.name], several = _label(frame, label)
        checks += several
    return _good(frame, checks, path, rejected).select(**columns)


def _good(frame: pl.DataFrame, checks: Sequence[Check], path: str, rejected: Rejections) -> pl.DataFrame:
    """Reject each row that fails a check, with the reason of the first one that it fails; return the other rows."""
    bad = frame.select(check.bad.fill_null(False).alias(str(i)) for i, check in enumerate(checks))
    good = ~bad.select(any=pl.any_horizontal(pl.all()))["any"] if checks else pl.Series([True])
    if good.all():
        return frame
    wrong = frame.filter(~good)
    for i, row in enumerate(bad.filter(~good).iter_rows()):
        check = checks[row.index(True)]
        rejected.add(path, int(wrong[ROW][i]), check.column, shown(wrong[check.column], i), check.reason)
    return frame.filter(good)


def count_missing(frame: pl.DataFrame, description: Description) -> Counter[str]:
    """Count missing dense values, and cells with more ids than the column's width, in the rows of ``typed``."""
    counts: Counter[str] = Counter()
    for column in description.dense:
        counts[f"missing {column.name}"] = frame[column.name].null_count()
    for column in description.categorical:
        if column.width > 1:
            counts[f"cut {column.name}"] = int((frame[column.name].list.len() > column.width).sum())
    return +counts


# Types


def _numbers(description: Description) -> list[str]:
    columns = [column.source for column in (*description.dense, *description.label)]
    return columns + [label.mask for label in description.label if label.mask]


def _refuse_types(frame: pl.DataFrame, description: Description, path: str) -> None:
    day = description.day
    for wanted, fits, expected in (
        (_numbers(description), _is_number, "numbers"),
        ([day.column] if day.column else [], _is_day, "dates, times or numbers"),
        ([day.order] if day.order else [], lambda kind: kind.is_temporal() or _is_number(kind), "numbers or times"),
        ([description.group] if description.group else [], _is_id, "whole numbers or text"),
    ):
        for column in wanted:
            _refuse(frame, column, fits, expected, path)
    for column in description.categorical:
        kind = frame.schema[column.source]
        if not isinstance(kind, pl.List | pl.Array):
            _refuse(frame, column.source, _is_id, "whole numbers or text", path)
        elif column.width == 1:
            raise InputError(
                f"{path}: column {column.source} has lists and is described with width 1; expected a width above 1, "
                "the values kept of a list"
            )
        elif not _is_id(kind.inner) or kind.inner.is_float():
            raise InputError(f"{path}: column {column.source} is of type {kind}; expected whole numbers or text")


def _refuse(frame: pl.DataFrame, column: str, fits: Callable[[pl.DataType], bool], expected: str, path: str) -> None:
    if not fits(kind := frame.schema[column]):
        raise InputError(f"{path}: column {column} is of type {kind}; expected {expected}")


def _is_number(kind: Any) -> bool:
    return kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)


def _is_day(kind: Any) -> bool:
    return _is_number(kind) or kind in (pl.Date, pl.Datetime)


def _is_id(kind: Any) -> bool:
    return _is_number(kind) or kind in (pl.Categorical, pl.Enum, pl.Date, pl.Datetime, pl.Time)


# Ids


def _id(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return an id as ``Int64`` where it is a whole number, as text otherwise."""
    return _whole_or_text(frame.schema[column], column_of(column))


def _whole_or_text(kind: Any, value: pl.Expr) -> pl.Expr:
    if kind == pl.UInt64:
        return value.reinterpret(signed=True)
    if kind.is_float():  # pandas stores whole numbers with missing values as floats
        return value.fill_nan(None).cast(pl.Int64, strict=False)
    if kind.is_integer() or kind in (pl.Boolean, pl.Null):
        return value.cast(pl.Int64)
    return value.cast(pl.String)


def _ids(frame: pl.DataFrame, column: CategoricalColumn) -> pl.Expr:
    kind, values = frame.schema[column.source], column_of(column.source)
    if isinstance(kind, pl.List | pl.Array):
        several = values.cast(pl.List(kind.inner)).list.drop_nulls()
        return several.list.eval(_whole_or_text(kind.inner, pl.element()))
    if column.separator is not None:
        return _parts(values, column.separator).list.eval(pl.element().filter(pl.element() != ""))
    value = _id(frame, column.source)
    return value if column.width == 1 else pl.concat_list(value).list.drop_nulls()


def _parts(values: pl.Expr, separator: str) -> pl.Expr:
    return values.cast(pl.String).str.split(separator).list.eval(pl.element().str.strip_chars())


def _id_checks(frame: pl.DataFrame, column: str, separator: str | None = None) -> Iterator[Check]:
    kind, value = frame.schema[column], column_of(column)
    if kind == pl.String:
        too_long = value.str.len_bytes() > LONGEST_ID
        if separator is not None:
            parts = _parts(pl.when(too_long).then(value), separator)
            too_long = parts.list.eval(pl.element().str.len_bytes()).list.max() > LONGEST_ID
        yield Check(column, too_long, f"expected an id of at most {LONGEST_ID} bytes")
    if kind in (pl.Date, pl.Datetime):
        yield Check(column, ~has_year(kind, value), "expected an id; a date as an id must be of the years 1 to 9999")
    if kind.is_float():
        digits = 24 if kind == pl.Float32 else 53
        broken = value.is_not_nan() & ((value != value.round()) | (value.abs() >= 2**digits))
        yield Check(column, broken, f"expected an id: text, or a whole number, below 2^{digits} in a column of {kind}")


# Numbers


def _dense(frame: pl.DataFrame, column: DenseColumn) -> pl.Expr:
    value = number(frame, column.source)
    known = pl.when(value.is_finite() & ~value.is_in(column.missing) if column.missing else value.is_finite())
    changed = _transformed(known.then(value), column.clip, column.transform).cast(pl.Float32)
    return pl.when(changed.is_finite()).then(changed)  # a value beyond float32 counts as missing


def _transformed(value: pl.Expr, clip: tuple[float, float] | None, transform: str) -> pl.Expr:
    value = value if clip is None else value.clip(*clip)
    return value.sign() * value.abs().log1p() if transform == "log1p" else value


def _label(frame: pl.DataFrame, label: LabelColumn) -> tuple[pl.Expr, list[Check]]:
    checks = list(number_checks(frame, label.source))
    told = number(frame, label.source).fill_nan(None)
    if label.at_least is not None:
        value = (told >= label.at_least).cast(pl.Float32)
    else:
        value = _transformed(told, label.clip, label.transform).cast(pl.Float32)
    counts = pl.lit(True)
    if label.mask is not None:
        checks += number_checks(frame, label.mask)
        counts = (number(frame, label.mask).fill_nan(None) != 0).fill_null(False)
    if label.optional:
        counts = counts & told.is_not_null()
    odd, expected = ~told.is_finite() | ~value.is_finite(), f"expected a finite number for the label {label.name}"
    if label.kind == "binary":
        expected = f"expected 0 or 1, since the label {label.name} is binary"
    if label.kind == "binary" and label.at_least is None:
        odd = (value != 0) & (value != 1)
    missing = "the row has no label; expected one (optional = true where a label may be missing)"
    checks += [Check(label.source, counts & told.is_null(), missing), Check(label.source, counts & odd, expected)]
    return pl.when(counts).then(value).otherwise(float("nan")).cast(pl.Float32), checks
