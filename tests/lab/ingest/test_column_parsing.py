"""Cells of every kind become what they are described as, or reject their row."""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from properties import over
from raw_logs import described
from surefoot.errors import InputError
from surefoot.lab.ingest.column_parsing import typed
from surefoot.lab.ingest.description import Csv, Day
from surefoot.lab.ingest.reader import ROW, Rejections
from surefoot.lab.ingest.times import ORDER

FIRST = datetime(2024, 5, 1, 22, 30)
NAN = math.nan


def cells(
    name: str, values: list[Any] | pl.Series, kind: Any = None, **changes: Any
) -> tuple[pl.DataFrame, Rejections]:
    """Return typed rows of which one column has these values."""
    count, rejected = len(values), Rejections()
    plain: dict[str, Any] = {
        "date": ["2024-05-01"] * count,
        "user": [1] * count,
        "price": [1.0] * count,
        "click": [0] * count,
    }
    frame = pl.DataFrame(plain | {ROW: range(1, count + 1)}).with_columns(pl.Series(name, values, kind))
    return typed(frame, described(**changes), "file", rejected), rejected


class Written(NamedTuple):
    """How days are written."""

    values: list[Any]
    day: Mapping[str, Any] = MappingProxyType({})
    days: tuple[str, ...] = ("2024-05-01", "2024-05-02")
    kind: Any = None


DAYS = {
    "text": Written(["2024-05-01", " 2024-05-02 "]),
    "digits": Written(["20240501", "20240502"]),
    "times": Written(["2024-05-01 23:59:59", "2024-05-02T00:00:00"]),
    "times of many forms": Written(
        ["2024-05-01 23:59", "2024-05-01T23:59:59.999Z", "2024-05-02 01:00:00.5+03:00", "2024-05-01 22:30:00-0200"],
        days=("2024-05-01", "2024-05-01", "2024-05-01", "2024-05-02"),
    ),
    "dates are not shifted": Written(["2024-05-01", "20240502"], {"offset_hours": -5}),
    "times are": Written(["2024-05-02 04:59:59", "2024-05-02 05:00:00"], {"offset_hours": -5}),
    "by half an hour too": Written(["2024-05-01 18:29:59", "2024-05-01 18:30:00 UTC"], {"offset_hours": 5.5}),
    "whole numbers": Written([20240501, 20240502]),
    "floats": Written([20240501.0, 20240502.0]),
    "a format": Written(["01.05.2024", "02.05.2024"], {"format": "%d.%m.%Y"}),
    "a format without time is not shifted": Written(["1/5/24", "2/5/24"], {"format": "%d/%m/%y", "offset_hours": -9}),
    "a format of whole numbers": Written([240501, 240502], {"format": "%y%m%d"}),
    "a format with time": Written(["2024050123", "2024050200"], {"format": "%Y%m%d%H"}),
    "a format with a zone": Written(
        ["1 May 2024 23:00 -0100", "1 May 2024 23:00 -0200"],
        {"format": "%d %b %Y %H:%M %z", "offset_hours": -1},
    ),
    "seconds": Written([1714607999, 1714608000], {"unit": "s"}),
    "seconds with parts": Written([1714607999.9, 1714608000.1], {"unit": "s"}),
    "seconds as text": Written(["1714607999", "1714608000"], {"unit": "s"}),
    "ms": Written([1714607999999, 1714608000000], {"unit": "ms"}),
    "us": Written([1714607999999999, 1714608000000000], {"unit": "us"}),
    "ns": Written([1714607999999000000, 1714608000000000000], {"unit": "ns"}),
    "days since 1970": Written([19844, 19845], {"unit": "days", "offset_hours": -5}),
    "seconds, shifted": Written([1714625999, 1714626000], {"unit": "s", "offset_hours": -5}),
    "date": Written([date(2024, 5, 1), date(2024, 5, 2)], {"offset_hours": -5}),
    "datetime": Written([FIRST, FIRST + timedelta(hours=2)]),
    "datetime, shifted": Written(
        [FIRST, FIRST + timedelta(hours=2)], {"offset_hours": 1.5}, ("2024-05-02", "2024-05-02")
    ),
    "datetime in ms": Written([FIRST, FIRST + timedelta(hours=2)], kind=pl.Datetime("ms")),
    "datetime in ns": Written([FIRST, FIRST + timedelta(hours=2)], kind=pl.Datetime("ns")),
    "datetime with a zone": Written(
        [FIRST.replace(tzinfo=UTC), FIRST.replace(tzinfo=UTC) + timedelta(hours=2)],
        kind=pl.Datetime("us", "America/New_York"),
    ),
}


