"""The second pass of a preparation: encodes the rows of each day as numbers, oldest day first."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import polars as pl

from surefoot.errors import InputError
from surefoot.lab.data.dayfile import DayFile
from surefoot.lab.data.prepared import day_path
from surefoot.lab.data.schema import Categorical, Schema
from surefoot.lab.file_discovery import natural
from surefoot.lab.ingest.column_parsing import GROUP
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.ingest_state import FILE, ExistingLog, Preparation, Progress
from surefoot.lab.ingest.reader import ROW, Rejections
from surefoot.lab.ingest.times import ORDER
from surefoot.lab.ingest.vocabularies import FeatureEncoder

_PIECE = 1 << 18  # rows of a piece, if the whole day is in memory
_TYPES = {"Int64": pl.Int64(), "String": pl.String()}


def encode(description: Description, work: Preparation, before: ExistingLog, on_progress: Progress) -> None:
    """Write the days that are not written yet, each encoded with the days before it; save the encoder's state.

    Raises:
        InputError: if no day has a row.
    """
    encoder = FeatureEncoder(description)
    if before.manifest:
        encoder.load(before.out / before.manifest["vocabularies"], before.manifest["moments"])
    days = sorted((path.name for path in (work.folder / "rows").iterdir()), key=natural)
    if not days:
        raise InputError(f"{description.name} has no rows to prepare; expected at least one")
    for i, day in enumerate(days):
        on_progress(f"encoding {day}", i / len(days))
        rows = _Rows(work, day, description)
        first = not i and not before.days
        if first:  # never scored, so it may be encoded with its own values
            for piece in rows:
                encoder.note(piece, encoder.encoded(piece))
            encoder.learn()
        _encode_day(rows, encoder, work, is_known=first)
        encoder.learn()
    work.state["moments"] = encoder.save(work.folder / "vocabularies")
    on_progress("encoding", 1.0)


def schema_of(description: Description, rows: dict[str, int]) -> Schema:
    """Return the schema of a prepared log.

    Args:
        description: description of the log.
        rows: embedding rows of each categorical column.
    """
    return Schema(
        tuple(Categorical(column.name, rows[column.name], column.width) for column in description.categorical),
        tuple(column.name for column in description.dense),
        tuple(label.task for label in description.label),
        description.group,
    )


def _encode_day(rows: "_Rows", encoder: FeatureEncoder, work: Preparation, *, is_known: bool) -> None:
    state, description = work.state, encoder.description
    tables = {column.name: encoder.rows(column) for column in description.categorical}
    written = rows.day in state["encoded"]
    path = Path(day_path(work.folder / "days", rows.day))
    with nullcontext() if written else DayFile(path, schema_of(description, tables)) as file:
        for piece in rows:
            encoded = encoder.encoded(piece)
            if file is not None:
                file.write(encoded)
            if not is_known:
                encoder.note(piece, encoded)
    if file is not None:
        work.note(f"day-{rows.day}", rows.rejected)
        state["encoded"][rows.day], state["columns"] = file.rows, tables
        work.save()


class _Rows:
    """The typed rows of a day in pieces, for repeated iteration. Only a day that must be sorted is held in memory."""

    def __init__(self, work: Preparation, day: str, description: Description) -> None:
        self.day, self.rejected = day, Rejections()
        kinds = {column.name: work.state["types"].get(column.name, "Int64") for column in description.categorical}
        kinds |= {GROUP: work.state["types"].get(GROUP, "Int64")} if description.group is not None else {}
        lists = {column.name for column in description.categorical if column.width > 1}
        self._types = {name: pl.List(_TYPES[kind]) if name in lists else _TYPES[kind] for name, kind in kinds.items()}
        self._parts = sorted((work.folder / "rows" / day).iterdir())
        self._held: pl.DataFrame | None = None
        once = description.repeated == "reject"
        if once or any(ORDER in pl.read_parquet_schema(part) for part in self._parts):
            rows = pl.concat([self._read(part) for part in self._parts], how="diagonal_relaxed")
            rows = self._once(rows, work.state["files"]) if once else rows
            self._held = rows.sort(ORDER, maintain_order=True, nulls_last=True) if ORDER in rows.columns else rows

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return map(self._read, self._parts) if self._held is None else self._held.iter_slices(_PIECE)

    def _read(self, part: Path) -> pl.DataFrame:
        rows = pl.read_parquet(part, glob=False)
        return rows.with_columns(pl.col(name).cast(kind) for name, kind in self._types.items())

    def _once(self, rows: pl.DataFrame, files: list[str]) -> pl.DataFrame:
        """Reject each row that is equal to an earlier one."""
        columns = [name for name in rows.columns if name not in (ROW, FILE)]
        first = rows.select(pl.struct(columns).is_first_distinct()).to_series()
        for file, row in rows.filter(~first).select(FILE, ROW).iter_rows():
            self.rejected.add(files[file], row, "", self.day, "expected no row equal to an earlier one")
        return rows.filter(first)
