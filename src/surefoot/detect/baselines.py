"""Compares the signals of a step with the run's own baselines. Imports the standard library only."""

import math
from collections.abc import Callable, Iterator, Mapping
from operator import neg
from typing import Any, NamedTuple

from surefoot.detect.signals import Baseline, Best, Signals


class Outlier(NamedTuple):
    """A signal out of bounds."""

    signal: str
    name: str  # of the task or layer
    per_layer: bool
    excess: float  # the distance from the baseline, in units of the bound
    reason: str


class _Judged(NamedTuple):
    """How one kind of signal is judged: by how many robust standard deviations it is on the bad side of its baseline.

    ``floor`` prevents alarms about tiny changes in a very steady series. ``scaled`` maps a value to a number that is
    worse the higher it is: for positive values the logarithm, so that a spread is a ratio.
    """

    signal: str
    field: str  # its field in Signals
    per_layer: bool
    scaled: Callable[[float], float]
    unscaled: Callable[[float], float]
    floor: float  # least spread
    words: str
    alone: bool = True  # whether each task or layer is judged by itself too, not only all together
    least: float = -math.inf  # scaled values up to this are never outliers


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))


def _minus_log(value: float) -> float:
    return -_log(value)


def _exp_minus(x: float) -> float:
    return math.exp(-x)


def _distance_from_1(value: float) -> float:
    return abs(_log(abs(value)))


