"""Which signals of a step are out of bounds, by the run's own running levels. The standard library only."""

import math
from collections.abc import Callable, Iterator, Mapping
from operator import neg
from typing import Any, NamedTuple

from surefoot.detect.signals import Best, Level, Signals


class Outlier(NamedTuple):
    """A signal out of bounds."""

    signal: str
    name: str  # of the task or layer
    per_layer: bool
    excess: float  # how far, in units of its bound
    reason: str


class _Judged(NamedTuple):
    """How one kind of signal is judged: by how many robust standard deviations it is on the bad side of its level.

    The least spread stops a very steady series from alarming at trifles. ``scaled`` turns a value into a number that is
    worse the higher it is; of positive values the logarithm, so that a spread is a ratio.
    """

    signal: str
    field: str  # of Signals
    per_layer: bool
    scaled: Callable[[float], float]
    unscaled: Callable[[float], float]
    floor: float  # least spread
    words: str
    alone: bool = True  # whether one name's value is judged by itself
    least: float = -math.inf  # no concern up to here


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))


def _minus_log(value: float) -> float:
    return -_log(value)


def _exp_minus(x: float) -> float:
    return math.exp(-x)


def _distance_from_1(value: float) -> float:
    return abs(_log(abs(value)))


# Six deviations at the least spread are, from the AUC on: 4.5 points; a third; a factor of 3, and no concern where
# predictions spread less than labels; a factor of 2 further from 1; a factor of 20, and no concern where Clippy would
# not clip; a factor of 67. So for a batch norm, and no concern below ten of its running deviations.
_LOSS = _Judged("loss", "losses", False, _log, math.exp, 0.05, "the loss of {} rose", alone=False)
_RELATIVE = _Judged(
    "relative_loss", "relative_losses", False, _log, math.exp, 0.05, "the relative loss of {} rose", alone=False
)
_RATIO = _Judged("clip_ratio", "clip_ratios", True, _log, math.exp, 0.5, "the clip ratio of {} rose", least=0.0)
_NORM = _Judged("grad_norm", "grad_norms", True, _log, math.exp, 0.7, "the gradient norm of {} rose")
_AUC = _Judged("auc", "aucs", False, neg, neg, 0.0075, "the AUC of {} fell")
_SHIFT = _Judged(
    "batch_shift", "batch_shifts", True, _log, math.exp, 0.7, "the batch's mean shifted at {}", least=math.log(10)
)
_STD_RATIO = "prediction_std_ratio"
_JUDGED = (
    _LOSS,
    _RELATIVE,
    _AUC,
    _Judged(_STD_RATIO, f"{_STD_RATIO}s", False, _minus_log, _exp_minus, 0.18, f"the {_STD_RATIO} of {{}} fell"),
    _Judged("saturation", f"{_STD_RATIO}s", False, _log, math.exp, 0.18, f"the {_STD_RATIO} of {{}} rose", least=0.0),
    _Judged("calibration", "calibrations", False, _distance_from_1, math.exp, 0.12, "the miscalibration of {} rose"),
    _SHIFT,
    _RATIO,
    _NORM,
)
SIGNALS = ("non_finite", *(kind.signal for kind in _JUDGED), "dead_gradient")
"""The names of signals, harm done before what may come to harm: of several at once the first names an alarm."""

_FIELDS = {kind.signal: kind.field for kind in _JUDGED} | {"dead_gradient": "grad_norms"}
_OLD_NAMES = {"spread": _STD_RATIO}  # in states that older versions have saved
_OF_WINDOW = ("auc", _STD_RATIO, "saturation", "calibration")  # over the last rows, hence shown every few steps
_FAMILIES = {
    "non_finite": "non_finite",
    **dict.fromkeys(("loss", "relative_loss"), "losses"),
    "clip_ratio": "steps",
    "batch_shift": "inputs",
    **dict.fromkeys(("grad_norm", "dead_gradient"), "gradients"),
    **dict.fromkeys(_OF_WINDOW, "scores"),
}

