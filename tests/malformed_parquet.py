"""Parquet files and folders that are malformed, or odd and valid, by name, and what becomes of each."""

import os
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from malformed import Case, flipped, parquet
from raw_logs import AS_IT_IS, FILE, TABLE


def several(**tables: dict[str, Any]) -> dict[str, bytes]:
    """Return parquet files of the small log, with other columns in each."""
    return {
        name: data for key, columns in tables.items() for name, data in parquet(f"{key}.parquet", **columns).items()
    }


def of_type(kind: pa.DataType, *values: Any) -> pa.Array:
    return pa.array(values, kind)


def zoned(zone: str) -> pa.Array:
    return of_type(pa.timestamp("us", zone), *(datetime(2024, 5, 1, hour, tzinfo=UTC) for hour in (0, 5, 22, 23)))


def named(column: str, part: str) -> dict[str, Any]:
    """Return a change of the description: one more feature, read from a column."""
    return {part: [*AS_IT_IS[part], {"name": "more", "column": column}]}


def with_column(column: str, values: list[Any], **columns: Any) -> dict[str, bytes]:
    """Return a parquet file of the small log with one more column, of any name."""
    more: dict[str, Any] = {column: values, **columns}
    return parquet(**more)


def no_text() -> pa.Array:
    """Return four texts of which the second is no UTF-8: arrow does not look when it reads."""
    return pa.array([b"u1", b"u\xff", b"u1", b"u3"]).view(pa.string())


NAN = float("nan")
PATTERNS = ("*", "^u.*$", "^.*$")  # names that a library may take for several columns
WIDE = {"categorical": [{"name": "user", "width": 3}]}
MANY: dict[str, Any] = {name: values * 1250 for name, values in TABLE.items()}
MANY["user"] = [i * 7919 for i in range(5000)]
EMPTY: dict[str, Any] = {name: [] for name in TABLE}
NULLS = of_type(pa.null(), *[None] * 4)
WHOLE = parquet()["log.parquet"]

