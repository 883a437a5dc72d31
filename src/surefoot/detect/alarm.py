"""An alarm that is open: when it is over, and when more is wrong than it has told. The standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from surefoot.detect.baselines import Outlier, families, family, of_window, shows
from surefoot.detect.signals import Signals

T = TypeVar("T")
_LOOKS = 2  # in a row, of a score over a window of rows, that end its alarm: each stands for many steps


@dataclass(frozen=True)
class Alarm:
    """Something starts to go wrong.

    Args:
        step: at which it was seen.
        task: whose signal it was, if it was a task's.
        layer: in which it began, if a layer's signal shows it.
        signal: "clip_ratio" and "grad_norm" are early, before anything is known to be worse for it; "non_finite",
            "loss", "relative_loss", "auc", "prediction_std_ratio" (predictions collapse), "saturation", "calibration",
            "batch_shift" (a batch norm's averages jump) and "dead_gradient" tell of harm.
        reason: in plain words.
    """

    step: int
    task: str | None
    layer: str | None
    signal: str
    reason: str


def known(kind: type[T], state: Mapping[str, Any]) -> T:
    """Return a dataclass of a state in which a newer version may have saved more than is known here."""
    names = {each.name for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in state.items() if name in names})


@dataclass
class OpenAlarm:
    """What has been told while an alarm is open.

    Args:
        told: the alarms raised in it, the last one last.
        name: of the task or layer whose signal raised that one.
        window: calm steps that end it, and steps after which more is news.
        worst: the largest excess seen, by family of signals.
        rose: the step at which it was.
        seen: the last step that showed the family.
        calm: steps in a row without an outlier.
        shown: those of them that showed the alarm's own signal.
    """

    told: list[Alarm]
    name: str
    window: int
    worst: dict[str, float] = field(default_factory=dict)
    rose: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    calm: int = 0
    shown: int = 0

    def news(self, step: int, outliers: Sequence[Outlier], signals: Signals) -> list[Outlier]:
        """Take in a step and its outliers; return those that the alarm has not told.

        In its first ``window`` steps what else is out of bounds belongs to it, unless it is not finite. Later it is
        news if a signal is of a family that was within bounds, if a value is not finite after ``window`` steps of
        finite ones, or if an excess that had settled for as long grows by half, and by one bound at least.
        """
        found = [outlier for outlier in outliers if self._is_news(step, outlier)]
        for outlier in outliers:
            self._note(step, outlier)
        self.seen |= dict.fromkeys(families(signals), step)
        return found

    def is_over(self, signals: Signals) -> bool:
        """Take in a step that has no outlier; return whether the alarm is over.

        It takes ``window`` such steps in a row that show its own signal; of a score over a window of rows, which is
        shown every few steps, as many steps and two looks.
        """
        self.calm += 1
        self.shown += shows(signals, self.told[-1].signal, self.name)
        return self.calm >= self.window and self.shown >= (_LOOKS if of_window(self.told[-1].signal) else self.window)

    def go_on(self, alarm: Alarm, name: str) -> None:
        """Take in another alarm, raised while this one is open."""
        self.told.append(alarm)
        self.name = name
        self.disturb()

    def disturb(self) -> None:
        """Take in a step that was not calm."""
        self.calm = self.shown = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, strings and dictionaries."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "OpenAlarm":
        """Return the open alarm of a state."""
        return known(cls, {**state, "told": [known(Alarm, alarm) for alarm in state["told"]]})

    def _is_news(self, step: int, outlier: Outlier) -> bool:
        kind = family(outlier.signal)
        if kind not in self.worst:
            return kind == "non_finite" or step - self.told[-1].step > self.window
        if step - self.rose[kind] <= self.window or self.rose[kind] == self.seen.get(kind):  # it still rises
            return False
        worst = self.worst[kind]
        return kind == "non_finite" or outlier.excess > worst + max(1.0, worst / 2)

    def _note(self, step: int, outlier: Outlier) -> None:
        kind = family(outlier.signal)
        worst = self.worst.get(kind)
        if worst is None or outlier.excess > 1.1 * worst:
            self.worst[kind], self.rose[kind] = outlier.excess, step
        elif kind == "non_finite":
            self.rose[kind] = step
