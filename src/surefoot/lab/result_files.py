"""Reads and writes the results of a study: ``results.parquet``, a row for each trial, and ``summary.json``.

The summary has the selected settings and the table of methods. The steps and days of a trial are in its folder under
``trials/``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from surefoot.errors import InputError
from surefoot.files import SUMS, read_checked, read_sums, write_sums, write_whole
from surefoot.lab.results import Row, Study, Summary

_NOT_SUMMED = (SUMS, "report.html", "study.lock")
_TEXT = ("trial", "model", "method", "until", "verdict", "reason", "scored_day")  # columns of results.parquet
_PLACE = ("trial", "model", "method", "multiple", "rate", "value", "seed", "until")
_RESULT = ("verdict", "onset", "steps")
_FINISHED = "expected the folder of a finished study"


def write(out: Path, study: Study) -> None:
    """Write ``results.parquet``, ``summary.json`` and the checksums of all files into the study's folder.

    Raises:
        InputError: naming the file, if one cannot be written; a file is complete or does not exist.
    """
    flat = [{key: getattr(row, key) for key in _PLACE} | row.result for row in study.rows]
    table = BytesIO()
    pl.DataFrame(flat, infer_schema_length=None).write_parquet(table)
    write_whole(out / "results.parquet", table.getvalue())
    document = {**asdict(study.summary), "table": [line.words() for line in study.table()]}
    write_whole(out / "summary.json", json.dumps(_without_nan(document), indent=1, allow_nan=False))
    write_sums(out, [path for path in out.rglob("*") if path.is_file() and path.name not in _NOT_SUMMED])


def read(folder: Path) -> tuple[Study, dict[str, str]]:
    """Return the results of a study, and the checksums of its folder's files.

    Raises:
        InputError: naming the file, if one is missing or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {_FINISHED}")
    for name in ("summary.json", "results.parquet", SUMS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; {_FINISHED}")
    sums = read_sums(folder)
    summary = _summary(folder / "summary.json", read_checked(folder / "summary.json", folder, sums))
    path = folder / "results.parquet"
    needed = (*_PLACE, *_RESULT, *(task.metric for task in summary.tasks))
    table = read_table(path, read_checked(path, folder, sums), text=_TEXT, needed=needed)
    rows = [_row(row) for row in table.iter_rows(named=True)]
    for row in rows:
        seeds = summary.seeds if row.until == "final" else summary.search_seeds
        if row.seed not in seeds:
            raise InputError(f"{path} has a trial of seed {row.seed}, {row.trial}; expected one of {seeds}")
    return Study(summary, rows), sums


def read_table(path: Path, content: bytes, *, text: Sequence[str] = (), needed: Sequence[str]) -> pl.DataFrame:
    """Return a table of results.

    Args:
        path: path of the file, for messages.
        content: content of the file.
        text: columns of text; all others must be numbers.
        needed: columns that must exist.

    Raises:
        InputError: naming the file, and the column if one is missing or of another type.
    """
    try:
        table = pl.read_parquet(content)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read: {reason}; expected a Parquet file that surefoot wrote") from None
    for name in needed:
        if name not in table.columns:
            raise InputError(f"{path} has no column {name!r}; expected the columns that surefoot writes")
    for name, kind in table.schema.items():
        fits = kind == pl.String if name in text else kind.is_numeric()
        if not (fits or kind == pl.Null):
            wanted = "text" if name in text else "numbers"
            raise InputError(f"{path}: column {name!r} is of type {kind}; expected {wanted}")
    return table


def _summary(path: Path, content: bytes) -> Summary:
    wanted = "expected the summary that a study writes"
    try:
        summary = TypeAdapter(Summary).validate_python(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the document"
        problem = f"has no {key!r}" if first["type"] == "missing" else f"cannot be read: {key}: {first['msg']}"
        raise InputError(f"{path} {problem}; {wanted}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; {wanted}") from None
    if len(summary.days) < 2:
        raise InputError(f"{path} has {len(summary.days)} days; expected at least two")
    return summary


def _row(row: Mapping[str, Any]) -> Row:
    place = {key: row[key] for key in _PLACE}
    return Row(**place, result={key: value for key, value in row.items() if key not in place})


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