PARQUET = {
    "as it should be": Case(parquet()),
    "cut short": Case(
        {"log.parquet": WHOLE[:-9]}, ("log.parquet cannot be read", "it is incomplete or another kind of file")
    ),
    "cut to its first half": Case(
        {"log.parquet": WHOLE[: len(WHOLE) // 2]}, ("log.parquet cannot be read", "it is incomplete")
    ),
    "cut to a few bytes": Case(
        {"log.parquet": WHOLE[:6]}, ("log.parquet cannot be read", "too short for a parquet file")
    ),
    "empty": Case({"log.parquet": b""}, ("log.parquet cannot be read", "too short for a parquet file")),
    "flipped bytes in the middle": Case(
        {"log.parquet": flipped(parquet(**MANY)["log.parquet"], 0.4)}, ("log.parquet cannot be read after row 0",)
    ),
    "flipped bytes at the end": Case({"log.parquet": flipped(WHOLE, 0.8)}, ("log.parquet cannot be read",)),
    "text named .parquet": Case(
        {"log.parquet": FILE}, ("log.parquet cannot be read", "it is incomplete or another kind of file")
    ),
    "parquet named .csv": Case({"log.csv": WHOLE}, ("log.csv is a parquet file by its first bytes", ".parquet")),
    "no rows": Case(parquet(**EMPTY), ("has no rows to prepare",)),
    "no rows, beside others": Case(several(a={}, b=EMPTY)),
    "missing column": Case(parquet(price=None), ("log.parquet has no column 'price'", "it has date, user, click")),
    "missing column in the second file": Case(several(a={}, b={"price": None}), ("b.parquet has no column 'price'",)),
    "one more column in the second file": Case(several(a={}, b={"more": [1, 2, 3, 4]}), rows=8),
    "ids of 64 bits without a sign": Case(parquet(user=of_type(pa.uint64(), 2**64 - 1, 2**63, 0, 1))),
    "negative ids": Case(parquet(user=[-1, -(2**63), 2**63 - 1, 0])),
    "float ids 12.0": Case(parquet(user=[12.0, None, 13.0, NAN])),
    "float ids 12.5": Case(
        parquet(user=[12.0, 12.5, 13.0, 14.0]), rows=3, rejected={2: ("user", "12.5", "or a whole number")}
    ),
    "float ids that have lost digits": Case(
        parquet(user=[12.0, 2.0**53, 1e300, float("inf")]),
        rows=1,
        rejected={
            row: ("user", value, "below 2^53") for row, value in ((2, "9007199254740992.0"), (3, "1e+300"), (4, "inf"))
        },
    ),
    "ids of other types": Case(parquet(user=pa.array([date(2024, 5, 1)] * 4)), rows=4),
    "boolean ids and labels": Case(parquet(user=[True, False, None, True], click=[True, False, False, True])),
    "decimal ids": Case(parquet(user=[Decimal(2), Decimal(10) ** 18, None, Decimal(-7)])),
    "decimals": Case(parquet(price=[Decimal("0.50"), None, Decimal("2.25"), Decimal("-1.00")])),
    "decimals of 256 bits": Case(
        parquet(price=of_type(pa.decimal256(60, 2), Decimal(1), None, None, None)),
        ("column price is of type decimal256(60, 2); expected numbers",),
    ),
    "NaN labels": Case(
        parquet(click=[0.0, NAN, 1.0, None]),
        rows=2,
        rejected={2: ("click", "nan", "has no label"), 4: ("click", "", "has no label")},
    ),
    "NaN labels, optional": Case(
        parquet(click=[0.0, NAN, 1.0, None]), changes={"label": [{"name": "click", "optional": True}]}
    ),
    "labels as text": Case(parquet(click=["0", "1", "true", "False"])),
    "a date as a label": Case(
        parquet(click=[date(2024, 5, 1)] * 4), ("column click is of type Date; expected numbers",)
    ),
    "lists where a number is described": Case(
        parquet(price=[[1.0]] * 4), ("log.parquet: column price is of type List(Float64); expected numbers",)
    ),
    "lists where an id is described": Case(
        parquet(user=[[1, 2]] * 4), ("log.parquet: column user has lists", "expected a width above 1")
    ),
    "lists of ids": Case(parquet(user=[[1, 2], [], None, [3, None, 4, 5]]), changes=WIDE),
    "lists of large ids": Case(parquet(user=of_type(pa.list_(pa.uint64()), [2**64 - 1], [], None, [1])), changes=WIDE),
    "lists of floats": Case(parquet(user=[[0.5]] * 4), ("column user is of type List(Float64)",), changes=WIDE),
    "structs": Case(
        parquet(user=[{"id": 1}] * 4), ("log.parquet: column user is of type Struct", "whole numbers or text")
    ),
    "bytes": Case(parquet(user=[b"1"] * 4), ("log.parquet: column user is of type Binary", "whole numbers or text")),
    "durations as prices": Case(parquet(price=[timedelta(1)] * 4), ("column price is of type Duration",)),
    "dictionaries": Case(parquet(user=pa.array(["u1", None, "u2", "u1"]).dictionary_encode())),
    "dictionaries of numbers": Case(parquet(price=pa.array([0.5, None, 1.5, 0.5]).dictionary_encode())),
    "text that is none": Case(
        parquet(user=no_text()), rows=3, rejected={2: ("user", r"u\xff", "expected text in utf-8")}
    ),
    "no value in a column": Case(parquet(user=NULLS, price=NULLS)),
    "no value in the first file, text in the second": Case(several(a={"user": NULLS}, b={}), rows=8),
    "whole numbers in the first file, text in the second": Case(several(a={"user": [1, 2, 3, 4]}, b={}), rows=8),
    "text in the first file, whole numbers in the second": Case(several(a={}, b={"user": [1, 2, 3, 4]}), rows=8),
    "times": Case(parquet(date=[datetime(2024, 5, 1, hour) for hour in (0, 5, 22, 23)])),
    "times with a zone": Case(parquet(date=[datetime(2024, 5, 1, hour, tzinfo=UTC) for hour in (0, 5, 22, 23)])),
    **{
        f"times in the zone {zone}": Case(parquet(date=zoned(zone)))
        for zone in ("+05:30", "-03:30", "GMT+2", "Europe/Paris", "Nowhere/City")
    },
    **{
        f"an id from a column named {name}": Case(with_column(name, [1, 2, 1, 2]), changes=named(name, "categorical"))
        for name in PATTERNS
    },
    **{
        f"a number from a column named {name}": Case(
            with_column(name, ["1", "2", "1", "2"]), changes=named(name, "dense")
        )
        for name in (*PATTERNS, "number in price")
    },
    "a label named as a number of another column": Case(
        with_column("number in price", ["0", "1", "0", "1"], price=["1", "2", "3", "4"]),
        changes={"label": [{"name": "number in price"}]},
    ),
    "times of two units": Case(
        several(
            a={"date": of_type(pa.timestamp("ms"), *[datetime(2024, 5, 1)] * 4)},
            b={"date": of_type(pa.timestamp("ns"), *[datetime(2024, 5, 1)] * 4)},
        ),
        rows=8,
    ),
    "a time of the year 9999": Case(
        parquet(date=[datetime(9999, 12, 31)] + [datetime(2024, 5, 1)] * 3),
        rows=3,
        rejected={1: ("date", "9999-12-31 00:00:00", "expected a day")},
    ),
    "dates": Case(parquet(date=[date(2024, 5, 1)] * 4)),
    "dates as whole numbers": Case(parquet(date=[20240501, 20240502, 20240502, 20240501])),
    "dates as floats": Case(
        parquet(date=[20240501.0, NAN, 20240502.0, 20240501.0]), rows=3, rejected={2: ("date", "nan", "expected a day")}
    ),
    "lists as dates": Case(
        parquet(date=[["2024-05-01"]] * 4), ("column date is of type List(String); expected dates",)
    ),
}


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILE)


def _looped(folder: Path) -> None:
    _write(folder, "a/log.csv")
    (folder / "a" / "again").symlink_to(folder)
    (folder / "a" / "here").symlink_to(".")


def _by_path(folder: Path) -> None:
    for day in ("2024-05-01", "2024%2D05%2D02"):
        (folder / f"date={day}").mkdir()
        (folder / f"date={day}" / "log.csv").write_text("user,price,click\nu1,0.5,1\nu2,0.5,0\n")


FOLDERS = {
    "nothing in it": Case(lambda folder: None, ("has no file of a log", ".parquet")),
    "not there": Case(lambda folder: folder.rmdir(), ("is not there",)),
    "what other programs leave": Case(
        lambda folder: _write(folder, "log.csv", "README.md", "_SUCCESS", ".log.csv.crc", "_temporary/log.csv")
    ),
    "what other programs leave alone": Case(
        lambda folder: _write(folder, "README.md", "_SUCCESS"), ("has no file of a log",)
    ),
    "folders in folders": Case(lambda folder: _write(folder, "2024/05/a.csv", "2024/06/a.csv"), rows=8),
    "a name without an ending": Case(lambda folder: _write(folder, "day_0")),
    "days in the path": Case(_by_path),
    "no day in the path": Case(
        {"date=__HIVE_DEFAULT_PARTITION__.csv": FILE.replace(b"date", b"day")}, ("has no column 'date'",)
    ),
    "a circle of links": Case(_looped),
    "a link to nothing": Case(lambda folder: (folder / "log.csv").symlink_to("gone.csv"), ("log.csv does not exist",)),
    "a link to itself": Case(lambda folder: (folder / "log.csv").symlink_to("log.csv"), ("log.csv does not exist",)),
    "a pipe": Case(lambda folder: os.mkfifo(folder / "log.csv"), ("log.csv is not a file",)),
    "a file that cannot be read": Case(
        lambda folder: (folder / "log.csv").symlink_to("/proc/self/mem"),
        ("log.csv cannot be read", "nput/output error"),
    ),
    "a folder named as a file": Case(lambda folder: _write(folder, "log.csv/log.csv")),
}
