"""The tables of a study's report: the methods, and every task."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from surefoot.lab import results as schema
from surefoot.lab.outcomes import Fall, Score
from surefoot.lab.report.conclusions import entries, final_score
from surefoot.lab.report.folder import Results
from surefoot.lab.report.notices import beats_constant, constant_of
from surefoot.lab.results import Method, Row, Task

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, and a second line in small print."""

    text: str
    small: str = ""
    best: bool = False  # whether it is the best score of a judged task
    tone: str = ""  # "good" or "bad", for the colour


@dataclass(frozen=True)
class Line:
    """A line of the table of methods."""

    method: str
    setting: Cell
    at_edge: bool
    auc: Cell
    rmse: Cell
    diverged: str
    falls_off: Cell
    holds: bool  # whether the method fell off at no rate that was tried
    paper: Cell
    tag: str = ""  # "best", or "≈ best": not significantly worse


@dataclass(frozen=True)
class Group:
    """A model's lines."""

    model: str
    lines: list[Line]


@dataclass(frozen=True)
class TaskTable:
    """Every task of one model: a row a method, then the floor and the best constant."""

    model: str
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)


def main_table(results: Results) -> list[Group]:
    """Return the table of methods, grouped by model."""
    groups: dict[str, list[Line]] = {}
    for found in results.table():
        ranked = entries(results, found.model) if found.method else []
        tags = {e.who: "≈ best" for e in ranked[1:] if ranked[0].score.near(e.score)}
        if len(ranked) > 1 and not ranked[0].score.diverged:
            tags[ranked[0].who] = "best"
        groups.setdefault(found.model, []).append(_line(found, tags))
    return [Group(model, lines) for model, lines in groups.items()]


def _line(found: schema.Line, tags: dict[str, str]) -> Line:
    method = found.method
    return Line(
        method=method.name if method else found.model,
        setting=setting_cell(found),
        at_edge=found.at_edge,
        auc=score_cell(found.auc, 2, 100),
        rmse=score_cell(found.shown, 3),
        diverged=f"{found.diverged} / {found.tried}",
        falls_off=fall_cell(found.fall),
        holds=found.fall is not None and found.fall.at is None,
        paper=_paper(method) if method and found.searched else Cell(""),
        tag=tags.get(method.name, "") if method else "",
    )


def setting_cell(line: schema.Line) -> Cell:
    """Return the best setting: the rate as a multiple of the base rate, and the threshold in small print."""
    method = line.method
    if method is None:
        return Cell(f"rate {line.floor.rate:g}")
    return Cell(f"{method.multiple:g}x", "" if method.value is None else f"{method.vary} {method.value:g}")


def _paper(method: Method) -> Cell:
    """Return the best score and setting of the paper's own grid."""
    if method.paper_multiple is None:
        return Cell("diverged")
    return Cell(f"{100 * method.paper_score:.2f}", method.paper_setting)


def score_cell(score: Score | None, digits: int, scale: float = 1.0) -> Cell:
    """Return a score over the seeds, and the number of diverged seeds in small print.

    >>> score_cell(Score.over([0.974], 3), 2, 100)
    Cell(text='97.40', small='2 of 3 seeds diverged', best=False, tone='')
    """
    if score is None:
        return Cell("undefined")
    if not score.values:
        return Cell("diverged")
    return Cell(Score(score.values).text(digits, scale), _lost(score))


def _lost(score: Score) -> str:
    return f"{score.diverged} of {score.tried} seeds diverged" if score.diverged else ""


def fall_cell(fall: Fall | None) -> Cell:
    """Return the rate at which a method falls off, and the number of its diverged runs there in small print."""
    if fall is None:
        return Cell("")
    if fall.at is None:
        return Cell(f"> {fall.top:g}x")
    how = f"{fall.at.diverged} of {fall.at.tried} diverged" if fall.at.diverged else "AUC lost"
    return Cell(f"{fall.at.multiple:g}x", how)


def task_tables(results: Results) -> list[TaskTable]:
    """Return a table for each model."""
    return [_task_table(results, model) for model in results.models]


