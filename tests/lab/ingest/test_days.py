"""Every way in which a log tells its days and their order, and what the report says of its rows."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from properties import over
from raw_logs import HEADER, ROWS, all_rows, prepared_days, rejected_rows, rows_of, source_of, write_days
from surefoot.errors import InputError
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.vocabularies import MISSING


def prices_by_day(out: Path) -> dict[str, list[float]]:
    """Return the prices, as they came, of each day's rows."""
    return {day: rows["price"].to_list() for day, rows in all_rows(out).items()}


PLAIN: dict[str, Any] = {"dense": [{"name": "price", "standardise": False}]}


def numbered(folder: Path, name: str, prices: range, **columns: list[Any]) -> None:
    """Write a parquet file whose rows are told apart by their price."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"user": [1] * len(prices), "price": [*map(float, prices)], "click": [0] * len(prices)}
    pl.DataFrame(table | columns).write_parquet(folder / name)


def test_pseudo_days_are_positions(tmp_path: Path):
    numbered(tmp_path / "log", "a.parquet", range(5))
    numbered(tmp_path / "log", "b.parquet", range(5, 12))
    changes = {"day": {"rows": 5}, **PLAIN}
    report = prepare(source_of(tmp_path / "log", **changes), tmp_path / "out", stretch=3)
    days = {"rows-000000": [0, 1, 2, 3, 4], "rows-000001": [5, 6, 7, 8, 9], "rows-000002": [10, 11]}
    assert prices_by_day(tmp_path / "out") == days
    assert report.pseudo_days
    assert "are pseudo-days" in PreparedLog.open(tmp_path / "out").notice
    numbered(tmp_path / "log", "c.parquet", range(12, 18))  # a pseudo-day that was not full stays so
    numbered(tmp_path / "log", "d.parquet", range(18, 20))
    for last in (3, 4):
        prepared_days(tmp_path / "log", tmp_path / "out", last, **changes)
    days |= {"rows-000003": [12, 13, 14, 15, 16], "rows-000004": [17], "rows-000005": [18, 19]}
    assert prices_by_day(tmp_path / "out") == days


def test_files_are_days_in_natural_order(tmp_path: Path):
    for day in (10, 9, 2):
        numbered(tmp_path / "log", f"day_{day}.parquet", range(day, day + 2))
    prepared_days(tmp_path / "log", tmp_path / "out", day={"file": True}, **PLAIN)
    assert prices_by_day(tmp_path / "out") == {"day_2": [2, 3], "day_9": [9, 10], "day_10": [10, 11]}
    numbered(tmp_path / "log" / "more", "day_2.pq", range(1))
    with pytest.raises(InputError, match="day_2.pq and .*day_2.parquet are both day day_2"):
        prepared_days(tmp_path / "log", tmp_path / "out", day={"file": True}, **PLAIN)


def test_days_stand_in_the_path(tmp_path: Path):
    for day in ("2024-05-02", "2024%2D05%2D10", "2024-05-09"):
        numbered(tmp_path / "log" / f"date={day}" / "country=de", "part-0.parquet", range(int(day[-2:]), 11))
    found = prepared_days(tmp_path / "log", tmp_path / "out", categorical=["user", "country"], **PLAIN)
    assert {day: len(rows) for day, rows in found.items()} == {"2024-05-02": 9, "2024-05-09": 2, "2024-05-10": 1}
    assert found["2024-05-10"]["country"].to_list() == [2]


def test_a_column_in_the_file_goes_before_the_path(tmp_path: Path):
    numbered(tmp_path / "log" / "date=2024-05-01", "a.parquet", range(2), date=["2024-05-03", "2024-05-04"])
    assert list(prepared_days(tmp_path / "log", tmp_path / "out")) == ["2024-05-03", "2024-05-04"]


def test_no_value_in_the_path_is_none(tmp_path: Path):
    numbered(tmp_path / "log" / "country=__HIVE_DEFAULT_PARTITION__", "a.parquet", range(2), date=["2024-05-03"] * 2)
    found = prepared_days(tmp_path / "log", tmp_path / "out", categorical=["country"])
    assert found["2024-05-03"]["country"].to_list() == [MISSING, MISSING]


def test_rows_are_sorted_within_their_day_over_files(tmp_path: Path):
    times = [[50, 10, None, 30], [20, 10, 40, 60]]
    for name, seconds in zip("ab", times, strict=True):
        first = 4 * (name == "b")
        numbered(tmp_path / "log", f"{name}.parquet", range(first, first + 4), t=seconds, date=["2024-05-01"] * 4)
    changes = {"day": {"column": "date", "order": "t"}, **PLAIN}
    prepare(source_of(tmp_path / "log", **changes), tmp_path / "out", stretch=3)
    assert prices_by_day(tmp_path / "out") == {"2024-05-01": [1, 5, 4, 3, 6, 0, 7, 2]}


@over(
    "date",
    {
        "text": ["2024-05-01 12:00:00", "2024-05-01T09:30", "2024-05-01 10:00:00.5", "2024-05-01 10:00:00+01:00"],
        "seconds": [1714564800.0, 1714555800.0, 1714557600.5, 1714554000.0],
    },
)
def test_times_sort_the_rows_of_their_day(date: list[Any], tmp_path: Path):
    numbered(tmp_path / "log", "a.parquet", range(4), date=date)
    unit = {"unit": "s"} if isinstance(date[0], float) else {}
    prepared_days(tmp_path / "log", tmp_path / "out", day={"column": "date"} | unit, **PLAIN)
    assert prices_by_day(tmp_path / "out") == {"2024-05-01": [3, 1, 2, 0]}


def test_repeated_rows_are_rejected_and_named(tmp_path: Path):
    (tmp_path / "log").mkdir()
    for name in "ab":
        (tmp_path / "log" / f"{name}.csv").write_text("\n".join((HEADER, *ROWS, ROWS[0])))
    report = prepare(source_of(tmp_path / "log", repeated="reject"), tmp_path / "out", stretch=2)
    again, first, second = "expected no row equal to an earlier one", "2024-05-01", "2024-05-02"
    named = [
        ("a.csv", 5, first),
        *(("b.csv", row, first) for row in (1, 2, 5)),
        ("b.csv", 3, second),
        ("b.csv", 4, second),
    ]
    assert rejected_rows(tmp_path / "out") == [(file, row, "", day, again) for file, row, day in named]
    assert (report.rows_in, report.rows_out, report.rejected) == (10, 4, {again: 6})
    assert prepare(source_of(tmp_path / "log"), tmp_path / "kept").rows_out == 10


# The rest of the report


def test_what_is_missing_or_cut_is_counted(tmp_path: Path):
    write_days(
        tmp_path / "log",
        {
            "2024-05-01": {
                "user": ["a|b", " c | |a|d|e", None, ""],
                "price": [-1.0, None, float("inf"), 2.0],
                "length": [1e39, 1.0, 2.0, float("nan")],
                "click": [0, 1, 1, 0],
            }
        },
    )
    source = source_of(
        tmp_path / "log",
        categorical=[{"name": "user", "separator": "|", "width": 3}],
        dense=[{"name": "price", "missing": [-1]}, "length"],
    )
    report = prepare(source, tmp_path / "out")
    assert report.counts == {"missing price": 3, "missing length": 2, "cut user": 1}
    rows = rows_of(tmp_path / "out")
    assert rows["user"].to_list() == [[2, 3, 0], [4, 2, 5], [0, 0, 0], [0, 0, 0]]
    assert rows["price"].to_list() == [0.0] * 4
    assert rows["length"].to_list() == [0.0, -1.0, 1.0, 0.0]


def test_files_without_rows_are_told(tmp_path: Path):
    numbered(tmp_path / "log", "a.parquet", range(2), date=["2024-05-01"] * 2)
    numbered(tmp_path / "log", "b.parquet", range(0), date=[])
    report = prepare(source_of(tmp_path / "log"), tmp_path / "out")
    assert [Path(file).name for file in report.empty] == ["b.parquet"]


def test_ids_do_not_depend_on_how_whole_numbers_are_written(tmp_path: Path):
    numbered(tmp_path / "log", "a.parquet", range(3), user=[1, 2, 3], date=["2024-05-01"] * 3)
    numbered(tmp_path / "log", "b.parquet", range(3), user=[3.0, None, 1.0], date=["2024-05-02"] * 3)
    numbered(tmp_path / "log", "c.parquet", range(3), user=["2", None, "x"], date=["2024-05-03"] * 3)
    changes = {"group": "user", "categorical": ["user", {"name": "again", "column": "user", "hash": 99}]}
    found = prepared_days(tmp_path / "log", tmp_path / "out", **changes)
    assert [rows["user"].to_list() for rows in found.values()] == [[2, 3, 4], [4, 0, 2], [3, 0, 1]]
    assert found["2024-05-02"]["__group__"][0] == found["2024-05-01"]["__group__"][2]
    assert found["2024-05-03"]["again"][0] == found["2024-05-01"]["again"][1]