@over("written", DAYS)
def test_days_are_read(written: Written):
    rows, rejected = cells("date", written.values, written.kind, day={"column": "date", **written.day})
    assert rejected.rows == []
    assert rows["day"].to_list() == list(written.days)


BAD_DAYS = [
    "",
    None,
    "2024-5-1",
    "01.05.2024",
    "2024-05-01 24:00:00",
    "2024-05-01 12",
    "2024-05-01T12:00:00+99",
    "May 1",
]


@over("value", [repr(value) for value in BAD_DAYS])
def test_what_is_no_day_rejects_its_row(value: str):
    rows, rejected = cells("date", ["2024-05-01", eval(value)], pl.String)
    assert len(rows) == 1
    assert [(row[1], row[2]) for row in rejected.rows] == [(2, "date")]


@over("kind", [pl.Date(), *(pl.Datetime(unit, zone) for unit in ("ms", "us", "ns") for zone in (None, "America/Lima"))])
@over("hours", [-24.0, 0.0, 24.0])
def test_no_time_is_too_absurd(kind: Any, hours: float):
    """Polars panics where it is to write such a time, or to give it to Python."""
    bits = 31 if kind == pl.Date else 63
    ends = pl.Series([2**bits - 1, -(2**bits) + 1], dtype=pl.Int32 if kind == pl.Date else pl.Int64)
    rows, rejected = cells("date", ends.cast(kind), day={"column": "date", "offset_hours": hours})
    assert len(rows) == 0
    assert [row[1:3] for row in rejected.rows] == [(1, "date"), (2, "date")]
    rows, rejected = cells("user", ends.cast(kind))
    assert len(rows) + len(rejected.rows) == 2
    assert (len(rows) == 2) == (kind == pl.Datetime("ns", getattr(kind, "time_zone", None)))


def test_the_last_night_of_the_years_is_named():
    night = pl.Series([253402300799_000_000, -62135596800_000_000]).cast(pl.Datetime("us", "UTC"))
    for zone in ("Asia/Tokyo", "America/Lima"):  # one is in the year 10000 already, one in the year 0 still
        rejected = cells("date", night.dt.convert_time_zone(zone))[1]
        assert [row[3] for row in rejected.rows] == ["253402300799000000", "-62135596800000000"]


@over("unit", ["s", "ms", "us", "ns", "days"])
@over("values", [[2**63 - 1, -(2**63), 0], [1e308, -math.inf, NAN]])
def test_no_number_is_too_absurd(unit: str, values: list[Any]):
    rows, rejected = cells("date", values, day={"column": "date", "unit": unit, "order": "date"})
    assert (len(rows), len(rejected.rows)) == (0, 3)


def test_a_clock_may_be_a_day_ahead():
    days = [str(date.today() + timedelta(days=ahead)) for ahead in (0, 1, 2)]
    rows, rejected = cells("date", days)
    assert (len(rows), rejected.rows[0][1:4]) == (2, (3, "date", days[2]))


def test_dates_alone_sort_nothing():
    assert ORDER not in cells("date", ["2024-05-01", "20240502"])[0].columns
    assert ORDER not in cells("date", [date(2024, 5, 1)])[0].columns
    assert ORDER in cells("date", ["2024-05-01", "2024-05-01 10:00"])[0].columns


@over(
    "order",
    {
        "whole numbers": ([2**53 + 1, 2**53, None], None),
        "floats": ([0.5, -1.0, None], None),
        "numbers as text": (["10", "9", ""], None),
        "times as text": (["2024-05-01 10:00", "2024-05-01T09:59:59.5", None], None),
        "times": ([FIRST, FIRST - timedelta(microseconds=1), None], None),
        "times of the day": ([time(10), time(9), None], None),
        "without a sign": ([2**63, 1, None], pl.UInt64),
    },
)
def test_what_sorts_is_a_number(order: tuple[list[Any], Any]):
    values, kind = order
    rows, rejected = cells("at", values, kind, day={"column": "date", "order": "at"})
    assert rejected.rows == []
    assert rows.sort(ORDER, nulls_last=True)[ROW].to_list() == [2, 1, 3]


def test_what_does_not_sort_rejects_its_row():
    _, rejected = cells("at", ["7", "soon"], day={"column": "date", "order": "at"})
    assert [row[1:] for row in rejected.rows] == [(2, "at", "soon", "expected a number or a time to sort by")]


