"""Reads a file's cells as numbers; names the cells that are not numbers."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import polars as pl
import polars.selectors as cs

_WORDS = {word: float(word.lower() == "true") for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


class Check(NamedTuple):
    """A check of a column: the rows where ``bad`` is true are rejected, with the reason."""

    column: str
    bad: pl.Expr
    reason: str


def column_of(name: str) -> pl.Expr:
    """Return the column with exactly this name; ``pl.col`` would read ``*`` and ``^...$`` as patterns."""
    is_pattern = name == "*" or (name.startswith("^") and name.endswith("$"))
    return cs.by_name(name).as_expr() if is_pattern else pl.col(name)


def with_numbers(frame: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """Add the numbers of text columns to the frame, so that they are parsed once; ``number`` returns them."""
    text = [column for column in dict.fromkeys(columns) if frame.schema[column] == pl.String]
    return frame.with_columns(_read(frame[column]).alias(_parsed_name(column)) for column in text)


def number(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column as ``Float64``; null for a missing value or text that is not a number."""
    return column_of(_parsed_name(column)) if frame.schema[column] == pl.String else column_of(column).cast(pl.Float64)


def number_checks(frame: pl.DataFrame, column: str) -> Iterator[Check]:
    """Yield the check that rejects text that is not a number; none for a numeric column."""
    if frame.schema[column] == pl.String:
        bad = column_of(_parsed_name(column)).is_null() & (column_of(column).str.strip_chars() != "")
        yield Check(column, bad, "expected a number, with a decimal point if any")


def _read(text: pl.Series) -> pl.Series:
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    plain = text.str.strip_chars()
    words = plain.replace_strict(_WORDS, default=None, return_dtype=pl.Float64)
    return plain.cast(pl.Float64, strict=False).fill_null(words)


def _parsed_name(column: str) -> str:
    return f"\0number {column}"  # never a column of a file, since a description refuses names with NUL
