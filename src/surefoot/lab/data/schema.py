"""A log in memory: its columns, its days, and the checks of its values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot import checks
from surefoot.errors import InputError
from surefoot.tasks import TaskKind


@dataclass(frozen=True)
class Task:
    """One label to predict.

    Args:
        name: name of the label column.
        kind: binary or regression.
        weight: weight of its loss in the sum over tasks.
        judged: whether a run's verdict and the selection of settings use the task. A task with too few positives a day
            for a reliable score is trained and reported, but should not be judged.
        masked: whether some rows do not count for the task; their label is NaN.
    """

    name: str
    kind: TaskKind
    weight: float = 1.0
    judged: bool = True
    masked: bool = False


@dataclass(frozen=True)
class Categorical:
    """One id column: ``rows`` values, 0 to rows - 1.

    A column with a ``width`` above 1 has up to ``width`` values a row. They are in ``width`` adjacent columns of the
    tensor; 0 fills the rest.
    """

    name: str
    rows: int
    width: int = 1


@dataclass(frozen=True)
class Schema:
    """The columns of a log, in the order of the tensors' second axis.

    Args:
        categorical: the id columns; one with a ``width`` takes ``width`` columns of the tensor.
        dense: names of the real-valued features.
        tasks: the labels.
        group: the column of the grouped AUC, which compares rows of the same group only; usually the user. None: no
            grouped AUC.
    """

    categorical: tuple[Categorical, ...]
    dense: tuple[str, ...]
    tasks: tuple[Task, ...]
    group: str | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in a batch."""
        return 4 * (sum(column.width for column in self.categorical) + len(self.dense) + len(self.tasks))


class Batch(NamedTuple):
    """Some rows of a log."""

    categorical: Tensor  # (rows, sum of the widths of the categorical columns) int32
    dense: Tensor  # (rows, dense columns) float32
    labels: Tensor  # (rows, tasks) float32

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


class Partitions(NamedTuple):
    """The partitions of a log."""

    days: tuple[str, ...]  # a label for each partition
    starts: tuple[int, ...]  # (partitions + 1) row numbers