_NEVER_UNDEFINED = (_LOSS, _RELATIVE, _RATIO, _NORM)  # an AUC of one class, say, has no value
_LAYERS_FLOOR = 0.1  # least spread of the mean logarithm over layers
_DEAD = math.log(1e3)  # a gradient norm this far below its level, for a window of steps, is dead
_FIRST = 1.5  # times the first summed loss
_HUGE = math.log(20)  # a clip ratio of 20 moves a weight by ten times itself: too much, whatever the level
_LOOKS = 16, 2  # values of a window's score that make its level, and that wait: such are shown every few steps


def family(signal: str) -> str:
    """Return the family of a signal: those of one family tell of the same trouble.

    >>> [family(signal) for signal in ("clip_ratio", "grad_norm", "loss", "relative_loss", "auc")]
    ['steps', 'gradients', 'losses', 'losses', 'scores']
    """
    return _FAMILIES[signal]


def families(signals: Signals) -> set[str]:
    """Return the families that a step shows."""
    return {family(kind.signal) for kind in _JUDGED if getattr(signals, kind.field)} | {"non_finite"}


def of_window(signal: str) -> bool:
    """Whether a signal is a score over a window of rows, which is shown every few steps."""
    return signal in _OF_WINDOW


def shows(signals: Signals, signal: str, name: str) -> bool:
    """Return whether a step shows this signal of the task or layer; of ``non_finite`` its losses, ratios or norms."""
    if signal in _FIELDS:
        return name in getattr(signals, _FIELDS[signal])
    return any(name in getattr(signals, kind.field) for kind in _NEVER_UNDEFINED)


