"""The files of a study's folder, read as they were written or refused in a sentence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.files import read_checked

_EVENT = {"step": int, "end": int, "task": str, "verdict": str, "reason": str}


def parquet(
    path: Path, folder: Path, sums: dict[str, str], *, text: Sequence[str] = (), needed: Sequence[str]
) -> pl.DataFrame:
    """Return a table of results.

    Args:
        path: of the file.
        folder: the study's.
        sums: the checksums of the folder's files.
        text: columns that hold text; all others hold numbers.
        needed: columns that must be there.

    Raises:
        InputError: naming the file, and the column if one is missing or of another type.
    """
    content = read_checked(path, folder, sums)
    try:
        table = pl.read_parquet(content)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read: {reason}; expected a Parquet file that a study wrote") from None
    for name in needed:
        if name not in table.columns:
            raise InputError(f"{path} has no column {name!r}; expected the columns that a study writes")
    for name, kind in table.schema.items():
        fits = kind == pl.String if name in text else kind.is_numeric()
        if not (fits or kind == pl.Null):
            wanted = "text" if name in text else "numbers"
            raise InputError(f"{path}: column {name!r} is of type {kind}; expected {wanted}")
    return table


def divergences(path: Path, folder: Path, sums: dict[str, str]) -> list[dict[str, Any]]:
    """Return the divergences that a trial's journal tells of.

    Raises:
        InputError: naming the file, and the line that is none of a journal.
    """
    found = []
    for number, line in enumerate(read_checked(path, folder, sums).splitlines(), start=1):
        try:
            event = json.loads(line)
            if event["event"] == "divergence":
                found.append({key: kind(event[key]) for key, kind in _EVENT.items()})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}, cannot be read: {error!r}; expected a JSON object that a run wrote"
            ) from None
    return found
