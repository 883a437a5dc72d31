"""A log on disk: a folder with a parquet file for each day, and a manifest that is written last.

::

    OUT/prepared.json                     name, schema, days and their rows
    OUT/day=2022-04-08/rows.parquet       a column for each feature and label, in row groups of one size
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
from surefoot.lab.file_discovery import locate, told
from surefoot.tasks import TaskKind

MANIFEST = "prepared.json"
_VERSION = 1


def day_path(folder: Path | str, day: str) -> str:
    """Return where a day's rows are in a prepared folder."""
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
    """Write the manifest, which makes a folder with all its days' files a prepared log.

    Args:
        folder: the log's.
        name: of the data set.
        schema: its columns.
        days: rows of each day, oldest first.
        notice: what must be said wherever the data is offered.
        row_group: rows in each row group of the days' files, but each file's last.
        more: further keys of the manifest, in plain values.
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
    """Write a log in memory as a prepared log; one that was in the folder is replaced."""
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
    """A log on disk, of which only what is asked for is read: ``PreparedLog.open(folder)``.

    Args:
        folder: where it is, as it was given.
        name: of the data set.
        schema: its columns.
        days: a label for each partition, oldest first.
        starts: (partitions + 1) row numbers; partition i is rows ``starts[i]`` to ``starts[i + 1] - 1``.
        files: one a day, in the order of the rows.
        notice: what must be said wherever the data is offered.
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
        """Return the log of a prepared folder, after a look at the end of each day's file.

        Args:
            folder: a path, or a URL: ``s3://bucket/log``; ``places.PROTOCOLS`` are opened.

        Raises:
            InputError: if there is no manifest, it is of another version, or a day's file is not as it says.
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
        """Rows that are read at once."""
        return self.files[0].row_group

    def window(self, first: int, last: int) -> Batch:
        """Read all rows of the partitions ``first`` to ``last``, both included."""
        return self.read([range(self.starts[first], self.starts[last + 1])])

    def day(self, index: int) -> Batch:
        """Read all rows of one partition."""
        return self.window(index, index)

    def pieces(self, day: int, rows: int) -> Iterator[Batch]:
        """Read one partition in order, at most ``rows`` rows at a time; not more than a row group besides is held."""
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
            InputError: if there are not so many, or they hold what cannot be trained on.
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
        """Return the last so many partitions; their rows keep their numbers.

        Raises:
            InputError: if there are not so many.
        """
        if not 1 <= days <= len(self.days):
            raise InputError(f"days is {days}; expected 1 to {len(self.days)}, the day partitions of {self.name}")
        return replace(self, days=self.days[-days:], starts=self.starts[-days - 1 :])

    @property
    def bytes(self) -> int:
        """Memory that all rows of the partitions take up when they are read."""
        return self.schema.row_bytes * (self.starts[-1] - self.starts[0])

    def partitions(self, *, days: int | None = None, rows: int | None = None) -> Self:
        """Return the same rows in wider partitions, as ``repartitioned`` cuts them.

        A window's width counts partitions, so this is how its width and stride are given in weeks or in rows.

        Raises:
            ValueError: unless one of ``days`` and ``rows`` is given and above 0.
        """
        cut = repartitioned(self.days, self.starts, days=days, rows=rows)
        return replace(self, days=cut.days, starts=cut.starts)

    def row_groups(self, rows: range) -> list[range]:
        """Return a stretch of row numbers, cut where a row group of the files ends."""
        found, size, edges = [], self.row_group, self._first_rows
        for i, inside in self._by_file([rows]):
            cuts = [inside.start, *range((inside.start // size + 1) * size, inside.stop, size), inside.stop]
            found += [range(edges[i] + start, edges[i] + stop) for start, stop in pairwise(cuts)]
        return found

    def read(self, stretches: Sequence[range], into: Batch | None = None) -> Batch:
        """Read stretches of row numbers, oldest first, as rows of three tensors.

        Args:
            stretches: of the log's row numbers, ascending.
            into: room for at least so many rows, which the result is then part of; by default new memory.

        Raises:
            InputError: if a file cannot be read.
        """
        count = sum(map(len, stretches))
        room = empty(self.schema, count) if into is None else Batch(*(part[:count] for part in into))
        at = 0
        for table in self._tables(stretches, self._names):
            fill(room, at, table, self.schema)
            at += len(table)
        return room

    def take(self, rows: Tensor) -> Batch:
        """Read rows by number, (rows,) int64, in their order: slowly, since whole row groups are read for them."""
        groups = self.row_groups(range(self.starts[-1]))
        ends = torch.tensor([group.stop for group in groups], dtype=torch.int64, device="cpu")
        group_of = torch.bucketize(rows, ends, right=True)
        touched = group_of.unique().tolist()
        room = empty(self.schema, len(rows))
        for i, table in zip(touched, self._tables([groups[i] for i in touched], self._names), strict=True):
            places = (group_of == i).nonzero()[:, 0]
            for mine, part in zip(room, self._batch(table), strict=True):
                mine[places] = part[rows[places] - groups[i].start]
        return room

    @property
    def _names(self) -> list[str]:
        return [name for name in columns_of(self.schema).names if name != GROUP]

    @property
    def _first_rows(self) -> list[int]:
        """Return the number of each file's first row, and of the row after the last."""
        return list(accumulate((file.rows for file in self.files), initial=0))

    def _batch(self, table: pa.Table) -> Batch:
        return fill(empty(self.schema, len(table)), 0, table, self.schema)

    def _tables(self, stretches: Iterable[range], names: list[str]) -> Iterator[pa.Table]:
        """Read columns of stretches of row numbers, ascending; at most a row group at a time, each file opened once."""
        inside = self._by_file(stretches)
        for i, stretches_of in groupby(inside, key=itemgetter(0)):
            yield from self.files[i].tables((rows for _, rows in stretches_of), names)

    def _by_file(self, stretches: Iterable[range]) -> Iterator[tuple[int, range]]:
        """Yield the stretches with the number of their file, cut where one ends, as row numbers in it."""
        edges = self._first_rows
        for rows in stretches:
            for i in range(bisect_right(edges, rows.start) - 1, bisect_left(edges, rows.stop)):
                yield i, range(max(rows.start, edges[i]) - edges[i], min(rows.stop, edges[i + 1]) - edges[i])


def _manifest(filesystem: fs.FileSystem, root: str, folder: str) -> dict[str, Any]:
    """Read a prepared folder's manifest."""
    path = f"{root}/{MANIFEST}"
    with told(f"{folder}/{MANIFEST}"):
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            there = filesystem.get_file_info(root).type != fs.FileType.NotFound
            what = f"has no {MANIFEST}" if there else "does not exist"
            raise InputError(f"{folder} {what}; expected a folder that 'surefoot data prepare' has finished")
        if info.type != fs.FileType.File:  # to open a pipe would be to wait for ever
            raise InputError(f"{folder}/{MANIFEST} is a folder, a pipe or a device; expected a file")
        with filesystem.open_input_stream(path) as file:
            manifest = parse_json(file.read(), f"{folder}/{MANIFEST}")
    if (version := manifest.get("version")) != _VERSION:
        raise InputError(f"{folder}/{MANIFEST} is of version {version}; expected {_VERSION}: prepare the log again")
    return manifest


def _schema(columns: Mapping[str, Any]) -> Schema:
    return Schema(
        tuple(Categorical(**column) for column in columns["categorical"]),
        tuple(columns["dense"]),
        tuple(Task(**{**task, "kind": TaskKind(task["kind"])}) for task in columns["tasks"]),
        columns["group"],
    )
