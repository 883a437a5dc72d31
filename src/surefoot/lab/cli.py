"""The command line."""

import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from surefoot.errors import InputError
from surefoot.lab import cli_data
from surefoot.lab.terminal import console, interruptible, outside, plain_table, refuse_full, say

if TYPE_CHECKING:
    from surefoot.lab.results import Study
    from surefoot.lab.study.replay_tables import Table as ReplayTable

app = typer.Typer(
    help="Keep multitask ranking models from diverging in training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_data.app, name="data")
_DIVERGED = 3


@app.command()
def study(
    study: Annotated[str, typer.Argument(help="A preset (quick, smoke, drift, paper) or a TOML file.")] = "quick",
    out: Annotated[Path, typer.Option(help="The study's folder: new, or this very study's, to go on with it.")] = Path(
        "runs/study"
    ),
    data: Annotated[str | None, typer.Option(help="Another data set: completejourney or synthetic.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model of the study; may be repeated.")] = None,
    select_by: Annotated[str | None, typer.Option(help="The binary task whose AUC selects.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
) -> None:
    """Compare every rule on one log by the paper's protocol; write a table and a report."""
    from surefoot.lab.report.page import write_report
    from surefoot.lab.study.config import load_study, with_changes
    from surefoot.lab.study.protocol import run_study
    from surefoot.lab.study.trial import load_log

    config = with_changes(load_study(study), source=data, models=model, select_by=select_by)
    notice = load_log(config.data).notice
    if notice:
        console.print(notice, style="dim")
    with interruptible("the same command goes on from the finished trials"), _progress() as progress:
        bar = progress.add_task("", total=0)
        results = run_study(
            config,
            out,
            workers=workers,
            on_phase=lambda name, trials: progress.reset(bar, description=name, total=trials),
            on_trial=lambda result: progress.advance(bar),
            on_lost=say,
        )
    _print_tables(results)
    _print_notices(out)
    console.print(f"Report: {write_report(out)}", soft_wrap=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's TOML file, such as a trial's config.toml.")],
    out: Annotated[Path, typer.Option(help="The run's folder: new, or this run's, to go on.")] = Path("runs/run"),
) -> None:
    """Train one model, or go on with it if it was interrupted; exit with 3 if it diverges."""
    from surefoot.lab.settings import load
    from surefoot.lab.study.claim import held
    from surefoot.lab.study.config import RunConfig
    from surefoot.lab.study.trial import claim, load_log, run_trial, total_steps

    run = load(RunConfig, config)
    log = load_log(run.data)
    if log.notice:
        console.print(log.notice, style="dim")
    if run.recovery is not None:
        consequence = f"the same command goes on from the last checkpoint in {out}"
    elif run.monitor is not None:
        consequence = f"what was watched so far is in {out}, and the same command starts anew"
    else:
        consequence = "nothing was written, and the same command starts anew"
    with held(out), interruptible(consequence), _progress() as progress:
        if told := claim(out, run):
            say(told)
        bar = progress.add_task("training", total=total_steps(run))
        result = run_trial(run, out, on_step=lambda step: progress.update(bar, completed=step + 1))
    _print_result(result)
    if result["verdict"] == "full":
        raise typer.Exit(_DIVERGED)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A study's folder, or a run's.")]) -> None:
    """Write report.html into a study's folder, or a run's, from what the folder holds."""
    from surefoot.lab.report.page import write_report
    from surefoot.lab.report.run_folder import is_run
    from surefoot.lab.report.run_page import write_run_report

    write = write_run_report if is_run(folder) else write_report
    console.print(f"Report: {write(folder)}", soft_wrap=True)


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="A run's folder, or a study's.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Compare two runs or two studies: their configurations, their scores side by side, their curves."""
    from surefoot.lab.report.compare_page import write_comparison

    found = write_comparison(one, other, out)
    for side in found.sides:
        console.print(f"{side.letter}: {side.folder}: {side.said}", highlight=False)
    for line in found.notices:
        console.print(line, style="yellow", highlight=False)
    for part in found.tables:
        table = plain_table(part.title, *part.narrow(part.heads))
        for row in part.rows:
            table.add_row(*(f"{cell.text}\n{cell.small}" if cell.small else cell.text for cell in part.narrow(row)))
        console.print(table if part.rows else f"{part.title}: {part.empty}")
    console.print(f"Comparison: {out}", soft_wrap=True)


@app.command()
def replay(
    capsule: Annotated[Path, typer.Argument(help="A capsule's folder, written by a run when it raised an alarm.")],
    rule: Annotated[str | None, typer.Option(help="Run the same batches under this rule too: does it survive?")] = None,
    steps: Annotated[int, typer.Option(min=0, help="With --rule: go on to so many steps after the event.")] = 64,
    bisect_batch: Annotated[bool, typer.Option("--bisect-batch", help="Find the rows that made the event.")] = False,
    data: Annotated[
        str | None, typer.Option(help="The log, if it is not where the run had it, or is at a URL.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The factory of a model of your own: package.module:function.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new or empty folder for replay.json, with all numbers.")] = None,
) -> None:
    """Run the last steps before an alarm again, bit for bit; say what every rule would have done."""
    from surefoot.lab.study import replay_tables as tables
    from surefoot.lab.study.replay import Elsewhere, examine

    if out is not None:
        refuse_full(out)
    with interruptible("nothing was written"), console.status("replaying"):
        found = examine(capsule, rule=rule, steps=steps, bisect_batch=bisect_batch, elsewhere=Elsewhere(data, model))
    for part in tables.page(found):
        console.print(_as_rich(part) if isinstance(part, tables.Table) else part, soft_wrap=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(tables.document(found), allow_nan=False))
        console.print(f"Numbers: {out / 'replay.json'}", soft_wrap=True)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _print_tables(results: "Study") -> None:
    """Print the table, a block for each model, and what the paper's own grid alone would have said."""
    summary = results.summary
    lines = results.table()
    title = f"{summary.name}: {summary.data} to {summary.days[-2].rpartition(' to ')[2]}, scored on {summary.days[-1]}"
    scores = (f"AUC %\n{summary.select_by}", f"{summary.show_metric.upper()}\n{summary.show}")
    heads = ("rate", "threshold", *scores, "diverged", "falls\noff")
    table = plain_table(title, "", *heads)
    for model in dict.fromkeys(line.model for line in lines):
        if model in summary.models:
            table.add_row(model, style="bold")
        for line in (line for line in lines if line.model == model):
            method, words = line.method, line.words()
            rate = f"{method.multiple:g}x" if method else f"{line.floor.rate:g}"
            value = "" if method is None or method.value is None else f"{method.value:g}"
            name = method.name if method else model
            edge, counted = " edge" if line.at_edge else "", words["diverged"].replace(" ", "")
            table.add_row(name, rate + edge, value, words["auc"], words["rmse"], counted, words["falls_off"])
        table.add_section()
    console.print(table)
    paper = plain_table(
        f"{summary.searched_on}, scored on {summary.days[-2]} to select", "", "best", "paper's grid alone"
    )
    for method, line in zip(summary.methods, lines, strict=False):
        words = line.words()
        best = f"{100 * method.score:.2f} ({words['setting']})" if method.survived else "diverged"
        paper.add_row(method.name, best, words["paper"])
    console.print(paper)


def _print_notices(out: Path) -> None:
    """Print what a reader must know before any score, as the report's first lines do."""
    from surefoot.lab.report.folder import read
    from surefoot.lab.report.notices import notices

    for line in notices(read(out)):
        console.print(line, style="yellow", highlight=False)


def _print_result(result: dict[str, Any]) -> None:
    from surefoot.lab.results import VERDICTS

    table = plain_table(f"scored on {result['scored_day']}", "task", "metric", "value")
    for key, value in result.items():
        metric, _, task = key.partition("/")
        if not task or metric in ("auc_low", "auc_high"):
            continue
        shown = f"{value:.4f}" if value == value else "undefined"
        if metric == "auc" and value == value:
            shown += f"  ({result[f'auc_low/{task}']:.4f} to {result[f'auc_high/{task}']:.4f})"
        table.add_row(task, metric, shown)
    console.print(table)
    where = f", from step {result['onset']}: {result['reason']}" if result["onset"] is not None else ""
    console.print(f"Verdict: {VERDICTS[result['verdict']]}{where}. {result['steps']} steps.")


def _as_rich(table: "ReplayTable") -> Table:
    shown = plain_table(table.title, *table.heads)
    for rows in table.sections:
        for row in rows:
            shown.add_row(*row, style="bold" if len(row) > 1 and not any(row[1:]) else None)  # a head
        shown.add_section()
    return shown


def main() -> None:
    """Run the command line: what is wrong outside is one sentence on stderr and exit code 2, an interruption 130."""
    warnings.showwarning = lambda message, *where: say(f"warning: {message}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter that a name has
    try:
        app()
    except InputError as error:
        say(str(error))
        sys.exit(2)
    except Exception as error:
        if (sentence := outside(error)) is None:
            raise  # a mistake of ours
        say(sentence)
        sys.exit(2)
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Write what is left; on a full disk let it go, of which Python would tell once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
