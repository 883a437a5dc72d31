"""Compares two runs or two studies: the differences of their configurations and of their results."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from surefoot.errors import InputError
from surefoot.lab.outcomes import difference
from surefoot.lab.report import happened
from surefoot.lab.report.conclusions import conclusions
from surefoot.lab.report.folder import Results, read
from surefoot.lab.report.run_folder import RunFolder, is_run, read_run
from surefoot.lab.report.tables import MINUS, Cell, fall_cell, score_cell, setting_cell
from surefoot.lab.results import VERDICTS, Line

T = TypeVar("T")
_ABSENT = "not set"


@dataclass(frozen=True)
class Table:
    """A table of the comparison; a row with one cell is the heading of the rows below."""

    title: str
    heads: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""
    empty: str = ""  # the text if there is no row
    page_only: tuple[int, ...] = ()  # columns left out on a terminal

    def narrow(self, cells: Sequence[T]) -> list[T]:
        """Return the cells of a row, or the heads, without the columns that are left out on a terminal."""
        return [cell for number, cell in enumerate(cells) if number not in self.page_only]


@dataclass(frozen=True)
class Side:
    """One of the two runs or studies."""

    letter: str
    folder: Path
    facts: str
    said: str


@dataclass(frozen=True)
class Comparison:
    """The text and the tables of a comparison."""

    kind: str  # "runs" or "studies"
    sides: tuple[Side, Side]
    notices: list[str]
    tables: list[Table]


Pair = tuple[RunFolder, RunFolder] | tuple[Results, Results]


def read_pair(one: Path, other: Path) -> Pair:
    """Return two runs or two studies.

    Raises:
        InputError: naming the file or the folder, if one cannot be read, or if only one of them is a study.
    """
    for folder in (one, other):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected the folder of a run or of a finished study")
    runs = [is_run(folder) for folder in (one, other)]
    if all(runs):
        return read_run(one), read_run(other)
    if any(runs):
        run, study = (one, other) if runs[0] else (other, one)
        read(study)  # raises an error of its own if this is not a study
        raise InputError(f"{run} is a run and {study} is a study; expected two runs or two studies")
    return read(one), read(other)


def compare_runs(a: RunFolder, b: RunFolder) -> Comparison:
    """Return two runs side by side."""
    sides = (_run_side("A", a), _run_side("B", b))
    notices = []
    days = [run.scored_day for run in (a, b)]
    if None not in days and days[0] != days[1]:
        notices.append(f"A is scored on {days[0]} and B on {days[1]}: their scores come from different rows.")
    for side, run in zip("AB", (a, b), strict=True):
        if not run.scores:
            notices.append(f"{side} has no final scores: the run has not ended, or its training loop writes none.")
        if run.toml is None:
            notices.append(f"{side} has no config.toml: the differences of the configurations are not known.")
    return Comparison("runs", sides, notices, [_configuration(a.toml, b.toml), _ends(a, b), _run_scores(a, b)])


def compare_studies(a: Results, b: Results) -> Comparison:
    """Return two studies side by side."""
    sides = (_study_side("A", a), _study_side("B", b))
    notices = []
    for called, of_a, of_b in (
        ("was selected by the AUC of", a.summary.select_by, b.summary.select_by),
        ("is scored on", a.last_day, b.last_day),
        ("was run on", a.summary.data, b.summary.data),
    ):
        if of_a != of_b:
            notices.append(f"A {called} {of_a}, B {called} {of_b}: their scores do not measure the same.")
    if set(a.summary.seeds).isdisjoint(b.summary.seeds):
        notices.append("The final runs of A and B have no seed in common: their differences have no interval.")
    tables = [_configuration(a.summary.config, b.summary.config), _study_scores(a, b)]
    return Comparison("studies", sides, notices, tables)


def _run_side(letter: str, run: RunFolder) -> Side:
    return Side(letter, run.folder, happened.facts(run), happened.conclusion(run))


def _study_side(letter: str, study: Results) -> Side:
    lost, trials = sum(row.diverged for row in study.rows), len(study.rows)
    what = f"study {study.summary.name} · {study.summary.data}, {study.span}"
    return Side(letter, study.folder, f"{what} · {trials} trials, {lost} diverged", conclusions(study)[0].headline)


def differences(one: str | None, other: str | None) -> list[tuple[str, str, str]]:
    """Return the keys in which two configurations differ, with both values.

    >>> differences("rate = 0.1\\n[rule]\\nname = 'gc'", "rate = 0.1\\n[rule]\\nname = 'agc'\\nthreshold = 0.1")
    [('rule.name', 'gc', 'agc'), ('rule.threshold', 'not set', '0.1')]
    """
    a, b = (_flat(tomllib.loads(text or "")) for text in (one, other))
    keys = list(dict.fromkeys([*a, *b]))
    return [(key, a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in keys if a.get(key) != b.get(key)]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Flatten a table to dotted names; an entry of a list of tables goes by its ``name``."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(item.get("name", number)): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {name: str(value)}
    found: dict[str, str] = {}
    for inner, item in value.items():
        found |= _flat(item, f"{name}.{inner}".lstrip("."))
    return found


def _configuration(one: str | None, other: str | None) -> Table:
    title, heads = "Differences of the configurations", ("key", "A", "B")
    if one is None or other is None:
        return Table(title, heads, [], empty="Not known: at least one run has no config.toml.")
    rows = [[Cell(text) for text in line] for line in differences(one, other)]
    return Table(title, heads, rows, empty="None: the two configurations are the same.")


def _ends(a: RunFolder, b: RunFolder) -> Table:
    def row(called: str, *said: Any) -> list[Cell]:
        return [Cell(called), *(Cell("" if each is None else str(each)) for each in said)]

    def of_result(run: RunFolder, key: str) -> Any:
        return (run.result or {}).get(key)

    verdicts = [VERDICTS.get(of_result(run, "verdict"), "not known") for run in (a, b)]
    rows = [row("verdict", *verdicts)]
    rows.append(row("diverged from step", *(of_result(run, "onset") for run in (a, b))))
    rows.append(row("newest step", a.last_step, b.last_step))
    for kind, called in happened.KINDS.items():
        counts = [len(run.of_kind(kind)) for run in (a, b)]
        if any(counts):
            rows.append(row(called, *counts))
    rows.append(row("capsules", len(a.capsules), len(b.capsules)))
    return Table("What happened", ("", "A", "B"), rows, note="The number of an event is how often it happened.")


def _run_scores(a: RunFolder, b: RunFolder) -> Table:
    rows: list[list[Cell]] = []
    last = None
    for task, metric, called in happened.scored([a, b]):
        if task != last:
            rows.append([Cell(task)])
        last = task
        cells = [happened.score(run, metric, task) for run in (a, b)]
        rows.append([Cell(called), *cells, _run_difference(a, b, metric, task)])
    return Table(
        "Final scores",
        ("metric", "A", "B", f"B {MINUS} A"),
        rows,
        note="In brackets: 95 % intervals of the AUC for the number of rows of the day. The interval of a difference "
        "assumes that the two runs are independent; for two runs scored on the same rows, it is too wide rather than "
        "too narrow. No interval includes the variation between seeds.",
        empty="Neither of the two has final scores.",
    )


def _run_difference(a: RunFolder, b: RunFolder, metric: str, task: str) -> Cell:
    found = [run.scores.get(f"{metric}/{task}", math.nan) for run in (a, b)]
    lead = found[1] - found[0]
    if not math.isfinite(lead):
        return Cell("")
    _, scale, digits = happened.METRICS[metric]
    halves = [_half(run, metric, task) for run in (a, b)]
    text = signed(scale * lead, digits)
    if None in halves:
        return Cell(text)
    half = math.hypot(*(half or 0.0 for half in halves))
    said = interval(scale * (lead - half), scale * (lead + half), digits)
    return Cell(text, said if abs(lead) > half else f"{said}: not significant")


def _half(run: RunFolder, metric: str, task: str) -> float | None:
    low, high = (run.scores.get(f"{metric}_{end}/{task}", math.nan) for end in ("low", "high"))
    return None if math.isnan(high - low) else (high - low) / 2


def _study_scores(a: Results, b: Results) -> Table:
    rows: list[list[Cell]] = []
    found = [_by_place(study) for study in (a, b)]
    model = None
    for place in dict.fromkeys([*found[0], *found[1]]):
        if place[0] != model and place[1]:
            rows.append([Cell(place[0])])
        model = place[0]
        pair = [lines.get(place) for lines in found]
        rows.append([Cell(place[1] or model), *(cell for line in pair for cell in _line_cells(line)), _lead(*pair)])
    columns = [f"{side}: {what}" for side in "AB" for what in ("setting", "AUC %", "falls off at")]
    tasks = list(dict.fromkeys([a.summary.select_by, b.summary.select_by]))
    return Table(
        f"Final scores: AUC of {' and of '.join(tasks)}",
        ("method", *columns, f"B {MINUS} A, AUC %"),
        rows,
        note="Mean ± standard deviation over the seeds, on the last day. The difference is the mean over the seeds "
        "that are in both studies and diverged in neither; in brackets, its 95 % interval (Student's t).",
        page_only=(1, 4),
    )


def _by_place(study: Results) -> dict[tuple[str, str], Line]:
    return {(line.model, line.method.name if line.method else ""): line for line in study.table()}


def _line_cells(line: Line | None) -> list[Cell]:
    if line is None:
        return [Cell("not run"), Cell(""), Cell("")]
    return [setting_cell(line), score_cell(line.auc, 2, 100), fall_cell(line.fall)]


def _lead(a: Line | None, b: Line | None) -> Cell:
    """Return how much the score of B is above that of A, seed by seed, with its interval."""
    if a is None or b is None or a.auc is None or b.auc is None or not a.auc.values or not b.auc.values:
        return Cell("")
    lead = difference(b.auc, a.auc)
    text = signed(100 * lead.mean, 2)
    if lead.low is None or lead.high is None:
        return Cell(text, "too few common seeds for an interval")
    said = f"{interval(100 * lead.low, 100 * lead.high, 2)}, {lead.seeds} seeds"
    if a.auc.diverged != b.auc.diverged:
        return Cell(text, f"{said}; more seeds of {'A' if a.auc.diverged > b.auc.diverged else 'B'} diverged")
    if lead.low <= 0 <= lead.high:
        return Cell(text, f"{said}: not significant")
    return Cell(text, said, tone="good" if lead.mean > 0 else "bad")


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign.

    >>> signed(0.3, 2), signed(-0.001, 2)
    ('+0.30', '0.00')
    """
    said = f"{value:+.{digits}f}" if abs(value) < 1e6 else f"{value:+.3g}"
    return said[1:] if float(said) == 0 else said.replace("-", MINUS)


def interval(low: float, high: float, digits: int) -> str:
    """Return an interval in brackets."""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"
