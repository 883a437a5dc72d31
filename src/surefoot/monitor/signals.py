"""What a monitor shows a detector, and the running level that a number is judged by. The standard library only."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Signals:
    """What one step showed, in plain floats; values may be NaN or infinite, mappings may be empty.

    Args:
        losses: of each task, as they are trained on.
        relative_losses: of each judged task, its loss over that of the best constant prediction on the same rows
            (normalised entropy if it is binary).
        clip_ratios: of each layer, Clippy's ``max_i lr |r_i| / (0.5 |w_i| + 0.01)`` of the step before any clipping.
        grad_norms: of each layer, L2.
        aucs: of each binary task, over a window of recent batches.
        calibrations: of each task, mean prediction over mean label, same window.
        spreads: of each task, standard deviation of the predictions over that of the labels, same window.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    relative_losses: Mapping[str, float] = field(default_factory=dict)
    clip_ratios: Mapping[str, float] = field(default_factory=dict)
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    aucs: Mapping[str, float] = field(default_factory=dict)
    calibrations: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)


class Level:
    """The running healthy level of one series: median and median deviation of its last accepted values.

    A value is accepted ``late`` values after it came, so that the rise of an event can be forgotten before it gets in.
    One look at the median costs nothing; the deviation is worked out only when it is asked for.

    Args:
        size: accepted values that are kept.
        late: values that wait.
    """

    def __init__(self, size: int, late: int) -> None:
        self._size, self._late = size, late
        self._waiting: deque[float] = deque()
        self._accepted: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        """How many values are accepted."""
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
        """Start anew."""
        self._waiting.clear()
        self._accepted.clear()
        self._sorted.clear()

    @property
    def median(self) -> float:
        """The upper median; NaN if there are no values."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else math.nan

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
