"""A verdict on a run: floats in, verdict out.

A step's signals are judged by what the run itself has shown to be healthy; the verdict by each task's *relative loss*:
its loss over that of the best constant prediction on the same rows. A model that has learnt something is below 1; one
that has collapsed to the base rate sits at 1; one whose step was too large is far above.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from surefoot import checks
from surefoot.monitor.findings import SIGNALS, Finding, Panel
from surefoot.monitor.road import Event, Road, RoadLimits, Verdict
from surefoot.monitor.signals import Signals

__all__ = ["Alarm", "Detector", "Event", "Signals", "Verdict"]


@dataclass(frozen=True)
class Alarm:
    """Something starts to go wrong.

    Args:
        step: at which it was seen.
        task: whose signal it was, if it was a task's.
        layer: in which it began, if a layer's signal shows it.
        signal: "clip_ratio" and "grad_norm" are early, before anything is known to be worse for it; "non_finite",
            "loss", "relative_loss", "auc", "spread" (predictions collapse), "saturation", "calibration" and
            "dead_gradient" tell of harm.
        reason: in plain words.
    """

    step: int
    task: str | None
    layer: str | None
    signal: str
    reason: str


@dataclass
class Detector:
    """Follow the signals of a run; raise an alarm when something starts, say what became of it.

    An **alarm** starts when

    - a loss, a clip ratio or a gradient norm is not finite;
    - the clip ratios of all layers and the losses of all tasks *together* have risen above their running levels by more
      than ``deviations`` robust standard deviations: what is small in each is plain in all;
    - one layer's clip ratio or gradient norm, or one task's AUC, spread or calibration has left its own level by as
      much, and by enough to matter; or a clip ratio exceeds 20, whatever its level;
    - the summed loss exceeds one and a half times that of the first step;
    - a gradient has been a thousandth of its level for ``window`` steps;
    - a task leaves the road (see ``Road``).

    A level is the median, and the median deviation, of the last ``history`` accepted values. While an alarm lasts, none
    is accepted, nor are the ``window`` before it: one spike does not raise its own limit, and what is not finite never
    gets in. It is over when ``window`` steps in a row are calm, not counting those that do not show its task; a change
    that has lasted ``patience`` steps with every task on the road is the new level.

    An **event** is a task's departure from the road: micro if it came back, full if that took more than ``patience``
    steps (and micro again if it comes back even then). An alarm that no departure follows leaves no event.

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
        self._limits = RoadLimits(self.window, self.history, self.learnt, self.patience)
        self._roads: dict[str, Road] = {}
        self._panel = Panel(deviations=self.deviations, window=self.window, history=self.history)
        self._open: Alarm | None = None
        self._calm = 0  # steps in a row
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

    def finish(self, step: int) -> Verdict:
        """Close the run, which ended at ``step``; return the final verdict.

        Events still open are full. Full too is a run that was shaken and ends with a constant prediction, even of a
        task that never rose itself: any such task if there was an event; all of them if there was no more than a
        single loss past one and a half times the first within the first ``window`` steps, which can kill a network.
        """
        for road in self._roads.values():
            event = road.close(step, Verdict.FULL)
            if event is not None:
                self._keep(event)
        if self.verdict is Verdict.FULL:
            return Verdict.FULL
        constant = [task for task, road in self._roads.items() if road.is_constant()]
        shaken = [event.onset for event in self.events]
        if len(constant) == len(self._roads):
            shaken += [road.first_jump for road in self._roads.values() if road.first_jump is not None]
        if shaken and constant:
            reason = f"{', '.join(constant)} ended at a constant prediction after the jump at step {min(shaken)}"
            self.events.append(Event(constant[0], min(shaken), Verdict.FULL, reason, step))
        return self.verdict

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
            "roads": {task: road.state_dict() for task, road in self._roads.items()},
            "panel": self._panel.state_dict(),
            "open": None if self._open is None else asdict(self._open),
            "calm": self._calm,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state: what follows is as it would have been.

        Raises:
            ValueError: if it is not a detector's.
        """
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ValueError(f"state has {sorted(state)}; expected {sorted(expected)}, as a Detector saves it")
        self.events[:] = [Event(**{**event, "verdict": Verdict(event["verdict"])}) for event in state["events"]]
        self.alarms[:] = [Alarm(**alarm) for alarm in state["alarms"]]
        self._roads = {task: Road(self._limits, task) for task in state["roads"]}
        for task, road in self._roads.items():
            road.load_state_dict(state["roads"][task])
        self._panel.load_state_dict(state["panel"])
        self._open = None if state["open"] is None else Alarm(**state["open"])
        self._calm, self._last = state["calm"], state["last"]

    def _update(self, step: int, signals: Signals) -> Alarm | None:
        findings = [*self._panel.read(signals), *self._roads_of(step, signals)]
        if self._open is None:
            if findings:
                return self._start(step, findings)
            self._panel.accept()
            return None
        on_road = all(road.on_road for road in self._roads.values())
        task = self._open.task
        if findings or not on_road:
            self._calm = 0
        elif task not in self._roads or task in signals.relative_losses:  # else the step does not show it: no news
            self._calm += 1
        if self._calm >= self.window:
            self._open = None
        elif on_road and step - self._open.step >= self.patience:  # it stays and does no harm: the new level
            self._open = None
            self._panel.forget()
        return None

    def _start(self, step: int, findings: list[Finding]) -> Alarm:
        """Start an alarm, named by the most telling finding; of several layers the one furthest out is where."""
        findings.sort(key=lambda finding: (SIGNALS.index(finding.signal), -finding.excess))
        first = findings[0]
        task = next((finding.name for finding in findings if not finding.per_layer), None)
        layers = [finding for finding in findings if finding.per_layer]
        layer = max(layers, key=lambda finding: finding.excess).name if layers else None
        self._open = Alarm(step, task, layer, first.signal, first.reason)
        self._calm = 0
        self.alarms.append(self._open)
        self._panel.forget_waiting()
        return self._open

    def _roads_of(self, step: int, signals: Signals) -> Iterator[Finding]:
        """Take in the relative losses; yield the tasks that leave the road."""
        for task in self._roads.keys() - signals.relative_losses.keys():
            self._roads[task].miss()
        for task, value in signals.relative_losses.items():
            if task not in self._roads:
                self._roads[task] = Road(self._limits, task)
            road = self._roads[task]
            was_on = road.on_road
            event = road.update(step, value, signals.losses.get(task))
            if event is not None:
                self._keep(event)
            if was_on and not road.on_road:
                yield Finding("relative_loss", task, False, 0.0, road.reason)

    def _keep(self, event: Event) -> None:
        """Keep an event; with the alarm that told of it first, and as one with others of its task since, if open."""
        alarm = self._open
        if alarm is not None and alarm.step <= event.onset:
            event = replace(event, onset=alarm.step, layer=alarm.layer, signal=alarm.signal)
        for i, earlier in enumerate(self.events):
            if (earlier.task, earlier.onset) == (event.task, event.onset):
                self.events[i] = replace(earlier, verdict=event.verdict, end=event.end)
                return
        self.events.append(event)
