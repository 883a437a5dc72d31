"""One trial after another: settings, what is tried of them, and the runs that try them."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.settings import dump
from surefoot.study.config import MethodConfig, ModelConfig, RuleConfig, RunConfig, StudyConfig
from surefoot.study.engine import LocalEngine, Trial
from surefoot.study.results import Row


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
    scores: dict[Setting, float] = field(default_factory=dict)
    extra: int = 0

    def grid(self, rates: tuple[float, ...]) -> list[Setting]:
        """Return every rate with every value of the threshold."""
        return [Setting(rate, value) for rate in rates for value in (self.method.values or (None,))]

    def best(self, among: list[Setting] | None = None) -> Setting | None:
        """Return the setting with the highest score; None if every one diverged."""
        alive = {
            s: score for s, score in self.scores.items() if not math.isnan(score) and (among is None or s in among)
        }
        return max(alive, key=lambda s: alive[s], default=None)

    def untried(self) -> list[Setting]:
        """Return what must still be tried to show that the best is inside; lower rates if nothing survived."""
        best = self.best()
        near = best.neighbours() if best else min(self.scores).neighbours()[:1]
        return [setting for setting in near if setting not in self.scores]


@dataclass
class Runner:
    """Turns settings into trials, runs them once each and keeps their rows."""

    config: StudyConfig
    out: Path
    engine: LocalEngine
    metric: str
    on_phase: Callable[[str, int], None]
    on_trial: Callable[[dict[str, Any]], None]
    rows: list[Row] = field(default_factory=list)

    def run(self, phase: str, plans: list["Plan"]) -> list[Row]:
        """Run the plans that have not been run before; return a row for each plan, in order."""
        known = {row.trial: row for row in self.rows}
        plans = list({plan.trial: plan for plan in plans}.values())
        fresh = [plan for plan in plans if plan.trial not in known]
        if fresh:
            self.on_phase(phase, len(fresh))
        trials = [Trial(plan.run, self.out / "trials" / plan.trial) for plan in fresh]
        results = self.engine.run(trials, on_done=self.on_trial)
        for plan, result in zip(fresh, results, strict=True):
            known[plan.trial] = plan.row(result)
            self.rows.append(known[plan.trial])
        return [known[plan.trial] for plan in plans]

    def score(self, row: Row) -> float:
        """Return what selection compares: the metric, NaN if the run diverged."""
        return math.nan if row.diverged else row.scores[self.metric]


@dataclass(frozen=True)
class Plan:
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


def plan_of(
    config: StudyConfig, model: ModelConfig, method: MethodConfig, setting: Setting, seed: int, until: Any
) -> Plan:
    """Return the run of a method at a setting."""
    rule = method.rule
    if method.vary is not None:
        rule = RuleConfig.model_validate(rule.model_dump() | {method.vary: setting.value})
    run = RunConfig(
        rate=rounded(config.search.base_rate * setting.multiple),
        warmup_steps=method.warmup_steps,
        seed=seed,
        until=until,
        data=config.data,
        model=model,
        training=config.training,
        rule=rule,
    )
    return Plan(run, method.name, setting)


def rounded(number: float) -> float:
    """Return the number without what binary arithmetic adds to it: 0.1 * 0.1 is 0.01."""
    return float(f"{number:.12g}")
