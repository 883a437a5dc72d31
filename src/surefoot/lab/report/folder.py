"""Reads a study's folder: the results at once; the steps, days and divergences of a trial when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.files import read_checked
from surefoot.lab import result_files
from surefoot.lab.report.journal import divergences
from surefoot.lab.results import Row, Study


@dataclass(frozen=True)
class Results(Study):
    """The results of a study, with access to the files of its trials."""

    folder: Path
    sums: dict[str, str]  # the checksums of the folder's files

    @property
    def shown_words(self) -> str:
        """The name of the second score in the table, beside the AUC by which settings were selected."""
        return {"rmse": "RMSE", "ne": "NE"}[self.summary.show_metric]

    @property
    def span(self) -> str:
        """The days in words: ``30 days, 2013-02-01 to 2013-03-02``; ``4 periods, ...`` if each has several days."""
        days = self.summary.days
        unit = "periods" if " to " in days[0] else "days"
        return f"{len(days)} {unit}, {days[0].partition(' to ')[0]} to {days[-1].rpartition(' to ')[2]}"

    @property
    def last_day(self) -> str:
        """Day N, on which the final runs are scored."""
        return self.summary.days[-1]

    @property
    def selection_day(self) -> str:
        """Day N - 1, on which settings are selected."""
        return self.summary.days[-2]

    def steps(self, trial: Row) -> pl.DataFrame | None:
        """Return a row for each step; None if the trial's folder does not hold them."""
        return self._table(f"{trial.trial}/metrics.parquet", needed=("step", "day"))

    def days(self, trial: Row) -> pl.DataFrame | None:
        """Return a row for each scored day; None if the trial's folder does not hold them."""
        return self._table(f"{trial.trial}/days.parquet", text=("scored", "day", "after"), needed=("scored", "day"))

    def events(self, trial: Row) -> list[dict[str, Any]]:
        """Return the divergences in the trial's journal."""
        path = self.folder / "trials" / trial.trial / "events.jsonl"
        return divergences(path, read_checked(path, self.folder, self.sums)) if path.exists() else []

    def watched(self, trial: str) -> pl.DataFrame | None:
        """Return a monitor's values of a trial, a row for each step; None if the trial's folder does not hold them."""
        return self._table(f"{trial}/monitor/metrics.parquet", needed=("step",))

    def _table(self, name: str, *, text: Sequence[str] = (), needed: Sequence[str]) -> pl.DataFrame | None:
        path = self.folder / "trials" / name
        if not path.exists():
            return None
        return result_files.read_table(path, read_checked(path, self.folder, self.sums), text=text, needed=needed)


def read(folder: Path) -> Results:
    """Return the results of a study.

    Raises:
        InputError: naming the file, if one is missing or cannot be read.
    """
    study, sums = result_files.read(folder)
    return Results(study.summary, study.rows, folder, sums)
