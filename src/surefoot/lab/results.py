"""The results of a study: a study writes them, its tables and its report read them."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from surefoot.lab.outcomes import Fall, Score, fall_of_method, score_of

VERDICTS = {"healthy": "healthy", "micro": "diverged and recovered (micro)", "full": "diverged (full)"}  # in words


def _number(value: Any) -> Any:
    return math.nan if value is None else value


_Number = Annotated[float, BeforeValidator(_number)]  # in JSON, null stands for a number that is not finite


class Task(NamedTuple):
    """One of the log's tasks."""

    name: str
    kind: str  # "binary" or "regression"
    judged: bool

    @property
    def metric(self) -> str:
        """The task's score, a column of the results."""
        return f"auc/{self.name}" if self.kind == "binary" else f"rmse/{self.name}"


@dataclass(frozen=True)
class Method:
    """One method: its rule, and the results of its search."""

    name: str
    rule: str
    warmup_steps: int
    vary: str | None
    multiple: float  # of the best setting
    value: float | None
    survived: bool  # whether at least one setting did not diverge
    at_edge: bool  # whether a neighbour of the best setting was not tried
    tried: int  # number of settings
    score: _Number  # the selection metric on day N - 1, the mean over the seeds that did not diverge
    paper_multiple: float | None  # of the best setting in the paper's own grid; None if all of them diverged
    paper_value: float | None
    paper_score: _Number
    falls_off: dict[str, float | None]  # by model: the lowest multiple at which it falls off; None if there is none

    @property
    def plain(self) -> bool:
        """Whether it is the optimizer without a rule and without a warm-up."""
        return self.rule == "naive" and not self.warmup_steps

    @property
    def warmed_up(self) -> bool:
        """Whether it has a warm-up and no rule."""
        return self.rule == "naive" and bool(self.warmup_steps)

    @property
    def clipping(self) -> bool:
        """Whether it has a rule; without one, all clipping factors are 1."""
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
        """The best setting of the paper's own grid in words; empty if all of them diverged."""
        return "" if self.paper_multiple is None else _words(self.paper_multiple, self.vary, self.paper_value)


@dataclass(frozen=True)
class CloseUp:
    """A run with a monitor at every step: the optimizer without a rule, at the lowest rate at which it diverged."""

    model: str
    trial: str
    method: str
    multiple: float
    onset: int


@dataclass(frozen=True)
class Floor:
    """The search result of the linear floor."""

    rate: float
    at_edge: bool  # whether it is the lowest or the highest rate that was tried


@dataclass(frozen=True)
class Summary:
    """The configuration of a study and the settings that it selected."""

    name: str
    data: str
    notice: str
    days: tuple[str, ...]
    tasks: list[Task]
    select_by: str
    show: str  # the task of the second score in the table
    show_metric: str  # rmse, or ne if the log has no regression task
    fall_off: float  # a method falls off at a rate whose AUC is lower than its best by more than this
    searched_on: str
    base_rate: float
    rates: list[float]  # the paper's own grid, multiples of the base rate
    seeds: list[int]  # of the final runs
    search_seeds: list[int]  # of the search; the first one has a run at every setting
    steps: int  # of a final run that does not diverge
    models: list[str]
    methods: list[Method]
    close_ups: list[CloseUp]
    floor: Floor
    rules: dict[str, str]  # name of each rule in a monitor's records, by its name in configurations
    log_days: int | None  # all days of the log; None if not known
    workers: int
    threads: int
    config: str  # the complete configuration, as TOML
    versions: dict[str, str]  # of the packages that affect the results
    machine: str


