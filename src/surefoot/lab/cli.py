"""The command line."""

import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surefoot
from surefoot.errors import InputError
from surefoot.lab import cli_data
from surefoot.lab.cli_results import as_rich, print_notices, print_result, print_tables, verdict
from surefoot.lab.progress_display import ProgressDisplay
from surefoot.lab.terminal import (
    INTERRUPTED,
    Loudness,
    Quiet,
    Verbose,
    console,
    interruptible,
    outside,
    plain_table,
    refuse_full,
    say,
)
from surefoot.lab.usage_errors import Commands, in_a_sentence

if TYPE_CHECKING:
    from surefoot.lab.study.config import RunConfig

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(cli_data.app, name="data")
_DIVERGED = 3
_WRONG_INPUT = 2


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"surefoot {surefoot.__version__}")
        raise typer.Exit


@app.callback()
def surefoot_(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep multitask ranking models from diverging in training."""


def _preset_names() -> list[str]:
    from surefoot.lab.study.config import presets

    return presets()


def _rule_names() -> list[str]:
    from surefoot.lab.study.config import rule_names

    return rule_names()


@app.command()
def study(
    study: Annotated[
        str,
        typer.Argument(help="A preset (quick, smoke, drift, paper) or a TOML file.", autocompletion=_preset_names),
    ] = "quick",
    out: Annotated[Path, typer.Option(help="The study's folder: new, or this very study's, to go on with it.")] = Path(
        "runs/study"
    ),
    data: Annotated[
        str | None,
        typer.Option(help="Another data set: completejourney or synthetic.", autocompletion=cli_data.own_logs),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model of the study, or your own: module:function. May be repeated.")
    ] = None,
    select_by: Annotated[str | None, typer.Option(help="The binary task whose AUC selects.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare every rule on one log by the paper's protocol; write a table and a report."""
    from surefoot.lab.report.page import write_report
    from surefoot.lab.study.config import load_study, with_changes
    from surefoot.lab.study.protocol import run_study
    from surefoot.lab.study.trial import load_log

    loudness = Loudness.of(quiet, verbose)
    config = with_changes(load_study(study), source=data, models=model, select_by=select_by)
    loudness.notice(load_log(config.data).notice)
    consequence = "the same command goes on from the finished trials"
    with interruptible(consequence), ProgressDisplay(loudness, unit="trials") as progress:

        def finished(result: dict[str, Any]) -> None:
            loudness.detail(f"{result['trial']}: {verdict(result)} {result['seconds']:.1f} s.")
            progress.advance()

        results = run_study(
            config,
            out,
            workers=workers,
            on_phase=progress.begin,
            on_trial=finished,
            on_lost=say,
            on_left=progress.set_left,
        )
    print_tables(results)
    print_notices(out)
    console.print(f"Report: {write_report(out)}", soft_wrap=True)


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A run's TOML file, such as a trial's config.toml; with --resume it may be left out."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder: new, or this run's, to go on.")] = Path("runs/run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --out, or say why that cannot be.")
    ] = False,
    rate: Annotated[float | None, typer.Option(help="The learning rate, in place of the file's.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed, in place of the file's.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="The rule, in place of the file's, with its own defaults.", autocompletion=_rule_names),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one model, or go on with it if it was interrupted; exit with 3 if it diverges."""
    from surefoot.lab.study.claim import held
    from surefoot.lab.study.config import with_overrides
    from surefoot.lab.study.trial import claim, load_log, run_trial, total_steps

    loudness = Loudness.of(quiet, verbose)
    run = _asked_for(config, out, resume)
    run = with_overrides(run, rate=rate, seed=seed, rule=rule)
    loudness.notice(load_log(run.data).notice)
    display = ProgressDisplay(loudness, unit="steps", all_at_once=True)
    with held(out), interruptible(_consequence(run, out)), display as progress:
        loudness.note(claim(out, run, resume=resume))
        progress.begin("training", total_steps(run))
        happened = _follow(out, loudness)

        def stepped(step: int) -> None:
            progress.update(step + 1)
            happened()

        result = run_trial(run, out, on_step=stepped)
        happened()
    print_result(result)
    if result["verdict"] == "full":
        raise typer.Exit(_DIVERGED)


def _asked_for(config: Path | None, out: Path, resume: bool) -> "RunConfig":
    """Return the run of a file, or the one in the folder, which is not made for a resume that is refused."""
    from surefoot.lab.settings import load
    from surefoot.lab.study.config import RunConfig
    from surefoot.lab.study.trial import written_config

    if resume:
        kept = written_config(out, resume=True)
        return kept if config is None else load(RunConfig, config)
    if config is None:
        raise InputError("config is missing; expected a run's TOML file, or --resume")
    return load(RunConfig, config)


def _follow(out: Path, loudness: Loudness) -> Callable[[], None]:
    """Return what tells of the events that a training has written down since it was last called."""
    from surefoot.lab.report.happened import in_a_line
    from surefoot.lab.report.journal import Tail

    tail = Tail(out / "events.jsonl")

    def tell() -> None:
        for event in tail.new():
            loudness.detail(in_a_line(event))

    return tell if loudness is Loudness.VERBOSE else lambda: None


def _consequence(run: "RunConfig", out: Path) -> str:
    """Return what becomes of a training that is interrupted."""
    if run.recovery is not None:
        return f"the same command goes on from the last checkpoint in {out}"
    if run.monitor is not None:
        return f"what was watched so far is in {out}, and the same command starts anew"
    return "nothing was written, and the same command starts anew"


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
    rule: Annotated[
        str | None,
        typer.Option(help="Run the same batches under this rule too: does it survive?", autocompletion=_rule_names),
    ] = None,
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
        console.print(as_rich(part) if isinstance(part, tables.Table) else part, soft_wrap=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(tables.document(found), allow_nan=False))
        console.print(f"Numbers: {out / 'replay.json'}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: what is wrong outside is one sentence on stderr and exit code 2, an interruption 130.

    Args:
        arguments: what follows the program's name; by default what this process was started with.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter that a name has
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: say(f"warning: {message}")
            code = app(arguments, prog_name="surefoot", standalone_mode=False)  # so that usage errors come to us
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise  # a mistake of ours
        say(sentence)
        code = _WRONG_INPUT
    finally:
        _let_go_of_output()
    sys.exit(code)


def _sentence(error: Exception) -> str | None:
    """Return what is wrong with the user's input or machine; None if it is neither."""
    found = error if isinstance(error, InputError) else in_a_sentence(error)
    return outside(error) if found is None else str(found)


def _let_go_of_output() -> None:
    """Write what is left; on a full disk let it go, of which Python would tell once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
