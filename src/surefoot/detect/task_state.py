"""Whether a task has diverged, and whether it recovers in time: a micro-divergence or a full one.

Imports the standard library only.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from surefoot.detect.signals import Baseline

_STATE = (
    *("best", "best_loss", "onset", "missed", "given_up", "reason", "back_below", "first", "first_step", "first_jump"),
    *("first_loss", "shock", "shown", "has_learnt"),
)
_FORMER_NAMES = {"back_below": "road"}  # in states that older versions saved
_SHOCK = 10  # times the first relative loss, or a constant prediction's: a single such step may kill a network
_WORTHLESS = 1.5  # relative loss above which a model is clearly worse than none
_WORTHLESS_BY_ITSELF = 4.0  # the same on rows of another day, which may be harder: twice the constant's RMSE
_RANKS = 0.6  # AUC that is clearly above chance
_ENOUGH = 128  # steps with a loss of a task before it can count as having learnt nothing


class Verdict(StrEnum):
    """The outcome of a run, or of one event in it; a later member is worse."""

    HEALTHY = "healthy"
    MICRO = "micro"  # diverged and recovered
    FULL = "full"  # diverged and did not recover


@dataclass(frozen=True)
class Event:
    """One divergence of one task.

    Args:
        task: the task that diverged.
        onset: the first step of the rise.
        verdict: micro if the task recovered, full if not.
        reason: in plain words.
        end: the step at which the task had recovered or counted as lost.
        layer: the layer where it began, if a layer's signal showed it first.
        signal: the signal that showed it first.
        alarm: the step of the alarm at or before its onset, if there was one.
    """

    task: str
    onset: int
    verdict: Verdict
    reason: str
    end: int
    layer: str | None = None
    signal: str = "relative_loss"
    alarm: int | None = None


@dataclass(frozen=True)
class FreshScore:
    """A task's scores on rows that were not trained on; unknown ones are NaN.

    Args:
        relative_loss: its loss over that of the best constant prediction on these rows.
        auc_low: the lower end of its AUC's interval, if it is binary.
    """

    relative_loss: float = math.nan
    auc_low: float = math.nan

    @property
    def ranks(self) -> bool:
        """Whether the task ranks far better than chance."""
        return self.auc_low >= _RANKS

    def is_worthless(self, seemed: bool) -> bool:
        """Whether it is worse than a constant prediction: clearly, or at all if the last batches ``seemed`` so."""
        if math.isnan(self.relative_loss):
            return seemed
        return self.relative_loss > (1.0 if seemed else _WORTHLESS_BY_ITSELF)


@dataclass(frozen=True)
class TaskLimits:
    """When a task has diverged, and when it counts as lost.

    Args:
        window: steps in the current relative loss, a median.
        history: values in the healthy median.
        learnt: relative loss below which a task has learnt something.
        patience: steps that an event may last, not counting steps without a loss of the task.
    """

    window: int
    history: int
    learnt: float
    patience: int


class TaskState:
    """One task's relative losses, and the event it is in, if any.

    The *healthy* value is the median of the last ``history`` accepted relative losses: finite ones outside events. The
    *current* value is the median of the last ``window``. The task diverges when a loss is not finite, or when the
    current value is above the healthy one by more than six robust standard deviations and half of what was learnt is
    lost: it is past the middle between healthy and 1 or, if nothing was learnt yet, past one and a half times healthy.
    If the loss itself is known, it must have risen too, by three deviations; otherwise a constant prediction was only
    unusually good on these batches. The task also diverges, however slowly, when the current value is above 1 although
    the healthy one was once six deviations below 1.

    The task has recovered when the current value is back on the healthy side of that middle (below ``learnt`` if
    nothing was learnt before). It counts as lost if that takes more than ``patience`` steps. A task that never learns
    anything and whose loss never rises does not diverge.
    """

    def __init__(self, limits: TaskLimits, task: str) -> None:
        self.limits = limits
        self.task = task
        self.recent: deque[float] = deque(maxlen=limits.window)
        self.accepted = Baseline(limits.history, limits.window)  # late, so that the start of a rise is left out
        self.recent_losses: deque[float] = deque(maxlen=limits.window)
        self.accepted_losses = Baseline(limits.history, limits.window)
        self.best: float | None = None  # the lowest healthy value that was clearly below 1
        self.best_loss = 0.0  # the limit of the loss at that time
        self.onset: int | None = None
        self.missed = 0  # steps since the onset without a loss of the task
        self.given_up = False  # the open event has lasted longer than ``patience``
        self.reason = ""
        self.back_below = 0.0  # an event is over when the current value is below this
        self.first: float | None = None
        self.first_step = 0
        self.first_jump: int | None = None  # a step of the first window with a loss above 1.5 times the first
        self.first_loss: float | None = None
        self.shock: int | None = None  # the first step with a loss above _SHOCK times the first
        self.shown = 0  # steps with a loss of the task
        self.has_learnt = False  # was better than a constant prediction once, even if only by a little

    @property
    def diverged(self) -> bool:
        """Whether the task is in an event now."""
        return self.onset is not None

    def update(self, step: int, value: float, loss: float | None = None) -> Event | None:
        """Process one step: its relative loss, and the loss if known. Return the event that is decided now, if any.

        An event is decided when the task has recovered or counts as lost, and again if it recovers after that.
        """
        finite = math.isfinite(value)
        self.shown += 1
        self._note_shock(step, value, loss)
        if self.first is None:
            self.first, self.first_step = (value, step) if finite else (None, 0)
        elif self.first_jump is None and step - self.first_step < self.limits.window and value > 1.5 * self.first:
            self.first_jump = step if self._loss_rose(loss) else None
        self.recent.append(value if finite else math.inf)
        if loss is not None:
            self.recent_losses.append(loss if math.isfinite(loss) else math.inf)
        level = median(self.recent)
        if self.diverged:
            return self._look_for_recovery(step, level)
        if finite:
            self.accepted.offer(value)
            if loss is not None and math.isfinite(loss):
                self.accepted_losses.offer(loss)
            self._note_best()
        if not finite:
            self._open(step, f"the loss of {self.task} is {value}", self._healthy())
        elif len(self.recent) == self.limits.window:
            healthy = self._healthy_before(level)
            if healthy is not None:
                reason = f"the relative loss of {self.task} rose from {healthy:.3g} to {level:.3g}"
                self._open(step - self.limits.window // 2, reason, healthy)
        return None

    def miss(self) -> None:
        """Process a step without a loss of the task: its event may last one step longer."""
        self.missed += 1

    def _look_for_recovery(self, step: int, level: float) -> Event | None:
        if level < self.back_below:
            return self.close(step, Verdict.MICRO)
        if not self.given_up and self.onset is not None and step - self.onset - self.missed >= self.limits.patience:
            self.given_up = True
            return Event(self.task, self.onset, Verdict.FULL, self.reason, step)
        return None

    def close(self, step: int, verdict: Verdict) -> Event | None:
        """End the open event, if any; return it unless it was returned before with this verdict."""
        if self.onset is None or (self.given_up and verdict is Verdict.FULL):
            return None
        event = Event(self.task, self.onset, verdict, self.reason, step)
        self.onset, self.given_up = None, False
        self.recent.clear()
        self.recent_losses.clear()
        self.accepted.forget_waiting()
        self.accepted_losses.forget_waiting()
        return event

    def is_constant(self) -> bool:
        """Whether the last losses are no better than those of a constant prediction."""
        return bool(self.recent) and median(self.recent) >= self.limits.learnt

    def has_lost(self) -> bool:
        """Whether the last losses are no better than a constant prediction's, although they clearly were once."""
        return self.best is not None and self.is_constant() and median(self.recent) >= (1 + self.best) / 2

    def is_dead(self) -> bool:
        """Whether the last losses are no better than a constant prediction's after a shock, and nothing was learnt."""
        return self.shock is not None and self.is_constant() and not self.has_learnt

    def is_worthless(self) -> bool:
        """Whether the task ends clearly worse than a constant prediction, and not because training has just begun."""
        if len(self.recent) < self.limits.window or not self.is_constant():
            return False
        level = median(self.recent)
        risen = self.first is not None and level > self.first
        settled = len(self.accepted) == self.limits.history and self.accepted.median > _WORTHLESS
        return level > _WORTHLESS and (risen or settled)

    def learns_nothing(self) -> bool:
        """Whether the task had a loss in many steps and was never better than a constant prediction."""
        return self.shown >= _ENOUGH and not self.has_learnt

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers and strings."""
        plain = {name: getattr(self, name) for name in _STATE}
        return {
            **plain,
            "recent": list(self.recent),
            "recent_losses": list(self.recent_losses),
            "accepted": self.accepted.state_dict(),
            "accepted_losses": self.accepted_losses.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; fields that an older state lacks have their initial values."""
        for name in _STATE:
            setattr(self, name, state.get(_FORMER_NAMES.get(name, name), state.get(name, getattr(self, name))))
        self.recent = deque(state["recent"], maxlen=self.limits.window)
        self.recent_losses = deque(state["recent_losses"], maxlen=self.limits.window)
        self.accepted.load_state_dict(state["accepted"])
        self.accepted_losses.load_state_dict(state["accepted_losses"])
        self.has_learnt = self.has_learnt or self.best is not None

    def _open(self, onset: int, reason: str, healthy: float) -> None:
        self.onset, self.missed, self.reason = onset, 0, reason
        self.back_below = (1 + healthy) / 2 if healthy < self.limits.learnt else self.limits.learnt

    def _note_shock(self, step: int, value: float, loss: float | None) -> None:
        if self.first_loss is None and loss is not None and math.isfinite(loss):
            self.first_loss = loss
        if self.shock is not None or self.first is None or not value > _SHOCK * max(self.first, 1.0):
            return
        if self._loss_rose(loss):
            self.shock = step

    def _loss_rose(self, loss: float | None) -> bool:
        """Whether the loss, if known, is above 1.5 times the first; otherwise only a constant prediction did well."""
        return loss is None or self.first_loss is None or not loss <= 1.5 * self.first_loss

    def _note_best(self) -> None:
        healthy = self.accepted.median
        full = len(self.accepted) == self.limits.history
        self.has_learnt = self.has_learnt or (full and healthy + self.accepted.spread() / 2 < 1)
        if len(self.accepted) < self.limits.window or healthy >= (1.0 if self.best is None else self.best):
            return
        if healthy + 6 * self.accepted.spread() < 1:
            self.best, self.best_loss, self.has_learnt = healthy, self._loss_limit(), True

    def _healthy_before(self, level: float) -> float | None:
        """Return the healthy value if the task has diverged from it, else None."""
        loss = median(self.recent_losses) if self.recent_losses else math.inf
        if self.best is not None and level > 1 and loss > self.best_loss:
            return self.best
        return self._healthy() if level > self._limit(level) and loss > self._loss_limit() else None

    def _loss_limit(self) -> float:
        """Return the loss above which a rise of the relative loss counts."""
        losses = self.accepted_losses
        return losses.median + 3 * losses.spread() if len(losses) else 0.0

    def _healthy(self) -> float:
        return self.accepted.median if len(self.accepted) else self.recent[0]

    def _limit(self, level: float) -> float:
        """Return the relative loss above which the task has diverged; the spread is computed only if it matters."""
        healthy = self._healthy()
        limit = (1 + healthy) / 2 if healthy < self.limits.learnt else 1.5 * healthy
        if level <= limit or not len(self.accepted):
            return limit
        return max(limit, healthy + 6 * self.accepted.spread())
