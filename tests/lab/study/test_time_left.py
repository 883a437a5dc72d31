"""How long a study still takes."""

import pytest

from surefoot.lab.study.config import load_study, presets
from surefoot.lab.study.time_left import Part, TimeLeft, expected_trials


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_that_of_all_trials_to_come_at_the_pace_so_far():
    clock = Clock()
    left = TimeLeft({Part.GRID: 4, Part.SWEEP: 6, Part.FLOOR: 10}, workers=1, clock=clock)
    left.begin(Part.GRID, trials=4, finished=0)
    clock.now += 50  # the process starts
    assert left.finished() is None
    clock.now += 2
    assert left.finished() == pytest.approx(2 * (2 + 16))
    clock.now += 4
    assert left.finished() == pytest.approx(3 * (1 + 16))
    left.finished()
    left.end()
    left.begin(Part.SWEEP, trials=8, finished=7)  # more than was expected, most of it by an earlier process
    assert [left.finished() for _ in range(7)] == [None] * 7
    clock.now += 2
    assert left.finished() == pytest.approx((3 + 2) / (1.5 + 1) * 10)
    left.end()
    left.begin(Part.FLOOR_FINALS, trials=1, finished=0)
    clock.now += 1
    assert left.finished() == 0.0


@pytest.mark.parametrize("name", presets())
def test_a_part_that_has_not_begun_has_about_its_trials(name: str):
    expected = expected_trials(load_study(name))
    assert set(expected) == set(Part)
    assert min(expected.values()) >= 0
    if name == "smoke":  # which has been counted: 123
        assert 100 <= sum(expected.values()) <= 150