class Baselines:
    """The running levels of all signals of a run.

    Args:
        deviations: robust standard deviations by which a signal may leave its level, and all layers and tasks together.
        window: steps that a value waits before it is accepted; accepted values before a level judges.
        history: accepted values in a level.
    """

    def __init__(self, *, deviations: float, window: int, history: int) -> None:
        self._deviations, self._window, self._history = deviations, window, history
        self._levels: dict[str, dict[str, Level]] = {kind.signal: {} for kind in _JUDGED if kind is not _AUC}
        self._layers = Level(history, window)  # of the mean logarithm of the clip ratios
        self._rankings: dict[str, Best] = {}  # of each task's AUC
        self._ranked: dict[str, tuple[float, float]] = {}  # the best that an AUC has been, of those sure; and the last
        self._first: dict[str, float] = {}  # each task's first loss
        self._dead: dict[str, int] = {}  # steps for which each layer's gradient has been dead
        self._readings: list[tuple[Level, float]] = []  # of the last step
        self._aucs: list[tuple[Best, int, float]] = []  # likewise

    def read(self, step: int, signals: Signals) -> list[Outlier]:
        """Return what is out of bounds."""
        self._readings, self._aucs = [], []
        outliers: list[Outlier] = []
        for kind in _JUDGED:
            values: Mapping[str, float] = getattr(signals, kind.field)
            if values:
                outliers += self._rank(step, signals) if kind is _AUC else self._judge(kind, values)
        outliers += self._beside_the_first(signals.losses)
        outliers += self._together(signals)
        return outliers

    def accept(self) -> None:
        """Let the finite values of the last step into the levels."""
        for level, x in self._readings:
            level.offer(x)
        for ranking, step, value in self._aucs:
            ranking.offer(step, value)

    def forget_waiting(self) -> None:
        """Drop the values that are not in the levels yet."""
        for level in self._all_levels():
            level.forget_waiting()

    def forget(self) -> None:
        """Start all levels anew."""
        for level in (*self._all_levels(), *self._rankings.values()):
            level.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, lists and dictionaries."""
        levels = {s: {name: level.state_dict() for name, level in each.items()} for s, each in self._levels.items()}
        return {
            "levels": levels,
            "layers": self._layers.state_dict(),
            "rankings": {task: ranking.state_dict() for task, ranking in self._rankings.items()},
            "ranked": {task: list(pair) for task, pair in self._ranked.items()},
            "first": dict(self._first),
            "dead": dict(self._dead),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. A signal that it does not have starts anew; one that is not known here is passed over."""
        levels = {_OLD_NAMES.get(signal, signal): saved for signal, saved in state["levels"].items()}
        for signal in self._levels:
            self._levels[signal] = {}
            for name, saved in levels.get(signal, {}).items():
                self._level(signal, name).load_state_dict(saved)
        self._layers.load_state_dict(state["layers"])
        self._rankings = {task: self._new_ranking() for task in state.get("rankings", {})}
        for task, ranking in self._rankings.items():
            ranking.load_state_dict(state["rankings"][task])
        self._ranked = {task: (best, last) for task, (best, last) in state.get("ranked", {}).items()}
        self._first, self._dead = dict(state["first"]), dict(state["dead"])

    def has_ranked(self, task: str) -> bool:
        """Whether a task's AUC was once above one half by more than chance."""
        return self._ranked.get(task, (0.5, 0.5))[0] > 0.5

    def still_ranks(self, task: str) -> bool:
        """Whether the last AUC of such a task kept at least half of what lay above one half."""
        best, last = self._ranked.get(task, (0.5, 0.5))
        return best > 0.5 and last - 0.5 >= (best - 0.5) / 2

    def _rank(self, step: int, signals: Signals) -> Iterator[Outlier]:
        """Judge each AUC by its recent best; keep the finite ones as readings.

        At the default deviations it may lie below by 4.5 points, or by six standard errors where these are more: days
        that are harder to rank take three or four points from it, slowly.
        """
        for task, value in signals.aucs.items():
            if not math.isfinite(value):
                continue
            ranking = self._rankings.setdefault(task, self._new_ranking())
            self._aucs.append((ranking, step, value))
            best, error = ranking.best, signals.auc_errors.get(task, math.nan)
            chance = ranking.noise() if math.isnan(error) else error
            bound = self._deviations * max(_AUC.floor, chance)
            before = self._ranked.get(task, (0.5, 0.5))[0]
            self._ranked[task] = (max(before, best) if best - bound > 0.5 else before, value)
            lost = best - max(value, 0.5)  # below one half there is nothing to lose
            if lost > bound:
                reason = f"{_AUC.words.format(task)} from {best:.3g} to {value:.3g}"
                yield Outlier(_AUC.signal, task, False, lost / bound, reason)

    def _judge(self, kind: _Judged, values: Mapping[str, float]) -> Iterator[Outlier]:
        """Judge the values of one kind, each by its own level; keep the finite ones as readings."""
        bound = self._deviations * kind.floor
        for name, value in values.items():
            if not math.isfinite(value):
                if kind in _NEVER_UNDEFINED:
                    what = kind.words.format(name).removesuffix(" rose")
                    yield Outlier("non_finite", name, kind.per_layer, math.inf, f"{what} is {value}")
                continue
            x = kind.scaled(value)
            level = self._level(kind.signal, name)
            self._readings.append((level, x))
            judged = len(level) >= self._window
            distance = x - level.median if judged else 0.0
            if kind is _NORM:
                yield from self._whether_dead(name, distance)
            elif kind is _RATIO and x > _HUGE and (not judged or distance > 1):
                yield Outlier(kind.signal, name, True, x / _HUGE, f"the clip ratio of {name} is {value:.3g}")
            if kind.alone and distance > bound and x > kind.least and not self._is_learning(kind, name):
                excess = distance / (self._deviations * max(level.spread(), kind.floor))
                if excess > 1:
                    yield Outlier(kind.signal, name, kind.per_layer, excess, _change(kind, name, level, x))

    def _is_learning(self, kind: _Judged, task: str) -> bool:
        """Whether a score of the window leaves its level while its task's losses lie below theirs.

        Predictions that spread less than those of the first steps, say, are no collapse then; nor are they while a task
        does not rank yet, as a rare one whose first predictions lie near one half.
        """
        if kind.signal == _STD_RATIO and task in self._ranked and not self.has_ranked(task):
            return True
        levels = [self._levels[signal].get(task) for signal in ("relative_loss", "loss")]
        level = next((level for level in levels if level is not None and len(level)), None)
        if level is None or kind.signal not in _OF_WINDOW:
            return False
        return level.recent < level.median - max(level.spread(), _RELATIVE.floor)

    def _whether_dead(self, layer: str, distance: float) -> Iterator[Outlier]:
        if distance > -_DEAD:
            self._dead.pop(layer, None)
            return
        steps = self._dead[layer] = self._dead.get(layer, 0) + 1
        if steps >= self._window:
            reason = f"the gradient of {layer} has been dead for {steps} steps"
            yield Outlier("dead_gradient", layer, True, -distance / _DEAD, reason)

    def _beside_the_first(self, losses: Mapping[str, float]) -> Iterator[Outlier]:
        """Judge the summed loss by that of the first step: the only level there is when a run blows up at its start."""
        total = sum(losses.values())
        if not losses or not math.isfinite(total):
            return
        self._first = {**losses, **self._first}
        first = sum(self._first[task] for task in losses)  # not every step shows every task
        if total > _FIRST * first > 0:
            task = max(losses, key=lambda name: losses[name])
            reason = f"the loss is {total:.3g}, most of it of {task}; at the first step it was {first:.3g}"
            yield Outlier("loss", task, False, math.log(total / first) / math.log(_FIRST), reason)

    def _together(self, signals: Signals) -> Iterator[Outlier]:
        """Judge all layers and tasks together: what is small in each is plain in all.

        How many deviations the layers' mean logarithm of the clip ratio has risen, and how many the tasks' losses have,
        summed over the root of their number; the strain is the root of the sum of the two squares. A task's loss has
        risen by the lesser of what it and the relative loss have: the one rises where a batch holds large labels, the
        other where it holds none.
        """
        ratios = [_log(value) for value in signals.clip_ratios.values() if math.isfinite(value)]
        mean = sum(ratios) / len(ratios) if ratios else 0.0
        if ratios:
            self._readings.append((self._layers, mean))
        concern = bool(ratios) and max(ratios) > _RATIO.least
        for rise in (self._rise_at_most, self._rise):  # the spreads are worked out only if it may come to something
            layers = max(0.0, rise(self._layers, mean, _LAYERS_FLOOR)) if concern else 0.0
            risen = {task: self._risen(task, signals, rise) for task in signals.relative_losses or signals.losses}
            tasks = max(0.0, sum(risen.values()) / math.sqrt(len(risen) or 1))
            strain = math.hypot(layers, tasks) / self._deviations
            if strain <= 1:
                return
        if layers >= tasks:
            kind, values = _RATIO, signals.clip_ratios
            name = max(values, key=lambda n: _log(values[n]) - self._level("clip_ratio", n).median)
        else:
            known = bool(signals.relative_losses)
            kind, values = (_RELATIVE, signals.relative_losses) if known else (_LOSS, signals.losses)
            name = max(risen, key=lambda n: risen[n])
        reason = _change(kind, name, self._level(kind.signal, name), _log(values[name]))
        yield Outlier(kind.signal, name, kind.per_layer, strain, reason)

    def _risen(self, task: str, signals: Signals, rise: Callable[[Level, float, float], float]) -> float:
        """Return how many deviations a task's loss has risen; 0 where that cannot be said."""
        rises = []
        for kind, values in ((_RELATIVE, signals.relative_losses), (_LOSS, signals.losses)):
            value = values.get(task)
            if value is not None:
                if not math.isfinite(value):
                    return 0.0
                rises.append(rise(self._level(kind.signal, task), _log(value), kind.floor))
        return min(rises)

    def _rise(self, level: Level, x: float, floor: float) -> float:
        """Return how many deviations ``x`` lies above the level; 0 before the level judges."""
        return (x - level.median) / max(level.spread(), floor) if len(level) >= self._window else 0.0

    def _rise_at_most(self, level: Level, x: float, floor: float) -> float:
        """Return what ``_rise`` cannot be above, without the spread."""
        return max(0.0, x - level.median) / floor if len(level) >= self._window else 0.0

    def _level(self, signal: str, name: str) -> Level:
        levels = self._levels[signal]
        if name not in levels:
            levels[name] = Level(*_LOOKS) if signal in _OF_WINDOW else Level(self._history, self._window)
        return levels[name]

    def _new_ranking(self) -> Best:
        return Best(self._history)

    def _all_levels(self) -> Iterator[Level]:
        yield self._layers
        for levels in self._levels.values():
            yield from levels.values()


def _change(kind: _Judged, name: str, level: Level, x: float) -> str:
    return f"{kind.words.format(name)} from {kind.unscaled(level.median):.3g} to {kind.unscaled(x):.3g}"
