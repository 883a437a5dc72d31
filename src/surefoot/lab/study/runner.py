"""One trial after another: settings, what is tried of them, and the runs that try them."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.lab.outcomes import Score
from surefoot.lab.results import Row
from surefoot.lab.settings import dump
from surefoot.lab.study.config import MethodConfig, ModelConfig, RuleConfig, RunConfig, StudyConfig
from surefoot.lab.study.engine import LocalEngine, Trial
from surefoot.lab.study.time_left import Part, TimeLeft, expected_trials
from surefoot.lab.study.trial import read_result


@dataclass(frozen=True, order=True)
class Setting:
    """A point of a method's search: a rate as a multiple of the base rate, and the threshold if it has one."""

    multiple: float
    value: float | None = None

    def neighbours(self) -> list["Setting"]:
        """Return the settings one step away: half and double the rate, a tenth and ten times the threshold."""
        near = [Setting(rounded(self.multiple * f), self.value) for f in (0.5, 2.0)]
        if self.value is not None:
            near += [Setting(self.multiple, rounded(self.value * f)) for f in (0.1, 10.0)]
        return near


@dataclass
class Search:
    """One method's tried settings and their scores."""

    method: MethodConfig
    scores: dict[Setting, Score] = field(default_factory=dict)
    extra: int = 0

    def grid(self, rates: tuple[float, ...]) -> list[Setting]:
        """Return every rate with every value of the threshold."""
        return [Setting(rate, value) for rate in rates for value in (self.method.values or (None,))]

    def best(self, among: list[Setting] | None = None) -> Setting | None:
        """Return the setting with the best standing, of those that were tried with the most seeds.

        None if every one diverged with every seed, or has no score.
        """
        tried = {s: score for s, score in self.scores.items() if among is None or s in among}
        most = max((score.tried for score in tried.values()), default=0)
        alive = [s for s, score in tried.items() if score.tried == most and not math.isnan(score.mean)]
        return max(alive, key=lambda s: tried[s].standing(), default=None)

    def untried(self) -> list[Setting]:
        """Return what must still be tried to show that the best is inside; lower rates if nothing survived."""
        best = self.best()
        near = best.neighbours() if best else min(self.scores).neighbours()[:1]
        return [setting for setting in near if setting not in self.scores]

    def unsure(self, rates: tuple[float, ...], seeds: int) -> list[Setting]:
        """Return the settings to be tried with all seeds before one of them is chosen.

        Those are the two best by the first seed and the best of the paper's grid; then, one at a time, the next best,
        for as long as each setting that was tried with all seeds has one that diverged.
        """
        alive = [s for s in self.scores if not math.isnan(self.scores[s].mean)]
        ranked = sorted(alive, key=lambda s: self.scores[s].standing(), reverse=True)
        sure = [s for s in self.scores if self.scores[s].tried >= seeds]
        if not sure:
            inside = [s for s in ranked if s in self.grid(rates)]
            return list(dict.fromkeys([*ranked[:2], *inside[:1]]))
        if any(not self.scores[s].diverged for s in sure):
            return []
        return [s for s in ranked if s not in sure and not self.scores[s].diverged][:1]


@dataclass
class Runner:
    """Turns settings into trials, runs them once each and keeps their rows."""

    config: StudyConfig
    out: Path
    engine: LocalEngine
    metric: str
    on_phase: Callable[[str, int], None]
    on_trial: Callable[[dict[str, Any]], None]
    on_left: Callable[[float], None] = lambda seconds: None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._time_left = TimeLeft(expected_trials(self.config), self.engine.processes)

    def run(self, part: Part, phase: str, plans: list["PlannedTrial"]) -> list[Row]:
        """Run the plans that have not been run before; return a row for each plan, in order."""
        known = {row.trial: row for row in self.rows}
        plans = list({plan.trial: plan for plan in plans}.values())
        fresh = [plan for plan in plans if plan.trial not in known]
        for plan, result in zip(fresh, self.run_without_rows(part, phase, fresh), strict=True):
            known[plan.trial] = plan.row(result)
            self.rows.append(known[plan.trial])
        return [known[plan.trial] for plan in plans]

    def run_without_rows(self, part: Part, phase: str, plans: list["PlannedTrial"]) -> list[dict[str, Any]]:
        """Run plans, all of them distinct; return their results."""
        if not plans:
            return []
        self.on_phase(phase, len(plans))
        trials = [Trial(plan.run, self.out / "trials" / plan.trial) for plan in plans]
        self._time_left.begin(part, len(trials), sum(read_result(trial.folder) is not None for trial in trials))
        results = self.engine.run(trials, on_done=self._done)
        self._time_left.end()
        return results

    def _done(self, result: dict[str, Any]) -> None:
        self.on_trial(result)
        if (seconds := self._time_left.finished()) is not None:
            self.on_left(seconds)

    def score(self, rows: list[Row]) -> Score:
        """Return what selection compares: the metric of one setting's rows, a seed each."""
        alive = {row.seed: row.scores[self.metric] for row in rows if not row.diverged}
        return Score(alive, len(rows) - len(alive))


@dataclass(frozen=True)
class PlannedTrial:
    """One run of one method at one setting."""

    run: RunConfig
    method: str
    setting: Setting

    @property
    def trial(self) -> str:
        """A folder's name: readable, and different for different configurations."""
        value = "" if self.setting.value is None else f"-{self.setting.value:g}"
        words = (
            f"{self.run.model.name} {self.method}{value} x{self.setting.multiple:g} s{self.run.seed} {self.run.until}"
        )
        digest = hashlib.sha256(dump(self.run).encode()).hexdigest()[:8]
        return "_".join(words.replace("+", " ").split()) + "_" + digest

    def row(self, result: dict[str, Any]) -> Row:
        """Return the row of the results that it becomes."""
        return Row(
            trial=self.trial,
            model=self.run.model.name,
            method=self.method,
            multiple=self.setting.multiple,
            rate=self.run.rate,
            value=self.setting.value,
            seed=self.run.seed,
            until=self.run.until,
            result=result,
        )


def planned_trial(
    config: StudyConfig, model: ModelConfig, method: MethodConfig, setting: Setting, seed: int, until: Any
) -> PlannedTrial:
    """Return the run of a method at a setting."""
    rule = method.rule
    if method.vary is not None:
        rule = RuleConfig.model_validate(rule.model_dump() | {method.vary: setting.value})
    training = config.training
    if method.initial_accumulator_value is not None:
        start = method.initial_accumulator_value
        training = training.model_copy(update={"initial_accumulator_value": start})
    run = RunConfig(
        rate=rounded(config.search.base_rate * setting.multiple),
        warmup_steps=method.warmup_steps,
        seed=seed,
        until=until,
        data=config.data,
        model=model,
        training=training,
        rule=rule,
    )
    return PlannedTrial(run, method.name, setting)


def rounded(number: float) -> float:
    """Return the number without what binary arithmetic adds to it: 0.1 * 0.1 is 0.01."""
    return float(f"{number:.12g}")