# Six deviations at the floor of the spread are: AUC 4.5 points lower; spread a third; saturation 3 times as high (and
# above 1); calibration a factor of 2 further from 1; clip ratio 20 times as high (and above 1, where Clippy clips);
# gradient norm and batch shift 67 times as high (and a batch shift above ten running deviations).
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
_KINDS = (
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
SIGNALS = ("non_finite", *(kind.signal for kind in _KINDS), "dead_gradient")
"""The names of all signals, those that show harm before the early signs: the first of several names the alarm."""

_FIELDS = {kind.signal: kind.field for kind in _KINDS} | {"dead_gradient": "grad_norms"}
_OLD_NAMES = {"spread": _STD_RATIO}  # in states that older versions have saved
_OF_WINDOW = ("auc", _STD_RATIO, "saturation", "calibration")  # over the last rows, with a value every few steps only
_FAMILIES = {
    "non_finite": "non_finite",
    **dict.fromkeys(("loss", "relative_loss"), "losses"),
    "clip_ratio": "steps",
    "batch_shift": "inputs",
    **dict.fromkeys(("grad_norm", "dead_gradient"), "gradients"),
    **dict.fromkeys(_OF_WINDOW, "scores"),
}

_NEVER_UNDEFINED = (_LOSS, _RELATIVE, _RATIO, _NORM)  # unlike, for example, the AUC of a window with one class only
_LAYERS_FLOOR = 0.1  # floor of the spread of the layers' mean log clip ratio
_DEAD = math.log(1e3)  # a gradient norm this far below its baseline, for a window of steps, is dead
_FIRST = 1.5  # the summed loss may rise to this many times that of the first step
_HUGE = math.log(20)  # at a clip ratio of 20 a weight changes by ten times itself: too much, whatever the baseline
_OF_SCORES = 16, 2  # size and delay, in values, of the baseline of a score over a window of rows


def family(signal: str) -> str:
    """Return the family of a signal: signals of one family show the same problem.

    >>> [family(signal) for signal in ("clip_ratio", "grad_norm", "loss", "relative_loss", "auc")]
    ['steps', 'gradients', 'losses', 'losses', 'scores']
    """
    return _FAMILIES[signal]


def families(signals: Signals) -> set[str]:
    """Return the families of which a step has values."""
    return {family(kind.signal) for kind in _KINDS if getattr(signals, kind.field)} | {"non_finite"}


def of_window(signal: str) -> bool:
    """Whether a signal is a score over a window of rows, which has a value every few steps only."""
    return signal in _OF_WINDOW


def shows(signals: Signals, signal: str, name: str) -> bool:
    """Return whether a step has a value of the signal by that name; for ``non_finite`` any loss, clip ratio or norm."""
    if signal in _FIELDS:
        return name in getattr(signals, _FIELDS[signal])
    return any(name in getattr(signals, kind.field) for kind in _NEVER_UNDEFINED)


class Baselines:
    """The baselines of all signals of a run.

    Args:
        deviations: robust standard deviations by which a signal may leave its baseline, alone or all together.
        window: steps before a value enters its baseline; also the values that a baseline needs before it is used.
        history: values in a baseline.
    """

    def __init__(self, *, deviations: float, window: int, history: int) -> None:
        self._deviations, self._window, self._history = deviations, window, history
        self._baselines: dict[str, dict[str, Baseline]] = {kind.signal: {} for kind in _KINDS if kind is not _AUC}
        self._layers = Baseline(history, window)  # of the mean logarithm of the clip ratios
        self._rankings: dict[str, Best] = {}  # of each task's AUC
        self._ranked: dict[str, tuple[float, float]] = {}  # by task: the best AUC clearly above 0.5, and the last AUC
        self._first: dict[str, float] = {}  # each task's first loss
        self._dead: dict[str, int] = {}  # steps for which each layer's gradient has been dead
        self._readings: list[tuple[Baseline, float]] = []  # values of the last step, not accepted yet
        self._aucs: list[tuple[Best, int, float]] = []  # its AUCs

    def read(self, step: int, signals: Signals) -> list[Outlier]:
        """Return the signals of a step that are out of bounds."""
        self._readings, self._aucs = [], []
        outliers: list[Outlier] = []
        for kind in _KINDS:
            values: Mapping[str, float] = getattr(signals, kind.field)
            if values:
                outliers += self._rank(step, signals) if kind is _AUC else self._judge(kind, values)
        outliers += self._against_first_step(signals.losses)
        outliers += self._together(signals)
        return outliers

    def accept(self) -> None:
        """Offer the finite values of the last step to the baselines."""
        for baseline, x in self._readings:
            baseline.offer(x)
        for ranking, step, value in self._aucs:
            ranking.offer(step, value)

    def forget_waiting(self) -> None:
        """Drop the values that are not in the baselines yet."""
        for baseline in self._all_baselines():
            baseline.forget_waiting()

    def forget(self) -> None:
        """Empty all baselines."""
        for baseline in (*self._all_baselines(), *self._rankings.values()):
            baseline.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, lists and dictionaries."""
        baselines = {
            s: {name: baseline.state_dict() for name, baseline in each.items()} for s, each in self._baselines.items()
        }
        return {
            "levels": baselines,
            "layers": self._layers.state_dict(),
            "rankings": {task: ranking.state_dict() for task, ranking in self._rankings.items()},
            "ranked": {task: list(pair) for task, pair in self._ranked.items()},
            "first": dict(self._first),
            "dead": dict(self._dead),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state. The baselines of signals that the state lacks start empty; unknown signals are ignored."""
        baselines = {_OLD_NAMES.get(signal, signal): saved for signal, saved in state["levels"].items()}
        for signal in self._baselines:
            self._baselines[signal] = {}
            for name, saved in baselines.get(signal, {}).items():
                self._baseline(signal, name).load_state_dict(saved)
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
        """Whether the last AUC of such a task is at least halfway from one half to its best."""
        best, last = self._ranked.get(task, (0.5, 0.5))
        return best > 0.5 and last - 0.5 >= (best - 0.5) / 2

    def _rank(self, step: int, signals: Signals) -> Iterator[Outlier]:
        """Compare each AUC with its recent best; keep the finite ones as readings.

        By default an AUC may be 4.5 points below, or six standard errors if they are more: on days that are harder to
        rank, it falls slowly by three or four points.
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
            lost = best - max(value, 0.5)  # AUCs below one half count as one half
            if lost > bound:
                reason = f"{_AUC.words.format(task)} from {best:.3g} to {value:.3g}"
                yield Outlier(_AUC.signal, task, False, lost / bound, reason)

    def _judge(self, kind: _Judged, values: Mapping[str, float]) -> Iterator[Outlier]:
        """Compare the values of one kind with their baselines; keep the finite ones as readings."""
        bound = self._deviations * kind.floor
        for name, value in values.items():
            if not math.isfinite(value):
                if kind in _NEVER_UNDEFINED:
                    what = kind.words.format(name).removesuffix(" rose")
                    yield Outlier("non_finite", name, kind.per_layer, math.inf, f"{what} is {value}")
                continue
            x = kind.scaled(value)
            baseline = self._baseline(kind.signal, name)
            self._readings.append((baseline, x))
            judged = len(baseline) >= self._window
            distance = x - baseline.median if judged else 0.0
            if kind is _NORM:
                yield from self._check_dead(name, distance)
            elif kind is _RATIO and x > _HUGE and (not judged or distance > 1):
                yield Outlier(kind.signal, name, True, x / _HUGE, f"the clip ratio of {name} is {value:.3g}")
            if kind.alone and distance > bound and x > kind.least and not self._is_learning(kind, name):
                excess = distance / (self._deviations * max(baseline.spread(), kind.floor))
                if excess > 1:
                    yield Outlier(kind.signal, name, kind.per_layer, excess, _change(kind, name, baseline, x))

    def _is_learning(self, kind: _Judged, task: str) -> bool:
        """Whether a score over the window leaves its baseline because the task learns: its losses are below theirs.

        For example, predictions that spread less than in the first steps are no collapse then. Neither are they while a
        task does not rank yet: the first predictions of a rare label are near one half.
        """
        if kind.signal == _STD_RATIO and task in self._ranked and not self.has_ranked(task):
            return True
        baselines = [self._baselines[signal].get(task) for signal in ("relative_loss", "loss")]
        baseline = next((baseline for baseline in baselines if baseline is not None and len(baseline)), None)
        if baseline is None or kind.signal not in _OF_WINDOW:
            return False
        return baseline.recent < baseline.median - max(baseline.spread(), _RELATIVE.floor)

    def _check_dead(self, layer: str, distance: float) -> Iterator[Outlier]:
        if distance > -_DEAD:
            self._dead.pop(layer, None)
            return
        steps = self._dead[layer] = self._dead.get(layer, 0) + 1
        if steps >= self._window:
            reason = f"the gradient of {layer} has been dead for {steps} steps"
            yield Outlier("dead_gradient", layer, True, -distance / _DEAD, reason)

    def _against_first_step(self, losses: Mapping[str, float]) -> Iterator[Outlier]:
        """Compare the summed loss with that of the first step: a run that diverges early has no other baseline."""
        total = sum(losses.values())
        if not losses or not math.isfinite(total):
            return
        self._first = {**losses, **self._first}
        first = sum(self._first[task] for task in losses)  # a step may lack some tasks
        if total > _FIRST * first > 0:
            task = max(losses, key=lambda name: losses[name])
            reason = f"the loss is {total:.3g}, most of it of {task}; at the first step it was {first:.3g}"
            yield Outlier("loss", task, False, math.log(total / first) / math.log(_FIRST), reason)

    def _together(self, signals: Signals) -> Iterator[Outlier]:
        """Judge all layers and tasks together: a rise that is small in each can be clear in all.

        The strain is sqrt(a^2 + b^2), in units of ``deviations``: a is the rise of the layers' mean log clip ratio, b
        the sum of the tasks' rises over the root of their number, both in robust standard deviations. A task's rise is
        the smaller one of loss and relative loss: a batch with large labels raises only the loss, one without any only
        the relative loss.
        """
        ratios = [_log(value) for value in signals.clip_ratios.values() if math.isfinite(value)]
        mean = sum(ratios) / len(ratios) if ratios else 0.0
        if ratios:
            self._readings.append((self._layers, mean))
        concern = bool(ratios) and max(ratios) > _RATIO.least
        for rise in (self._rise_at_most, self._rise):  # an upper bound first: it needs no spread
            layers = max(0.0, rise(self._layers, mean, _LAYERS_FLOOR)) if concern else 0.0
            risen = {task: self._risen(task, signals, rise) for task in signals.relative_losses or signals.losses}
            tasks = max(0.0, sum(risen.values()) / math.sqrt(len(risen) or 1))
            strain = math.hypot(layers, tasks) / self._deviations
            if strain <= 1:
                return
        if layers >= tasks:
            kind, values = _RATIO, signals.clip_ratios
            name = max(values, key=lambda n: _log(values[n]) - self._baseline("clip_ratio", n).median)
        else:
            known = bool(signals.relative_losses)
            kind, values = (_RELATIVE, signals.relative_losses) if known else (_LOSS, signals.losses)
            name = max(risen, key=lambda n: risen[n])
        reason = _change(kind, name, self._baseline(kind.signal, name), _log(values[name]))
        yield Outlier(kind.signal, name, kind.per_layer, strain, reason)

    def _risen(self, task: str, signals: Signals, rise: Callable[[Baseline, float, float], float]) -> float:
        """Return by how many deviations a task's loss has risen; 0 if it is not finite."""
        rises = []
        for kind, values in ((_RELATIVE, signals.relative_losses), (_LOSS, signals.losses)):
            value = values.get(task)
            if value is not None:
                if not math.isfinite(value):
                    return 0.0
                rises.append(rise(self._baseline(kind.signal, task), _log(value), kind.floor))
        return min(rises)

    def _rise(self, baseline: Baseline, x: float, floor: float) -> float:
        """Return by how many deviations ``x`` is above the baseline; 0 while the baseline has too few values."""
        return (x - baseline.median) / max(baseline.spread(), floor) if len(baseline) >= self._window else 0.0

    def _rise_at_most(self, baseline: Baseline, x: float, floor: float) -> float:
        """Return an upper bound of ``_rise`` that needs no spread."""
        return max(0.0, x - baseline.median) / floor if len(baseline) >= self._window else 0.0

    def _baseline(self, signal: str, name: str) -> Baseline:
        baselines = self._baselines[signal]
        if name not in baselines:
            baselines[name] = Baseline(*_OF_SCORES) if signal in _OF_WINDOW else Baseline(self._history, self._window)
        return baselines[name]

    def _new_ranking(self) -> Best:
        return Best(self._history)

    def _all_baselines(self) -> Iterator[Baseline]:
        yield self._layers
        for baselines in self._baselines.values():
            yield from baselines.values()


def _change(kind: _Judged, name: str, baseline: Baseline, x: float) -> str:
    return f"{kind.words.format(name)} from {kind.unscaled(baseline.median):.3g} to {kind.unscaled(x):.3g}"
