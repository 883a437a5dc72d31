"""Text files that are malformed, or odd and valid, by name, and what becomes of each."""

import bz2
import gzip
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from raw_logs import FILE, HEADER, ROWS, TABLE


@dataclass(frozen=True)
class Case:
    """Files in a folder, and what becomes of them.

    Args:
        files: their bytes by name, or what makes the folder's content.
        says: parts of the sentence that refuses them; none: they are read.
        rows: that arrive.
        rejected: rows that do not, by number, each with the column, the value and a part of the reason.
        changes: of the description.
    """

    files: Mapping[str, bytes] | Callable[[Path], object]
    says: tuple[str, ...] = ()
    rows: int = 4
    rejected: Mapping[int, tuple[str, str, str]] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


def text(*lines: str, header: str = HEADER, end: str = "\n", encoding: str = "utf-8") -> dict[str, bytes]:
    return {"log.csv": end.join((header, *lines, "")).encode(encoding)}


def with_row(row: str, column: str = "", value: str = "", reason: str = "", **changes: Any) -> Case:
    """Return a case whose third row is another one: rejected, unless no reason is given."""
    rejected = {3: (column, value, reason)} if reason else {}
    return Case(text(*ROWS[:2], row, *ROWS[2:]), rows=5 - len(rejected), rejected=rejected, changes=changes)


def parquet(name: str = "log.parquet", **columns: Any) -> dict[str, bytes]:
    """Return a parquet file of the small log, with other columns in place; None: without the column."""
    table = {key: column for key, column in (TABLE | columns).items() if column is not None}
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink, compression="zstd", write_page_checksum=True)
    return {name: sink.getvalue()}


def packed(name: str, data: bytes = FILE) -> bytes:
    if name == "gzip":
        return gzip.compress(data)
    if name == "bz2":
        return bz2.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def flipped(data: bytes, at: float) -> bytes:
    place = int(len(data) * at)
    return data[:place] + bytes(255 - byte for byte in data[place : place + 8]) + data[place + 8 :]


LONG = 10_000_000  # bytes
LARGE = FILE + b"".join(b"2024-05-02,u%d,1,0\n" % (i * 7919) for i in range(5000))