# Numbers


@over(
    "dense",
    {
        "as it is": ([1.5, -2.0, None, NAN, math.inf], {}, [1.5, -2.0, None, None, None]),
        "text": (["1.5", " -2e3 ", "", "inf", "+.5"], {}, [1.5, -2000.0, None, None, 0.5]),
        "words": (["true", "FALSE", None], {}, [1.0, 0.0, None]),
        "booleans": ([True, False, None], {}, [1.0, 0.0, None]),
        "log1p": ([math.e - 1, 1 - math.e, 0.0], {"transform": "log1p"}, [1.0, -1.0, 0.0]),
        "clip": ([-5.0, 5.0, 50.0, math.inf, None], {"clip": [0, 10]}, [0.0, 5.0, 10.0, None, None]),
        "clip, then log1p": ([1e9], {"clip": [0, math.e - 1], "transform": "log1p"}, [1.0]),
        "missing before it is clipped": ([-124, 3, 7], {"missing": [-124, 7], "clip": [0, 10]}, [None, 3.0, None]),
        "beyond float32": ([1e39, -1e300, 3e38], {}, [None, None, 3e38]),
        "beyond float32 until it is transformed": ([1e39], {"transform": "log1p"}, [math.log(1e39)]),
        "large whole numbers": ([2**63 - 1, -(2**63)], {}, [2.0**63, -(2.0**63)]),
    },
)
def test_numbers_become_float32(dense: tuple[list[Any], dict[str, Any], list[float | None]]):
    values, options, expected = dense
    rows, rejected = cells("price", values, dense=[{"name": "price"} | options])
    assert rejected.rows == []
    assert rows["price"].dtype == pl.Float32
    np.testing.assert_allclose(rows["price"].to_numpy(), np.array(expected, dtype=float), rtol=1e-6)  # null is NaN


@over(
    "label",
    {
        "binary": (["0", "1", "true", "False", "1.0"], {}, [0, 1, 1, 0, 1], []),
        "binary and odd": ([0, 2, -1, 0.5, None, NAN, math.inf], {}, [0], [2, 3, 4, 5, 6, 7]),
        "at least": ([3.5, 4, 5, None, NAN, math.inf], {"at_least": 4}, [0, 1, 1], [4, 5, 6]),
        "optional": ([1, None, NAN, 2], {"optional": True}, [1, NAN, NAN], [4]),
        "regression": ([-1.5, 1e38, 1e39, NAN], {"kind": "regression"}, [-1.5, 1e38], [3, 4]),
        "regression, transformed": ([0.0, math.e - 1], {"kind": "regression", "transform": "log1p"}, [0, 1], []),
        "regression, clipped": ([-9, 99, math.inf], {"kind": "regression", "clip": [0, 10]}, [0, 10], [3]),
    },
)
def test_labels_are_read(label: tuple[list[Any], dict[str, Any], list[float], list[int]]):
    values, options, expected, bad = label
    values = values if isinstance(values[0], str) else [None if value is None else float(value) for value in values]
    rows, rejected = cells("click", values, label=[{"name": "click"} | options])
    np.testing.assert_allclose(rows["click"].to_numpy(), expected, rtol=1e-6)
    assert [row[1] for row in rejected.rows] == bad


def test_a_mask_takes_rows_out_of_a_task():
    label = [{"name": "long", "column": "click", "mask": "seen"}]
    rows, rejected = cells("seen", [1.0, 0.0, None, NAN, -1.0], label=label)
    np.testing.assert_array_equal(rows["long"].to_numpy(), [0, NAN, NAN, NAN, 0])
    assert rejected.rows == []
    _, rejected = cells("seen", ["1", "", "perhaps"], label=label)
    assert [row[1:4] for row in rejected.rows] == [(3, "seen", "perhaps")]


def test_a_row_is_rejected_once():
    rows, rejected = cells("price", ["many", "few", "3"], label=[{"name": "click", "at_least": 1}])
    assert len(rows) == 1
    assert [row[1] for row in rejected.rows] == [1, 2]
    rejected.add("file", 9, "", None, "")
    assert rejected.frame().rows()[-1] == ("file", 9, "", "", "")


# Ids


