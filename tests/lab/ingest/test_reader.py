"""Files come in natural order, and their rows whole and numbered, wherever a block of bytes happens to end."""

import csv as standard_csv
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from properties import over
from raw_logs import FILE, HEADER, rows_of, source_of
from surefoot.errors import InputError
from surefoot.lab.file_discovery import find_files, in_path, natural, stem
from surefoot.lab.ingest.description import Csv
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.reader import ROW, NoRowsError, Rejections, columns_of, read
from surefoot.lab.ingest.text import TextStream, mark

# Places


def test_numbers_in_names_are_numbers():
    names = ["day_10", "day_9b", "day_9", "10", "9", "", "day_09a", "day", "2024-5-1"]
    assert sorted(names, key=natural) == ["", "9", "10", "2024-5-1", "day", "day_9", "day_09a", "day_9b", "day_10"]


def test_a_stem_has_no_endings():
    for path, name in {
        "a/day_3.csv.gz": "day_3",
        "s3://b/part-0.snappy.parquet": "part-0.snappy",
        "day_0": "day_0",
    }.items():
        assert stem(path) == name


def test_a_path_tells_columns():
    assert in_path("s3://b/day=2024-05-01/country=a%20b%2Fc/x=y.parquet") == {"day": "2024-05-01", "country": "a b/c"}


NAMES = ("day_9.csv", "day_10.csv", "more/day_1.csv")  # in natural order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "log" / name).write_bytes(FILE)
    return tmp_path / "log"


def test_files_come_in_natural_order(folder: Path):
    assert find_files(str(folder)) == tuple(f"{folder}/{name}" for name in NAMES)
    assert find_files(f"{folder}//") == find_files(str(folder))
    assert find_files(f"file://{folder}/") == tuple(f"file://{folder}/{name}" for name in NAMES)
    assert find_files(f"{folder}/day_9.csv") == (f"{folder}/day_9.csv",)


def test_a_log_may_be_away(folder: Path, tmp_path: Path):
    fsspec.filesystem("memory").put(str(folder), "/away", recursive=True)
    files = find_files("memory://away")
    assert files == tuple(f"memory://away/{name}" for name in NAMES)
    assert prepare(source_of("memory://away"), tmp_path / "out").rows_out == 12
    prepare(source_of(folder), tmp_path / "here")
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "here"))
    with pytest.raises(InputError, match="memory://away/none is not there"):
        find_files("memory://away/none")
    with pytest.raises(InputError, match="memory://away/none.csv does not exist"):
        columns_of("memory://away/none.csv", Csv())


# Text


