"""Reads a file's cells as numbers; names the cells that are not numbers."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import polars as pl
import polars.selectors as cs

_WORDS = {word: float(word.lower() == "true") for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


class Check(NamedTuple):
    """Rows that a column rejects."""

    column: str
    bad: pl.Expr
    reason: str


def column_of(name: str) -> pl.Expr:
    """Return the column of exactly this name: ``pl.col`` takes ``*`` and ``^...$`` for patterns."""
    is_pattern = name == "*" or (name.startswith("^") and name.endswith("$"))
    return cs.by_name(name).as_expr() if is_pattern else pl.col(name)


def with_numbers(frame: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """Read the numbers in columns of text, once for all that looks at them; ``number`` finds them."""
    text = [column for column in dict.fromkeys(columns) if frame.schema[column] == pl.String]
    return frame.with_columns(_read(frame[column]).alias(_place(column)) for column in text)


def number(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column as ``Float64``, null where it has no value or is no number."""
    return column_of(_place(column)) if frame.schema[column] == pl.String else column_of(column).cast(pl.Float64)


def number_checks(frame: pl.DataFrame, column: str) -> Iterator[Check]:
    """Yield what rejects cells that are no numbers; a column of numbers has none of them."""
    if frame.schema[column] == pl.String:
        none = column_of(_place(column)).is_null() & (column_of(column).str.strip_chars() != "")
        yield Check(column, none, "expected a number, with a decimal point if any")


def _read(text: pl.Series) -> pl.Series:
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    plain = text.str.strip_chars()
    words = plain.replace_strict(_WORDS, default=None, return_dtype=pl.Float64)
    return plain.cast(pl.Float64, strict=False).fill_null(words)


def _place(column: str) -> str:
    return f"\0number {column}"  # no column of a file: a description refuses names with NUL