@over(
    "ids",
    {
        "text": (["u1", "", None, " u1"], None, ["u1", "", None, " u1"]),
        "small numbers": ([1, -1, None], pl.Int8, [1, -1, None]),
        "without a sign": ([2**64 - 1, None], pl.UInt64, [-1, None]),
        "floats": ([7.0, -0.0, NAN, None], None, [7, 0, None, None]),
        "booleans": ([True, None], None, [1, None]),
        "dates": ([date(2024, 5, 1), None], None, ["2024-05-01", None]),
        "categories": (["b", None], pl.Categorical(), ["b", None]),
        "nothing": ([None, None], pl.Null, [None, None]),
    },
)
def test_ids_are_whole_numbers_or_text(ids: tuple[list[Any], Any, list[Any]]):
    values, kind, expected = ids
    rows, rejected = cells("user", values, kind, group="user")
    assert rejected.rows == []
    assert rows["user"].to_list() == rows["__group__"].to_list() == expected
    assert rows["user"].dtype in (pl.Int64, pl.String)


@over("kind", {"Float32": (pl.Float32, 24), "Float64": (pl.Float64, 53)})
def test_an_id_is_no_larger_than_what_its_type_counts_one_by_one(kind: tuple[Any, int]):
    of, digits = kind
    rows, rejected = cells("user", [2.0**digits - 1, 2.0**digits, -(2.0**digits)], of)
    assert rows["user"].to_list() == [2**digits - 1]
    assert [row[1] for row in rejected.rows] == [2, 3]


def test_several_ids_stand_in_a_cell():
    several = [{"name": "user", "separator": "::", "width": 2}]
    history = "::".join(f"u{i}" for i in range(2000))
    rows, rejected = cells("user", ["a:: b", "", None, "::a:", history, "a::" + "u" * 5000], categorical=several)
    assert rows["user"].to_list()[:4] == [["a", "b"], [], None, ["a:"]]
    assert len(rows["user"][4]) == 2000
    assert [row[1] for row in rejected.rows] == [6]
    assert cells("user", [7, None], categorical=[{"name": "user", "width": 2}])[0]["user"].to_list() == [[7], []]


# Descriptions


@over(
    "wrong",
    {
        "a format that tells no day": (lambda: Day(column="t", format="%H:%M"), "expected a format with year"),
        "a format that is none": (lambda: Day(column="t", format="%Y-%m-%d %I:%M"), "expected a format with year"),
        "an encoding that is none": (lambda: Csv(encoding="klingon"), "one of Python"),
        "an encoding of bytes": (lambda: Csv(encoding="base64"), "one of Python"),
        "a separator of lines": (lambda: Csv(separator="\r\n"), "neither a line's end nor the quote"),
        "a separator that is the quote": (lambda: Csv(separator="'", quote="'"), "neither a line's end nor the quote"),
        "a separator of NUL": (lambda: Csv(separator="\0"), "nor NUL"),
        "a day of too many rows": (lambda: Day(rows=2**64), "18446744073709551616"),
        "a cell of too many values": (
            lambda: described(categorical=[{"name": "user", "width": 2_000_000_000}]),
            "10000",
        ),
        "a weight without end": (lambda: described(label=[{"name": "click", "weight": math.inf}]), "finite"),
        "a threshold that is none": (lambda: described(label=[{"name": "click", "at_least": NAN}]), "finite"),
        "a count without end": (lambda: described(categorical=[{"name": "user", "min_count": 2**64}]), "less than"),
        "a name of all columns": (lambda: described(dense=[{"name": "*", "column": "price"}]), "mean many columns"),
        "a name of many columns": (lambda: described(dense=[{"name": "^p.*$"}]), "mean many columns"),
        "a name that no terminal shows": (lambda: described(dense=[{"name": "a\0b", "column": "price"}]), "printable"),
        "a column with NUL": (lambda: described(dense=[{"name": "x", "column": "a\0b"}]), "without NUL in its name"),
        "a column that preparing adds": (lambda: described(group="__date__"), "which preparing adds"),
        "a table too large": (lambda: described(categorical=[{"name": "user", "hash": 2**31}]), "2147483648"),
    },
)
def test_a_description_that_cannot_be_is_refused(wrong: Any):
    make, part = wrong
    with pytest.raises(ValidationError, match=part):
        make()


def test_a_column_of_another_type_is_refused():
    with pytest.raises(InputError, match=r"file: column seen is of type List\(Int64\); expected numbers"):
        cells("seen", [[1]], label=[{"name": "click", "mask": "seen"}])
    with pytest.raises(InputError, match="file: column user is of type Struct.*expected whole numbers or text"):
        cells("user", [{"a": 1}], group="user", categorical=[], dense=["price"])
