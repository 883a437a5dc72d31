"""When checkpoints are due: often at first, by steps and by time, and alike on all ranks."""

import math
from itertools import pairwise

import pytest

from properties import over
from surefoot.recover.checkpoint_schedule import CheckpointSchedule


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def due(schedule: CheckpointSchedule, clock: Clock, steps: int, *, pace: float, took: float = 0.0) -> list[int]:
    """Return after which of so many steps of ``pace`` seconds there is a checkpoint, which takes ``took``."""
    found: list[int] = []
    for step in range(1, steps + 1):
        clock.now += pace
        if schedule.due(step):
            found.append(step)
            clock.now += took
            schedule.begin(step, took=took)
    return found


BY_STEPS = {
    "500": (500, [*range(10, 101, 10), *range(120, 251, 20)][:17], [1500, 2000]),
    "100": (100, list(range(10, 101, 10)), [1900, 2000]),
    "20": (20, [10, 20, 40, 60], [1980, 2000]),
    "5": (5, [5, 10, 15], [1995, 2000]),
    "1": (1, [1, 2, 3], [1999, 2000]),
}


@over("case", BY_STEPS)
def test_often_at_first_then_every_so_many_steps(case: tuple[int, list[int], list[int]]):
    every, first, last = case
    clock = Clock()
    found = due(CheckpointSchedule(every, math.inf, clock=clock), clock, 2000, pace=0.01)
    assert found[: len(first)] == first
    assert found[-2:] == last
    assert all(later - earlier <= every for earlier, later in zip([0, *found], found, strict=False))


def test_slow_steps_have_checkpoints_by_the_clock():
    clock = Clock()
    found = due(CheckpointSchedule(500, 600.0, clock=clock), clock, 3000, pace=20.0)
    assert found[:5] == [10, 20, 30, 40, 50]
    assert found[-1] > 2900
    assert max(later - earlier for earlier, later in pairwise(found)) * 20.0 <= 600


def test_early_checkpoints_take_a_twentieth_of_the_time_at_the_most():
    clock = Clock()
    found = due(CheckpointSchedule(500, math.inf, clock=clock), clock, 2000, pace=0.1, took=8.0)
    assert found == [10, 20, 500, 1000, 1500, 2000]  # 10 seconds are free


def test_a_place_that_was_passed_over_is_followed_by_the_next():
    schedule = CheckpointSchedule(500, math.inf)
    schedule.begin(10)
    assert [step for step in range(17, 45) if schedule.due(step)] == [20, 30, 40]


def test_all_ranks_go_by_the_slowest():
    clock = Clock()
    fast, slow = CheckpointSchedule(500, 600.0, clock=clock), CheckpointSchedule(500, 600.0, clock=clock)
    for schedule in (fast, slow):
        schedule.begin(10, agree=lambda numbers: [max(number, 1200.0) for number in numbers])
    assert [step for step in range(11, 40) if fast.due(step)] == [step for step in range(11, 40) if slow.due(step)]
    assert fast.due(15)


def test_the_clock_is_the_systems_by_default():
    schedule = CheckpointSchedule(500, 1e-9)
    schedule.begin(10)
    assert schedule.due(11)
    assert schedule.every == 500
    assert schedule.seconds == pytest.approx(1e-9)