@dataclass(frozen=True)
class Row:
    """One trial: its setting and its result."""

    trial: str
    model: str
    method: str
    multiple: float  # of the base rate
    rate: float
    value: float | None  # of the varied threshold
    seed: int
    until: str  # "selection": scored on day N - 1; "final": on day N
    result: dict[str, Any]

    @property
    def verdict(self) -> str:
        """``healthy``, ``micro`` or ``full``."""
        return self.result["verdict"]

    @property
    def diverged(self) -> bool:
        """Whether it diverged fully."""
        return self.verdict == "full"

    @property
    def onset(self) -> int | None:
        """The step at which the divergence began; None without one."""
        return self.result["onset"]

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.result["steps"]

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the scored day, ``{"auc/promo": ...}``; NaN if undefined."""
        return {key: float(_number(value)) for key, value in self.result.items() if "/" in key}


@dataclass(frozen=True)
class Line:
    """One line of the table of methods: a method on a model, or the linear floor."""

    model: str
    method: Method | None  # None for the linear floor
    floor: Floor
    auc: Score | None  # on day N; None if undefined
    shown: Score | None  # the second score
    diverged: int  # number of diverged trials
    tried: int  # number of all trials
    fall: Fall | None
    searched: bool  # whether the settings were searched on this model

    @property
    def at_edge(self) -> bool:
        """Whether a neighbour of the setting was not tried."""
        return (self.method or self.floor).at_edge

    def words(self) -> dict[str, str]:
        """Return the line as text, for ``summary.json``."""
        method, edge = self.method, ", at edge" if self.at_edge else ""
        paper = ""
        if method is not None and self.searched:
            known = method.paper_multiple is not None
            paper = f"{100 * method.paper_score:.2f} ({method.paper_setting})" if known else "diverged"
        return {
            "model": self.model,
            "method": method.name if method else "",
            "setting": (method.setting if method else f"rate {self.floor.rate:g}") + edge,
            "auc": "undefined" if self.auc is None else self.auc.text(2, 100),
            "rmse": "undefined" if self.shown is None else self.shown.text(3),
            "diverged": f"{self.diverged} / {self.tried}",
            "falls_off": self.fall.short() if self.fall else "",
            "paper": paper,
        }


@dataclass(frozen=True)
class Study:
    """The results of a study."""

    summary: Summary
    rows: list[Row] = field(repr=False)

    @property
    def models(self) -> list[str]:
        """The names of the models, in the study's order."""
        return self.summary.models

    @property
    def methods(self) -> list[Method]:
        """The methods, in the study's order."""
        return self.summary.methods

    @property
    def floor(self) -> str | None:
        """The name of the linear floor: the model that is not in ``models``."""
        return next((row.model for row in self.rows if row.model not in self.models), None)

    @property
    def metric(self) -> str:
        """The metric by which settings were selected."""
        return f"auc/{self.summary.select_by}"

    @property
    def shown(self) -> str:
        """The metric of the second score in the table."""
        return f"{self.summary.show_metric}/{self.summary.show}"

    def finals(self, model: str, method: str) -> list[Row]:
        """Return the trials scored on day N, by seed."""
        found = [r for r in self.rows if (r.model, r.method, r.until) == (model, method, "final")]
        return sorted(found, key=lambda row: row.seed)

    def swept(self, model: str, method: Method) -> list[Row]:
        """Return all trials of a method's best threshold scored on day N - 1, by rate and seed."""
        wanted = (model, method.name, method.value, "selection")
        found = [r for r in self.rows if (r.model, r.method, r.value, r.until) == wanted]
        seeds = self.summary.search_seeds
        return sorted(found, key=lambda row: (row.multiple, seeds.index(row.seed)))

    def sweep(self, model: str, method: Method) -> list[Row]:
        """Return the trials of ``swept`` with the first search seed: one for each rate."""
        return [row for row in self.swept(model, method) if row.seed == self.summary.search_seeds[0]]

    def selected(self, method: Method, multiple: float, value: float | None) -> Score | None:
        """Return the score of a setting in the search: on day N - 1, on the model that was searched."""
        wanted = (self.summary.searched_on, method.name, multiple, value, "selection")
        found = [r for r in self.rows if (r.model, r.method, r.multiple, r.value, r.until) == wanted]
        return score_of(found, self.metric)

    def fall(self, model: str, method: Method) -> Fall | None:
        """Return where a method falls off on a model at its best threshold; None if it has no trials."""
        return fall_of_method(
            self.rows, model, method.name, method.value, metric=self.metric, allowed=self.summary.fall_off
        )

    def table(self) -> list[Line]:
        """Return the lines of the table: of each model and method, then of the linear floor."""
        lines = [self._line(model, method) for model in self.models for method in self.methods]
        return lines if self.floor is None else [*lines, self._line(self.floor, None)]

    def _line(self, model: str, method: Method | None) -> Line:
        name = model if method is None else method.name
        rows = [row for row in self.rows if (row.model, row.method) == (model, name)]
        finals = self.finals(model, name)
        return Line(
            model=model,
            method=method,
            floor=self.summary.floor,
            auc=score_of(finals, self.metric),
            shown=score_of(finals, self.shown),
            diverged=sum(row.diverged for row in rows),
            tried=len(rows),
            fall=None if method is None else self.fall(model, method),
            searched=model == self.summary.searched_on,
        )


def _words(multiple: float, vary: str | None, value: float | None) -> str:
    return f"{multiple:g}x" if vary is None or value is None else f"{multiple:g}x, {vary} {value:g}"