class Blocks(io.RawIOBase):
    """A stream that gives a few bytes at a time, however many are asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def read(self, size: int = -1) -> bytes:
        data, self._data = self._data[: self._size], self._data[self._size :]
        return data


def streamed(data: bytes, size: int, **csv: Any) -> str:
    stream = TextStream(Blocks(data, size), Csv(**csv), "log.csv")
    return b"".join(iter(lambda: stream.read(1 << 20), b"")).decode()


SIZES = range(1, 9)


@over("size", SIZES)
@over("separator", ["::", ":::", "::;", "ab", "\x01\x02", "§", "💥", "::::"])
def test_a_separator_of_several_bytes_is_one_in_any_block(separator: str, size: int):
    generator = np.random.default_rng(size)
    parts = ["x", separator, separator[:1], separator[:-1], "\n", "y"]
    text = "".join(parts[i] for i in generator.integers(0, len(parts), 300)) + "\n"
    csv = Csv(separator=separator)
    assert streamed(text.encode(), size, separator=separator) == text.replace(separator, mark(csv))


@over("size", SIZES)
@over("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"])
def test_text_of_any_encoding_comes_as_utf8(encoding: str, size: int):
    text = "user,Ünal\n€,5\n" + ("💥\n" if "utf" in encoding else "")
    assert streamed(text.encode(encoding), size, encoding=encoding) == text


def test_the_last_line_ends():
    for data in (b"a,b\n1,2", b"a,b\n1,2\n", b"a,b\r\n1,2\r\n", b"a,b"):
        assert streamed(data, 2) == data.decode() + "\n" * (not data.endswith(b"\n"))


def quoted_rows(generator: np.random.Generator, count: int) -> list[list[str]]:
    parts = ["a", "b", ",", '"', "\n", '""', "", "5", '",', "\r\n"]
    return [["".join(parts[i] for i in generator.integers(0, len(parts), 4)) for _ in range(3)] for _ in range(count)]


@over("size", [1, 2, 3, 7, 50, 10_000])
@over("quote", ['"', "'"])
@over("all_cells", [False, True])
def test_cells_that_are_quoted_as_they_should_be_come_as_they_are(
    size: int, quote: Any, all_cells: bool, tmp_path: Path
):
    rows, path = quoted_rows(np.random.default_rng(size), 100), tmp_path / "log.csv"
    quoting = standard_csv.QUOTE_ALL if all_cells else standard_csv.QUOTE_MINIMAL
    with path.open("w", newline="") as file:
        standard_csv.writer(file, quotechar=quote, quoting=quoting).writerows([["a", "b", "c"], *rows])
    assert streamed(path.read_bytes(), size, quote=quote) == path.read_bytes().decode()
    found = pl.concat(read(str(path), Csv(quote=quote, nulls=()), ["a", "b", "c"], Rejections()))
    assert found.select("a", "b", "c").rows() == [tuple(row) for row in rows]


@over("size", [1, 2, 5, 10_000])
def test_the_line_of_a_quote_that_is_not_closed_is_named(size: int):
    for wrong in ('1,"abc,2', '"1,2,3', '1,2,"', '1,"a"b,3', '1,"a""'):
        for line in (1, 2, 9):
            lines = ['1,"a ""b"" c",2'] * 10
            lines[line - 1] = wrong
            for end in ("\n", "\r\n", "\r"):
                with pytest.raises(InputError, match=rf"log.csv line {line}: a cell begins with"):
                    streamed(end.join(lines).encode(), size)


def test_quotes_elsewhere_are_characters():
    for row in ('1,5" wide,2', '1, "a",2', '1,a"b"c,"3"', '""', '"",""'):
        assert streamed(f"{row}\n{row}".encode(), 3) == f"{row}\n{row}\n"
    assert streamed(b'1,"a\n', 3, quote="") == '1,"a\n'


# Rows


def write_with_bad_rows(path: Path, rows: int, seed: int, more: str = "") -> tuple[list[int], list[int]]:
    """Write a text file in which some rows have too many cells, or bytes that are no text; return their numbers."""
    generator = np.random.default_rng(seed)
    kinds = generator.choice(["good", "long", "short", "bytes", "quoted"], rows, p=[0.8, 0.05, 0.05, 0.05, 0.05])
    kinds[[0, -1]] = generator.choice(["good", "long"], 2)
    texts = {"good": b"%d,u", "long": b"%d,u,u", "short": b"%d", "bytes": b"%d,\xff", "quoted": b'%d,"u\n\n,u"'}
    texts["good"] += more.encode()
    path.write_bytes(b"a,b\n" + b"\n".join(texts[kind] % (i + 1) for i, kind in enumerate(kinds)))
    good = [i + 1 for i, kind in enumerate(kinds) if kind in ("good", "quoted")]
    return good, sorted(set(range(1, rows + 1)) - set(good))


@over("seed", range(5))
def test_rows_keep_their_numbers_beside_bad_ones(seed: int, tmp_path: Path):
    path, rejected = tmp_path / "log.csv", Rejections()
    good, bad = write_with_bad_rows(path, 200, seed)
    found = pl.concat(read(str(path), Csv(), ["b", "a"], rejected))
    assert found[ROW].to_list() == good
    assert found["a"].cast(pl.Int64).to_list() == good
    assert sorted(row[1] for row in rejected.rows) == bad
    assert len(bad) > 10


def test_rows_keep_their_numbers_over_blocks(tmp_path: Path):
    path, rejected = tmp_path / "log.csv", Rejections()
    good, bad = write_with_bad_rows(path, 500_000, 0, more="x" * 50)
    assert path.stat().st_size > 20 << 20
    pieces = list(read(str(path), Csv(), ["a", "b"], rejected))
    assert len(pieces) > 2
    assert pl.concat(pieces)["a"].cast(pl.Int64).equals(pl.Series(good))
    assert pl.concat(pieces)[ROW].equals(pl.Series(good))
    assert pl.Series(sorted(row[1] for row in rejected.rows)).equals(pl.Series(bad))


def test_a_quoted_cell_may_lie_on_the_end_of_a_block(tmp_path: Path):
    cell = "\n".join(["many lines"] * 20_000)
    (tmp_path / "log.csv").write_text("a,b\n" + "".join(f'{i},"{cell}"\n' for i in range(1, 101)))
    found = pl.concat(read(str(tmp_path / "log.csv"), Csv(), ["a", "b"], Rejections()))
    assert found["a"].to_list() == [str(i) for i in range(1, 101)]
    assert (found["b"] == cell).all()


@over("skip", [0, 1, 7, 100, 199, 200])
def test_a_file_is_read_from_any_row_on(skip: int, tmp_path: Path):
    path, rejected, later = tmp_path / "log.csv", Rejections(), Rejections()
    write_with_bad_rows(path, 200, 1)
    whole = pl.concat(read(str(path), Csv(), ["a", "b"], rejected))
    assert concat(read(str(path), Csv(), ["a", "b"], later, skip=skip)).equals(whole.filter(pl.col(ROW) > skip))
    assert later.rows == [row for row in rejected.rows if row[1] > skip]
    plain = whole.with_columns(pl.int_range(1, pl.len() + 1).alias(ROW))
    plain.drop(ROW).write_parquet(tmp_path / "log.parquet", row_group_size=13)
    pieces = read(str(tmp_path / "log.parquet"), Csv(), ["a", "b"], later, skip=skip)
    assert concat(pieces).equals(plain.filter(pl.col(ROW) > skip))


def concat(pieces: Iterator[pl.DataFrame]) -> pl.DataFrame:
    found = list(pieces)
    return pl.concat(found) if found else pl.DataFrame(schema={"a": pl.String, "b": pl.String, ROW: pl.Int64})


def test_a_damaged_file_gives_what_is_before(tmp_path: Path):
    sink = pa.BufferOutputStream()
    table = pa.table({"a": np.random.default_rng(0).random(400_000)})
    pq.write_table(table, sink, row_group_size=100_000, write_page_checksum=True, use_dictionary=False)
    data = bytearray(sink.getvalue().to_pybytes())
    data[len(data) // 2 + 100_000] ^= 255
    (tmp_path / "log.parquet").write_bytes(data)
    pieces = read(str(tmp_path / "log.parquet"), Csv(), ["a"], Rejections())
    assert next(pieces)[ROW][-1] == 1 << 17
    with pytest.raises(InputError, match=f"log.parquet cannot be read after row {1 << 17}:"):
        next(pieces)


def test_a_file_of_many_columns_is_refused_in_few_words(tmp_path: Path):
    (tmp_path / "log.csv").write_text(",".join(f"c{i}" for i in range(10_000)) + "\n")
    with pytest.raises(InputError, match=re.escape("has no column 'user'; it has c0, c1, ")) as error:
        next(read(str(tmp_path / "log.csv"), Csv(), ["user"], Rejections()))
    assert str(error.value).endswith("c19 and 9980 more")
    (tmp_path / "log.csv").write_text('"a\nb",c\n')
    with pytest.raises(InputError, match=re.escape(r"has no column 'user'; it has 'a\nb', c")):
        next(read(str(tmp_path / "log.csv"), Csv(), ["user"], Rejections()))
    (tmp_path / "log.csv").write_text(HEADER)
    with pytest.raises(NoRowsError, match="log.csv has a header and no rows"):
        next(read(str(tmp_path / "log.csv"), Csv(), ["user"], Rejections()))


# Types

TYPES: list[pa.DataType] = [
    *(pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null()),
    *(pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(38, 0), pa.decimal256(60, 2)),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("ms"), pa.month_day_nano_interval()),
    *(pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Asia/Tokyo"), pa.timestamp("ms", "+02:00")),
    *(pa.list_(pa.int8()), pa.large_list(pa.string()), pa.list_(pa.float64(), 2), pa.list_(pa.list_(pa.int8()))),
    *(pa.list_(pa.timestamp("s")), pa.list_(pa.decimal256(60, 2)), pa.list_(pa.null())),
    *(pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8()), pa.uuid(), pa.json_()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.float64())),
]
ROLES: dict[str, dict[str, Any]] = {
    "id": {"categorical": ["x"]},
    "ids": {"categorical": [{"name": "x", "width": 2}]},
    "hashed": {"categorical": [{"name": "x", "hash": 9}]},
    "parts": {"categorical": [{"name": "x", "width": 2, "separator": "|"}]},
    "number": {"dense": ["x"]},
    "label": {"label": ["x"]},
    "mask": {"label": [{"name": "click", "mask": "x"}]},
    "group": {"group": "x"},
    "day": {"day": {"column": "x"}},
    "seconds": {"day": {"column": "x", "unit": "s"}},
    "written day": {"day": {"column": "x", "format": "%d.%m.%Y"}},
    "order": {"day": {"column": "date", "order": "x"}},
}


def tables(folder: Path, kind: pa.DataType) -> None:
    """Write a file without values of a type, and one with some, where arrow has a way to make them."""
    folder.mkdir()
    plain = pa.table({"date": ["2024-05-01"] * 2, "user": [1, 2], "price": [1.0, 2.0], "click": [0, 1]})
    pq.write_table(plain.append_column("x", pa.nulls(2, kind)), folder / "a.parquet")
    for values in ([0, 1], ["0", "1"], [b"0000", b"1111"], [[0, 1], [1, 0]], [["0"], ["1"]], [{"a": 1}, None]):
        try:
            column = pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, AttributeError):
            continue
        pq.write_table(plain.append_column("x", column), folder / "b.parquet")


@over("kind", {str(kind): kind for kind in TYPES})
def test_a_column_of_any_type_is_read_or_refused(kind: pa.DataType, tmp_path: Path):
    try:
        tables(tmp_path / "log", kind)
    except pa.ArrowNotImplementedError:
        pytest.skip("parquet has no such type")
    for i, (role, changes) in enumerate(ROLES.items()):
        try:
            report = prepare(source_of(tmp_path / "log", **changes), tmp_path / str(i), max_rejected=1.0)
        except InputError as error:
            assert re.search(r"parquet: column x (is of type|has lists)|has no rows to", str(error)), role  # noqa: PT017
        else:
            assert report.rows_in == report.rows_out + sum(report.rejected.values()) > 0


def test_no_thread_reads_on_once_a_file_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such a thread ended the process at its exit in some of the runs."""
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"a,b\n1,2\n")
        for _ in range(64):
            file.write(b"0" * (1 << 20))
    stopped: list[TextStream] = []
    stop = TextStream.stop
    monkeypatch.setattr(TextStream, "stop", lambda text: (stopped.append(text), stop(text)))
    with pytest.raises(InputError, match="a line is too long"):
        list(read(str(tmp_path / "bomb.csv.gz"), Csv(), ["a", "b"], Rejections()))
    assert [text.read(1 << 20) for text in stopped] == [b""]