def repartitioned(
    labels: Sequence[str], starts: Sequence[int], *, days: int | None = None, rows: int | None = None
) -> Partitions:
    """Return wider partitions, of ``days`` present partitions each or of ``rows`` rows each.

    The oldest partition also takes the remainder, so that all later ones, which are scored, are full.

    Raises:
        ValueError: unless one of ``days`` and ``rows`` is given and above 0.

    >>> repartitioned(["mon", "tue", "wed"], [0, 4, 8, 12], rows=5)
    Partitions(days=('rows 0 to 6', 'rows 7 to 11'), starts=(0, 7, 12))
    """
    if (days is None) == (rows is None):
        raise ValueError(f"days is {days} and rows is {rows}; expected one of them")
    size = days if days is not None else rows
    assert size is not None
    checks.positive("rows" if days is None else "days", size)
    oldest, end = (0, len(labels)) if days is not None else (starts[0], starts[-1])
    count = max(1, (end - oldest) // size)
    edges = (oldest, *(end - later * size for later in range(count - 1, -1, -1)))
    if days is None:
        return Partitions(tuple(f"rows {first} to {stop - 1}" for first, stop in pairwise(edges)), edges)
    named = tuple(
        labels[first] if stop == first + 1 else f"{labels[first]} to {labels[stop - 1]}"
        for first, stop in pairwise(edges)
    )
    return Partitions(named, tuple(starts[edge] for edge in edges))


@dataclass(frozen=True)
class Log:
    """A log in memory: rows sorted by day.

    Args:
        name: name of the data set.
        schema: columns of the log.
        days: a label for each day partition, oldest first. A calendar day without rows is no partition.
        starts: (days + 1) row numbers; day i is rows ``starts[i]`` to ``starts[i + 1] - 1``.
        rows: all rows.
        notice: licence terms that every report must show.
        groups: (rows,) integers, equal for rows of the same group; None if the schema has no group.

    Raises:
        InputError: if a day has no rows, a value is not finite, an id is out of range or a binary label is neither
            0 nor 1.
    """

    name: str
    schema: Schema
    days: tuple[str, ...]
    starts: tuple[int, ...]
    rows: Batch
    notice: str = ""
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.categorical.is_floating_point():
            raise InputError(f"{self.name}: ids are of type {self.rows.categorical.dtype}; expected integers")
        for day, (start, stop) in zip(self.days, pairwise(self.starts), strict=True):
            if start == stop:
                raise InputError(f"{self.name}: day {day} has no rows; expected at least one in every day partition")
        names = [task.name for task in self.schema.tasks]
        self._refuse(~self.rows.dense.isfinite(), list(self.schema.dense), "non-finite values", "finite numbers")
        masked = (
            torch.tensor([task.masked for task in self.schema.tasks], dtype=torch.bool, device="cpu")
            & self.rows.labels.isnan()
        )
        self._refuse(~(self.rows.labels.isfinite() | masked), names, "non-finite labels", "finite numbers")
        per_column = [column for column in self.schema.categorical for _ in range(column.width)]
        sizes = torch.tensor([column.rows for column in per_column], dtype=torch.int64, device="cpu")
        outside = (self.rows.categorical < 0) | (self.rows.categorical >= sizes)
        columns = [column.name for column in per_column]
        self._refuse(outside, columns, "ids out of range", "ids from 0 to the column's rows - 1")
        binary = torch.tensor(
            [task.kind is TaskKind.BINARY for task in self.schema.tasks], dtype=torch.bool, device="cpu"
        )
        odd = binary & ~masked & (self.rows.labels != 0) & (self.rows.labels != 1)
        self._refuse(odd, names, "labels other than 0 and 1", "0 or 1 for a binary task")

    def _refuse(self, wrong: Tensor, columns: list[str], what: str, expected: str) -> None:
        """Raise for the first column and day in which ``wrong``, (rows, columns) bool, holds."""
        if not wrong.any():
            return
        column = int(wrong.any(dim=0).nonzero()[0])
        row = int(wrong[:, column].nonzero()[0])
        day = sum(start <= row for start in self.starts) - 1
        count = int(wrong[self.starts[day] : self.starts[day + 1], column].sum())
        raise InputError(
            f"{self.name}: column {columns[column]} has {count} {what} on day {self.days[day]} "
            f"({int(wrong[:, column].sum())} on all days); expected {expected}"
        )

    def window(self, first: int, last: int) -> Batch:
        """Return all rows of the days ``first`` to ``last``, both included, as views."""
        rows = slice(self.starts[first], self.starts[last + 1])
        return Batch(*(part[rows] for part in self.rows))

    def day(self, index: int) -> Batch:
        """Return all rows of one day, as views."""
        return self.window(index, index)

    def pieces(self, day: int, rows: int) -> Iterator[Batch]:
        """Yield all rows of one day, in order, at most ``rows`` at a time, as views."""
        yield from map(Batch, *(part.split(rows) for part in self.day(day)))

    def take(self, rows: Tensor) -> Batch:
        """Return the rows with the given numbers, (rows,) int64, in the given order."""
        return Batch(*(part.index_select(0, rows) for part in self.rows))

    def groups_of(self, day: int) -> Tensor | None:
        """Return the groups of one day's rows, (rows,) integers; None if the schema has none."""
        return None if self.groups is None else self.groups[self.starts[day] : self.starts[day + 1]]

    def partitions(self, *, days: int | None = None, rows: int | None = None) -> "Log":
        """Return the same rows in wider partitions, made by ``repartitioned``.

        A window's width counts partitions; wider partitions give a window whose width and stride are weeks or rows.

        Raises:
            ValueError: unless one of ``days`` and ``rows`` is given and above 0.
        """
        cut = repartitioned(self.days, self.starts, days=days, rows=rows)
        return replace(self, days=cut.days, starts=cut.starts)
