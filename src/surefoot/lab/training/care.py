"""What looks after a run beside the loop: it is watched, its last steps are kept, and the ladder is climbed for it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from surefoot.best_effort import Harmless
from surefoot.capsule.ring import Ring
from surefoot.detect.detector import Alarm, Detector, Event, FreshScore, Verdict
from surefoot.lab.data.schema import Batch, Task
from surefoot.lab.data.sliding_window import Stream
from surefoot.lab.training.progress import Progress
from surefoot.observe.monitor import Monitor
from surefoot.recover.journal import Journal
from surefoot.recover.policy import Action
from surefoot.recover.recovery import Recovery


class Seen(NamedTuple):
    """What a model showed of a batch, before the step on it."""

    outputs: Tensor  # (rows, tasks)
    losses: Tensor  # (tasks,)
    relative_losses: Tensor  # (tasks,): each over that of the best constant prediction on these rows; 0: too few count


@dataclass
class Care:
    """A run's monitor, and what acts on its alarms; where a ring or a journal fails, the run goes on without.

    Args:
        monitor: watches every step.
        journal: told of alarms and divergences; the recovery's own if there is one.
        recovery: climbs the ladder; without it a run that has diverged fully stops.
        ring: keeps the last steps; written out on an alarm.
        capsules: the folder for that.
        config: the run's configuration as TOML, for the capsules.
        capsule_after: steps that a capsule shows after its alarm.
        progress: how far the run is, if the recovery's checkpoints hold it as their loader.
    """

    monitor: Monitor
    journal: Journal
    recovery: Recovery | None = None
    ring: Ring | None = None
    capsules: Path = Path("capsules")
    config: str | None = None
    capsule_after: int = 8
    progress: Progress | None = None
    _saved: list[Event] = field(default_factory=list, init=False)  # from being forgotten with the detector's state
    _alarm: Alarm | None = field(default=None, init=False)  # the last one
    _told: int = field(default=0, init=False)  # of the detector's events
    _harmless: Harmless = field(default_factory=Harmless, init=False)

    def __post_init__(self) -> None:
        if self.progress is not None:
            self._saved = self.progress.saved

    def resume(self) -> None:
        """Go on from the recovery's newest checkpoint."""
        assert self.recovery is not None
        self.recovery.resume()
        self._told = len(self._detector.events)

    def before(self, step: int, day: int, stream: Stream) -> None:
        """Keep what the step starts from: the row numbers of the stream's last batch, and where that was."""
        if self.ring is not None:
            index = stream.position[1] - 1 if stream.position[0] == day else stream.window.steps(day) - 1
            note: dict[str, float | int | str] = {"day": day, "index": index}
            if self.recovery is not None:
                note |= {"rate_factor": self.recovery.rate_factor, "held": int(self.recovery.holding)}
            self._with_ring(lambda ring: ring.record(step, rows=stream.rows, note=note))

    def after(self, step: int, tasks: tuple[Task, ...], batch: Batch, seen: Seen) -> Action:
        """Judge the step: what the model showed of a batch, tasks in the order of the columns."""
        names = [task.name for task in tasks]
        judged = [task.name for task in tasks if task.judged]
        losses = dict(zip(names, seen.losses.unbind(), strict=True))
        relative = zip(names, seen.relative_losses.unbind(), strict=True)
        shown = losses | {f"relative_loss/{name}": value for name, value in relative}
        self._with_ring(lambda ring: ring.observe(step, shown))
        outputs = dict(zip(names, seen.outputs.unbind(1), strict=True))
        labels = dict(zip(names, batch.labels.unbind(1), strict=True))
        losses, outputs, labels = ({name: each[name] for name in judged} for each in (losses, outputs, labels))
        alarm = self.monitor.step(losses, outputs=outputs, labels=labels)
        self._alarm = alarm or self._alarm
        looking = self.recovery is not None and self.recovery.holding  # such an alarm tells of data, not of a step
        if alarm is not None and not looking:
            told = asdict(alarm)
            self._with_ring(
                lambda ring: ring.write_later(self.capsule_after, self.capsules, alarm=told, config=self.config)
            )
        if self.recovery is not None:
            action = self.recovery.step(alarm)
        else:
            if alarm is not None:
                self._note("alarm", **asdict(alarm))
            action = Action.STOP if self._detector.verdict is Verdict.FULL else Action.NONE
        self._tell()
        if action is Action.ROLLED_BACK and self._alarm is not None:
            self._saved.append(_event(self._alarm, Verdict.MICRO, step))
        return action

    def finish(self, stopped: bool, scores: Mapping[str, FreshScore] | None = None) -> Verdict:
        """End the watch; return the verdict on the run: full if it had to be stopped, micro if it went back.

        Args:
            stopped: whether it had to be.
            scores: of the day after the last one trained on.
        """
        self.monitor.close(scores)
        self._tell()
        self._with_ring(lambda ring: ring.flush())
        if self.recovery is not None:
            self.recovery.close()
        if stopped and self._alarm is not None and self._detector.verdict is not Verdict.FULL:
            self._saved.append(_event(self._alarm, Verdict.FULL, self._alarm.step))
        order = list(Verdict)
        return max((event.verdict for event in self.events), key=order.index, default=Verdict.HEALTHY)

    @property
    def events(self) -> list[Event]:
        """The run's divergences, those that were rolled back included, oldest first."""
        return sorted([*self._detector.events, *self._saved], key=lambda event: event.onset)

    @property
    def _detector(self) -> Detector:
        return self.monitor.detector

    def _tell(self) -> None:
        """Write divergences into the journal once they are over."""
        events = self._detector.events
        self._told = min(self._told, len(events))  # what was rolled back is gone
        for event in events[self._told :]:
            self._note("divergence", **described(event))
        self._told = len(events)

    def _note(self, event: str, **details: Any) -> None:
        with self._harmless(f"writing to {self.journal.path}"):
            self.journal.write(event, **details)

    def _with_ring(self, use: Callable[[Ring], object]) -> None:
        """Let the ring do something; one that fails is given up."""
        if (ring := self.ring) is None:
            return
        self.ring = None
        with self._harmless("keeping the last steps for capsules"):
            use(ring)
            self.ring = ring


def _event(alarm: Alarm, verdict: Verdict, end: int) -> Event:
    return Event(alarm.task or "", alarm.step, verdict, alarm.reason, end, alarm.layer, alarm.signal)


def described(event: Event) -> dict[str, str | int | None]:
    """Return an event as the journal has it."""
    return {
        "task": event.task,
        "layer": event.layer,
        "signal": event.signal,
        "step": event.onset,
        "end": event.end,
        "verdict": event.verdict.value,
        "reason": event.reason,
    }
