"""A prepared log knows of a row only what the days before its own told, whether it is made at once or day by day."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from properties import over
from raw_logs import (
    FILE,
    HEADER,
    RICH,
    all_rows,
    day_rows,
    prepared_days,
    rejected_rows,
    source_of,
    write_days,
    write_rich,
)
from slow import slowly
from surefoot.errors import InputError
from surefoot.lab.data.prepared import MANIFEST, PreparedLog
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.vocabularies import UNSEEN

SEEDS = range(5)


@over("seed", SEEDS)
def test_it_agrees_with_the_slow_way(seed: int, tmp_path: Path):
    expected = slowly(write_rich(tmp_path / "log", seed=seed))
    found = prepared_days(tmp_path / "log", tmp_path / "out", **RICH)
    assert list(found) == list(expected)
    for day, rows in found.items():
        for name in ("user", "item", "tags", "click"):
            assert rows[name].to_list() == expected[day][name], (day, name)
        for name in ("price", "length", "plain"):
            np.testing.assert_allclose(rows[name], expected[day][name], rtol=1e-5, atol=1e-6)
    assert sum((rows["user"] == UNSEEN).sum() for rows in found.values()) > 10


@over("stretch", [7, 60, 1000])
def test_nothing_depends_on_how_much_is_held(stretch: int, tmp_path: Path):
    write_rich(tmp_path / "log")
    source = source_of(tmp_path / "log", **RICH)
    expected = prepared_days(tmp_path / "log", tmp_path / "one", **RICH)
    prepare(source, tmp_path / "out", stretch=stretch)
    for day, rows in all_rows(tmp_path / "out").items():
        assert_frame_equal(rows, expected[day], rel_tol=1e-6)


@over("stretch", [3, 10, 1000])
def test_every_row_is_accounted_for_in_any_stretch(stretch: int, tmp_path: Path):
    bad = ["2024-05-01,u1", "2024-05-01,u1,many,1", "yesterday,u1,0.5,1", "2024-05-01,u1,0.5,", "2024-05-01,u1,0.5,1,1"]
    kinds = np.random.default_rng(0).integers(0, 12, 200)
    lines = [bad[kind] if kind < len(bad) else f"2024-05-01,u1,{i}.0,1" for i, kind in enumerate(kinds)]
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_text("\n".join((HEADER, *lines)))
    source = source_of(tmp_path / "log", dense=[{"name": "price", "standardise": False}])
    report = prepare(source, tmp_path / "out", max_rejected=1.0, stretch=stretch)
    good = [float(i) for i, kind in enumerate(kinds) if kind >= len(bad)]
    assert day_rows(tmp_path / "out", "2024-05-01")["price"].to_list() == good
    named = {row[1]: row[4] for row in rejected_rows(tmp_path / "out")}
    assert sorted(named) == [i + 1 for i, kind in enumerate(kinds) if kind < len(bad)]
    assert len(named) == len(rejected_rows(tmp_path / "out")) == sum(report.rejected.values()) == 200 - len(good)
    assert sorted(report.rejected.values()) == sorted(np.bincount(kinds[kinds < len(bad)]))
    assert len(report.first_rejected) == len(bad)


# Past only


@over("seed", SEEDS)
def test_a_later_day_never_changes_an_earlier_one(seed: int, tmp_path: Path):
    days = write_rich(tmp_path / "log", seed=seed)
    before = prepared_days(tmp_path / "log", tmp_path / "before", **RICH)
    changed = list(days)[2 + seed % 3]
    other = days[changed].with_columns(user=pl.lit("someone"), item=pl.lit("new"), price=pl.lit(1e6), tags=pl.lit("x"))
    other.head(30).write_csv(tmp_path / "log" / f"{changed}.csv")
    (tmp_path / "log" / f"{changed}.parquet").unlink(missing_ok=True)
    after = prepared_days(tmp_path / "log", tmp_path / "after", **RICH)
    for day in days:
        if day < changed:
            assert after[day].equals(before[day])
        else:
            assert not after[day].equals(before[day])


def test_a_row_never_changes_another_of_its_day(tmp_path: Path):
    days = write_rich(tmp_path / "log")
    before = prepared_days(tmp_path / "log", tmp_path / "before", **RICH)
    day = list(days)[2]
    last = pl.int_range(pl.len()) == pl.len() - 1
    changed = {"user": "someone", "item": "new", "price": 1e6, "t": 10**6}
    other = days[day].with_columns(
        pl.when(last).then(pl.lit(value)).otherwise(name).alias(name) for name, value in changed.items()
    )
    other.write_csv(tmp_path / "log" / f"{day}.csv")
    after = prepared_days(tmp_path / "log", tmp_path / "after", **RICH)[day]
    place = days[day].sort("t", maintain_order=True)["t"].search_sorted(days[day]["t"][-1], side="right") - 1
    assert after.head(-1).equals(before[day].filter(pl.int_range(pl.len()) != place))


def test_the_first_day_knows_itself(tmp_path: Path):
    write_days(
        tmp_path / "log",
        {
            "2024-05-01": {"user": [9, 7, None, 9], "price": [1.0, 2.0, None, 6.0], "click": [0, 1, 0, 1]},
            "2024-05-02": {"user": [7, 5, 5, None], "price": [3.0, 30.0, None, 3.0], "click": [0, 1, 0, 1]},
            "2024-05-03": {"user": [5, 4, 9, 7], "price": [3.0] * 4, "click": [0, 1, 0, 1]},
        },
    )
    found = prepared_days(tmp_path / "log", tmp_path / "out")
    assert [rows["user"].to_list() for rows in found.values()] == [[2, 3, 0, 2], [3, 1, 1, 0], [4, 1, 2, 3]]
    first, second, third = (rows["price"].to_list() for rows in found.values())
    std = np.std([1.0, 2.0, 6.0])
    np.testing.assert_allclose(first, np.array([-2, -1, 0, 3]) / std, rtol=1e-6)
    np.testing.assert_allclose(second, np.array([0, 27, 0, 0]) / std, rtol=1e-6)
    past = np.array([1, 2, 6, 3, 30, 3.0])
    np.testing.assert_allclose(third, (3 - past.mean()) / past.std(), rtol=1e-6)
    assert PreparedLog.open(tmp_path / "out").schema.categorical[0].rows == 5  # known before the last day


# Days that are added


@over("seed", SEEDS)
def test_days_added_later_become_what_all_at_once_becomes(seed: int, tmp_path: Path):
    write_rich(tmp_path / "log", seed=seed)
    expected = prepared_days(tmp_path / "log", tmp_path / "one", **RICH)
    for last in (2, 3, None):
        found = prepared_days(tmp_path / "log", tmp_path / "out", last, **RICH)
    assert list(found) == list(expected)
    assert all(rows.equals(expected[day]) for day, rows in found.items())
    one, other = (json.loads((tmp_path / name / MANIFEST).read_text()) for name in ("one", "out"))
    assert other == one
    tables = [sorted((tmp_path / name / one["vocabularies"]).iterdir()) for name in ("one", "out")]
    assert len(tables[0]) == 3
    for left, right in zip(*tables, strict=True):
        assert pl.read_parquet(left).equals(pl.read_parquet(right))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_late_rows_of_old_days_are_rejected_and_named(tmp_path: Path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_bytes(FILE)
    before = prepared_days(tmp_path / "log", tmp_path / "out")
    rows = ("2024-05-03,u1,0.5,0", "2024-05-02,u9,0.5,0", "2024-05-03,u9,0.5,1")
    (tmp_path / "log" / "b.csv").write_text("\n".join((HEADER, *rows)))
    with pytest.raises(InputError, match="row 2, column day: '2024-05-02'; expected a day after 2024-05-02"):
        prepare(source_of(tmp_path / "log"), tmp_path / "out")
    assert all(rows.equals(before[day]) for day, rows in all_rows(tmp_path / "out").items())
    report = prepare(source_of(tmp_path / "log"), tmp_path / "out", max_rejected=0.5)
    assert (report.rows_in, report.rows_out, sum(report.rejected.values())) == (7, 6, 1)
    assert rejected_rows(tmp_path / "out") == [
        ("b.csv", 2, "day", "2024-05-02", "expected a day after 2024-05-02, the last prepared day")
    ]
    assert day_rows(tmp_path / "out", "2024-05-03")["user"].to_list() == [2, UNSEEN]


def test_nothing_new_changes_nothing(tmp_path: Path):
    write_rich(tmp_path / "log")
    source = source_of(tmp_path / "log", **RICH)
    report = prepare(source, tmp_path / "out")
    manifest = (tmp_path / "out" / MANIFEST).read_bytes()
    assert prepare(source, tmp_path / "out") == report
    assert (tmp_path / "out" / MANIFEST).read_bytes() == manifest


def refused(folder: Path, out: Path, *parts: str, **changes: Any) -> None:
    """Expect that a preparation is refused, and leaves what there was."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as error:
        prepare(source_of(folder, **changes), out)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not out.with_name(f"{out.name}.partial").exists()


