"""A study folder as the report sees it: what was selected, a line for each trial, the steps of each on demand."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.files import SUMS, read_checked, read_sums
from surefoot.outcomes import Fall, Score, fall_of_method, score_of
from surefoot.report.result_files import divergences, parquet

_SUMMARY = ("name", "data", "notice", "searched_on", "base_rate", "steps", "workers", "threads", "machine", "log_days")
_FLOOR = ("rate", "at_edge")
_SCORES = ("select_by", "show", "show_metric")
_TEXT = ("trial", "model", "method", "until", "verdict", "reason", "scored_day")  # columns of the results
_NUMBERS = ("multiple", "rate", "value", "seed", "onset", "steps")
_LINE = ("model", "method", "setting", "auc", "rmse", "diverged", "falls_off", "paper")


@dataclass(frozen=True)
class Task:
    """One of the log's tasks."""

    name: str
    kind: str  # "binary" or "regression"
    judged: bool

    @property
    def metric(self) -> str:
        """The score that is reported for it, a column of the results."""
        return f"auc/{self.name}" if self.kind == "binary" else f"rmse/{self.name}"


@dataclass(frozen=True)
class Method:
    """One method: its rule, and what the search found."""

    name: str
    rule: str
    warmup_steps: int
    vary: str | None
    multiple: float
    value: float | None
    at_edge: bool
    score: float  # on day N - 1, NaN if every setting diverged
    paper_multiple: float | None
    paper_value: float | None
    paper_score: float

    @property
    def plain(self) -> bool:
        """Whether it is the optimizer left alone: no rule, no warm-up."""
        return self.rule == "naive" and not self.warmup_steps

    @property
    def warmed_up(self) -> bool:
        """Whether a warm-up is its only treatment."""
        return self.rule == "naive" and bool(self.warmup_steps)

    @property
    def clipping(self) -> bool:
        """Whether it has a rule, so that its factors can differ from 1."""
        return self.rule != "naive"

    @property
    def setting(self) -> str:
        """Its best setting in words: ``2x, threshold 0.1``."""
        return _words(self.multiple, self.vary, self.value)

    @property
    def setting_name(self) -> str:
        """Its name with its threshold: ``GC with threshold 0.1``."""
        return self.name if self.vary is None or self.value is None else f"{self.name} with {self.vary} {self.value:g}"

    @property
    def paper_setting(self) -> str:
        """The best setting of the paper's own grid in words; nothing if all of it diverged."""
        return "" if self.paper_multiple is None else _words(self.paper_multiple, self.vary, self.paper_value)


@dataclass(frozen=True)
class Trial:
    """One row of the results."""

    name: str
    model: str
    method: str
    multiple: float
    rate: float
    value: float | None
    seed: int
    until: str  # "selection" or "final"
    verdict: str
    onset: int | None
    steps: int
    scores: dict[str, float]  # "auc/promo" and so on; NaN where undefined

    @property
    def diverged(self) -> bool:
        """Whether it diverged fully."""
        return self.verdict == "full"


@dataclass(frozen=True)
class Results:
    """All that a report is made of."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    tasks: list[Task]
    methods: list[Method]
    trials: list[Trial]
    sums: dict[str, str]  # the checksums of the folder's files

    @property
    def models(self) -> list[str]:
        """The models by name, in the study's order."""
        return self.summary["models"]

    @property
    def floor(self) -> str | None:
        """The name of the linear floor: the model that is none of the study's own."""
        return next((trial.model for trial in self.trials if trial.model not in self.models), None)

    @property
    def metric(self) -> str:
        """The score that selected."""
        return f"auc/{self.summary['select_by']}"

    @property
    def shown(self) -> str:
        """The score that is shown beside it."""
        return f"{self.summary['show_metric']}/{self.summary['show']}"

    @property
    def shown_words(self) -> str:
        """What that score is, in words."""
        return {"rmse": "RMSE", "ne": "NE"}[self.summary["show_metric"]]

    @property
    def span(self) -> str:
        """The days in words: ``30 days, 2013-02-01 to 2013-03-02``; of periods, each ``first to last``, the same."""
        days = self.summary["days"]
        unit = "periods" if " to " in days[0] else "days"
        return f"{len(days)} {unit}, {days[0].partition(' to ')[0]} to {days[-1].rpartition(' to ')[2]}"

    @property
    def last_day(self) -> str:
        """Day N, on which the final runs are scored."""
        return self.summary["days"][-1]

    @property
    def selection_day(self) -> str:
        """Day N - 1, on which settings are selected."""
        return self.summary["days"][-2]

    def finals(self, model: str, method: str) -> list[Trial]:
        """Return the trials that were scored on day N, by seed."""
        found = [t for t in self.trials if (t.model, t.method, t.until) == (model, method, "final")]
        return sorted(found, key=lambda trial: trial.seed)

    def swept(self, model: str, method: Method) -> list[Trial]:
        """Return all trials of a method's best threshold that were scored on day N - 1, by rate and seed."""
        wanted = (model, method.name, method.value, "selection")
        found = [t for t in self.trials if (t.model, t.method, t.value, t.until) == wanted]
        seeds = self.search_seeds
        return sorted(found, key=lambda trial: (trial.multiple, seeds.index(trial.seed)))

    def sweep(self, model: str, method: Method) -> list[Trial]:
        """Return one trial for each rate of a method's best threshold: that of the first search seed, by rate."""
        return [trial for trial in self.swept(model, method) if trial.seed == self.search_seeds[0]]

    def selected(self, method: Method, multiple: float, value: float | None) -> Score | None:
        """Return the score by which a setting was chosen: on day N - 1, of the model that was searched."""
        wanted = (self.summary["searched_on"], method.name, multiple, value, "selection")
        found = [t for t in self.trials if (t.model, t.method, t.multiple, t.value, t.until) == wanted]
        return score_of(found, self.metric)

    def fall(self, model: str, method: Method) -> Fall | None:
        """Return where a method falls off on a model, by all of its trials; None if it has none there."""
        allowed = self.config["search"]["fall_off"]
        return fall_of_method(self.trials, model, method.name, method.value, metric=self.metric, allowed=allowed)

    @property
    def search_seeds(self) -> list[int]:
        """The seeds that chose; the first of them has a run at every setting that was tried."""
        return self.config["search"]["search_seeds"]

    def steps(self, trial: Trial) -> pl.DataFrame | None:
        """Return a row for each step; None if the trial's folder does not hold them."""
        return self._table(f"{trial.name}/metrics.parquet", needed=("step", "day"))

    def days(self, trial: Trial) -> pl.DataFrame | None:
        """Return a row for each day that was scored; None if the trial's folder does not hold them."""
        return self._table(f"{trial.name}/days.parquet", text=("scored", "day", "after"), needed=("scored", "day"))

    def events(self, trial: Trial) -> list[dict[str, Any]]:
        """Return the divergences that the trial's journal tells of."""
        path = self.folder / "trials" / trial.name / "events.jsonl"
        if not path.exists():
            return []
        return divergences(path, self.folder, self.sums)

    def watched(self, trial: str) -> pl.DataFrame | None:
        """Return what a monitor saw of a trial, a row for each step; None if its folder does not hold it."""
        return self._table(f"{trial}/monitor/metrics.parquet", needed=("step",))

    def _table(self, name: str, *, text: Sequence[str] = (), needed: Sequence[str]) -> pl.DataFrame | None:
        path = self.folder / "trials" / name
        return parquet(path, self.folder, self.sums, text=text, needed=needed) if path.exists() else None