def _task_table(results: Results, model: str) -> TaskTable:
    names = [method.name for method in results.methods]
    tasks = results.summary.tasks
    columns = [_column(results, model, names, task) for task in tasks]
    table = TaskTable(model, [(name, [cells[i] for cells in columns]) for i, name in enumerate(names)])
    if results.floor:
        floor = results.floor
        table.rows.append((floor, [_cell(results, floor, floor, task) for task in tasks]))
    table.rows.append(("best constant", [_constant(results, model, task) for task in tasks]))
    if results.floor:
        table.rows.append(("best against the floor", [_against(results, model, task) for task in tasks]))
    return table


def _column(results: Results, model: str, names: Sequence[str], task: Task) -> list[Cell]:
    best = _best(results, model, task)
    winner = best[0] if best and task.judged else None
    return [_cell(results, model, name, task, best=name == winner) for name in names]


def _cell(results: Results, model: str, method: str, task: Task, *, best: bool = False) -> Cell:
    trials = results.finals(model, method)
    score = final_score(results, model, method, task.metric)
    if not trials:
        return Cell("not run")
    if score is None:
        return Cell("undefined (one class)" if task.kind == "binary" else "undefined")
    if not score.values:
        return Cell("diverged")
    alive = [trial for trial in trials if not trial.diverged]
    interval = _interval(alive, task) if task.kind == "binary" else ""
    shown = Score(score.values).text(2, 100) if task.kind == "binary" else Score(score.values).text(4)
    worse = task.judged and not beats_constant(results, model, task, score)
    small = ", ".join(filter(None, (interval, _lost(score), "no better than a constant prediction" if worse else "")))
    return Cell(shown, small, best=best and not worse, tone="bad" if worse else "")


def _interval(trials: Sequence[Row], task: Task) -> str:
    """Return the 95 % interval of the AUC for the number of rows of the day, its ends averaged over the seeds."""
    ends = []
    for key in ("auc_low", "auc_high"):
        values = [trial.scores.get(f"{key}/{task.name}", math.nan) for trial in trials]
        ends.append(100 * statistics.fmean(values))
    return "" if any(math.isnan(end) for end in ends) else f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _best(results: Results, model: str, task: Task) -> tuple[str, Score] | None:
    """Return the method with the best score of a task, fewest diverged seeds first; None if no method has a score."""
    found = [(m.name, final_score(results, model, m.name, task.metric)) for m in results.methods]
    scores = [(name, score) for name, score in found if score is not None and score.values]
    least = task.kind != "binary"
    return max(scores, key=lambda pair: pair[1].standing(least=least), default=None)


def _constant(results: Results, model: str, task: Task) -> Cell:
    value = constant_of(results, model, task)
    if value is None:
        return Cell("")
    return Cell(f"{100 * value:.2f}" if task.kind == "binary" else f"{value:.4f}")


def _against(results: Results, model: str, task: Task) -> Cell:
    """Compare the best method with the linear floor, on one task."""
    best = _best(results, model, task)
    floor = final_score(results, str(results.floor), str(results.floor), task.metric)
    if best is None or floor is None or not floor.values:
        return Cell("")
    name, score = best
    binary = task.kind == "binary"
    lead = 100 * (score.mean - floor.mean) if binary else score.mean - floor.mean
    better = score.standing(least=not binary) > floor.standing(least=not binary)
    text = (f"{lead:+.2f}" if binary else f"{lead:+.4f}").replace("-", MINUS)
    if task.judged and not beats_constant(results, model, task, score):
        return Cell(text, f"{name} is no better than a constant prediction", tone="bad")
    if task.judged and not beats_constant(results, model, task, floor):
        return Cell(text, "the floor is no better than a constant prediction")
    if score.near(floor) is not False:
        return Cell(text, f"{name}, not significant")
    tone = ("good" if better else "bad") if task.judged else ""
    return Cell(text, f"{name} is {'better' if better else 'worse'}", tone=tone)