TEXTS = {
    "as it should be": Case({"log.csv": FILE}),
    "empty file": Case({"log.csv": b""}, ("log.csv is empty",)),
    "header only": Case({"log.csv": HEADER.encode()}, ("has no rows to prepare",)),
    "header only, beside others": Case({"a.csv": FILE, "b.csv": HEADER.encode() + b"\n"}),
    "empty file, beside others": Case({"a.csv": FILE, "b.csv": b""}, ("b.csv is empty",)),
    "one empty line": Case({"log.csv": b"\n"}, ("log.csv", "empty line", "header")),
    "no header": Case({"log.csv": FILE.split(b"\n", 1)[1]}, ("no column 'user'", "u1", "is its first line a row?")),
    "a header where none is described": Case(
        {"log.csv": FILE},
        rejected={1: ("date", "date", "expected a day")},
        changes={"csv": {"columns": HEADER.split(",")}},
    ),
    "fewer names than cells": Case(
        {"log.csv": FILE.split(b"\n", 1)[1]},
        ("log.csv row 1: '2024-05-01,u1,0.5,0'", "expected 3 cells, found 4", "4 of 4 rows"),
        changes={"csv": {"columns": ["date", "user", "click"]}, "dense": []},
    ),
    "duplicate header": Case(text(*ROWS, header="date,user,user,click"), ("log.csv has column 'user' twice",)),
    "missing column": Case(text(*ROWS, header="date,user,cost,click"), ("log.csv has no column 'price'", "cost")),
    "missing column in the second file": Case(
        {"a.csv": FILE, "b.csv": FILE.replace(b"price", b"cost")}, ("b.csv has no column 'price'",)
    ),
    "columns in another order in the second file": Case(
        {"a.csv": FILE, "b.csv": b"click,note,price,date,user\n1,x,2.5,2024-05-02,u1\n"}, rows=5
    ),
    "spaces in header names": Case(text(*ROWS, header=" date, user ,price , click")),
    "wrong separator": Case(
        {"log.csv": FILE.replace(b",", b";")}, ("no column 'user'", "is the separator ';' and not ','?")
    ),
    "tabs in a file named .csv": Case(
        {"log.csv": FILE.replace(b",", b"\t")}, ("no column 'user'", "is the separator '\\t' and not ','?")
    ),
    "tabs, described": Case({"log.tsv": FILE.replace(b",", b"\t")}, changes={"csv": {"separator": "\t"}}),
    "decimal commas": Case(
        {"log.csv": FILE.replace(b",", b";").replace(b".", b",")},
        ("log.csv row 1, column price: '0,5'", "expected a number, with a decimal point"),
        changes={"csv": {"separator": ";"}},
    ),
    "a separator at each line's end": Case(text(*(f"{row}," for row in ROWS), header=f"{HEADER},")),
    "a separator at each line's end but the header's": Case(
        text(*(f"{row}," for row in ROWS)), ("row 1: '2024-05-01,u1,0.5,0,'", "expected 4 cells, found 5")
    ),
    "too few cells": with_row("2024-05-01,u1,0.5", "", "2024-05-01,u1,0.5", "expected 4 cells, found 3"),
    "too many cells": with_row("2024-05-01,u1,0,5,1", "", "2024-05-01,u1,0,5,1", "expected 4 cells, found 5"),
    "CRLF": Case(text(*ROWS, end="\r\n")),
    "CR": Case(text(*ROWS, end="\r")),
    "no line end at the end": Case({"log.csv": FILE.rstrip()}),
    "blank lines in between": Case({"log.csv": FILE.replace(b"\n", b"\n\n")}),
    "a line of spaces": with_row("   ", "", "   ", "expected 4 cells, found 1"),
    "BOM": Case(text(*ROWS, encoding="utf-8-sig")),
    "BOM in the second file": Case({"a.csv": FILE, "b.csv": b"\xef\xbb\xbf" + FILE}, rows=8),
    "UTF-16": Case(text(*ROWS, encoding="utf-16"), ("log.csv is UTF-16 by its first bytes", "csv.encoding")),
    "UTF-16, described": Case(text(*ROWS, encoding="utf-16"), changes={"csv": {"encoding": "utf-16"}}),
    "UTF-16 without its mark": Case(text(*ROWS, encoding="utf-16-le"), ("log.csv has NUL bytes in its first line",)),
    "latin-1": Case(
        {"log.csv": FILE.replace(b"u2", b"Ren\xe9")},
        rows=3,
        rejected={2: ("user", r"Ren\xe9", "expected text in utf-8")},
    ),
    "latin-1, described": Case({"log.csv": FILE.replace(b"u2", b"Ren\xe9")}, changes={"csv": {"encoding": "latin-1"}}),
    "cp1252 with a byte that it lacks": Case(
        {"log.csv": FILE.replace(b"u2", b"Ren\x81")},
        rows=3,
        rejected={2: ("user", r"Ren\x81", "expected text in cp1252")},
        changes={"csv": {"encoding": "cp1252"}},
    ),
    "latin-1 in a row of three cells": Case(
        {"log.csv": FILE.replace(b"u2,1.5", b"Ren\xe9")},
        rows=3,
        rejected={2: ("", r"2024-05-01,Ren\xe9,1", "expected 4 cells, found 3")},
    ),
    "emoji": with_row("2024-05-01,\N{GRINNING FACE}\u200d\N{HEAVY BLACK HEART},0.5,1"),
    "NUL in an id": with_row("2024-05-01,u\x001,0.5,1"),
    "NUL in a number": with_row("2024-05-01,u1,0\x005,1", "price", "0\x005", "expected a number"),
    "a block of NUL": with_row("\0" * 512, "", "\0" * 77 + "...", "expected 4 cells, found 1"),
    "quoted cells": Case({"log.csv": b'"date","user","price","click"\n"2024-05-01","u""1","0.5","0"\n'}, rows=1),
    "quoted separators and line ends": with_row('2024-05-01,"u,1\nand\r\n""more""",0.5,1'),
    "a quote within a cell": with_row('2024-05-01,5" wide,0.5,1'),
    "unclosed quote": Case(text(ROWS[0], '2024-05-01,"u2,1.5,1', *ROWS[2:]), ("log.csv line 3", 'begins with "')),
    "unclosed quotes that close each other": Case(
        text(ROWS[0], '2024-05-01,"u2,1.5,1', ROWS[2], '2024-05-02,"u3,3.5,1', *ROWS), ("log.csv line 3", "csv.quote")
    ),
    "quotes that are text": Case(text(ROWS[0], '2024-05-01,"u2,1.5,1', *ROWS[2:]), changes={"csv": {"quote": ""}}),
    "a line of 10 MB": Case(
        {"log.csv": FILE + b"2024-05-02,u1,1," * (LONG // 16) + b"\n"},
        rejected={5: ("", ("2024-05-02,u1,1," * 5)[:77] + "...", "expected 4 cells, found 1875001")},
    ),
    "a line of 20 MB": Case(
        {"log.csv": FILE + b"2024-05-02,u1,1," * (LONG // 8) + b"\n"}, ("log.csv cannot be read after row", "too long")
    ),
    "a cell of 10 MB": Case(
        {"log.csv": FILE + b"2024-05-02," + b"u" * LONG + b",1,0\n"},
        rejected={5: ("user", "u" * 77 + "...", "at most 4096 bytes")},
    ),
    "a cell of 20 MB": Case(
        {"log.csv": FILE + b"2024-05-02," + b"u" * 2 * LONG + b",1,0\n"},
        ("log.csv cannot be read after row", "too long"),
    ),
    "a quoted cell of 20 MB": Case(
        {"log.csv": FILE + b'2024-05-02,"' + b"u\n" * LONG + b'",1,0\n'}, ("log.csv line 6", "does not end")
    ),
    "a header of 10 MB": Case({"log.csv": b"u" * LONG + b"\n" + FILE}, ("log.csv has no header in its first line",)),
    "an id of 5 kB": with_row(f"2024-05-01,{'u' * 5000},0.5,1", "user", "u" * 77 + "...", "at most 4096 bytes"),
}

CELLS = {
    "1e400": Case(text(*ROWS, "2024-05-01,u1,1e400,1"), rows=5),  # missing, and counted
    "1_000": with_row("2024-05-01,u1,1_000,1", "price", "1_000", "expected a number"),
    "0x1F": with_row("2024-05-01,u1,0x1F,1", "price", "0x1F", "expected a number"),
    "1 234": with_row("2024-05-01,u1,1 234,1", "price", "1 234", "expected a number"),
    "$5": with_row("2024-05-01,u1,$5,1", "price", "$5", "expected a number"),
    "spaces around a number": with_row("2024-05-01,u1,  1.5 , 1 "),
    "no price": with_row("2024-05-01,u1,,1"),
    "beyond 64 bits": with_row("2024-05-01,99999999999999999999,0.5,1"),
    "mixed types": with_row("2024-05-01,17,many,1", "price", "many", "expected a number"),
    "words as labels": with_row("2024-05-01,u1,0.5,True"),
    "other words as labels": with_row("2024-05-01,u1,0.5,yes", "click", "yes", "expected a number"),
    "label 2": with_row("2024-05-01,u1,0.5,2", "click", "2", "expected 0 or 1"),
    "label -1": with_row("2024-05-01,u1,0.5,-1", "click", "-1", "expected 0 or 1"),
    "label 0.5": with_row("2024-05-01,u1,0.5,0.5", "click", "0.5", "expected 0 or 1"),
    "no label": with_row("2024-05-01,u1,0.5,NaN", "click", "", "optional = true"),
    "infinite regression": with_row(
        "2024-05-01,u1,0.5,1e39", "click", "1e39", "finite", label=[{"name": "click", "kind": "regression"}]
    ),
    "no day": with_row(",u1,0.5,1", "date", "", "expected a day from 1990-01-01"),
    "2024-02-30": with_row("2024-02-30,u1,0.5,1", "date", "2024-02-30", "expected a day"),
    "20241301": with_row("20241301,u1,0.5,1", "date", "20241301", "expected a day"),
    "year 9999": with_row("9999-01-01,u1,0.5,1", "date", "9999-01-01", "expected a day"),
    "year 1970": with_row("1970-01-01,u1,0.5,1", "date", "1970-01-01", "expected a day"),
    "25 o'clock": with_row("2024-05-01 25:00:00,u1,0.5,1", "date", "2024-05-01 25:00:00", "expected a day"),
    "a day and more": with_row("2024-05-01?,u1,0.5,1", "date", "2024-05-01?", "expected a day"),
    "seconds without a unit": Case(
        parquet(date=[1714521600] * 4), ("log.parquet row 1, column date: '1714521600'", "day.unit")
    ),
    "ms as seconds": Case(
        parquet(date=[1714521600000] * 4),
        ("row 1, column date: '1714521600000'", "numbers in s since 1970"),
        changes={"day": {"column": "date", "unit": "s"}},
    ),
    "seconds as ms": Case(
        parquet(date=[1714521600] * 4),
        ("row 1, column date: '1714521600'", "numbers in ms since 1970"),
        changes={"day": {"column": "date", "unit": "ms"}},
    ),
}

PACKED = {
    **{f"{name}": Case({f"log.csv.{end}": packed(name)}) for name, end in (("gzip", "gz"), ("bz2", "bz2"))},
    "zst": Case({"log.csv.zst": packed("zstd")}),
    "two gzips in one": Case({"log.csv.gz": packed("gzip") + packed("gzip", FILE.split(b"\n", 1)[1])}, rows=8),
    "gzip that is not named so": Case({"log.csv": packed("gzip")}),
    "gzip cut short": Case(
        {"log.csv.gz": packed("gzip", LARGE)[:-2000]}, ("log.csv.gz cannot be read", "is incomplete")
    ),
    "gzip without its end": Case({"log.csv.gz": packed("gzip")[:-4]}, ("log.csv.gz cannot be read", "is incomplete")),
    "gzip with flipped bytes": Case(
        {"log.csv.gz": flipped(packed("gzip", LARGE), 0.5)}, ("log.csv.gz cannot be read", "damaged")
    ),
    "text named .gz": Case({"log.csv.gz": FILE}, ("log.csv.gz cannot be read", "it is named like a compressed file")),
    "zip named .gz": Case(
        {"log.csv.gz": b"PK\x03\x04" + FILE}, ("log.csv.gz cannot be read", "it is named like a compressed file")
    ),
    "zst cut short": Case({"log.csv.zst": packed("zstd", LARGE)[:-9]}, ("log.csv.zst cannot be read", "is incomplete")),
    "text named .zst": Case(
        {"log.csv.zst": FILE}, ("log.csv.zst cannot be read", "it is named like a compressed file")
    ),
    "text named .bz2": Case(
        {"log.csv.bz2": FILE}, ("log.csv.bz2 cannot be read", "it is named like a compressed file")
    ),
}
