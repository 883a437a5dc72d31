"""The signals that a monitor gives a detector, and the baseline of one series. Imports the standard library only."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Signals:
    """The signals of one step, as floats by task or layer; values may be NaN or infinite, mappings may be empty.

    Args:
        losses: of each task, as in training.
        relative_losses: of each judged task, its loss over that of the best constant prediction on the same rows
            (normalised entropy if it is binary).
        clip_ratios: of each layer, Clippy's ``max_i lr |r_i| / (0.5 |w_i| + 0.01)`` of the step before any clipping.
        grad_norms: of each layer, L2.
        aucs: of each binary task, over a window of recent batches.
        calibrations: of each task, mean prediction over mean label, same window.
        prediction_std_ratios: of each task, standard deviation of the predictions over that of the labels, same
            window.
        auc_errors: of each AUC, its standard error, from the numbers of positives and negatives; without it the
            detector estimates the noise from the differences between consecutive AUCs.
        batch_shifts: of each batch norm, the distance between the batch's mean and the running mean, in running
            standard deviations, of the feature where it is largest.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    relative_losses: Mapping[str, float] = field(default_factory=dict)
    clip_ratios: Mapping[str, float] = field(default_factory=dict)
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    aucs: Mapping[str, float] = field(default_factory=dict)
    calibrations: Mapping[str, float] = field(default_factory=dict)
    prediction_std_ratios: Mapping[str, float] = field(default_factory=dict)
    auc_errors: Mapping[str, float] = field(default_factory=dict)
    batch_shifts: Mapping[str, float] = field(default_factory=dict)


class Baseline:
    """The baseline of one series: median and median deviation of its last accepted values.

    A value is accepted ``late`` values after it was offered, so that the start of a rise can be dropped before. The
    median is kept up to date; the deviation is computed on request.

    Args:
        size: accepted values that are kept.
        late: values that wait to be accepted.
    """

    def __init__(self, size: int, late: int) -> None:
        self._size, self._late = size, late
        self._waiting: deque[float] = deque()
        self._accepted: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        """The number of accepted values."""
        return len(self._sorted)

    def offer(self, value: float) -> None:
        """Let a finite value wait, and accept the one that has waited long enough."""
        assert math.isfinite(value)
        self._waiting.append(value)
        if len(self._waiting) > self._late:
            self._accept(self._waiting.popleft())

    def forget_waiting(self) -> None:
        """Drop the values that have not been accepted yet."""
        self._waiting.clear()

    def forget(self) -> None:
        """Drop all values."""
        self._waiting.clear()
        self._accepted.clear()
        self._sorted.clear()

    @property
    def median(self) -> float:
        """The upper median; NaN if there are no values."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else math.nan

    @property
    def recent(self) -> float:
        """The upper median of the values that wait; NaN if there are none."""
        return sorted(self._waiting)[len(self._waiting) // 2] if self._waiting else math.nan

    def spread(self) -> float:
        """1.4826 times the median distance to the median, a normal distribution's standard deviation; NaN if empty."""
        middle = self.median
        distances = sorted(abs(value - middle) for value in self._sorted)
        return 1.4826 * distances[len(distances) // 2] if distances else math.nan

    def state_dict(self) -> dict[str, list[float]]:
        return {"waiting": list(self._waiting), "accepted": list(self._accepted)}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self.forget()
        self._waiting.extend(state["waiting"])
        for value in state["accepted"]:
            self._accept(value)

    def _accept(self, value: float) -> None:
        self._accepted.append(value)
        insort(self._sorted, value)
        if len(self._accepted) > self._size:
            del self._sorted[bisect_left(self._sorted, self._accepted.popleft())]


class Best:
    """The best value of the last steps, in a series where higher is better.

    The best is the highest median of three values in a row, so that one lucky value does not count. Unlike the median
    of a long history, it follows a series that rises while a model learns, so that a later fall is seen.

    Args:
        span: how many steps before the last value are included.
    """

    def __init__(self, span: int) -> None:
        self._span = span
        self._values: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        """The number of values kept."""
        return len(self._values)

    def offer(self, step: int, value: float) -> None:
        """Add a finite value."""
        assert math.isfinite(value)
        self._values.append((step, value))
        while self._values[0][0] <= step - self._span:
            self._values.popleft()

    def forget(self) -> None:
        """Drop all values."""
        self._values.clear()

    @property
    def best(self) -> float:
        """The best so far; NaN before there are three values."""
        values = [value for _, value in self._values]
        triples = zip(values, values[1:], values[2:], strict=False)
        return max((sorted(triple)[1] for triple in triples), default=math.nan)

    def noise(self) -> float:
        """1.4826 times the median difference between a value and the next; NaN before there are three values."""
        values = [value for _, value in self._values]
        steps = sorted(abs(b - a) for a, b in pairwise(values))
        return 1.4826 * steps[len(steps) // 2] if len(steps) > 1 else math.nan

    def state_dict(self) -> dict[str, list[list[float]]]:
        return {"values": [[step, value] for step, value in self._values]}

    def load_state_dict(self, state: Mapping[str, list[list[float]]]) -> None:
        self._values = deque((int(step), value) for step, value in state["values"])
