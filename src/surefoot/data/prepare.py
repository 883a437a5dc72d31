"""From a log as it comes to a prepared one, in two passes: rows to their days, then days to numbers, oldest first.

Memory holds a stretch of rows in the first pass; in the second a day, where its rows are sorted, and a stretch of it
where they are not. What is done is written down, so that an interrupted preparation goes on; the folder asked for gets
nothing before all is done, and its manifest last.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from surefoot import checks
from surefoot.data.cells import DAY, ORDER, count_missing, typed
from surefoot.data.dayfile import DayFile
from surefoot.data.description import Description, to_toml
from surefoot.data.past import Past
from surefoot.data.prepared import day_path, write_manifest
from surefoot.data.reader import ROW, Rejections, natural, read
from surefoot.data.schema import Categorical, Schema
from surefoot.data.source import Source
from surefoot.data.work import Before, Work, look
from surefoot.errors import InputError

STRETCH = 1 << 20  # rows
_FILE = "__file__"
Progress = Callable[[str, float], object]


@dataclass
class Report:
    """What became of the rows.

    Args:
        rows_in: rows of the files.
        rows_out: rows of the prepared log, those of days prepared before included.
        rejected: rows left out, by file, column and reason.
        counts: dense values that were missing, by column, and rows with more ids than a column's width.
        days: rows of each day.
        pseudo_days: whether the days are only positions.
        first_rejected: a sentence on one row for each column and reason.
    """

    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    pseudo_days: bool = False
    first_rejected: list[str] = field(default_factory=list)


def prepare(
    source: Source,
    out: Path,
    *,
    max_rejected: float = 0.01,
    stretch: int = STRETCH,
    on_progress: Progress = lambda what, share: None,
) -> Report:
    """Convert a log; if it is in ``out`` already, add the files that are new, whose days must be later ones.

    Args:
        source: the log as it comes.
        out: a folder, new or of this log; ``PreparedLog.open`` reads it. Beside it, ``out.partial`` holds the work.
        max_rejected: the largest share of a file's rows that may be rejected.
        stretch: rows held in memory.
        on_progress: called with what is being done and how much of it is.

    Returns:
        What became of the rows; ``rejected.parquet`` in the folder names those that were left out.

    Raises:
        InputError: if a file cannot be read, too many of its rows are bad, or ``out`` is of another log.
    """
    checks.positive("stretch", stretch)
    if not 0 <= max_rejected <= 1:
        raise ValueError(f"max_rejected is {max_rejected!r}; expected a share, 0 to 1")
    before = Before.of(out, source.description)
    files = [file for file in source.files if file not in before.files]
    if not files:
        raise InputError(f"{out} has all the {len(source.files)} files of {source.description.name}; expected new ones")
    work = Work.beside(before, source.description, files, stretch)
    try:
        _scatter(source, work, before, max_rejected, stretch, on_progress)
        _encode(source.description, work, before, on_progress)
    except InputError:
        if not work.begun:
            shutil.rmtree(work.folder)
        raise
    return _commit(source.description, work, before)


# The first pass: rows to their days


def _scatter(
    source: Source, work: Work, before: Before, max_rejected: float, stretch: int, on_progress: Progress
) -> None:
    state = work.state
    files: list[str] = state["files"]
    sizes = [max(look(file)[0], 1) for file in files]
    for index in range(state["file"], len(files)):
        on_progress(f"reading {Path(files[index]).name}", sum(sizes[:index]) / sum(sizes))
        for rows, rejected, last in _stretches(source, files[index], state["consumed"], stretch):
            part = f"{index:05d}-{state['consumed']:015d}"
            if len(rows):
                rows = typed(source.shape(rows), source.description, files[index], rejected)
                _scatter_stretch(_refuse_old_days(rows, files[index], before, rejected), source.description, work, part)
            work.note(part, rejected)
            state["consumed"], state["rows_in"] = last, state["at_start"][0] + last
            _stop_if_too_many(state, files[index], max_rejected)
            work.save()
        state |= {"file": index + 1, "consumed": 0, "at_start": list(_so_far(state))}
        work.save()
    on_progress("reading", 1.0)


def _stretches(source: Source, file: str, skip: int, rows: int) -> Iterator[tuple[pl.DataFrame, Rejections, int]]:
    """Yield the rows of a file, so many at a time, the rejected ones among them, and the number of the last row."""
    columns = source.columns or tuple(source.description.columns)
    rejected, last = Rejections(), skip
    waiting: list[pl.DataFrame] = []
    for piece in read(file, source.description.csv, columns, rejected, skip=skip):
        waiting.append(piece)
        if sum(map(len, waiting)) >= rows:
            whole = pl.concat(waiting)
            last = int(whole[ROW][-1])
            yield whole, _up_to(rejected, last), last
            waiting = []
    whole = pl.concat(waiting) if waiting else pl.DataFrame(schema={ROW: pl.Int64})
    numbers = [last, *whole[ROW][-1:], *(row[1] for row in rejected.rows)]
    last = max(numbers)
    yield whole, _up_to(rejected, last), last


def _up_to(rejected: Rejections, last: int) -> Rejections:
    """Take out those that stand before a row; the reader is a little ahead."""
    taken = Rejections([row for row in rejected.rows if row[1] <= last])
    rejected.rows[:] = [row for row in rejected.rows if row[1] > last]
    return taken


def _scatter_stretch(rows: pl.DataFrame, description: Description, work: Work, part: str) -> None:
    """Add typed rows to their days."""
    state = work.state
    if (per_day := description.day.rows) is not None:
        number = (pl.int_range(pl.len(), dtype=pl.Int64) + state["position"]) // per_day
        rows = rows.with_columns(pl.format("rows-{}", number.cast(pl.String).str.zfill(6)).alias(DAY))
        state["position"] += len(rows)
    work.count("counts", count_missing(rows, description))
    file = pl.lit(state["file"], pl.Int32).alias(_FILE)
    rows = _of_known_types(rows, description, state["types"], state["files"][state["file"]]).with_columns(file)
    for (day,), of_day in rows.partition_by(DAY, as_dict=True, include_key=False).items():
        folder = work.folder / "rows" / str(day)
        folder.mkdir(exist_ok=True)
        of_day.write_parquet(folder / f"{part}.parquet", compression="lz4")


def _refuse_old_days(rows: pl.DataFrame, file: str, before: Before, rejected: Rejections) -> pl.DataFrame:
    """Reject rows of days that are prepared already."""
    if not before.last_day or DAY not in rows.columns:
        return rows
    old = [day for day in rows[DAY].unique() if natural(day) <= natural(before.last_day)]
    late = rows[DAY].is_in(old)
    for row, day in rows.filter(late).select(ROW, DAY).iter_rows():
        rejected.add(file, row, DAY, day, f"expected a day after {before.last_day}, the last one prepared")
    return rows.filter(~late)


def _of_known_types(rows: pl.DataFrame, description: Description, types: dict[str, str], file: str) -> pl.DataFrame:
    """Hold every file to the ids' types of the first: whole numbers or text."""
    for name in [column.name for column in description.categorical] + (["__group__"] * (description.group is not None)):
        kind = rows.schema[name]
        told = str(kind.inner if isinstance(kind, pl.List) else kind)
        if types.setdefault(name, told) != told:
            if types[name] != "String":
                raise InputError(
                    f"{file}: column {name} is {'text' if told == 'String' else 'of whole numbers'}, and in the files "
                    "before it was not; expected one type in all files"
                )
            rows = rows.with_columns(pl.col(name).cast(pl.List(pl.String) if isinstance(kind, pl.List) else pl.String))
    return rows


