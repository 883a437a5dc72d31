"""What the commands print of their results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from surefoot.lab.terminal import console, plain_table

if TYPE_CHECKING:
    from surefoot.lab.results import Study
    from surefoot.lab.study.replay_tables import Table as ReplayTable


def print_tables(results: "Study") -> None:
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


def print_notices(out: Path) -> None:
    """Print what a reader must know before any score, as the report's first lines do."""
    from surefoot.lab.report.folder import read
    from surefoot.lab.report.notices import notices

    for line in notices(read(out)):
        console.print(line, style="yellow", highlight=False)


def verdict(result: dict[str, Any]) -> str:
    """Return how a run ended, in words."""
    from surefoot.lab.results import VERDICTS

    where = f", from step {result['onset']}: {result['reason']}" if result["onset"] is not None else ""
    return f"{VERDICTS[result['verdict']]}{where}. {result['steps']} steps."


def print_result(result: dict[str, Any]) -> None:
    """Print a run's scores and verdict."""
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
    console.print(f"Verdict: {verdict(result)}")


def as_rich(table: "ReplayTable") -> Table:
    """Return a replay's table as the terminal shows it."""
    shown = plain_table(table.title, *table.heads)
    for rows in table.sections:
        for row in rows:
            shown.add_row(*row, style="bold" if len(row) > 1 and not any(row[1:]) else None)  # a head
        shown.add_section()
    return shown
