"""The running baseline."""

import math
import statistics

import pytest

from surefoot.detect.signals import Baseline


def filled(values: list[float], *, size: int = 64, late: int = 0) -> Baseline:
    baseline = Baseline(size, late)
    for value in values:
        baseline.offer(value)
    return baseline


VALUES = [float((7 * i) % 23) for i in range(101)]


@pytest.mark.parametrize("count", [1, 2, 5, 64, 101])
def test_median_and_spread_are_those_of_the_last_values(count: int):
    baseline, last = filled(VALUES[:count]), VALUES[:count][-64:]
    assert len(baseline) == len(last)
    assert baseline.median == statistics.median_high(last)
    assert baseline.spread() == 1.4826 * statistics.median_high(abs(value - baseline.median) for value in last)


def test_an_empty_level_is_not_a_number():
    assert math.isnan(Baseline(5, 2).median)
    assert math.isnan(Baseline(5, 2).spread())


def test_values_wait_and_can_be_forgotten():
    baseline = filled([1.0] * 10, late=5)
    assert len(baseline) == 5
    for spike in [9.0] * 5:
        baseline.offer(spike)
    assert baseline.median == 1.0
    baseline.forget_waiting()
    for value in [1.0] * 5:
        baseline.offer(value)
    assert (baseline.median, baseline.spread(), len(baseline)) == (1.0, 0.0, 10)


def test_it_stays_as_large_as_it_is_said_to_be():
    assert len(filled(VALUES * 50, size=16, late=3)) == 16


def test_equal_values_leave_one_by_one():
    baseline = filled([2.0, 2.0, 3.0, 3.0, 3.0], size=3)
    assert (baseline.median, len(baseline)) == (3.0, 3)


def test_a_restored_level_goes_on_as_it_would_have():
    first = filled(VALUES, late=4)
    second = Baseline(64, 4)
    second.load_state_dict(first.state_dict())
    for value in (50.0, 60.0, 70.0, 80.0, 90.0, 100.0):
        first.offer(value)
        second.offer(value)
    assert first.state_dict() == second.state_dict()
    assert first.median == second.median
