"""Side tables: looked up by id, kept small, their bad rows named."""

from pathlib import Path

import polars as pl
import pytest

from surefoot.errors import InputError
from surefoot.lab.ingest.description import Csv
from surefoot.lab.ingest.reader import Rejections
from surefoot.lab.ingest.source import SideTable, as_numbers, notes_on

COLUMNS = ("id", "kind", "owner")


def side(path: Path, *lines: str, rejected: Rejections | None = None) -> SideTable:
    path.write_text("\n".join(["id,kind,unread,owner", *lines]) + "\n", encoding="utf-8")
    return SideTable.read(
        str(path),
        Csv(),
        COLUMNS,
        key="id",
        rejected=Rejections() if rejected is None else rejected,
        shape=lambda rows: rows.with_columns(as_numbers(rows["owner"])),
    )


def many(count: int) -> list[str]:
    return [f"{i},k{i % 3},x,{i * 10}" for i in range(count, 0, -1)]


def test_rows_come_in_the_order_of_the_ids(tmp_path: Path):
    found = side(tmp_path / "s.csv", *many(9)).of(pl.Series(["2", "9", "2"]))
    assert found.to_dict(as_series=False) == {"kind": ["k2", "k0", "k2"], "owner": [20, 90, 20]}


def test_ids_without_a_row_have_nulls(tmp_path: Path):
    """One above all, one below all, one that is null, and 0, which stands for null inside."""
    table = side(tmp_path / "s.csv", *many(9))
    found = table.of(pl.Series(["10", "-1", None, "0", "1"]))
    assert found["kind"].to_list() == [None, None, None, None, "k1"]
    assert found["owner"].to_list() == [None, None, None, None, 10]
    assert side(tmp_path / "z.csv", "0,zero,x,7").of(pl.Series([None, "0"], dtype=pl.String))["kind"].to_list() == [
        None,
        "zero",
    ]


def test_empty_cells_are_null_and_ids_of_letters_are_ids(tmp_path: Path):
    found = side(tmp_path / "s.csv", "a,,x,", "b,k,x,me").of(pl.Series(["b", "a", "c"]))
    assert found["kind"].to_list() == ["k", None, None]
    assert found["owner"].null_count() == 2


def test_a_table_of_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text keeps its meaning where each piece numbers it in its own order."""
    monkeypatch.setattr("surefoot.lab.ingest.reader.LONGEST_LINE", 64)
    found = side(tmp_path / "s.csv", *many(200)).of(pl.Series(map(str, range(1, 201))))
    assert found["kind"].to_list() == [f"k{i % 3}" for i in range(1, 201)]
    assert found["owner"].to_list() == [i * 10 for i in range(1, 201)]


def test_bad_rows_are_named_and_left_out(tmp_path: Path):
    rejected, path = Rejections(), tmp_path / "s.csv"
    table = side(path, *many(400), "1,again,x,1", "2,too,short", ",no id,x,1", rejected=rejected)
    assert {row[1:] for row in rejected.rows} == {
        (401, "id", "1", "expected no second row of an id"),
        (402, "", "2,too,short", "expected 4 cells, found 3"),
        (403, "id", "", "expected an id"),
    }
    assert {row[0] for row in rejected.rows} == {str(path)}
    assert len(table.keys) == 400
    assert table.of(pl.Series(["1"]))["kind"].to_list() == ["k1"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((*many(9), ",k,x,1"), r"s.csv row 10, column id: ''; expected an id \(1 of 10 rows"),
        (("short",), r"s.csv row 1: 'short'; expected 4 cells, found 1 \(1 of 1 rows"),
        (("1,k,x,1", "1,k,x,1"), r"row 2, column id: '1'; expected no second row of an id \(1 of 2 rows"),
    ],
)
def test_a_table_that_is_bad_altogether_is_refused(tmp_path: Path, lines: tuple[str, ...], sentence: str):
    with pytest.raises(InputError, match=sentence):
        side(tmp_path / "s.csv", *lines)


def test_a_table_without_rows_knows_nobody(tmp_path: Path):
    empty = side(tmp_path / "s.csv")
    assert empty.of(pl.Series([1, 2])).null_count().row(0) == (2, 2)
    (note,) = notes_on([empty])
    assert "s.csv has no rows" in note


def test_a_missing_column_is_named(tmp_path: Path):
    (tmp_path / "s.csv").write_text("id,kind\n1,k\n")
    with pytest.raises(InputError, match="has no column 'owner'"):
        SideTable.read(str(tmp_path / "s.csv"), Csv(), COLUMNS, key="id", rejected=Rejections())


def test_numbers_of_ids():
    assert as_numbers(pl.Series(["12", "-3", None])).to_list() == [12, -3, None]
    assert as_numbers(pl.Series(["ff", None]), base=16).to_list() == [255, None]
    assert as_numbers(pl.Series([5, None], dtype=pl.Int32)).dtype == pl.Int64
    mixed = as_numbers(pl.Series("a", ["12", "x", "x", "y", "9" * 30, None]))
    assert mixed.name == "a"
    assert mixed[0] == 12
    assert mixed[1] == mixed[2]
    assert mixed.null_count() == 1
    assert mixed.n_unique() == 5
