"""A verdict on a run: floats in, verdict out.

The signal is each task's *relative loss*: its loss over that of the best constant prediction on the same rows. A
model that has learnt something is below 1; one that has collapsed to the base rate sits at 1; one whose step was
too large is far above. Healthy is what the run itself has shown to be possible.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median


class Verdict(StrEnum):
    """What became of a run, or of one task in it; a later member is worse."""

    HEALTHY = "healthy"
    MICRO = "micro"  # left the road and came back
    FULL = "full"  # did not come back


@dataclass(frozen=True)
class Event:
    """One departure from health.

    Args:
        task: whose loss it was.
        onset: the first step of the rise.
        verdict: micro if it recovered, full if not.
        reason: in plain words.
        end: the step at which it was recovered from, or given up.
    """

    task: str
    onset: int
    verdict: Verdict
    reason: str
    end: int


@dataclass
class Detector:
    """Follow the relative losses of a run and say when it has diverged.

    Healthy is the median of the last ``history`` accepted relative losses; accepted are finite ones of steps that
    lie outside events. The level is the median of the last ``window``. A task leaves the road when a loss is not
    finite, or when the level is above healthy by more than six robust standard deviations of the history and has
    lost at least half of what the task had learnt: it is past the middle between healthy and 1, or, if nothing had
    been learnt yet, past one and a half times healthy.

    It has come back when the level is on the healthy side of that middle again (below ``learnt`` if nothing had been
    learnt before), and it has diverged fully if that takes more than ``patience`` steps. A task that never learns
    anything and never rises never leaves the road.

    Args:
        window: steps in the level.
        history: steps in the healthy median.
        learnt: relative loss below which a task has learnt something.
        patience: steps that an event may last.
    """

    window: int = 5
    history: int = 64
    learnt: float = 0.95
    patience: int = 60
    events: list[Event] = field(default_factory=list)
    _tasks: dict[str, "_TaskState"] = field(default_factory=dict, repr=False)

    def update(self, step: int, relative_losses: Mapping[str, float]) -> Verdict:
        """Take in one step; return the verdict on the run so far, ``FULL`` once any task has not come back.

        Args:
            step: its number, counting up.
            relative_losses: of each judged task; NaN and inf are seen as divergence.
        """
        for task, value in relative_losses.items():
            if task not in self._tasks:
                self._tasks[task] = _TaskState(self, task)
            self._tasks[task].update(step, value)
        return self.verdict

    def finish(self, step: int) -> Verdict:
        """Close the run, which ended at ``step``; return the final verdict.

        Events still open are full. Full too is a run that was shaken and ends with a constant prediction, even of a
        task that never rose itself: any such task if there was an event; all of them if there was no more than a
        single loss past one and a half times the first within the first ``window`` steps, which can kill a network.
        """
        for state in self._tasks.values():
            state.close(step, Verdict.FULL)
        if self.verdict is Verdict.FULL:
            return Verdict.FULL
        constant = [task for task, state in self._tasks.items() if state.is_constant()]
        shaken = [event.onset for event in self.events]
        if len(constant) == len(self._tasks):
            shaken += [state.first_jump for state in self._tasks.values() if state.first_jump is not None]
        if shaken and constant:
            reason = f"{', '.join(constant)} ended at a constant prediction after the jump at step {min(shaken)}"
            self.events.append(Event(constant[0], min(shaken), Verdict.FULL, reason, step))
        return self.verdict

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all events so far; healthy if there are none."""
        order = list(Verdict)
        return max((event.verdict for event in self.events), key=order.index, default=Verdict.HEALTHY)


class _TaskState:
    """One task's history, and the event it is in, if any."""

    def __init__(self, limits: Detector, task: str) -> None:
        self.limits = limits
        self.task = task
        self.recent: deque[float] = deque(maxlen=limits.window)
        self.accepted: deque[float] = deque(maxlen=limits.history)
        self.onset: int | None = None
        self.reason = ""
        self.road = math.inf  # the level below which an event is over
        self.first = math.nan
        self.first_step = 0
        self.first_jump: int | None = (
            None  # a step of the first window whose loss was past one and a half times the first
        )

    def update(self, step: int, value: float) -> None:
        limits = self.limits
        if len(self.recent) == limits.window and self.onset is None:
            self.accepted.append(self.recent[0])  # a window late: nothing of an event's rise gets in
        finite = math.isfinite(value)
        if math.isnan(self.first):
            self.first = value
            self.first_step = step
        elif self.first_jump is None and step - self.first_step < limits.window and value > 1.5 * self.first:
            self.first_jump = step
        self.recent.append(value if finite else math.inf)
        level = median(self.recent)
        if self.onset is not None:
            if level < self.road:
                self.close(step, Verdict.MICRO)
            elif step - self.onset >= limits.patience:
                self.close(step, Verdict.FULL)
        elif not finite:
            self._open(step, f"the loss of {self.task} is {value}")
        elif len(self.recent) == limits.window and level > self._limit():
            reason = f"the relative loss of {self.task} rose from {self._healthy():.3g} to {level:.3g}"
            self._open(step - limits.window // 2, reason)

    def close(self, step: int, verdict: Verdict) -> None:
        if self.onset is not None:
            self.limits.events.append(Event(self.task, self.onset, verdict, self.reason, step))
            self.onset = None
            self.recent.clear()

    def is_constant(self) -> bool:
        """Whether the last losses are those of a constant prediction, or worse."""
        return bool(self.recent) and median(self.recent) >= self.limits.learnt

    def _open(self, onset: int, reason: str) -> None:
        healthy = self._healthy()
        self.onset, self.reason = onset, reason
        self.road = (1 + healthy) / 2 if healthy < self.limits.learnt else self.limits.learnt

    def _healthy(self) -> float:
        return median(self.accepted or [self.recent[0]])

    def _limit(self) -> float:
        healthy = self._healthy()
        spread = 1.4826 * median(abs(value - healthy) for value in self.accepted) if self.accepted else 0.0
        return max(healthy + 6 * spread, (1 + healthy) / 2 if healthy < self.limits.learnt else 1.5 * healthy)
