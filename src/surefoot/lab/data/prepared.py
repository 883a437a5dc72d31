"""Reads and writes a prepared log: a folder with a parquet file for each day and a manifest, written last.

::

    OUT/prepared.json                     the manifest: name, schema, days and their numbers of rows
    OUT/day=2022-04-08/rows.parquet       a column for each feature and label, in row groups of equal size
"""

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from pyarrow import fs
from torch import Tensor

from surefoot import checks
from surefoot.errors import InputError
from surefoot.files import parse_json
from surefoot.lab.data.dayfile import GROUP, ROW_GROUP, DayFile, StoredDay, columns_of, empty, fill
from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task, repartitioned
from surefoot.lab.file_discovery import input_errors, locate
from surefoot.tasks import TaskKind

MANIFEST = "prepared.json"
_VERSION = 1


def day_path(folder: Path | str, day: str) -> str:
    """Return the path of a day's file in a prepared folder."""
    return f"{folder}/day={day}/rows.parquet"


def write_manifest(
    folder: Path,
    *,
    name: str,
    schema: Schema,
    days: Mapping[str, int],
    notice: str = "",
    row_group: int = ROW_GROUP,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest; a folder with the days' files is a prepared log only with it.

    Args:
        folder: folder of the log.
        name: name of the data set.
        schema: columns of the log.
        days: number of rows of each day, oldest first.
        notice: licence terms that every report must show.
        row_group: rows in each row group of the files; the last one of a file may have fewer.
        more: further keys of the manifest, as JSON values.
    """
    tasks = [{**vars(task), "kind": task.kind.value} for task in schema.tasks]
    columns = {
        "categorical": [vars(column) for column in schema.categorical],
        "dense": schema.dense,
        "tasks": tasks,
        "group": schema.group,
    }
    manifest = {
        **(more or {}),
        "version": _VERSION,
        "name": name,
        "notice": notice,
        "schema": columns,
        "row_group": row_group,
        "days": [{"day": day, "rows": rows} for day, rows in days.items()],
    }
    draft = folder / f".{MANIFEST}.draft"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / MANIFEST)


def write(log: Log, folder: Path, *, row_group: int = ROW_GROUP) -> None:
    """Write a log in memory as a prepared log; it replaces a log that is in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for i, day in enumerate(log.days):
        with DayFile(day_path(folder, day), log.schema, row_group=row_group) as file:
            file.write(_frame(log, i))
    rows = dict(zip(log.days, (stop - start for start, stop in pairwise(log.starts)), strict=True))
    write_manifest(folder, name=log.name, schema=log.schema, days=rows, notice=log.notice, row_group=row_group)


def _frame(log: Log, day: int) -> pl.DataFrame:
    rows, groups, at = log.day(day), log.groups_of(day), 0
    columns: dict[str, np.ndarray] = {}
    for column in log.schema.categorical:
        ids = rows.categorical[:, at : at + column.width].to(torch.int32).numpy()
        columns[column.name] = ids[:, 0] if column.width == 1 else np.ascontiguousarray(ids)
        at += column.width
    columns |= {name: rows.dense[:, i].numpy() for i, name in enumerate(log.schema.dense)}
    columns |= {task.name: rows.labels[:, i].numpy() for i, task in enumerate(log.schema.tasks)}
    return pl.DataFrame(columns | ({GROUP: groups.numpy()} if groups is not None else {}))


@dataclass(frozen=True)
class PreparedLog:
    """A log on disk; rows are read when they are needed: ``PreparedLog.open(folder)``.

    Args:
        folder: path or URL, as the user gave it.
        name: name of the data set.
        schema: columns of the log.
        days: a label for each partition, oldest first.
        starts: (partitions + 1) row numbers; partition i is rows ``starts[i]`` to ``starts[i + 1] - 1``.
        files: one file for each day, in the order of the rows.
        notice: licence terms that every report must show.
    """

    folder: str
    name: str
    schema: Schema
    days: tuple[str, ...]
    starts: tuple[int, ...]
    files: tuple[StoredDay, ...] = field(repr=False)
    notice: str = ""

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a prepared folder; this checks the manifest, and the columns and rows of each day's file.

        Args:
            folder: a path, or a URL such as ``s3://bucket/log`` with one of ``file_discovery.PROTOCOLS``.

        Raises:
            InputError: if there is no manifest, it has another version, or a day's file does not agree with it.
        """
        filesystem, root = locate(str(folder))
        manifest = _manifest(filesystem, root, str(folder))
        try:
            schema, row_group, name = _schema(manifest["schema"]), manifest["row_group"], manifest["name"]
            days = {str(day["day"]): int(day["rows"]) for day in manifest["days"]}
            checks.positive("row_group", row_group)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder}/{MANIFEST} lacks or misstates {error}; expected it as prepared") from None
        if not days:
            raise InputError(f"{folder}/{MANIFEST} has no days; expected at least one")
        files = tuple(StoredDay(filesystem, day_path(root, day), rows, row_group) for day, rows in days.items())
        for file in files:
            file.check(columns_of(schema))
        starts = tuple(accumulate(days.values(), initial=0))
        return cls(str(folder), name, schema, tuple(days), starts, files, manifest.get("notice", ""))

    @property
    def row_group(self) -> int:
        """Rows of a row group."""
        return self.files[0].row_group

    def window(self, first: int, last: int) -> Batch:
        """Read all rows of the partitions ``first`` to ``last``, both included."""
        return self.read([range(self.starts[first], self.starts[last + 1])])

    def day(self, index: int) -> Batch:
        """Read all rows of one partition."""
        return self.window(index, index)

    def pieces(self, day: int, rows: int) -> Iterator[Batch]:
        """Read one partition in order, at most ``rows`` rows at a time, with at most one more row group in memory."""
        waiting: list[Batch] = []
        for table in self._tables([range(self.starts[day], self.starts[day + 1])], self._names):
            waiting.append(self._batch(table))
            held = sum(len(batch.labels) for batch in waiting)
            full = held // rows * rows
            if full:
                parts = [torch.cat(part) for part in zip(*waiting, strict=True)]
                yield from map(Batch, *(part[:full].split(rows) for part in parts))
                waiting = [Batch(*(part[full:] for part in parts))] if full < held else []
        if waiting:
            yield Batch(*(torch.cat(part) for part in zip(*waiting, strict=True)))

    def groups_of(self, day: int) -> Tensor | None:
        """Read the groups of one partition's rows, (rows,) int64; None if the schema has none."""
        if self.schema.group is None:
            return None
        tables = self._tables([range(self.starts[day], self.starts[day + 1])], [GROUP])
        return torch.from_numpy(np.concatenate([table.column(0).to_numpy() for table in tables]))

    def load(self, last_days: int | None = None) -> Log:
        """Read the last ``last_days`` partitions, by default all, into memory.

        Raises:
            InputError: if the log has fewer partitions, or values that cannot be trained on.
        """
        if last_days is not None:
            return self.last(last_days).load()
        groups = [self.groups_of(day) for day in range(len(self.days))]
        return Log(
            name=self.name,
            schema=self.schema,
            days=self.days,
            starts=tuple(start - self.starts[0] for start in self.starts),
            rows=self.window(0, len(self.days) - 1),
            notice=self.notice,
            groups=torch.cat([group for group in groups if group is not None]) if self.schema.group else None,
        )

    def last(self, days: int) -> Self:
        """Return the last ``days`` partitions; their rows keep their numbers.

        Raises:
            InputError: if the log has fewer partitions.
        """
        if not 1 <= days <= len(self.days):
            raise InputError(f"days is {days}; expected 1 to {len(self.days)}, the day partitions of {self.name}")
        return replace(self, days=self.days[-days:], starts=self.starts[-days - 1 :])

    @property
    def bytes(self) -> int:
        """Memory that all rows of the partitions need, in bytes."""
        return self.schema.row_bytes * (self.starts[-1] - self.starts[0])

    def partitions(self, *, days: int | None = None, rows: int | None = None) -> Self:
        """Return the same rows in wider partitions, made by ``repartitioned``.

        A window's width counts partitions; wider partitions give a window whose width and stride are weeks or rows.

        Raises:
            ValueError: unless one of ``days`` and ``rows`` is given and above 0.
        """
        cut = repartitioned(self.days, self.starts, days=days, rows=rows)
        return replace(self, days=cut.days, starts=cut.starts)

    def row_groups(self, rows: range) -> list[range]:
        """Split a range of row numbers at the ends of row groups."""
        found, size, edges = [], self.row_group, self._first_rows
        for i, inside in self._by_file([rows]):
            cuts = [inside.start, *range((inside.start // size + 1) * size, inside.stop, size), inside.stop]
            found += [range(edges[i] + start, edges[i] + stop) for start, stop in pairwise(cuts)]
        return found

    def read(self, ranges: Sequence[range], into: Batch | None = None) -> Batch:
        """Read ranges of row numbers.

        Args:
            ranges: row numbers of the log, ascending.
            into: a batch with at least as many rows; the result is then a view of it. By default new memory.

        Raises:
            InputError: if a file cannot be read.
        """
        count = sum(map(len, ranges))
        found = empty(self.schema, count) if into is None else Batch(*(part[:count] for part in into))
        at = 0
        for table in self._tables(ranges, self._names):
            fill(found, at, table, self.schema)
            at += len(table)
        return found

    def take(self, rows: Tensor) -> Batch:
        """Read rows by number, (rows,) int64, in the given order. This is slow, since it reads whole row groups."""
        groups = self.row_groups(range(self.starts[-1]))
        ends = torch.tensor([group.stop for group in groups], dtype=torch.int64, device="cpu")
        group_of = torch.bucketize(rows, ends, right=True)
        touched = group_of.unique().tolist()
        found = empty(self.schema, len(rows))
        for i, table in zip(touched, self._tables([groups[i] for i in touched], self._names), strict=True):
            places = (group_of == i).nonzero()[:, 0]
            for mine, part in zip(found, self._batch(table), strict=True):
                mine[places] = part[rows[places] - groups[i].start]
        return found

    @property
    def _names(self) -> list[str]:
        return [name for name in columns_of(self.schema).names if name != GROUP]

    @property
    def _first_rows(self) -> list[int]:
        """The number of each file's first row, and one more than the last row's."""
        return list(accumulate((file.rows for file in self.files), initial=0))

    def _batch(self, table: pa.Table) -> Batch:
        return fill(empty(self.schema, len(table)), 0, table, self.schema)

    def _tables(self, ranges: Iterable[range], names: list[str]) -> Iterator[pa.Table]:
        """Read columns of ascending ranges of row numbers; each file is opened once."""
        for i, in_file in groupby(self._by_file(ranges), key=itemgetter(0)):
            yield from self.files[i].tables((rows for _, rows in in_file), names)

    def _by_file(self, ranges: Iterable[range]) -> Iterator[tuple[int, range]]:
        """Split ranges at the ends of files; yield the number of the file and the row numbers in it."""
        edges = self._first_rows
        for rows in ranges:
            for i in range(bisect_right(edges, rows.start) - 1, bisect_left(edges, rows.stop)):
                yield i, range(max(rows.start, edges[i]) - edges[i], min(rows.stop, edges[i + 1]) - edges[i])


def _manifest(filesystem: fs.FileSystem, root: str, folder: str) -> dict[str, Any]:
    """Read a prepared folder's manifest."""
    path = f"{root}/{MANIFEST}"
    with input_errors(f"{folder}/{MANIFEST}"):
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            there = filesystem.get_file_info(root).type != fs.FileType.NotFound
            what = f"has no {MANIFEST}" if there else "does not exist"
            raise InputError(f"{folder} {what}; expected a folder that 'surefoot data prepare' has finished")
        if info.type != fs.FileType.File:  # opening a pipe would block forever
            raise InputError(f"{folder}/{MANIFEST} is a folder, a pipe or a device; expected a file")
        with filesystem.open_input_stream(path) as file:
            manifest = parse_json(file.read(), f"{folder}/{MANIFEST}")
    if (version := manifest.get("version")) != _VERSION:
        raise InputError(f"{folder}/{MANIFEST} has version {version}; expected {_VERSION}: prepare the log again")
    return manifest


def _schema(columns: Mapping[str, Any]) -> Schema:
    return Schema(
        tuple(Categorical(**column) for column in columns["categorical"]),
        tuple(columns["dense"]),
        tuple(Task(**{**task, "kind": TaskKind(task["kind"])}) for task in columns["tasks"]),
        columns["group"],
    )
