"""Criteo's display advertising logs: the 24 days of the 1TB release, and the seven days of the Kaggle challenge.

A row is an impression of an advertisement; the only task is the click. There are 13 whole numbers, mostly counts, and
26 ids, all of undisclosed meaning. There is no user, so there is no group. Clicked and other rows were sampled at
different rates, so the share of clicks is not that of the traffic.

The 1TB release has hundreds of millions of ids, so all ids are hashed, by default to a million rows each. Each of its
files is a day. The challenge's ``train.txt`` and the CSVs made of it are in the order of time but have no days: they
get pseudo-days of equal numbers of rows. Some published CSVs are shuffled; their pseudo-days mean nothing.
"""

import re
from pathlib import PurePosixPath

import polars as pl

from surefoot import checks
from surefoot.errors import InputError
from surefoot.lab.file_discovery import find_files, stem
from surefoot.lab.ingest.description import CategoricalColumn, Csv, Day, DenseColumn, Description, LabelColumn
from surefoot.lab.ingest.reader import columns_of
from surefoot.lab.ingest.source import Source, as_numbers

NOTICE = (
    "Criteo's 1TB click logs are published under CC BY-NC-SA 4.0: name Criteo, share alike, no commercial use. The "
    "challenge's log comes under terms of its own."
)

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
IDS = tuple(f"C{i}" for i in range(1, 27))
FIELDS = ("label", *NUMBERS, *IDS)


def source(path: str, *, hash_rows: int = 1_000_000, rows_per_day: int = 6_548_660) -> Source:
    """Return the log of a folder: its files ``day_0`` to ``day_23``, or else ``train.txt``, or else its CSVs.

    Args:
        path: the folder, or one of these files. Files may be compressed (``day_0.gz``). They have a header with
            ``label``, ``I1`` and so on, or 40 fields separated by tabs and no header.
        hash_rows: rows of each id's embedding table.
        rows_per_day: rows of a pseudo-day, for files without days; by default a seventh of ``train.txt``.

    Raises:
        ValueError: if ``hash_rows`` is below 3 or ``rows_per_day`` below 1.
        InputError: if there is no such file, or one has other columns.
    """
    checks.positive("rows_per_day", rows_per_day)
    files, by_file = _files(path)
    layouts = {_layout(file): file for file in files}
    if len(layouts) > 1:
        raise InputError(f"{' and '.join(layouts.values())} have different formats; expected one format in all files")
    csv, label = next(iter(layouts))
    description = Description(
        name="criteo",
        day=Day(file=True) if by_file else Day(rows=rows_per_day),
        categorical=tuple(CategoricalColumn(name=name, hash=hash_rows) for name in IDS),
        dense=tuple(DenseColumn(name=name, transform="log1p") for name in NUMBERS),
        label=(LabelColumn(name="click", column=label),),
        csv=csv,
        notice=NOTICE,
    )
    return Source(description, files, shape=_shape)


def _files(path: str) -> tuple[tuple[str, ...], bool]:
    """Return the files in order, and whether each file is a day."""
    found = find_files(path)
    days = tuple(file for file in found if re.fullmatch(r"day_\d+", stem(file)))
    if days:
        twice = [file for file in days if [stem(day) for day in days].count(stem(file)) > 1]
        if twice:
            raise InputError(f"{path} has {' and '.join(twice)}; expected one file for a day")
        return days, True
    if found == (path,):
        return found, False
    train = [file for file in found if PurePosixPath(file).name in ("train.txt", "train.txt.gz")]
    tables = tuple(file for file in found if file.endswith((".csv", ".csv.gz")))
    if not train and not tables:
        raise InputError(f"{path} has no log of Criteo; expected day_0, day_1 and so on, train.txt or a CSV")
    return (train[0],) if train else tables, False


def _layout(file: str) -> tuple[Csv, str]:
    """Return the format of a file and the name of its label, from its first line."""
    line = columns_of(file, Csv())
    between_tabs = "\t" in line[0]
    cells = line[0].split("\t") if between_tabs else line
    label = next((cell for cell in cells if cell.lower() == "label"), None)
    if label is None:
        if len(cells) == len(FIELDS) and between_tabs:
            return Csv(separator="\t", columns=FIELDS), "label"
        raise InputError(
            f"{file} has {len(cells)} {'cells between tabs' if between_tabs else 'columns'} in its first line, none of "
            f"them label; expected a header, label, I1 to I13 and C1 to C26, or these {len(FIELDS)} between tabs"
        )
    if missing := [name for name in (*NUMBERS, *IDS) if name not in cells]:
        raise InputError(f"{file} has no column {missing[0]!r}; expected label, I1 to I13 and C1 to C26")
    return Csv(separator="\t" if between_tabs else ","), label


def _shape(rows: pl.DataFrame) -> pl.DataFrame:
    """Convert ids, 8 hexadecimal digits each, to numbers, since hashing text is about 15 times slower."""
    return rows.with_columns(as_numbers(rows[name], base=16).alias(name) for name in IDS)
