"""An open alarm: when it ends, and when a second problem is a new alarm. Imports the standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from surefoot.detect.baselines import Outlier, families, family, of_window, shows
from surefoot.detect.signals import Signals

T = TypeVar("T")
_CALM_SCORES = 2  # calm values in a row that end the alarm of a score over a window of rows; each covers many steps


@dataclass(frozen=True)
class Alarm:
    """The start of a problem in training.

    Args:
        step: the step that showed it.
        task: the task whose signal showed it, if one did.
        layer: the layer in which it began, if a layer's signal shows that.
        signal: "clip_ratio" and "grad_norm" are early signs, before a loss or a score is worse; "non_finite",
            "loss", "relative_loss", "auc", "prediction_std_ratio" (predictions collapse), "saturation", "calibration",
            "batch_shift" (a batch norm's averages jump) and "dead_gradient" show harm.
        reason: in plain words.
    """

    step: int
    task: str | None
    layer: str | None
    signal: str
    reason: str


def from_saved(kind: type[T], state: Mapping[str, Any]) -> T:
    """Return a dataclass from its saved fields; ignore fields that only newer versions have."""
    names = {each.name for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in state.items() if name in names})


@dataclass
class OpenAlarm:
    """The state of an open alarm.

    Args:
        told: the alarms raised so far, oldest first.
        name: the task or layer whose signal raised the last of them.
        window: calm steps that end the alarm; also the steps after which a second problem is a new alarm.
        worst: the largest excess so far, by family of signals.
        rose: the step of that excess, by family.
        seen: the last step with a signal of the family, by family.
        calm: steps in a row without an outlier.
        shown: those of the calm steps that have a value of the alarm's own signal.
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
        """Process a step and its outliers; return those that are a new problem.

        In the first ``window`` steps all further outliers belong to this alarm, except non-finite values. Later an
        outlier is a new problem if its family was within bounds until now, if a value is not finite after ``window``
        steps of finite ones, or if an excess that did not grow for ``window`` steps grows by half, and by 1 at least.
        """
        found = [outlier for outlier in outliers if self._is_news(step, outlier)]
        for outlier in outliers:
            self._note(step, outlier)
        self.seen |= dict.fromkeys(families(signals), step)
        return found

    def is_over(self, signals: Signals) -> bool:
        """Process a step without outliers; return whether the alarm is over.

        The alarm ends after ``window`` such steps in a row with a value of its own signal. For a score over a window of
        rows, which has a value every few steps only, two values in ``window`` steps or more are enough.
        """
        self.calm += 1
        self.shown += shows(signals, self.told[-1].signal, self.name)
        needed = _CALM_SCORES if of_window(self.told[-1].signal) else self.window
        return self.calm >= self.window and self.shown >= needed

    def go_on(self, alarm: Alarm, name: str) -> None:
        """Add an alarm that is raised while this one is open."""
        self.told.append(alarm)
        self.name = name
        self.disturb()

    def disturb(self) -> None:
        """Process a step that is not calm."""
        self.calm = self.shown = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, strings and dictionaries."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "OpenAlarm":
        """Return the open alarm of a saved state."""
        return from_saved(cls, {**state, "told": [from_saved(Alarm, alarm) for alarm in state["told"]]})

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
