"""How long a study still takes: about how many trials each part of the protocol has, at the pace so far.

The protocol decides as it goes which trials it needs, so that a part that has not begun is a guess: a method's best
setting lies inside its grid, and two rates decide where it falls off.
"""

import time
from collections.abc import Callable
from enum import IntEnum, auto

from surefoot.lab.study.config import StudyConfig


class Part(IntEnum):
    """The protocol's parts, in their order."""

    GRID = auto()
    BEYOND_GRID = auto()
    SEARCH_SEEDS = auto()
    SWEEP = auto()
    FALLS = auto()
    FINALS = auto()
    FLOOR = auto()
    FLOOR_FINALS = auto()
    CLOSE_UPS = auto()


def expected_trials(config: StudyConfig) -> dict[Part, int]:
    """Return about how many trials each part has that no part before it has run."""
    search, models, methods = config.search, len(config.models), len(config.methods)
    more_seeds = len(search.search_seeds) - 1
    searched = [method for method in config.methods if method.vary is not None]
    plain = any(method.rule.name == "naive" and not method.warmup_steps for method in config.methods)
    return {
        Part.GRID: len(search.rates) * sum(len(method.values) or 1 for method in config.methods),
        Part.BEYOND_GRID: min(search.extra_trials, 2) * methods + min(search.extra_trials, 2) * len(searched),
        Part.SEARCH_SEEDS: 2 * methods * more_seeds,
        Part.SWEEP: methods * (models * len(search.sweep) - len({*search.sweep} & {*search.rates})),
        Part.FALLS: 2 * methods * models * more_seeds,
        Part.FINALS: methods * models * len(search.seeds),
        Part.FLOOR: (len(search.floor_rates) + 1) * len(search.search_seeds),
        Part.FLOOR_FINALS: len(search.seeds),
        Part.CLOSE_UPS: models if plain else 0,
    }


class TimeLeft:
    """Estimates the time that is left from the trials that have finished.

    Args:
        expected: about how many trials each part has.
        workers: how many run side by side. Each one's first trial waits for its process to start and counts nothing.
        clock: in seconds.
    """

    def __init__(self, expected: dict[Part, int], workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._workers, self._clock = dict(expected), workers, clock
        self._starting = workers
        self._later = self._waiting = self._read = 0
        self._seconds = self._ran = 0.0  # of batches before, the older ones at less weight
        self._began, self._ran_now = clock(), 0

    def begin(self, part: Part, trials: int, finished: int) -> None:
        """Note that a batch of trials begins, so many of which an earlier process has finished."""
        for each in self._expected:
            if each <= part:
                self._expected[each] = max(0, self._expected[each] - trials) if each is part else 0
        self._later = sum(self._expected.values())
        self._waiting, self._read = trials, finished
        self._began, self._ran_now = self._clock(), 0

    def end(self) -> None:
        """Note that the batch has ended; it and those before it count half from now on."""
        self._seconds = (self._seconds + self._clock() - self._began) / 2
        self._ran = (self._ran + self._ran_now) / 2

    def finished(self) -> float | None:
        """Note that a trial has finished; return the seconds left, None as long as too few have been run to tell."""
        self._waiting -= 1
        if self._read:
            self._read -= 1
            return None
        if self._starting:
            self._starting -= 1
            self._began = self._clock()
            return None
        self._ran_now += 1
        ran = self._ran + self._ran_now
        if ran < self._workers:
            return None
        return (self._seconds + self._clock() - self._began) / ran * (self._waiting + self._later)
