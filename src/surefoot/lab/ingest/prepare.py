"""Prepares a log in two passes: writes the rows to their days, then encodes each day as numbers, oldest day first.

The first pass holds a fixed number of rows in memory. The second holds one day if its rows must be sorted, otherwise a
part of it. Progress is saved, so an interrupted preparation continues. The output folder is written at the end, its
manifest last.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from surefoot import checks
from surefoot.errors import InputError
from surefoot.lab.data.prepared import write_manifest
from surefoot.lab.file_discovery import stem
from surefoot.lab.ingest.description import Description, to_toml
from surefoot.lab.ingest.encode_features import encode, schema_of
from surefoot.lab.ingest.ingest_state import ExistingLog, Preparation, Progress, partial, size_and_time
from surefoot.lab.ingest.partition_by_day import partition
from surefoot.lab.ingest.reader import check_columns
from surefoot.lab.ingest.source import Source

STRETCH = 1 << 20  # rows


@dataclass
class Report:
    """The result of a preparation.

    Args:
        rows_in: rows of the files.
        rows_out: rows of the prepared log, including days prepared before.
        rejected: number of rejected rows, by column and reason.
        counts: missing dense values of each column, and rows with more ids than a column's width.
        days: number of rows of each day.
        pseudo_days: whether the days are pseudo-days, made by position.
        beside: rejected rows of side tables.
        empty: files without rows.
        first_rejected: a sentence on one rejected row for each column and reason.
    """

    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    pseudo_days: bool = False
    beside: int = 0
    empty: list[str] = field(default_factory=list)
    first_rejected: list[str] = field(default_factory=list)


def prepare(
    source: Source,
    out: Path,
    *,
    max_rejected: float = 0.01,
    stretch: int = STRETCH,
    on_progress: Progress = lambda what, share: None,
) -> Report:
    """Prepare a log. If ``out`` holds the log already, add the new files, whose days must be later.

    Args:
        source: the log to prepare.
        out: output folder, new or with this log, for ``PreparedLog.open``. The working folder is ``out.partial``.
        max_rejected: largest share of rejected rows of a file, checked while the file is read.
        stretch: rows held in memory.
        on_progress: called with the current activity and the share of it that is done.

    Returns:
        The counts over all files in ``out``; the tables in ``out/rejected`` name each rejected row.

    Raises:
        InputError: if a file cannot be read, too many of its rows are bad, or ``out`` holds another log.
    """
    checks.positive("stretch", stretch)
    if not 0 <= max_rejected <= 1:
        raise ValueError(f"max_rejected is {max_rejected!r}; expected a share, 0 to 1")
    before = ExistingLog.of(out, source.description)
    files = before.new(source.files)
    _refuse_files(source.description, before, files)
    if not files:
        _tidy(before)
        return Report(**before.report, days=before.days)
    columns = source.columns or source.description.columns
    for file in files:  # refuse a wrong file before hours of work
        check_columns(file, source.description.csv, columns)
    work = Preparation.under_way(before, source.description, files, source.beside, stretch)
    try:
        work.note_beside(source.rejected)
        partition(source, work, before, max_rejected, stretch, on_progress)
        encode(source.description, work, before, on_progress)
    except BaseException:
        if not work.begun:
            shutil.rmtree(work.folder)
        raise
    return _commit(source, work, before)


def _refuse_files(description: Description, before: ExistingLog, files: list[str]) -> None:
    if not files and not before.manifest:
        raise InputError(f"{description.name} has no files; expected at least one")
    days: dict[str, str] = {}
    for file in (*before.files, *files):
        if any(Path(file).absolute().is_relative_to(folder) for folder in (before.out.absolute(), partial(before.out))):
            raise InputError(f"{file} is in the folder of the prepared log; expected the original files")
        if description.day.file and (other := days.setdefault(stem(file), file)) != file:
            raise InputError(f"{file} and {other} are both day {stem(file)}; expected different names for all days")


def _commit(source: Source, work: Preparation, before: ExistingLog) -> Report:
    """Move the results to the output folder, the manifest last."""
    description, state, out = source.description, work.state, before.out
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
    days = before.days | state["encoded"]
    report = Report(
        rows_in=state["rows_in"],
        rows_out=sum(days.values()),
        rejected=dict(before.rejected + Counter(state["rejected"])),
        counts=dict(before.counts + Counter(state["counts"])),
        days=days,
        pseudo_days=description.day.pseudo,
        beside=len(source.rejected.rows),
        empty=before.report.get("empty", []) + state["empty"],
        first_rejected=list((state["first_rejected"] | before.first_rejected).values()),
    )
    more = {
        "files": before.files | {file: size_and_time(file)[0] for file in state["files"]},
        "types": state["types"],
        "first_rejected": state["first_rejected"] | before.first_rejected,
        "description": json.loads(description.model_dump_json()),
        "vocabularies": vocabularies,
        "moments": state["moments"],
        "report": {name: value for name, value in vars(report).items() if name != "days"},
    }
    schema = schema_of(description, state["columns"])
    pseudo = f"The days of {description.name} are pseudo-days, {description.day.rows} rows each: the log has no time."
    notice = " ".join(filter(None, [description.notice, pseudo if description.day.pseudo else ""]))
    write_manifest(out, name=description.name, schema=schema, days=days, notice=notice, more=more)
    _tidy(ExistingLog(out, {**more, "days": []}))
    return report


def _tidy(before: ExistingLog) -> None:
    """Remove old vocabularies and the working folder."""
    for folder in before.out.glob("vocabularies-*"):
        if folder.name != before.manifest["vocabularies"]:
            shutil.rmtree(folder)
    if (work := partial(before.out)).exists():
        shutil.rmtree(work)