def _stop_if_too_many(state: dict[str, Any], file: str, max_rejected: float) -> None:
    rows, bad = (now - then for now, then in zip(_so_far(state), state["at_start"], strict=True))
    if bad > max_rejected * rows:
        first = next((text for text in state["first_rejected"].values() if text.startswith(f"{file} ")), "")
        share = f"at most {max_rejected:.0%} such rows, which --max-rejected sets"
        raise InputError(f"{first} (rejected so far: {bad} of {rows} rows of this file; expected {share})")


def _so_far(state: dict[str, Any]) -> tuple[int, int]:
    return state["rows_in"], sum(state["rejected"].values())


# The second pass: days to numbers


def _encode(description: Description, work: Work, before: Before, on_progress: Progress) -> None:
    past = Past(description)
    if before.manifest:
        past.load(before.out / before.manifest["vocabularies"], before.manifest["moments"])
    days = sorted((path.name for path in (work.folder / "rows").iterdir()), key=natural)
    if not days:
        raise InputError(f"{description.name} has no row left to prepare; expected some")
    first = not before.days
    for i, day in enumerate(days):
        on_progress(f"encoding {day}", i / len(days))
        pieces = _Pieces(work, day, description)
        if first:  # the first day, which is never scored, knows itself
            past.add(pieces)
        if day not in work.state["encoded"]:
            _encode_day(description, day, pieces, past, work)
            work.save()
        if not first:
            past.add(pieces)
        first = False
    work.state["moments"] = past.save(work.folder / "vocabularies")
    on_progress("encoding", 1.0)


