"""A verdict on a run: floats in, verdict out.

A step's signals are judged by what the run itself has shown to be healthy; the verdict by each task's *relative loss*:
its loss over that of the best constant prediction on the same rows. A model that has learnt something is below 1; one
that has collapsed to the base rate sits at 1; one whose step was too large is far above.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from surefoot import checks
from surefoot.detect.alarm import Alarm, OpenAlarm, known
from surefoot.detect.baselines import SIGNALS, Baselines, Outlier, family
from surefoot.detect.signals import Signals
from surefoot.detect.task_state import Event, FreshScore, TaskLimits, TaskState, Verdict

__all__ = ["Alarm", "Detector", "Event", "FreshScore", "Signals", "Verdict"]


@dataclass
class Detector:
    """Follow the signals of a run; raise an alarm when something starts, say what became of it.

    An **alarm** starts when

    - a loss, a clip ratio or a gradient norm is not finite;
    - the clip ratios of all layers and the losses of all tasks *together* have risen above their running levels by more
      than ``deviations`` robust standard deviations: what is small in each is plain in all;
    - one layer's clip ratio or gradient norm, or one task's calibration or its predictions' standard
      deviation over that of its labels has left its own level by as much,
      and by enough to matter; or a batch norm's distance between the batch's mean and the running mean has; or a clip
      ratio exceeds 20, whatever its level;
    - one task's AUC lies below its best of the last ``history`` steps by ``deviations`` standard errors, and by 3/4 of
      a point for each of them: 4.5 points at the default;
    - the summed loss exceeds one and a half times that of the first step;
    - a gradient has been a thousandth of its level for ``window`` steps;
    - a task diverges (see ``TaskState``).

    A level is the median, and the median deviation, of the last ``history`` accepted values (16 where they are scores
    over a window of rows). While an alarm lasts, none is accepted, nor are the ``window`` before it: one spike does not
    raise its own limit, and what is not finite never gets in. It is over when ``window`` steps in a row are calm, not
    counting those that do not show its own signal; a change that has lasted ``patience`` steps while no task has
    diverged is the new level.

    A second trouble in an open alarm is a new alarm: a value that is not finite, a signal of another family (clip
    ratios, gradient norms, losses, scores) more than ``window`` steps after the first, or an excess that had settled
    and grows by half, and by one bound at least.

    An **event** is a task's divergence: micro if it recovered, full if that took more than ``patience`` steps (and
    micro again if it recovers even then). An alarm that no divergence follows leaves no event. The verdict of a run
    follows from its relative losses alone, whatever alarms there were.

    A task that **never learns** is a failure of its own kind, ``never_learnt``: it neither rises nor falls.

    Args:
        deviations: robust standard deviations that raise an alarm.
        window: steps in a level of losses, and calm steps that end an alarm.
        history: accepted values that make a level.
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
        """Take in one step.

        Args:
            step: its number, counting up.
            signals: what it showed; or the relative losses of the judged tasks alone.

        Returns:
            The alarm that starts at this step, if one does; of relative losses alone the verdict so far, ``FULL`` once
            a task has not come back.

        Raises:
            TypeError: if the signals are neither.
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
        """Close the run, which ended at ``step``; return the final verdict.

        Full are, beside the events that are still open,

        - a run that was shaken, if a task that was once clearly better than a constant prediction ends at one, even if
          it never rose itself, and no longer ranks, where its AUC is known;
        - a run whose tasks all end at a constant prediction, after a loss in the first ``window`` steps past one and a
          half times the first, or, if one of them had learnt something, after any event; and one in which a task does
          that has learnt nothing, after a loss ten times a constant's: a single step can kill a network;
        - a run in which a task ends clearly worse than a constant prediction.

        Args:
            step: the number of steps.
            scores: of the trained model on rows it was not trained on, where there are such: they overrule what the
                last batches seem to tell.
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
        """The tasks that have been shown for 128 steps and were never better than a constant prediction."""
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
        """Take over a state: what follows is as it would have been.

        One that an older or a newer version has saved is taken over as far as it goes: what it does not have starts
        anew, what is not known here is passed over.

        Raises:
            ValueError: if it is not a detector's; the detector stays as it was.
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
            opened = OpenAlarm.of_state(opened) if "told" in opened else self._open_alarm_of(known(Alarm, opened))
        events = [known(Event, {**event, "verdict": Verdict(event["verdict"])}) for event in state["events"]]
        alarms = [known(Alarm, alarm) for alarm in state["alarms"]]
        saved = state["tasks"] if "tasks" in state else state["roads"]  # as older versions call them
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
        if not diverged and step - self._open.told[-1].step >= self.patience:  # harmless: the new level
            self._open = None
            self._baselines.forget()
        return None

    def _start(self, step: int, outliers: list[Outlier], signals: Signals) -> Alarm:
        """Start an alarm, named by the most telling outlier; of several layers the one furthest out is where."""
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
        """Return the open alarm of an alarm of which no more is known."""
        name = alarm.layer if alarm.signal in ("clip_ratio", "grad_norm", "dead_gradient") else alarm.task
        excess, kind = math.inf if alarm.signal == "non_finite" else 1.0, family(alarm.signal)
        return OpenAlarm([alarm], name or alarm.layer or "", self.window, {kind: excess}, {kind: alarm.step})

    def _ending(self, scores: Mapping[str, FreshScore]) -> tuple[list[str], int, str] | None:
        """Return the tasks that make a run full by how they end, since when, and why; None if none does."""
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
        """Take in the relative losses; yield the tasks that diverge."""
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
        """Keep an event; with the alarm that told of it first, and as one with a departure that it follows at once."""
        told = [] if self._open is None else [alarm for alarm in self._open.told if alarm.step <= event.onset]
        if told:
            alarm = told[-1]
            event = replace(event, layer=alarm.layer, signal=alarm.signal, alarm=alarm.step)
        for i, earlier in enumerate(self.events):
            if earlier.task == event.task and event.onset - earlier.end < 2 * self.window:
                self.events[i] = replace(earlier, verdict=event.verdict, end=event.end)
                return
        self.events.append(event)
