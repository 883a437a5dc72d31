"""A data set as it comes: its files, and how their rows become those of its description."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from surefoot.data.description import Description


@dataclass(frozen=True)
class Source:
    """What ``prepare`` converts.

    Args:
        description: of the rows that ``shape`` returns.
        files: local paths or URLs, in the order in which they are read.
        columns: read from the files; by default those of the description.
        shape: from a piece of a file, as ``reader.read`` yields it, to the description's columns, ``__row__`` kept: to
            join side tables and to compute columns. It neither adds, drops nor moves rows.
    """

    description: Description
    files: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    shape: Callable[[pl.DataFrame], pl.DataFrame] = lambda rows: rows
