"""The first pass of a preparation: reads the files and writes the typed rows to their days."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.lab.file_discovery import natural
from surefoot.lab.ingest.column_parsing import DAY, GROUP, count_missing, typed
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.ingest_state import FILE, ExistingLog, Preparation, Progress, size_and_time
from surefoot.lab.ingest.reader import ROW, NoRowsError, Rejections, read, sentence
from surefoot.lab.ingest.source import Source


def partition(
    source: Source, work: Preparation, before: ExistingLog, max_rejected: float, stretch: int, on_progress: Progress
) -> None:
    """Write the rows of the files that are not done yet to their days, ``stretch`` rows at a time."""
    state = work.state
    files: list[str] = state["files"]
    sizes = [max(size_and_time(file)[0], 1) for file in files]
    for index in range(state["file"], len(files)):
        on_progress(f"reading {Path(files[index]).name}", sum(sizes[:index]) / sum(sizes))
        try:
            for rows, rejected, last in _stretches(source, files[index], state["consumed"], stretch):
                part = f"{index:05d}-{state['consumed']:015d}"
                if len(rows):
                    rows = typed(source.shape(rows), source.description, files[index], rejected)
                    rows = _refuse_old_days(rows, files[index], before, rejected)
                    _add_to_days(rows, source.description, work, before, part)
                work.note(part, rejected)
                state["consumed"], state["rows_in"] = last, state["at_start"][0] + last
                _stop_if_too_many(state, files[index], rejected, max_rejected)
                work.save()
        except NoRowsError:
            state["empty"].append(files[index])
        state |= {"file": index + 1, "consumed": 0, "at_start": list(_so_far(state))}
        work.save()
    on_progress("reading", 1.0)


def _stretches(source: Source, file: str, skip: int, rows: int) -> Iterator[tuple[pl.DataFrame, Rejections, int]]:
    """Yield ``rows`` rows of a file at a time, with the rejected rows among them and the number of the last row."""
    columns = source.columns or tuple(source.description.columns)
    rejected, last = Rejections(), skip
    waiting: list[pl.DataFrame] = []
    for piece in read(file, source.description.csv, columns, rejected, skip=skip):
        waiting.append(piece)
        if (held := sum(map(len, waiting))) >= rows:
            whole = pl.concat(waiting)
            for start in range(0, held - rows + 1, rows):
                stretch = whole.slice(start, rows)
                last = int(stretch[ROW][-1])
                yield stretch, _up_to(rejected, last), last
            waiting = [whole.slice(held // rows * rows)]
    whole = pl.concat(waiting) if waiting else pl.DataFrame(schema={ROW: pl.Int64})
    last = max([last, *whole[ROW][-1:], *(row[1] for row in rejected.rows)])
    yield whole, rejected, last


def _up_to(rejected: Rejections, last: int) -> Rejections:
    """Remove and return the rejections up to a row; the reader has already read further rows."""
    taken = Rejections([row for row in rejected.rows if row[1] <= last])
    rejected.rows[:] = [row for row in rejected.rows if row[1] > last]
    return taken


def _add_to_days(
    rows: pl.DataFrame, description: Description, work: Preparation, before: ExistingLog, part: str
) -> None:
    """Write typed rows to the folders of their days."""
    state = work.state
    if (per_day := description.day.rows) is not None:
        number = (pl.int_range(pl.len(), dtype=pl.Int64) + state["position"]) // per_day
        rows = rows.with_columns(pl.format("rows-{}", number.cast(pl.String).str.zfill(6)).alias(DAY))
        state["position"] += len(rows)
    work.count("counts", count_missing(rows, description))
    _note_types(rows, description, state, before)
    rows = rows.with_columns(pl.lit(state["file"], pl.Int32).alias(FILE))
    for of_day in [rows] if rows[DAY].n_unique() == 1 else rows.partition_by(DAY):
        folder = work.folder / "rows" / of_day[DAY][0]
        folder.mkdir(exist_ok=True)
        of_day.drop(DAY).write_parquet(folder / f"{part}.parquet", compression="lz4", statistics=False)


def _refuse_old_days(rows: pl.DataFrame, file: str, before: ExistingLog, rejected: Rejections) -> pl.DataFrame:
    """Reject rows of days that are already prepared."""
    if not before.last_day or DAY not in rows.columns:
        return rows
    old = [day for day in rows[DAY].unique() if natural(day) <= natural(before.last_day)]
    late = rows[DAY].is_in(old)
    for row, day in rows.filter(late).select(ROW, DAY).iter_rows():
        rejected.add(file, row, DAY, day, f"expected a day after {before.last_day}, the last prepared day")
    return rows.filter(~late)


def _note_types(rows: pl.DataFrame, description: Description, state: dict[str, Any], before: ExistingLog) -> None:
    """Record whether each id is a whole number or text; a column is text if one file has it as text."""
    sources = {column.name: column.source for column in description.categorical}
    sources |= {GROUP: description.group} if description.group is not None else {}
    for name, source in sources.items():
        kind, known = str(_inner(rows.schema[name])), state["types"].get(name)
        if known in (kind, "String"):
            continue
        values = rows[name].explode() if isinstance(rows.schema[name], pl.List) else rows[name]
        if values.null_count() == len(values):
            continue
        if name in before.types:  # the prepared days have ids of the other type
            raise InputError(
                f"{state['files'][state['file']]}: column {source} is text; expected whole numbers, as in the files "
                f"that {before.out} was prepared from"
            )
        state["types"][name] = kind


def _inner(kind: pl.DataType) -> Any:
    return kind.inner if isinstance(kind, pl.List) else kind


def _stop_if_too_many(state: dict[str, Any], file: str, rejected: Rejections, max_rejected: float) -> None:
    rows, bad = (now - then for now, then in zip(_so_far(state), state["at_start"], strict=True))
    if bad > max_rejected * rows:
        first = sentence(*rejected.rows[0]) if rejected.rows else file
        share = f"at most {max_rejected:.0%} such rows, which --max-rejected sets"
        raise InputError(f"{first} (rejected so far: {bad} of {rows} rows of this file; expected {share})")


def _so_far(state: dict[str, Any]) -> tuple[int, int]:
    return state["rows_in"], sum(state["rejected"].values())
