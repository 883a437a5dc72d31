"""Reads a run's folder: of ``surefoot train``, or of a monitor and a recovery in any training loop."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from surefoot.errors import InputError
from surefoot.files import open_regular, parse_json, parse_toml
from surefoot.lab.report.journal import Event, events
from surefoot.lab.result_files import read_table

_METRICS, _JOURNAL, _CONFIG = "metrics.parquet", "events.jsonl", "config.toml"


@dataclass(frozen=True)
class Capsule:
    """The recorded last steps before an alarm, which ``surefoot replay`` runs again."""

    name: str  # path of its folder, relative to the run's
    step: int  # of the alarm
    first: int  # first recorded step
    last: int  # last recorded step


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's folder."""

    folder: Path
    toml: str | None  # the configuration; None if there is no config.toml
    steps: pl.DataFrame = field(repr=False)  # a row for each step
    days: pl.DataFrame | None = field(repr=False)  # a row for each day that was scored
    events: list[Event]
    capsules: list[Capsule]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as tables; empty if there is none."""
        return tomllib.loads(self.toml) if self.toml else {}

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """The result; None if the run has not ended, or if its training loop writes none."""
        last = next((event for event in reversed(self.events) if event.kind == "finished"), None)
        return None if last is None else last.details

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the scored day, ``{"auc/click": ...}``; NaN where one is undefined."""
        return {key: value for key, value in (self.result or {}).items() if "/" in key}

    @property
    def scored_day(self) -> str | None:
        """The day of the final scores; None if the run has no days."""
        day = (self.result or {}).get("scored_day")
        return None if day is None else str(day)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the run's order."""
        return self.named("loss") or list(dict.fromkeys(key.partition("/")[2] for key in self.scores))

    @property
    def last_step(self) -> int | None:
        """The last step with an event or a measurement; None if there is none."""
        steps = [event.step for event in self.events if event.step is not None]
        if len(self.steps):
            steps.append(int(self.steps["step"][-1]))
        return max(steps, default=None)

    def named(self, measure: str) -> list[str]:
        """Return the names with a measure: of layers for ``clip_ratio``, of tasks for ``loss``."""
        return [c.removeprefix(f"{measure}/") for c in self.steps.columns if c.startswith(f"{measure}/")]

    def of_kind(self, kind: str) -> list[Event]:
        """Return the events of a kind, oldest first."""
        return [event for event in self.events if event.kind == kind]

    def capsule_of(self, event: Event) -> Capsule | None:
        """Return the capsule of an alarm, or else one that holds the alarm's step; None for another event."""
        if event.kind != "alarm" or event.step is None:
            return None
        own = [capsule for capsule in self.capsules if capsule.step == event.step]
        shown = [capsule for capsule in self.capsules if capsule.first <= event.step <= capsule.last]
        return next(iter([*own, *shown]), None)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, from the names of its files."""
    return any((folder / name).exists() for name in (_METRICS, _JOURNAL, _CONFIG, "metrics.parts", "monitor"))


def read_run(folder: Path) -> RunFolder:
    """Return the content of a run's folder; the run may be unfinished.

    Raises:
        InputError: naming the file, if one cannot be read, or the folder, if it is not a run's.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the folder of a run")
    watched, own = _metrics(folder / "monitor"), _metrics(folder)
    journal = folder / _JOURNAL
    happened = events(journal, _whole_lines(_bytes(journal))) if journal.exists() else []
    if watched is None and own is None and not happened:
        raise InputError(f"{folder} holds neither {_METRICS} nor {_JOURNAL}; expected the folder of a run")
    toml = None
    if (folder / _CONFIG).exists():
        content = _bytes(folder / _CONFIG)
        parse_toml(content, folder / _CONFIG)
        toml = content.decode("utf-8-sig")
    days = folder / "days.parquet"
    return RunFolder(
        folder=folder,
        toml=toml,
        steps=_joined(own, watched),
        days=_table(days, text=("scored", "day", "after"), needed=("scored", "day")) if days.exists() else None,
        events=happened,
        capsules=[_capsule(path, folder) for path in sorted((folder / "capsules").glob("*/capsule.json"))],
    )


def _metrics(folder: Path) -> pl.DataFrame | None:
    """Return a row for each step: from the complete file, or else from the parts that a run writes before its end."""
    whole, parts = folder / _METRICS, sorted((folder / "metrics.parts").glob("*.parquet"))
    paths = [whole] if whole.exists() else parts
    if not paths:
        return None
    step = pl.col("step").cast(pl.Int64, strict=False)
    tables = [_table(path, needed=("step",)).with_columns(step) for path in paths]
    return pl.concat(tables, how="diagonal_relaxed").drop_nulls("step").unique("step", keep="last").sort("step")


def _joined(own: pl.DataFrame | None, watched: pl.DataFrame | None) -> pl.DataFrame:
    """Join a training loop's values of each step with a monitor's; for a column in both, the loop's value counts."""
    if own is None or watched is None:
        found = watched if own is None else own
        return pl.DataFrame(schema={"step": pl.Int64}) if found is None else found
    more = watched.select("step", *(name for name in watched.columns if name not in own.columns))
    return own.join(more, on="step", how="full", coalesce=True).sort("step")


def _table(path: Path, *, text: Sequence[str] = (), needed: Sequence[str]) -> pl.DataFrame:
    return read_table(path, _bytes(path), text=text, needed=needed)


def _bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a file that a run wrote") from None


def _whole_lines(content: bytes) -> bytes:
    """Leave out an incomplete last line, as a killed process leaves it."""
    return content[: content.rfind(b"\n") + 1]


def _capsule(path: Path, run: Path) -> Capsule:
    document = parse_json(_bytes(path), path)
    try:
        steps = [int(each["step"]) for each in document["record"]["steps"]]
        alarm = document["alarm"]
        step = steps[-1] if alarm is None else int(alarm.get("step", steps[-1]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{path} cannot be read: {error!r}; expected the description of a capsule") from None
    return Capsule(path.parent.relative_to(run).as_posix(), step, steps[0], steps[-1])
