"""How far a long command is: a bar on a terminal, a line now and then elsewhere; both on stderr."""

import time
from collections.abc import Callable
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn

from surefoot.lab.terminal import Loudness, errors, say

LINE_EVERY = 30.0  # seconds
_BAR = 16  # characters


class ProgressDisplay:
    """Shows what is being done, how much of it, and how long the rest takes.

    Args:
        loudness: nothing is shown when quiet.
        unit: what is counted, such as ``"steps"``; empty for a share between 0 and 1.
        all_at_once: whether what is begun is all that is done, so that the time left is that of its rest.
        clock: in seconds.
    """

    def __init__(
        self,
        loudness: Loudness,
        *,
        unit: str = "",
        all_at_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loudness, self.unit, self.all_at_once, self._clock = loudness, unit, all_at_once, clock
        self._what, self._total, self._done = "", 0.0, 0.0
        self._first: tuple[float, float] | None = None  # when, and how much was done then
        self._left: float | None = None  # seconds, if somebody knows better
        self._started = self._last_line = clock()
        what, told = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[told]"))
        self._bar = Progress(
            what,
            BarColumn(_BAR),
            told,
            console=errors,
            transient=True,
            redirect_stdout=False,  # it may be piped away from the terminal
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None, told="")

    def __enter__(self) -> Self:
        if self.loudness is not Loudness.QUIET and errors.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def begin(self, what: str, total: float = 1.0) -> None:
        """Say what comes next, and how much of it there is."""
        self._what, self._total, self._done, self._first = what, total, 0.0, None
        self._show()

    def update(self, done: float, *, what: str | None = None) -> None:
        """Say how much is done."""
        if self._first is None or done < self._done:
            self._first = self._clock(), done
        self._done, self._what = done, self._what if what is None else what
        self._show()

    def advance(self) -> None:
        """Say that one more is done."""
        self.update(self._done + 1)

    def set_left(self, seconds: float) -> None:
        """Say how long the whole command still takes, where that is not known from what was begun last."""
        self._left = seconds
        self._show()

    def _show(self) -> None:
        now = self._clock()
        if self._bar.live.is_started:
            told = f"{self._amount()}, {self._left_in_words(now) or self._gone(now)}"
            room = max(errors.width - _BAR - len(told) - 3, 1)  # for what is done, in one line
            what = self._what if len(self._what) <= room else f"{self._what[: room - 1]}…"
            self._bar.update(self._task, description=what, completed=self._done, total=self._total, told=told)
        elif self.loudness is not Loudness.QUIET and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            amount = f"{self._amount()} {self.unit}".strip()
            say(", ".join(filter(None, (f"{self._what}: {amount} {self._gone(now)}", self._left_in_words(now)))))

    def _amount(self) -> str:
        if not self.unit:
            return f"{self._done / max(self._total, 1e-9):.0%}"
        return f"{self._done:,.0f} of {self._total:,.0f}"

    def _gone(self, now: float) -> str:
        return f"after {duration(now - self._started)}"

    def _left_in_words(self, now: float) -> str:
        if self._left is not None:
            return f"about {duration(self._left)} left in all"
        left = self._seconds_left(now)
        return "" if left is None else f"about {duration(left)} left"

    def _seconds_left(self, now: float) -> float | None:
        """Return how long the rest of what was begun takes, as fast as it went so far; None as long as nobody knows."""
        if not self.all_at_once or self._first is None or self._done <= self._first[1]:
            return None
        since, at_first = self._first
        return (self._total - self._done) * (now - since) / (self._done - at_first)


def duration(seconds: float) -> str:
    """Return a time in words of one or two units.

    >>> [duration(seconds) for seconds in (7.2, 90, 4000, 200_000)]
    ['7 s', '1 min 30 s', '1 h 6 min', '2 d 7 h']
    """
    left = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    largest = next((i for i, (_, size) in enumerate(units) if left >= size), 3)
    said = []
    for name, size in units[largest : largest + 2]:
        if left // size or not said:
            said.append(f"{left // size} {name}")
        left %= size
    return " ".join(said)
