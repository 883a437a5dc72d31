"""The one schema of a study's results: what is written, what the table and the report read.

``results.parquet`` has a row for each trial, ``summary.json`` what was selected and the table; the steps and days of
each trial stay in its own folder under ``trials/``.
"""

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.files import SUMS, write_sums, write_whole
from surefoot.outcomes import Fall, fall_of_method, score_of
from surefoot.settings import dump
from surefoot.study.config import StudyConfig

_NOT_SUMMED = (SUMS, "report.html", "study.lock")
_PACKAGES = ("surefoot", "torch", "numpy", "polars")


@dataclass(frozen=True)
class Row:
    """One trial: where it stands in the study, and its result."""

    trial: str
    model: str
    method: str
    multiple: float  # of the base rate
    rate: float
    value: float | None  # of the threshold that the method varies
    seed: int
    until: str  # "selection": scored on day N - 1; "final": on day N
    result: dict[str, Any]

    @property
    def diverged(self) -> bool:
        """Whether it diverged fully."""
        return self.result["verdict"] == "full"

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the scored day, ``{"auc/promo": ...}``."""
        return {key: value for key, value in self.result.items() if "/" in key}


@dataclass(frozen=True)
class MethodSummary:
    """What the search found for one method."""

    name: str
    vary: str | None
    multiple: float  # of the best setting
    value: float | None
    survived: bool  # whether any setting did not diverge
    at_edge: bool  # whether a neighbour of the best setting was left untried
    tried: int
    score: float  # the selection metric on day N - 1, the mean over the seeds that did not diverge
    paper_multiple: float | None  # the best setting of the paper's own grid; None if all of it diverged
    paper_value: float | None
    paper_score: float
    falls_off: dict[str, float | None]  # by model: the lowest multiple that fell; None: none that was tried


@dataclass(frozen=True)
class CloseUp:
    """A run that was watched at every step: the plain optimizer at the lowest rate at which it diverged."""

    model: str
    trial: str
    method: str
    multiple: float
    onset: int


@dataclass(frozen=True)
class Floor:
    """What the search found for the linear floor."""

    rate: float
    at_edge: bool  # whether it is the lowest or the highest that was tried


@dataclass(frozen=True)
class Summary:
    """What a study was and what it selected."""

    name: str
    data: str
    notice: str
    days: tuple[str, ...]
    tasks: list[tuple[str, str, bool]]  # name, kind, judged
    select_by: str
    show: str  # the task shown beside it
    show_metric: str  # rmse; ne where the log has no regression task
    fall_off: float  # AUC below a method's best that counts as fallen off
    searched_on: str
    base_rate: float
    steps: int  # of a final run that does not diverge
    models: list[str]
    methods: list[MethodSummary]
    close_ups: list[CloseUp]
    floor: Floor
    rules: dict[str, str]  # what a monitor calls each rule, by the name that a configuration has for it
    log_days: int | None  # that the log has in all, where that is known
    workers: int
    threads: int


@dataclass(frozen=True)
class TableRow:
    """One line of the table."""

    model: str
    method: str
    setting: str
    auc: str
    rmse: str
    diverged: str
    falls_off: str
    paper: str


@dataclass(frozen=True)
class Study:
    """A study's results, in memory."""

    summary: Summary
    rows: list[Row] = field(repr=False)

    def finals(self, model: str, method: str) -> list[Row]:
        """Return the trials that were scored on day N."""
        return [r for r in self.rows if (r.model, r.method, r.until) == (model, method, "final")]

    def table(self) -> list[TableRow]:
        """Return the table: per model and method, then the floor."""
        lines = [self._line(model, method) for model in self.summary.models for method in self.summary.methods]
        floor = sorted({row.model for row in self.rows} - set(self.summary.models))
        return lines + [self._floor_line(name) for name in floor]

    def fall(self, model: str, method: MethodSummary) -> Fall:
        """Return where a method falls off on a model, at its best threshold."""
        metric = f"auc/{self.summary.select_by}"
        found = fall_of_method(
            self.rows, model, method.name, method.value, metric=metric, allowed=self.summary.fall_off
        )
        assert found is not None, "a method is run at its best setting"
        return found

    def _line(self, model: str, method: MethodSummary) -> TableRow:
        rows = [row for row in self.rows if (row.model, row.method) == (model, method.name)]
        paper = "diverged"
        if method.paper_multiple is not None:
            where = setting(method.paper_multiple, method.vary, method.paper_value)
            paper = f"{100 * method.paper_score:.2f} ({where})"
        return TableRow(
            model=model,
            method=method.name,
            setting=setting(method.multiple, method.vary, method.value) + (", at edge" if method.at_edge else ""),
            auc=self._score(model, method.name, f"auc/{self.summary.select_by}", 100, 2),
            rmse=self._score(model, method.name, f"{self.summary.show_metric}/{self.summary.show}", 1, 3),
            diverged=f"{sum(row.diverged for row in rows)} / {len(rows)}",
            falls_off=self.fall(model, method).short(),
            paper=paper if model == self.summary.searched_on else "",
        )

    def _floor_line(self, name: str) -> TableRow:
        rows = [row for row in self.rows if row.model == name]
        return TableRow(
            model=name,
            method="",
            setting=f"rate {self.summary.floor.rate:g}" + (", at edge" if self.summary.floor.at_edge else ""),
            auc=self._score(name, name, f"auc/{self.summary.select_by}", 100, 2),
            rmse=self._score(name, name, f"{self.summary.show_metric}/{self.summary.show}", 1, 3),
            diverged=f"{sum(row.diverged for row in rows)} / {len(rows)}",
            falls_off="",
            paper="",
        )

    def _score(self, model: str, method: str, metric: str, scale: float, digits: int) -> str:
        found = score_of(self.finals(model, method), metric)
        return "undefined" if found is None else found.text(digits, scale)


def setting(multiple: float, vary: str | None, value: float | None) -> str:
    """Return a setting in words: ``2x, threshold 0.1``."""
    return f"{multiple:g}x" if vary is None else f"{multiple:g}x, {vary} {value:g}"


def write(out: Path, summary: Summary, rows: list[Row], config: StudyConfig) -> Study:
    """Write ``results.parquet``, ``summary.json`` and the checksums of all files into the study's folder.

    Raises:
        InputError: naming the file, if one cannot be written; each is whole or not there.
    """
    study = Study(summary, rows)
    flat = [{key: value for key, value in asdict(row).items() if key != "result"} | row.result for row in rows]
    table = BytesIO()
    pl.DataFrame(flat, infer_schema_length=None).write_parquet(table)
    write_whole(out / "results.parquet", table.getvalue())
    document = {
        **asdict(summary),
        "table": [asdict(line) for line in study.table()],
        "config": dump(config),
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}",
    }
    write_whole(out / "summary.json", json.dumps(_without_nan(document), indent=1, allow_nan=False))
    write_sums(out, [path for path in out.rglob("*") if path.is_file() and path.name not in _NOT_SUMMED])
    return study


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
