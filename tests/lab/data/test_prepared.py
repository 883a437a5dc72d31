"""A log comes back from the disk as it was, in any cut, and a folder that is not whole is refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq

from properties import over
from stored_logs import SCHEMA, mixed, numbers, same
from surefoot.errors import InputError
from surefoot.lab.data import prepared
from surefoot.lab.data.dayfile import GROUP, DayFile, columns_of
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Categorical, Log, Schema, Task
from surefoot.lab.sources import synthetic
from surefoot.tasks import TaskKind

ROWS = (50, 7, 64, 33)


@pytest.fixture(scope="module")
def log() -> Log:
    return mixed(ROWS)


@pytest.fixture
def folder(log: Log, tmp_path: Path) -> Path:
    prepared.write(log, tmp_path / "out", row_group=16)
    return tmp_path / "out"


def test_a_log_comes_back_bit_for_bit(log: Log, folder: Path):
    stored = PreparedLog.open(folder)
    again = stored.load()
    for attribute in ("name", "schema", "days", "starts", "notice"):
        assert getattr(stored, attribute) == getattr(again, attribute) == getattr(log, attribute)
    assert same(again.rows, log.rows)
    assert again.groups is not None
    assert again.groups.tolist() == log.rows.categorical[:, 0].tolist()


def test_a_log_without_groups_or_width_comes_back(tmp_path: Path):
    log = synthetic.make(days=3, rows_per_day=40)
    prepared.write(log, tmp_path)
    again = PreparedLog.open(str(tmp_path)).load()
    assert same(again.rows, log.rows)
    assert again.groups is PreparedLog.open(tmp_path).groups_of(0) is log.groups_of(0) is None


def test_the_last_days_can_be_had_alone(log: Log, folder: Path):
    again = PreparedLog.open(folder).load(last_days=2)
    assert (again.days, again.starts) == (log.days[2:], (0, 64, 97))
    assert same(again.rows, log.window(2, 3))
    assert again.groups is not None
    assert log.groups is not None
    assert again.groups.equal(log.groups[57:])
    with pytest.raises(InputError, match="days is 5; expected 1 to 4, the day partitions of mixed"):
        PreparedLog.open(folder).load(last_days=5)


CUTS: dict[str, Callable[[Log | PreparedLog], Log | PreparedLog]] = {
    "days": lambda log: log,
    "two days each": lambda log: log.partitions(days=2),
    "three days each": lambda log: log.partitions(days=3),
    "rows": lambda log: log.partitions(rows=40),
    "all in one": lambda log: log.partitions(rows=1000),
}


@over("cut", CUTS)
def test_a_cut_holds_the_same_rows_in_memory_and_on_disk(
    log: Log, folder: Path, cut: Callable[[Log | PreparedLog], Log | PreparedLog]
):
    mine, theirs = cut(log), cut(PreparedLog.open(folder))
    assert (mine.days, mine.starts) == (theirs.days, theirs.starts)
    assert [number for day in range(len(mine.days)) for number in numbers(theirs.day(day))] == list(range(sum(ROWS)))
    for day in range(len(mine.days)):
        assert same(mine.day(day), theirs.day(day))
        groups = mine.groups_of(day), theirs.groups_of(day)
        assert groups[0] is not None
        assert groups[1] is not None
        assert groups[0].equal(groups[1])
        for rows in (5, 16, 40, 1000):
            pieces = list(theirs.pieces(day, rows))
            assert all(same(a, b) for a, b in zip(pieces, mine.pieces(day, rows), strict=True))
    assert same(mine.window(0, len(mine.days) - 1), theirs.window(0, len(mine.days) - 1))


def test_the_oldest_partition_takes_what_is_left_over(log: Log):
    weeks = log.partitions(days=3)
    assert weeks.days == ("2022-04-01 to 2022-04-04",)
    assert log.partitions(days=2).days == ("2022-04-01 to 2022-04-02", "2022-04-03 to 2022-04-04")
    assert mixed((5, 5, 5)).partitions(days=2).starts == (0, 15)
    assert mixed((5, 5, 5, 5, 5)).partitions(days=2).days == ("2022-04-01 to 2022-04-03", "2022-04-04 to 2022-04-05")
    assert log.partitions(rows=40).starts == (0, 74, 114, 154)
    for arguments in ({}, {"days": 1, "rows": 1}, {"days": 0}, {"rows": -1}):
        with pytest.raises(ValueError, match=r"expected (one of them|a finite number above 0)"):
            log.partitions(**arguments)


def test_the_last_days_are_cut_as_they_are_alone(log: Log, folder: Path):
    last = PreparedLog.open(folder).last(3)
    assert (last.days, last.starts) == (log.days[1:], (50, 57, 121, 154))
    assert last.partitions(days=2).starts == (50, 154)
    assert last.partitions(rows=40).starts == (50, 114, 154)
    assert numbers(last.partitions(rows=40).day(1)) == list(range(114, 154))
    assert same(last.load().rows, log.window(1, 3))


def test_rows_can_be_had_by_number(log: Log, folder: Path):
    rows = torch.randint(sum(ROWS), (40,))
    assert same(PreparedLog.open(folder).take(rows), log.take(rows))


def test_a_day_is_written_in_frames_of_any_size(log: Log, tmp_path: Path):
    frame, path = prepared._frame(log, 2), tmp_path / "day" / "rows.parquet"
    sizes = (1, 0, 15, 16, 17, 2, 13)
    assert sum(sizes) == ROWS[2]
    with DayFile(path, SCHEMA, row_group=16) as file:
        for i, size in enumerate(sizes):
            file.write(frame.slice(sum(sizes[:i]), size))
            assert not path.exists()
    assert file.rows == ROWS[2]
    assert [path.name for path in path.parent.iterdir()] == ["rows.parquet"]
    stored = pq.ParquetFile(path)
    assert [stored.metadata.row_group(i).num_rows for i in range(stored.num_row_groups)] == [16] * 4
    assert stored.schema_arrow == columns_of(SCHEMA)
    assert frame.equals(pl.DataFrame(stored.read()))


def test_a_day_that_could_not_be_written_leaves_nothing(log: Log, tmp_path: Path):
    frame = prepared._frame(log, 0).with_columns(age=pl.when(pl.col("user") > 2).then(pl.col("age")))
    missing = frame["age"].null_count()
    with (
        pytest.raises(InputError, match=f"rows.parquet: column age has {missing} missing values; expected NaN"),
        DayFile(tmp_path / "rows.parquet", SCHEMA) as file,
    ):
        file.write(frame)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_there_twice_is_refused():
    twice = Schema((Categorical("a", 2),), ("b",), (Task("a", TaskKind.BINARY),))
    with pytest.raises(InputError, match="column name a is used 2 times; expected different names"):
        columns_of(twice)


def test_a_log_half_written_over_another_is_none(log: Log, folder: Path):
    twice = replace(log, schema=replace(SCHEMA, dense=("age", "age")))
    with pytest.raises(InputError, match="column name age is used 2 times"):
        prepared.write(twice, folder)
    with pytest.raises(InputError, match="has no prepared.json"):
        PreparedLog.open(folder)


def test_other_keys_of_the_manifest_are_left_alone(log: Log, folder: Path):
    manifest = json.loads((folder / "prepared.json").read_text())
    assert list(manifest) == ["version", "name", "notice", "schema", "row_group", "days"]
    assert manifest["days"][1] == {"day": "2022-04-02", "rows": 7}
    rows = {day["day"]: day["rows"] for day in manifest["days"]}
    prepared.write_manifest(folder, name="named", schema=SCHEMA, days=rows, row_group=16, more={"report": {"read": 9}})
    assert json.loads((folder / "prepared.json").read_text())["report"] == {"read": 9}
    assert PreparedLog.open(folder).name == "named"


def change_manifest(folder: Path, **keys: object) -> None:
    path = folder / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def day_file(folder: Path) -> Path:
    return folder / "day=2022-04-03" / "rows.parquet"


def cut_short(folder: Path) -> None:
    whole = day_file(folder).read_bytes()
    day_file(folder).write_bytes(whole[: len(whole) // 2])


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table], row_group: int = 16) -> None:
    pq.write_table(change(pq.ParquetFile(day_file(folder)).read()), day_file(folder), row_group_size=row_group)


def as_double(table: pa.Table) -> pa.Table:
    return table.set_column(4, "number", table["number"].cast(pa.float64()))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "FOLDER does not exist; expected a folder that 'surefoot data prepare' has"),
    "not finished": (lambda folder: (folder / "prepared.json").unlink(), "FOLDER has no prepared.json; expected"),
    "not JSON": (lambda folder: (folder / "prepared.json").write_text("{"), "prepared.json is not JSON: Expecting"),
    "another version": (lambda folder: change_manifest(folder, version=2), "has version 2; expected 1"),
    "no days": (lambda folder: change_manifest(folder, days=[]), "has no days; expected at least one"),
    "no schema": (lambda folder: change_manifest(folder, schema={}), "lacks or misstates 'categorical'; expected"),
    "no file": (lambda folder: day_file(folder).unlink(), "FILE does not exist; expected it"),
    "a file cut short": (cut_short, "FILE cannot be read .*; expected a complete parquet file"),
    "an empty file": (lambda folder: day_file(folder).write_bytes(b""), "FILE cannot be read .*; expected a complete"),
    "no column": (
        lambda folder: rewrite(folder, lambda table: table.drop_columns(["age"])),
        "FILE has no column age; expected all columns that the manifest names",
    ),
    "one column more": (
        lambda folder: rewrite(folder, lambda table: table.append_column("more", table["age"])),
        r"FILE has the columns \[.*'more'\]; expected \[",
    ),
    "columns in another order": (
        lambda folder: rewrite(folder, lambda table: table.select(table.column_names[::-1])),
        r"FILE has the columns \['__group__'.*\]; expected \['user'",
    ),
    "another type": (
        lambda folder: rewrite(folder, as_double),
        "FILE: column number is of type double; expected float",
    ),
    "fewer rows": (
        lambda folder: rewrite(folder, lambda table: table.slice(1)),
        "FILE has 63 rows; expected 64, as the manifest says",
    ),
    "other row groups": (
        lambda folder: rewrite(folder, lambda table: table, row_group=20),
        "FILE has row groups of 20 rows; expected 16 rows in each",
    ),
}


@over("fault", FAULTS)
def test_a_folder_that_is_not_as_it_says_is_refused(folder: Path, fault: tuple[Callable[[Path], object], str]):
    spoil, words = fault
    spoil(folder)
    words = words.replace("FOLDER", re.escape(str(folder))).replace("FILE", re.escape(str(day_file(folder))))
    with pytest.raises(InputError, match=words) as error:
        PreparedLog.open(folder)
    assert "\n" not in str(error.value)


def test_what_breaks_after_opening_is_told_when_it_is_read(log: Log, folder: Path):
    stored = PreparedLog.open(folder)
    bytes_of = bytearray(day_file(folder).read_bytes())
    bytes_of[60] ^= 1  # in the first column's first page
    day_file(folder).write_bytes(bytes_of)
    with pytest.raises(InputError, match="rows.parquet cannot be read .*; expected a complete parquet file"):
        stored.day(2)
    assert same(stored.day(1), log.day(1))
    day_file(folder).unlink()
    with pytest.raises(InputError, match="rows.parquet does not exist; expected it"):
        list(stored.pieces(2, 10))


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_log_is_read_from_a_url(log: Log, folder: Path, scheme: str):
    url = f"file://{folder}"
    if scheme == "memory":
        url = "memory://somewhere/log"
        fsspec.filesystem("memory").put(str(folder), "/somewhere/log", recursive=True)
    stored = PreparedLog.open(url)
    assert same(stored.load().rows, log.rows)
    assert same(stored.take(torch.tensor([100, 3])), log.take(torch.tensor([100, 3])))


def test_a_url_that_leads_nowhere_is_refused():
    with pytest.raises(
        InputError, match="nowhere://log has the protocol 'nowhere'; expected a path or a URL of one of"
    ):
        PreparedLog.open("nowhere://log")
    with pytest.raises(InputError, match="memory://nothing does not exist; expected a folder"):
        PreparedLog.open("memory://nothing")


def test_a_group_column_holds_what_rows_are_compared_within(log: Log, folder: Path):
    assert pq.ParquetFile(day_file(folder)).read()[GROUP].to_pylist() == log.day(2).categorical[:, 0].tolist()