def read(folder: Path) -> Results:
    """Return the results of a study.

    Raises:
        InputError: naming the file, if one is missing or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected that of a finished study")
    for name in ("summary.json", "results.parquet", SUMS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; expected the folder of a finished study")
    path, sums = folder / "summary.json", read_sums(folder)
    content = read_checked(path, folder, sums)
    try:
        summary = json.loads(content)
        config = tomllib.loads(summary["config"])
        rules = {entry["name"]: entry for entry in config["methods"]}
        methods = [_method(entry, rules[entry["name"]]) for entry in summary["methods"]]
        tasks = [Task(*entry) for entry in summary["tasks"]]
        _require(summary, config)
    except KeyError as error:
        raise InputError(f"{path} has no {error}; expected the summary that a study writes") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected the summary that a study writes") from None
    rows = folder / "results.parquet"
    needed = (*_TEXT, *_NUMBERS, *(task.metric for task in tasks))
    trials = _trials(parquet(rows, folder, sums, text=_TEXT, needed=needed), rows, config["search"])
    return Results(folder, summary, config, tasks, methods, trials, sums)


def _require(summary: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise KeyError for what the page needs and the summary does not have."""
    for key in (*_SUMMARY, "days", "models", "methods", "tasks", "table", "versions", "rules", *_SCORES):
        summary[key]
    for key in ("rates", "seeds", "search_seeds", "fall_off"):
        config["search"][key]
    for key in _FLOOR:
        summary["floor"][key]
    for line in summary["table"]:
        for key in _LINE:
            line[key]
    if len(summary["days"]) < 2:
        raise ValueError("it has fewer than two days")


def _method(entry: dict[str, Any], configured: dict[str, Any]) -> Method:
    return Method(
        name=entry["name"],
        rule=configured["rule"]["name"],
        warmup_steps=configured["warmup_steps"],
        vary=entry["vary"],
        multiple=entry["multiple"],
        value=entry["value"],
        at_edge=entry["at_edge"],
        score=_number(entry["score"]),
        paper_multiple=entry["paper_multiple"],
        paper_value=entry["paper_value"],
        paper_score=_number(entry["paper_score"]),
    )


def _trials(rows: pl.DataFrame, path: Path, search: dict[str, Any]) -> list[Trial]:
    trials = [_trial(row) for row in rows.iter_rows(named=True)]
    for trial in trials:
        seeds = search["seeds"] if trial.until == "final" else search["search_seeds"]
        if trial.seed not in seeds:
            raise InputError(f"{path} has a trial of seed {trial.seed}, {trial.name}; expected one of {seeds}")
    return trials


def _trial(row: dict[str, Any]) -> Trial:
    return Trial(
        name=row["trial"],
        model=row["model"],
        method=row["method"],
        multiple=row["multiple"],
        rate=row["rate"],
        value=row["value"],
        seed=row["seed"],
        until=row["until"],
        verdict=row["verdict"],
        onset=row["onset"],
        steps=row["steps"],
        scores={key: _number(value) for key, value in row.items() if "/" in key},
    )


def _words(multiple: float, vary: str | None, value: float | None) -> str:
    return f"{multiple:g}x" if vary is None or value is None else f"{multiple:g}x, {vary} {value:g}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
