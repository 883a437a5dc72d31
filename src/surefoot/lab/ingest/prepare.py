"""From a log as it comes to a prepared one, in two passes: rows to their days, then days to numbers, oldest first.

Memory holds a stretch of rows in the first pass; in the second a day, where its rows are sorted, and a stretch of it
where they are not. What is done is written down, so that an interrupted preparation goes on; the folder asked for gets
nothing before all is done, and its manifest last.
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
from surefoot.lab.ingest.ingest_state import ExistingLog, Preparation, Progress, look, partial
from surefoot.lab.ingest.partition_by_day import scatter
from surefoot.lab.ingest.reader import check_columns
from surefoot.lab.ingest.source import Source

STRETCH = 1 << 20  # rows


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
        beside: rows of side tables that were left out when they were last read.
        empty: files that have no rows.
        first_rejected: a sentence on one row for each column and reason.
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
    """Convert a log; if it is in ``out`` already, add the files that are new, whose days must be later ones.

    Args:
        source: the log as it comes.
        out: a folder, new or of this log; ``PreparedLog.open`` reads it. Beside it, ``out.partial`` holds the work.
        max_rejected: the largest share of the rows of a file, as far as it is read, that may be rejected.
        stretch: rows held in memory.
        on_progress: called with what is being done and how much of it is.

    Returns:
        What became of the rows of all files in ``out``; the tables in ``out/rejected`` name those that were left out.

    Raises:
        InputError: if a file cannot be read, too many of its rows are bad, or ``out`` is of another log.
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
    for file in files:  # what can be seen before hours of work is said before them
        check_columns(file, source.description.csv, columns)
    work = Preparation.under_way(before, source.description, files, source.beside, stretch)
    try:
        work.note_beside(source.rejected)
        scatter(source, work, before, max_rejected, stretch, on_progress)
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
            raise InputError(f"{file} is in the folder of the prepared log; expected files as they come")
        if description.day.file and (other := days.setdefault(stem(file), file)) != file:
            raise InputError(f"{file} and {other} are both day {stem(file)}; expected a name for each day")


def _commit(source: Source, work: Preparation, before: ExistingLog) -> Report:
    """Move everything to its place, the manifest last."""
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
        "files": before.files | {file: look(file)[0] for file in state["files"]},
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
    """Remove what a finished preparation does not need."""
    for folder in before.out.glob("vocabularies-*"):
        if folder.name != before.manifest["vocabularies"]:
            shutil.rmtree(folder)
    if (work := partial(before.out)).exists():
        shutil.rmtree(work)