class _Pieces:
    """The typed rows of a day, read again each time that they are walked through."""

    def __init__(self, work: Work, day: str, description: Description) -> None:
        self._work, self._day, self._repeated = work, day, description.repeated
        self._parts = sorted((work.folder / "rows" / day).iterdir())
        self._sorted = self._repeated == "reject" or ORDER in pl.read_parquet_schema(self._parts[0])

    def __iter__(self) -> Iterator[pl.DataFrame]:
        if not self._sorted:
            yield from (pl.read_parquet(part, glob=False) for part in self._parts)
            return
        rows = pl.concat([pl.read_parquet(part, glob=False) for part in self._parts])
        if self._repeated == "reject":
            rows = rows.filter(~self._repeats(rows))
        yield rows.sort(ORDER, maintain_order=True, nulls_last=True) if ORDER in rows.columns else rows

    def refused(self, files: list[str]) -> Rejections:
        """Name the rows that are equal to one before them."""
        rejected = Rejections()
        if self._repeated == "reject":
            rows = pl.concat([pl.read_parquet(part, glob=False) for part in self._parts])
            for file, row in rows.filter(self._repeats(rows)).select(_FILE, ROW).iter_rows():
                rejected.add(files[file], row, "", self._day, "expected no row equal to one before it")
        return rejected

    @staticmethod
    def _repeats(rows: pl.DataFrame) -> pl.Series:
        columns = [name for name in rows.columns if name not in (ROW, _FILE)]
        return ~rows.select(pl.struct(columns).is_first_distinct()).to_series()


def _encode_day(description: Description, day: str, pieces: _Pieces, past: Past, work: Work) -> None:
    rejected = pieces.refused(work.state["files"])
    columns = {column.name: past.rows(column) for column in description.categorical}
    schema = _schema(description, columns)
    with DayFile(Path(day_path(work.folder / "days", day)), schema) as file:
        for piece in pieces:
            file.write(past.encoded(piece))
    work.note(f"day-{day}", rejected)
    work.state["encoded"][day] = file.rows
    work.state["columns"] = columns


def _schema(description: Description, rows: dict[str, int]) -> Schema:
    return Schema(
        tuple(Categorical(column.name, rows[column.name], column.width) for column in description.categorical),
        tuple(column.name for column in description.dense),
        tuple(label.task for label in description.label),
        description.group,
    )


# The end


def _commit(description: Description, work: Work, before: Before) -> Report:
    """Move everything to its place, the manifest last."""
    state, out = work.state, before.out
    out.mkdir(parents=True, exist_ok=True)
    vocabularies = f"vocabularies-{len(before.files) + len(state['files'])}"
    for made, target in (
        *((work.folder / "days" / f"day={day}", out / f"day={day}") for day in state["encoded"]),
        (work.folder / "vocabularies", out / vocabularies),
    ):
        if made.exists():
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    for part in sorted((work.folder / "rejected").iterdir()):
        (out / "rejected").mkdir(exist_ok=True)
        part.rename(out / "rejected" / f"{len(before.files)}-{part.name}")
    (out / "schema.toml").write_text(to_toml(description), encoding="utf-8")
    days = before.days | {day: rows for day, rows in state["encoded"].items() if rows}
    report = Report(
        rows_in=state["rows_in"],
        rows_out=sum(days.values()),
        rejected=dict(before.rejected + Counter(state["rejected"])),
        counts=dict(before.counts + Counter(state["counts"])),
        days=days,
        pseudo_days=description.day.pseudo,
        first_rejected=list(state["first_rejected"].values()),
    )
    more = {
        "files": before.files + state["files"],
        "description": json.loads(description.model_dump_json()),
        "vocabularies": vocabularies,
        "moments": state["moments"],
        "report": {name: value for name, value in vars(report).items() if name != "days"},
    }
    schema = _schema(description, state["columns"])
    write_manifest(out, name=description.name, schema=schema, days=days, notice=description.notice, more=more)
    if before.manifest:
        shutil.rmtree(out / before.manifest["vocabularies"])
    shutil.rmtree(work.folder)
    return report
