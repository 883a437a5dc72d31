"""Alarms during a run, and a verdict on it: floats in, verdict out.

Alarms compare a step's signals with the run's own healthy values. The verdict depends on each task's *relative loss*:
its loss divided by that of the best constant prediction on the same rows. A model that has learnt something is below 1;
one that has collapsed to the base rate is at 1; one after a step that was too large is far above 1.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from surefoot import checks
from surefoot.detect.alarm import Alarm, OpenAlarm, from_saved
from surefoot.detect.baselines import SIGNALS, Baselines, Outlier, family
from surefoot.detect.signals import Signals
from surefoot.detect.task_state import Event, FreshScore, TaskLimits, TaskState, Verdict

__all__ = ["Alarm", "Detector", "Event", "FreshScore", "Signals", "Verdict"]


@dataclass
class Detector:
    """Follows the signals of a run: raises an alarm when a problem starts, and gives the verdict.

    An **alarm** starts when

    - a loss, a clip ratio or a gradient norm is not finite;
    - the clip ratios of all layers and the losses of all tasks *together* have risen above their baselines by more than
      ``deviations`` robust standard deviations: a rise that is small in each can be clear in all;
    - one layer's clip ratio or gradient norm, one task's calibration or its predictions' standard deviation over its
      labels', or one batch norm's distance between the batch's mean and the running mean is as far from its own
      baseline, and far enough to matter; or a clip ratio exceeds 20, whatever its baseline;
    - one task's AUC is below its best of the last ``history`` steps by ``deviations`` standard errors, and by
      ``deviations`` times 3/4 of a point: 4.5 points at the default;
    - the summed loss exceeds one and a half times that of the first step;
    - a layer's gradient norm has been below a thousandth of its baseline for ``window`` steps;
    - a task diverges (see ``TaskState``).

    A baseline is the median, and the median deviation, of the last ``history`` accepted values (16 for scores over a
    window of rows). Values during an alarm and in the ``window`` steps before it are not accepted, so that a spike does
    not raise its own limit; values that are not finite never are. An alarm ends after ``window`` calm steps in a row
    with a value of its own signal. A change that lasts ``patience`` steps while no task has diverged becomes the new
    baseline.

    A second problem during an alarm is a new alarm: a value that is not finite, a signal of another family (clip
    ratios, gradient norms, losses, scores) more than ``window`` steps after the first, or an excess that had stopped
    growing and grows again by half, and by one bound at least.

    An **event** is a task's divergence: micro if the task recovers within ``patience`` steps, else full (and micro
    again if it recovers later). An alarm without a divergence leaves no event. The verdict on a run depends on its
    relative losses alone, not on its alarms.

    A task that **never learns** does not diverge: its loss neither rises nor falls. ``never_learnt`` lists it.

    Args:
        deviations: robust standard deviations that raise an alarm.
        window: steps in a task's current relative loss, a median; also calm steps that end an alarm.
        history: values in a baseline.
        learnt: relative loss below which a task has learnt something.
        patience: steps that an event may last.

    Raises:
        ValueError: if a number is not above 0.

    >>> detector = Detector()
    >>> for step in range(100):
    ...     alarm = detector.update(step, Signals(clip_ratios={"top": 0.1, "bottom": 0.2 + 0.01 * (step % 3)}))
    ...     assert alarm is None
    >>> detector.update(100, Signals(clip_ratios={"top": 9.0, "bottom": 0.2})).reason
    'the clip ratio of top rose from 0.1 to 9'
    """

    deviations: float = 6.0
    window: int = 5
    history: int = 64
    learnt: float = 0.95
    patience: int = 60
    events: list[Event] = field(default_factory=list, init=False)
    alarms: list[Alarm] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for name in ("deviations", "window", "history", "learnt", "patience"):
            checks.positive(name, getattr(self, name))
        self._limits = TaskLimits(self.window, self.history, self.learnt, self.patience)
        self._tasks: dict[str, TaskState] = {}
        self._baselines = Baselines(deviations=self.deviations, window=self.window, history=self.history)
        self._open: OpenAlarm | None = None
        self._last = -1  # step

    @overload
    def update(self, step: int, signals: Signals) -> Alarm | None: ...
    @overload
    def update(self, step: int, signals: Mapping[str, float]) -> Verdict: ...
    def update(self, step: int, signals: Signals | Mapping[str, float]) -> Alarm | Verdict | None:
        """Process one step.

        Args:
            step: its number, larger than that of the last step.
            signals: the step's signals; or only the relative losses by task.

        Returns:
            For ``Signals`` the alarm that starts at this step, if any. For relative losses the verdict so far: ``FULL``
            once a task has not recovered in time.

        Raises:
            TypeError: if ``signals`` is neither.
            ValueError: if the step does not come after the last one.
        """
        if not isinstance(signals, Signals | Mapping):
            raise TypeError(f"signals is {signals!r}; expected Signals, or relative losses by task")
        if step <= self._last:
            raise ValueError(f"step is {step}; expected more than {self._last}, the last one")
        self._last = step
        if isinstance(signals, Signals):
            return self._update(step, signals)
        self._update(step, Signals(relative_losses=signals))
        return self.verdict

    def finish(self, step: int, scores: Mapping[str, FreshScore] | None = None) -> Verdict:
        """End the run after ``step`` steps; return the final verdict.

        The verdict is full if an event is still open, and also if

        - after any event, a task that was once clearly better than a constant prediction ends no better than one and no
          longer ranks (if its AUC is known), even if its own loss never rose;
        - all tasks end no better than a constant prediction, after a loss in the first ``window`` steps above one and a
          half times the first or, if one of them had learnt something, after any event;
        - a task that has learnt nothing ends so, after a loss ten times a constant prediction's: a single step can kill
          a network;
        - a task ends clearly worse than a constant prediction.

        Args:
            step: the number of steps.
            scores: scores of the trained model on rows that it was not trained on, by task, if known; they overrule the
                losses of the last batches.
        """
        for state in self._tasks.values():
            event = state.close(step, Verdict.FULL)
            if event is not None:
                self._keep(event)
        if self.verdict is not Verdict.FULL:
            found = self._ending(scores or {})
            if found is not None:
                tasks, onset, reason = found
                self.events.append(Event(tasks[0], onset, Verdict.FULL, f"{', '.join(tasks)} {reason}", step))
        return self.verdict

    @property
    def has_learnt(self) -> bool:
        """Whether any task has been better than a constant prediction."""
        return any(state.has_learnt for state in self._tasks.values())

    @property
    def never_learnt(self) -> list[str]:
        """The tasks that had a loss in 128 steps or more and were never better than a constant prediction."""
        return [
            task
            for task, state in self._tasks.items()
            if state.learns_nothing() and not self._baselines.has_ranked(task)
        ]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all events so far; healthy if there are none."""
        order = list(Verdict)
        return max((event.verdict for event in self.events), key=order.index, default=Verdict.HEALTHY)

    @property
    def healthy(self) -> bool:
        """Whether no alarm is open now."""
        return self._open is None

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, strings, lists and dictionaries."""
        return {
            "events": [{**asdict(event), "verdict": event.verdict.value} for event in self.events],
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "tasks": {task: state.state_dict() for task, state in self._tasks.items()},
            "panel": self._baselines.state_dict(),
            "open": None if self._open is None else self._open.state_dict(),
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state: later results are those of the detector that saved it.

        A state of an older or newer version is loaded as far as possible: missing parts start empty, unknown parts are
        ignored.

        Raises:
            ValueError: if it is not a detector's state; the detector does not change.
        """
        before = self.state_dict()
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._load(before)
            raise ValueError(
                f"state is not one that a Detector saves ({type(error).__name__}: {error}); expected what its "
                "state_dict() returned"
            ) from error

    def _load(self, state: Mapping[str, Any]) -> None:
        opened = state["open"]
        if opened is not None:
            opened = OpenAlarm.of_state(opened) if "told" in opened else self._open_alarm_of(from_saved(Alarm, opened))
        events = [from_saved(Event, {**event, "verdict": Verdict(event["verdict"])}) for event in state["events"]]
        alarms = [from_saved(Alarm, alarm) for alarm in state["alarms"]]
        saved = state["tasks"] if "tasks" in state else state["roads"]  # the key in older versions
        tasks = {task: TaskState(self._limits, task) for task in saved}
        for task, task_state in tasks.items():
            task_state.load_state_dict(saved[task])
        self._baselines.load_state_dict(state["panel"])
        self.events[:], self.alarms[:], self._tasks = events, alarms, tasks
        self._open, self._last = opened, int(state["last"])

    def _update(self, step: int, signals: Signals) -> Alarm | None:
        outliers = [*self._baselines.read(step, signals), *self._diverged_tasks(step, signals)]
        if self._open is None:
            if outliers:
                return self._start(step, outliers, signals)
            self._baselines.accept()
            return None
        news = self._open.news(step, outliers, signals)
        if news:
            return self._start(step, news, signals)
        diverged = any(state.diverged for state in self._tasks.values())
        if outliers or diverged:
            self._open.disturb()
        elif self._open.is_over(signals):
            self._open = None
            return None
        if not diverged and step - self._open.told[-1].step >= self.patience:  # harmless: the new baseline
            self._open = None
            self._baselines.forget()
        return None

    def _start(self, step: int, outliers: list[Outlier], signals: Signals) -> Alarm:
        """Start an alarm: its signal is the first one in ``SIGNALS``, its layer the one with the largest excess."""
        outliers.sort(key=lambda outlier: (SIGNALS.index(outlier.signal), -outlier.excess))
        first = outliers[0]
        task = next((outlier.name for outlier in outliers if not outlier.per_layer), None)
        layers = [outlier for outlier in outliers if outlier.per_layer]
        layer = max(layers, key=lambda outlier: outlier.excess).name if layers else None
        alarm = Alarm(step, task, layer, first.signal, first.reason)
        if self._open is None:
            self._open = OpenAlarm([alarm], first.name, self.window)
            self._open.news(step, outliers, signals)
        else:
            self._open.go_on(alarm, first.name)
        self.alarms.append(alarm)
        self._baselines.forget_waiting()
        return alarm

    def _open_alarm_of(self, alarm: Alarm) -> OpenAlarm:
        """Return an open alarm from an alarm alone, as older versions saved it."""
        name = alarm.layer if alarm.signal in ("clip_ratio", "grad_norm", "dead_gradient") else alarm.task
        excess, kind = math.inf if alarm.signal == "non_finite" else 1.0, family(alarm.signal)
        return OpenAlarm([alarm], name or alarm.layer or "", self.window, {kind: excess}, {kind: alarm.step})

    def _ending(self, scores: Mapping[str, FreshScore]) -> tuple[list[str], int, str] | None:
        """Return the tasks whose end makes the verdict full, the onset and the reason; None if there are none."""
        tasks, onsets = self._tasks, [event.onset for event in self.events]
        lost = [task for task, state in tasks.items() if state.has_lost() and not self._ranks(task, scores)]
        if onsets and lost:
            return lost, min(onsets), f"ended at a constant prediction after the jump at step {min(onsets)}"
        dead = {
            task: state.shock or 0 for task, state in tasks.items() if state.is_dead() and not self._ranks(task, scores)
        }
        if dead:
            return list(dead), min(dead.values()), f"learnt nothing after the jump at step {min(dead.values())}"
        jumps = [state.first_jump for state in tasks.values() if state.first_jump is not None]
        unranked = all(state.is_constant() and not self._ranks(task, scores) for task, state in tasks.items())
        if tasks and unranked and (jumps or (onsets and any(state.has_learnt for state in tasks.values()))):
            first = min(onsets + jumps)
            return list(tasks), first, f"ended at a constant prediction after the jump at step {first}"
        bad = [
            task for task, state in tasks.items() if scores.get(task, FreshScore()).is_worthless(state.is_worthless())
        ]
        return (bad, self._last, "ended clearly worse than a constant prediction") if bad else None

    def _ranks(self, task: str, scores: Mapping[str, FreshScore]) -> bool:
        return scores[task].ranks if task in scores else self._baselines.still_ranks(task)

    def _diverged_tasks(self, step: int, signals: Signals) -> Iterator[Outlier]:
        """Pass the relative losses to the tasks; yield an outlier for each task that diverges now."""
        for task in self._tasks.keys() - signals.relative_losses.keys():
            self._tasks[task].miss()
        for task, value in signals.relative_losses.items():
            if task not in self._tasks:
                self._tasks[task] = TaskState(self._limits, task)
            state = self._tasks[task]
            had_diverged = state.diverged
            event = state.update(step, value, signals.losses.get(task))
            if event is not None:
                self._keep(event)
            if state.diverged and not had_diverged:
                yield Outlier("relative_loss", task, False, 0.0, state.reason)

    def _keep(self, event: Event) -> None:
        """Keep an event, with the alarm before it; merge it with the task's event that ended just before, if any."""
        alarms = [] if self._open is None else [alarm for alarm in self._open.told if alarm.step <= event.onset]
        if alarms:
            alarm = alarms[-1]
            event = replace(event, layer=alarm.layer, signal=alarm.signal, alarm=alarm.step)
        for i, earlier in enumerate(self.events):
            if earlier.task == event.task and event.onset - earlier.end < 2 * self.window:
                self.events[i] = replace(earlier, verdict=event.verdict, end=event.end)
                return
        self.events.append(event)
