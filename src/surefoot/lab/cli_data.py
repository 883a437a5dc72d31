"""``surefoot data``: look at a log, and prepare it."""

import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surefoot.errors import InputError
from surefoot.lab import sources
from surefoot.lab.progress_display import ProgressDisplay
from surefoot.lab.terminal import Loudness, Quiet, Verbose, console, interruptible, plain_table, refuse_full
from surefoot.lab.usage_errors import Commands

if TYPE_CHECKING:
    from surefoot.lab.ingest.description import Description
    from surefoot.lab.ingest.prepare import Report
    from surefoot.lab.ingest.profile import Profile
    from surefoot.lab.ingest.source import Source

app = typer.Typer(cls=Commands, help="Look at a log, and prepare it to be trained on.", no_args_is_help=True)

GENERIC = "log"
IN_MEMORY = ("completejourney",)
_DAYS_SHOWN = 40

SchemaFile = Annotated[Path | None, typer.Option(help="The TOML file that describes the log.")]
SourceName = Annotated[
    str,
    typer.Argument(
        help=f"{GENERIC} (with --schema), {', '.join((*sources.names(), *IN_MEMORY))}.",
        autocompletion=lambda: [GENERIC, *sources.names(), *IN_MEMORY],
    ),
]


def own_logs() -> list[str]:
    """Return the logs that need no files."""
    return [*IN_MEMORY, "synthetic"]


@app.command()
def check(
    path: Annotated[str, typer.Argument(help="A folder or a file of a log, or a URL.")],
    schema: SchemaFile = None,
    source: Annotated[
        str | None,
        typer.Option(help=f"A known layout: {', '.join(sources.names())}.", autocompletion=sources.names),
    ] = None,
    suggest: Annotated[Path | None, typer.Option(help="Write the suggested schema there.")] = None,
) -> None:
    """Validate a log and show what it holds: days, gaps, values, labels and drift by day; suggest a schema."""
    from surefoot.lab import file_discovery
    from surefoot.lab.ingest.profile import profile

    if suggest is not None and (schema is not None or source is not None):
        given = f"--schema {schema}" if schema is not None else f"--source {source}"
        raise InputError(f"--suggest {suggest} is given with {given}; expected one: the log is described already")
    if schema is not None or source is not None:
        found = _source(source or GENERIC, path, schema)
    else:
        files = file_discovery.find_files(path)
        description = _suggested(file_discovery.stem(path.rstrip("/")), files, suggest)
        if description is None:
            return
        found = _described(description, files)
    _show_notes(found)
    with interruptible("nothing was written"), console.status(f"reading {path}"):
        seen = profile(found)
    _show_profile(seen)


