"""Criteo: days that are files, stretches of rows that stand for days, 40 fields of which many are empty."""

import gzip
import math
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from surefoot.errors import InputError
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.ingest.column_parsing import typed
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.reader import Rejections, read
from surefoot.lab.ingest.source import Source
from surefoot.lab.sources import criteo


def row(label: object = 0, numbers: str = "1", ids: str = "68fd1e64", separator: str = "\t") -> str:
    return separator.join([str(label), *[numbers] * 13, *[ids] * 26])


def header(separator: str = ",", label: str = "label") -> str:
    return separator.join([label, *criteo.NUMBERS, *criteo.IDS])


def lines(path: Path, *rows: str) -> Path:
    data = "".join(each + "\n" for each in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def typed_rows(source: Source) -> pl.DataFrame:
    """Return the rows of all files as the description types them; none may be bad."""
    description, rejected = source.description, Rejections()
    rows = pl.concat(
        typed(source.shape(piece), description, file, rejected)
        for file in source.files
        for piece in read(file, description.csv, description.columns, rejected)
    )
    assert not rejected.rows
    return rows


def test_a_file_is_a_day_in_natural_order(tmp_path: Path):
    for day, packed in ((10, ""), (0, ""), (2, ".gz")):
        lines(tmp_path / f"day_{day}{packed}", *[row(label=day % 4 // 2)] * (day + 1))
    lines(tmp_path / "README.txt", "not a log")
    report = prepare(criteo.source(str(tmp_path), hash_rows=50), tmp_path / "out")
    assert (report.rows_in, report.rows_out, report.pseudo_days) == (15, 15, False)
    log = PreparedLog.open(tmp_path / "out").load()
    assert log.days == ("day_0", "day_2", "day_10")
    assert log.starts == (0, 1, 4, 15)
    assert log.rows.labels[:, 0].tolist() == [0] + [1] * 14
    assert "no commercial use" in log.notice


def test_numbers_may_be_negative_or_empty(tmp_path: Path):
    lines(tmp_path / "day_0", row(numbers="7"), row(numbers="-3"), row(numbers=""), row(numbers="0"))
    rows = typed_rows(criteo.source(str(tmp_path)))
    for name in criteo.NUMBERS:
        assert rows[name].to_list() == pytest.approx([math.log(8), -math.log(4), None, 0.0])


def test_ids_may_be_empty(tmp_path: Path):
    lines(tmp_path / "day_0", row(ids="68fd1e64"), row(ids=""), row(ids="ffffffff"))
    source = criteo.source(str(tmp_path), hash_rows=50)
    assert typed_rows(source)["C26"].to_list() == [0x68FD1E64, None, 0xFFFFFFFF]
    prepare(source, tmp_path / "out")
    log = PreparedLog.open(tmp_path / "out").load()
    assert [each.rows for each in log.schema.categorical] == [50] * 26
    assert (log.rows.categorical[1] == 0).all()
    assert (log.rows.categorical[[0, 2]] >= 2).all()


def test_ids_that_are_no_hexadecimal_digits_are_ids(tmp_path: Path):
    lines(tmp_path / "day_0", row(ids="word"), row(ids="68fd1e64"), row(ids="word"), row(ids="5.0"))
    ids = typed_rows(criteo.source(str(tmp_path)))["C1"]
    assert ids[0] == ids[2]
    assert (ids.n_unique(), ids.null_count()) == (3, 0)


def test_rows_in_are_rows_out_and_rows_rejected(tmp_path: Path):
    lines(tmp_path / "day_0", row(), row(label=2), row(label=""), row(numbers="many"), "1\t2\t3", row(), row())
    report = prepare(criteo.source(str(tmp_path)), tmp_path / "out", max_rejected=0.9)
    assert (report.rows_in, report.rows_out) == (7, 3)
    by_column = Counter(key.split(":")[0] for key in report.rejected for _ in range(report.rejected[key]))
    assert by_column == {"label": 2, "I1": 1, "expected 40 cells, found 3": 1}


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_the_challenges_rows_are_parted_into_days(tmp_path: Path, name: str):
    lines(tmp_path / name, *(row(label=int(i > 3)) for i in range(7)))
    lines(tmp_path / "test.txt", row()[2:])
    source = criteo.source(str(tmp_path), hash_rows=50, rows_per_day=3)
    assert [Path(file).name for file in source.files] == [name]
    report = prepare(source, tmp_path / "out")
    log = PreparedLog.open(tmp_path / "out").load()
    assert (log.starts, report.pseudo_days) == ((0, 3, 6, 7), True)
    assert log.rows.labels[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_seventh_of_the_challenges_rows_is_a_day(tmp_path: Path):
    lines(tmp_path / "train.txt", row())
    assert math.ceil(45_840_617 / (criteo.source(str(tmp_path)).description.day.rows or 1)) == 7


@pytest.mark.parametrize("label", ["label", "Label"])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_tables_with_a_header_and_floats(tmp_path: Path, separator: str, label: str):
    rows = [row("1.0", "3.0", "05db9164", separator), row("0.0", "", "", separator)]
    lines(tmp_path / "train.csv", header(separator, label), *rows)
    shaped = typed_rows(criteo.source(str(tmp_path)))
    assert shaped["click"].to_list() == [1, 0]
    assert shaped["I13"].to_list() == pytest.approx([math.log(4), None])
    assert shaped["C1"].to_list() == [0x05DB9164, None]


def test_tables_with_a_header_can_be_days(tmp_path: Path):
    for day in (1, 0):
        lines(tmp_path / f"day_{day}.csv", header(), row(separator=","))
    source = criteo.source(str(tmp_path))
    assert source.description.day.file
    assert [Path(file).name for file in source.files] == ["day_0.csv", "day_1.csv"]


def test_one_file_can_be_named(tmp_path: Path):
    lines(tmp_path / "test.csv", "Id,I1")
    path = lines(tmp_path / "sample.txt", header(), row(separator=","))
    assert criteo.source(str(path)).files == (str(path),)


def test_a_row_that_is_there_twice_counts_twice(tmp_path: Path):
    assert criteo.source(str(lines(tmp_path / "day_0", row()))).description.repeated == "keep"


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (row()[2:], "t.csv has 39 cells between tabs in its first line, none of them label"),
        ("a,b,c", "t.csv has 3 columns in its first line, none of them label; expected a header, label, I1 to I13"),
        (header().replace("C26", "C27"), "t.csv has no column 'C26'; expected label, I1 to I13 and C1 to C26"),
        (header().replace("I1,", ""), "t.csv has no column 'I1'"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, first: str, sentence: str):
    lines(tmp_path / "t.csv", first, row(separator=","))
    with pytest.raises(InputError, match=sentence):
        criteo.source(str(tmp_path))


def test_files_of_two_layouts_are_refused(tmp_path: Path):
    lines(tmp_path / "day_0", row())
    lines(tmp_path / "day_1.csv", header(), row(separator=","))
    with pytest.raises(InputError, match="day_0 and .*day_1.csv have different formats; expected one format"):
        criteo.source(str(tmp_path))


def test_a_day_that_is_there_twice_is_refused(tmp_path: Path):
    lines(tmp_path / "day_0", row())
    lines(tmp_path / "day_0.gz", row())
    with pytest.raises(InputError, match="day_0 and .*day_0.gz; expected one file for a day"):
        criteo.source(str(tmp_path))


def test_a_folder_of_something_else(tmp_path: Path):
    lines(tmp_path / "notes.txt", "hello")
    with pytest.raises(InputError, match="has no log of Criteo; expected day_0, day_1 and so on, train.txt or a CSV"):
        criteo.source(str(tmp_path))


@pytest.mark.parametrize(("argument", "value"), [("rows_per_day", 0), ("hash_rows", 2)])
def test_arguments_are_checked(tmp_path: Path, argument: str, value: int):
    lines(tmp_path / "day_0", row())
    with pytest.raises(ValueError, match=argument.removesuffix("_rows")):
        criteo.source(str(tmp_path), **{argument: value})
