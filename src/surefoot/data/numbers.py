"""A file's cells as numbers, and what is said of those that are none."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

_WORDS = {word: float(word.lower() == "true") for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


class Check(NamedTuple):
    """Rows that a column rejects."""

    column: str
    bad: pl.Expr
    reason: str


def number(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column as ``Float64``, null where it has no value or is no number."""
    value = pl.col(column)
    if frame.schema[column] != pl.String:
        return value.cast(pl.Float64)
    text = value.str.strip_chars()
    words = text.replace_strict(_WORDS, default=None, return_dtype=pl.Float64)
    return pl.coalesce(text.cast(pl.Float64, strict=False), words)


def number_checks(frame: pl.DataFrame, column: str) -> Iterator[Check]:
    """Yield what rejects cells that are no numbers; a column of numbers has none of them."""
    if frame.schema[column] == pl.String:
        given = pl.col(column).str.strip_chars() != ""
        yield Check(column, given & number(frame, column).is_null(), "expected a number, with a decimal point if any")
