"""After which steps a checkpoint is due: often at first, when little is lost by it and much without, then rarely."""

import math
import time
from collections.abc import Callable

_FREE = 10.0  # seconds that early checkpoints may take, whatever their share
_SHARE = 0.05  # of the time, beyond those


class CheckpointSchedule:
    """Says after which steps a checkpoint is due.

    After every ``every`` steps; and, while there have not been that many, after every tenth, then about a fifth of the
    steps taken apart. The early ones are left out once all have taken more than 10 seconds and a twentieth of the time.
    Where so many steps take longer than ``seconds``, the next one is due the sooner. Both are worked out at each
    checkpoint from the time since the one before.

    Args:
        every: steps between two checkpoints at the most.
        seconds: between two at the most, as far as the pace of the last steps tells.
        clock: of seconds.

    >>> schedule = CheckpointSchedule(200, math.inf)
    >>> due = []
    >>> for step in range(1, 700):
    ...     if schedule.due(step):
    ...         due.append(step)
    ...         schedule.begin(step)
    >>> due
    [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 120, 140, 160, 180, 200, 400, 600]
    """

    def __init__(self, every: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.seconds, self._clock = every, seconds, clock
        self._spent = 0.0  # seconds on checkpoints
        self._started = self._last = clock()
        self._step, self._gap = 0, self._usual(0)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after so many steps; in place of one left out there is the next."""
        return step > self._step and (step % self._gap == 0 or step % self.every == 0)

    def begin(self, step: int, *, took: float = 0.0, agree: Callable[[list[float]], list[float]] = list) -> None:
        """Take note of a checkpoint, and work out when the next one is due.

        Args:
            step: after which it was made.
            took: seconds that it took.
            agree: from numbers of this rank to the largest on any rank, so that all go on alike.
        """
        now = self._clock()
        since, total, took = agree([now - self._last - took, now - self._started, took])
        self._spent += took
        gap, pace = self._usual(step), since / max(1, step - self._step)
        if gap < self.every and self._spent > _FREE + _SHARE * total:
            gap = self.every
        if gap * pace > self.seconds:
            gap = max(1, int(self.seconds / pace))
        self._last, self._step, self._gap = now, step, gap

    def _usual(self, step: int) -> int:
        """Return how many steps after ``step`` the next checkpoint is due, time apart."""
        if step >= self.every:
            return self.every
        fifth = max(step, 50) / 5
        power = 10 ** math.floor(math.log10(fifth))
        return min(self.every, max(each * power for each in (1, 2, 5) if each * power <= fifth))
