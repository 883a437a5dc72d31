"""Criteo's display advertising logs: the 24 days of the 1TB release, and the seven of the Kaggle challenge.

A row is an advertisement shown, and the one task whether it was clicked: 13 whole numbers, counts for the most part,
and 26 ids, all of undisclosed meaning. There is no user, so no group. Clicked and other rows were sampled at different
rates, so that the share of clicks is not that of the traffic.

The 1TB release has hundreds of millions of different ids, so all are hashed, by default to a million rows each. Its
files are its days. The challenge's ``train.txt`` and the CSVs made of it have no mark of a day: their rows are in the
order of time, and stretches of them stand for days. A CSV whose rows were shuffled, as some of those that are passed
on, has nothing to tell about time.
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
    """Return the log of a folder: all ``day_0`` to ``day_23`` that it has, else ``train.txt``, else its CSVs.

    Args:
        path: of the folder, or of one such file. Files may be packed (``day_0.gz``), and have a header that names the
            columns ``label``, ``I1`` and so on, or none and the 40 fields between tabs.
        hash_rows: of each id's table.
        rows_per_day: of the stretches that stand for days where there are none; by default a seventh of ``train.txt``.

    Raises:
        ValueError: if ``hash_rows`` is below 3 or ``rows_per_day`` below 1.
        InputError: if there is no such file, or one has other columns.
    """
    checks.positive("rows_per_day", rows_per_day)
    files, by_file = _files(path)
    layouts = {_layout(file): file for file in files}
    if len(layouts) > 1:
        raise InputError(f"{' and '.join(layouts.values())} are not written alike; expected one layout in all files")
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
    """Return a log's files in order, and whether each is a day."""
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
    """Return how a file is written, by its first line, and what its label is called."""
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
    """Return rows with their ids, 8 hexadecimal digits each, as numbers: text is hashed some 15 times slower."""
    return rows.with_columns(as_numbers(rows[name], base=16).alias(name) for name in IDS)
