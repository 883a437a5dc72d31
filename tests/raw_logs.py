"""Small logs before preparation: text and parquet files of a few rows, and a description that fits them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from surefoot.lab.data.prepared import MANIFEST, PreparedLog, day_path
from surefoot.lab.file_discovery import find_files
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.prepare import prepare
from surefoot.lab.ingest.source import Source

HEADER = "date,user,price,click"
ROWS = ("2024-05-01,u1,0.5,0", "2024-05-01,u2,1.5,1", "2024-05-02,u1,2.5,0", "2024-05-02,u3,3.5,1")
FILE = "\n".join((HEADER, *ROWS, "")).encode()
TABLE: dict[str, list[Any]] = {
    "date": ["2024-05-01", "2024-05-01", "2024-05-02", "2024-05-02"],
    "user": ["u1", "u2", "u1", "u3"],
    "price": [0.5, 1.5, 2.5, 3.5],
    "click": [0, 1, 0, 1],
}
AS_IT_IS: dict[str, Any] = {
    "day": {"column": "date"},
    "categorical": ["user"],
    "dense": ["price"],
    "label": ["click"],
}


def described(**changes: Any) -> Description:
    """Return the description of the small log, with changes."""
    return Description.model_validate(AS_IT_IS | changes)


def source_of(folder: Path | str, **changes: Any) -> Source:
    """Return the log in a folder, as the command line would."""
    return Source(described(**changes), find_files(str(folder)))


def write_days(folder: Path, days: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Write a parquet file for each day, of the columns given; ``date`` is added."""
    folder.mkdir(parents=True, exist_ok=True)
    for day, columns in days.items():
        pl.DataFrame(dict(columns)).with_columns(date=pl.lit(day)).write_parquet(folder / f"{day}.parquet")


def prepared_days(folder: Path, out: Path, last: int | None = None, **changes: Any) -> dict[str, pl.DataFrame]:
    """Prepare the first files of a folder; return the rows of all days."""
    source = source_of(folder, **changes)
    prepare(Source(source.description, source.files[:last]), out)
    return all_rows(out)


def day_rows(out: Path, day: str) -> pl.DataFrame:
    """Return the rows of a prepared day, as they are in its file."""
    return pl.read_parquet(day_path(out, day), hive_partitioning=False)


def all_rows(out: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of all prepared days, after a look that the folder is whole."""
    return {day: day_rows(out, day) for day in PreparedLog.open(out).days}


def rows_of(out: Path) -> pl.DataFrame:
    """Return all prepared rows, oldest first."""
    return pl.concat(all_rows(out).values())


def rejected_rows(out: Path) -> list[tuple[Any, ...]]:
    """Return what a preparation says of the rows that it left out: file, row, column, value, reason."""
    tables = [pl.read_parquet(part) for part in sorted((out / "rejected").glob("*.parquet"))]
    return [(Path(row[0]).name, *row[1:]) for table in tables for row in table.iter_rows()]


def nothing_is_left(out: Path) -> bool:
    """Return whether a refused preparation left no folder."""
    return not out.exists() and not out.with_name(f"{out.name}.partial").exists() and not (out / MANIFEST).exists()


RICH: dict[str, Any] = {
    "day": {"column": "date", "order": "t"},
    "categorical": [
        "user",
        {"name": "item", "min_count": 3},
        {"name": "tags", "separator": "|", "width": 3},
        {"name": "bucket", "column": "item", "hash": 50},
    ],
    "dense": [
        {"name": "price", "transform": "log1p", "missing": [-1.0]},
        {"name": "length", "clip": [0.0, 50.0]},
        {"name": "plain", "column": "length", "standardise": False},
    ],
    "label": [
        "click",
        {"name": "long", "column": "watched", "at_least": 30.0, "mask": "click", "optional": True},
        {"name": "watched", "kind": "regression", "optional": True, "judged": False},
    ],
    "group": "user",
}


def write_rich(folder: Path, *, days: int = 5, rows: int = 60, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Write a file for each day of a log with everything that can be described; return their rows."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for i in range(days):
        day = f"2024-05-{i + 1:02}"
        written[day] = _rich_day(generator, day, rows)
        if i % 2:
            written[day].write_parquet(folder / f"{day}.parquet")
        else:
            written[day].write_csv(folder / f"{day}.csv")
    return written


def _rich_day(generator: np.random.Generator, day: str, rows: int) -> pl.DataFrame:
    def some(values: list[Any]) -> list[Any]:
        return [None if generator.random() < 0.1 else value for value in values]

    tags = ["|".join(f"t{n}" for n in generator.geometric(0.2, size)) for size in generator.integers(0, 6, rows)]
    return pl.DataFrame(
        {
            "date": [day] * rows,
            "t": generator.integers(0, 1000, rows).tolist(),
            "user": some([f"u{n}" for n in generator.zipf(1.5, rows)]),
            "item": some([f"i{n}" for n in generator.geometric(0.05, rows)]),
            "tags": tags,
            "price": some([round(price, 3) for price in generator.exponential(9.0, rows).tolist()]),
            "length": generator.normal(20.0, 20.0, rows).round(3).tolist(),
            "click": generator.integers(0, 2, rows).tolist(),
            "watched": some(generator.exponential(40.0, rows).round(3).tolist()),
        }
    )