@pytest.fixture
def done(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folder of a small log, and the one that it was prepared to."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_bytes(FILE)
    prepare(source_of(tmp_path / "log"), tmp_path / "out")
    return tmp_path / "log", tmp_path / "out"


def test_another_schema_is_refused(done: tuple[Path, Path]):
    refused(*done, "out was prepared with another schema", dense=[])


def test_a_file_that_has_changed_is_refused(done: tuple[Path, Path]):
    with (done[0] / "a.csv").open("a") as file:
        file.write("2024-05-03,u1,0.5,0\n")
    refused(*done, f"a.csv has {len(FILE) + 20} bytes, and {len(FILE)} when", "new rows in new files")


def test_files_in_the_folder_itself_are_refused(done: tuple[Path, Path]):
    prepare(source_of(done[0]), done[0] / "in")
    refused(done[0], done[0] / "in", "rows.parquet is in the folder of the prepared log")


def test_text_after_whole_numbers_is_refused(tmp_path: Path):
    write_days(tmp_path / "log", {"2024-05-01": {"user": [1, 2], "price": [1.0, 2.0], "click": [0, 1]}})
    prepare(source_of(tmp_path / "log"), tmp_path / "out")
    write_days(tmp_path / "log", {"2024-05-02": {"user": ["1", "u2"], "price": [1.0, 2.0], "click": [0, 1]}})
    refused(tmp_path / "log", tmp_path / "out", "2024-05-02.parquet: column user is text; expected whole numbers")


@over("name", ["out", "out.partial"])
def test_a_folder_of_something_else_is_left_alone(name: str, tmp_path: Path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_bytes(FILE)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=f"{name} (exists and is not a prepared log|has thesis.tex in it)"):
        prepare(source_of(tmp_path / "log"), tmp_path / "out")
    assert (tmp_path / name / "thesis.tex").read_text() == "years of work"


# Memory

CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, polars as pl
from raw_logs import source_of
from surefoot.lab.ingest.prepare import prepare

folder, day, stretch = Path(sys.argv[1]), {"rows": 10**9} if sys.argv[2] == "one" else {"column": "date"}, 1 << 16
generator, rows = np.random.default_rng(0), 250_000
for i in range(int(sys.argv[3])):
    ids = {f"id{j}": generator.integers(0, 20_000, rows) for j in range(10)}
    numbers = {f"x{j}": generator.random(rows, np.float32) for j in range(10)}
    other = {"click": generator.integers(0, 2, rows, np.int8), "date": np.full(rows, 20240501 + i)}
    pl.DataFrame(ids | numbers | other).write_parquet(folder / f"{i}.parquet", row_group_size=50_000)
columns = {"categorical": [*ids], "dense": [*numbers], "day": day}
source = source_of(folder, **columns)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = prepare(source, folder / "out", stretch=stretch)
assert report.rows_out == rows * int(sys.argv[3])
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(tmp_path: Path, days: str, files: int) -> float:
    """Return how many MB a preparation takes at most, beside what the process takes before."""
    folder = tmp_path / f"{days} {files}"
    folder.mkdir()
    arguments = [sys.executable, "-c", CHILD, str(folder), days, str(files)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, child.stdout.split())
    return (after - before) / 1024


@pytest.mark.slow
@over("days", ["one", "many"])
def test_a_large_log_takes_no_more_memory_than_a_small_one(days: str, tmp_path: Path):
    assert peak(tmp_path, days, 16) < 1.3 * peak(tmp_path, days, 2) + 30