@app.command()
def prepare(
    source: SourceName,
    path: Annotated[str, typer.Argument(help="The folder or the file as it comes, or a URL.")] = "",
    out: Annotated[Path, typer.Option(help="A new folder, or this log's, to add days to it.")] = Path("prepared"),
    schema: SchemaFile = None,
    max_rejected: Annotated[float, typer.Option(min=0, max=1, help="Largest share of a file's rows to reject.")] = 0.01,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a log, once, to day-partitioned parquet that studies and runs read; go on with it if interrupted."""
    from surefoot.lab.data.prepared import write
    from surefoot.lab.ingest.prepare import prepare as convert

    loudness = Loudness.of(quiet, verbose)
    if source in IN_MEMORY:
        refuse_full(out)
        log = import_module(f"surefoot.lab.sources.{source}").load()
        write(log, out)
        loudness.notice(log.notice)
        console.print(
            f"{out}: {log.starts[-1]:,} rows, {len(log.days)} days, {log.days[0]} to {log.days[-1]}.", soft_wrap=True
        )
        return
    if not path:
        raise InputError(f"path is missing; expected the folder of the {source} files")
    found = _source(source, path, schema)
    loudness.notice(found.description.notice)
    _show_notes(found)
    with interruptible("the same command goes on from there"), ProgressDisplay(loudness) as progress:
        progress.begin("")
        report = convert(found, out, max_rejected=max_rejected, on_progress=_shown_on(progress))
    _show_report(report, out)


def _source(name: str, path: str, schema: Path | None) -> "Source":
    from surefoot.lab import file_discovery, settings
    from surefoot.lab.ingest.description import Description

    if name == GENERIC:
        if schema is None:
            raise InputError(
                f"--schema is missing; expected a TOML file that describes the log: 'surefoot data check {path} "
                "--suggest schema.toml' writes a first one"
            )
        return _described(settings.load(Description, schema), file_discovery.find_files(path))
    if name not in sources.names():
        raise InputError(settings.choice("source", name, [GENERIC, *sources.names(), *IN_MEMORY]))
    if schema is not None:
        raise InputError(f"--schema is {schema}; expected none, {name} has its own")
    return sources.open_source(name, path)


def _show_notes(source: "Source") -> None:
    for note in source.notes:
        console.print(f"Look at this: {note}.", soft_wrap=True)


def _described(description: "Description", files: tuple[str, ...]) -> "Source":
    from surefoot.lab.ingest.source import Source

    return Source(description, files)


def _suggested(name: str, files: tuple[str, ...], to: Path | None) -> "Description | None":
    """Show or write a suggested schema; return it, or None if a label is to be filled in first."""
    from surefoot.lab import settings
    from surefoot.lab.file_discovery import PARQUET
    from surefoot.lab.ingest.description import Csv, Description
    from surefoot.lab.ingest.suggest import find_csv, suggest

    csv = Csv() if files[0].endswith(PARQUET) else find_csv(files[0])
    found = suggest(name, files, csv)
    if to is not None:
        if to.exists():
            raise InputError(f"--suggest {to} exists; expected a new file")
        to.write_text(found.toml, encoding="utf-8")
        console.print(f"Suggested schema: {to}. Read it before you prepare with it.", soft_wrap=True)
    else:
        console.print("Suggested schema (--suggest FILE writes it):\n")
        console.print(found.toml, soft_wrap=True)
    if not found.guessed:
        console.print("No column looks like a label: name one in the schema, then check with --schema.")
        return None
    return settings.parse(Description, tomllib.loads(found.toml), "the suggested schema")


def _shown_on(progress: ProgressDisplay) -> Callable[[str, float], None]:
    """Return what shows how far a preparation is; each file and day is told of once."""
    told = set[str]()

    def show(what: str, share: float) -> None:
        progress.update(share, what=what)
        if what not in told:
            told.add(what)
            progress.loudness.detail(what)

    return show


def _show_profile(seen: "Profile") -> None:
    columns = plain_table(
        "columns; numbers as after clip and transform", "", "kind", "missing", "values", "mean", "least", "largest"
    )
    for column in seen.columns:
        share = f"{column.missing / max(seen.rows, 1):.2%}" if column.missing else ""
        numbers = (
            ("", "", "") if column.values is not None else (f"{x:.4g}" for x in (column.mean, column.low, column.high))
        )
        values = "" if column.values is None else column.told_values
        columns.add_row(column.name, column.kind, share, values, *numbers)
    console.print(columns)
    title = "days" if len(seen.days) <= _DAYS_SHOWN else f"the last {_DAYS_SHOWN} of {len(seen.days)} days"
    days = plain_table(title, "", "rows", "most unseen ids", "largest shift of a mean")
    for day in seen.days[-_DAYS_SHOWN:]:
        unseen = f"{day.unseen:.1%} {day.unseen_in}" if day.unseen == day.unseen else ""
        shift = f"{day.shift:+.2f} sd {day.shift_of}" if day.shift == day.shift else ""
        days.add_row(day.day, f"{day.rows:,}", unseen, shift)
    console.print(days)
    for labels in _that_fit(list(seen.days[0].labels) if seen.days else [], console.width - len("2024-05-01  ")):
        means = plain_table("mean of the labels by day", "", *labels)
        for day in seen.days[-_DAYS_SHOWN:]:
            means.add_row(day.day, *(f"{day.labels[label]:.4g}" for label in labels))
        console.print(means)
    _show_rejected(seen.rejected, seen.first_rejected)
    for warning in seen.warnings:
        console.print(f"Look at this: {warning}.", soft_wrap=True)
    console.print(f"{seen.rows:,} rows on {len(seen.days)} days can be used.")


def _that_fit(labels: list[str], width: int) -> list[list[str]]:
    """Part the labels into tables that are no wider than the terminal, at least one label each."""
    tables: list[list[str]] = []
    left = 0
    for label in labels:
        needed = max(len(label), len("0.0001234")) + 2
        if not tables or needed > left:
            tables.append([])
            left = width
        tables[-1].append(label)
        left -= needed
    return tables


def _show_report(report: "Report", to: Path) -> None:
    _show_rejected(report.rejected, report.first_rejected)
    if report.counts:
        told = ", ".join(f"{name} {count:,}" for name, count in report.counts.items())
        console.print(f"Values missing (0 after all else) or cut to the width: {told}.", soft_wrap=True)
    if report.beside:
        console.print(f"{report.beside:,} rows of side tables were left out, named in {to}/rejected.", soft_wrap=True)
    for file in report.empty:
        console.print(f"{file} has no rows.", soft_wrap=True)
    if report.pseudo_days:
        console.print("The days are pseudo-days: the log has no time, a day is so many rows in its order.")
    days = list(report.days)
    rejected = sum(report.rejected.values())
    console.print(
        f"{to}: {report.rows_in:,} rows in, {report.rows_out:,} out on {len(days)} days, {days[0]} to {days[-1]}; "
        f"{rejected:,} rejected{f', named in {to}/rejected' if rejected else ''}.",
        highlight=False,
        soft_wrap=True,
    )


def _show_rejected(rejected: dict[str, int], first: list[str]) -> None:
    if not rejected:
        return
    table = plain_table("rejected rows", "", "rows")
    for reason, count in rejected.items():
        table.add_row(reason, f"{count:,}")
    console.print(table)
    for text in first[:10]:
        console.print(f"For example: {text}.", soft_wrap=True)
