"""The verdict: floats in, verdict out."""

import math

import pytest

from surefoot.monitor.divergence import Detector, Verdict

LEARNING = [max(0.4, 2.0 - 0.05 * step) for step in range(100)]  # from 2 down to 0.4


def verdict(*losses: list[float], detector: Detector | None = None) -> Verdict:
    """Feed one or several tasks' losses, step by step, until they end or a verdict is full."""
    detector = detector or Detector()
    step = 0
    for step, values in enumerate(zip(*losses, strict=True)):
        if detector.update(step, {f"task{i}": value for i, value in enumerate(values)}) is Verdict.FULL:
            break
    return detector.finish(step + 1)


@pytest.mark.parametrize(
    ("name", "losses", "expected"),
    [
        ("learns", LEARNING, Verdict.HEALTHY),
        ("never learns anything", [1.0, 1.02, 0.99] * 40, Verdict.HEALTHY),
        ("starts slowly, just below 1", [0.998, 0.999, 0.998, *[1.0] * 60, *LEARNING[30:]], Verdict.HEALTHY),
        ("a single noisy batch", [*LEARNING, 3.0, *[0.4] * 30], Verdict.HEALTHY),
        ("noise of a heavy-tailed label", [0.3, 0.1, 0.9, 0.2, 0.5, 0.1, 0.8] * 30, Verdict.HEALTHY),
        ("jumps and recovers", [*LEARNING, *[2.0] * 10, *[0.45] * 30], Verdict.MICRO),
        ("jumps and stays", [*LEARNING, *[30.0] * 100], Verdict.FULL),
        ("falls back to the base rate", [*LEARNING, *[1.0] * 100], Verdict.FULL),
        ("is still off the road at the end", [*LEARNING, *[30.0] * 10], Verdict.FULL),
        ("NaN for good", [*LEARNING, *[math.nan] * 100], Verdict.FULL),
        ("inf for good", [*LEARNING, *[math.inf] * 100], Verdict.FULL),
        ("one NaN, then as before", [*LEARNING, math.nan, *[0.4] * 30], Verdict.MICRO),
        ("blows up in the first steps and recovers", [2.0, 2.0, 900.0, 50.0, 9.0, *LEARNING[40:]], Verdict.MICRO),
        ("blows up in the first steps for good", [2.0, 2.0, 900.0, 50.0, 9.0, *[1.0] * 150], Verdict.FULL),
        ("is killed by a single early step", [2.0, 4.0, 1.0, 1.0, 1.0, *[1.0] * 150], Verdict.FULL),
        ("ends before the window is full", [2.0, 1.9], Verdict.HEALTHY),
    ],
)  # fmt: skip
def test_verdict(name: str, losses: list[float], expected: Verdict):
    assert verdict(losses) is expected, name


def test_nothing_at_all_is_healthy():
    assert Detector().finish(0) is Verdict.HEALTHY


def test_a_full_divergence_says_which_task_when_and_why():
    detector = Detector()
    verdict(LEARNING, [*LEARNING[:80], *[7.0] * 20], detector=detector)
    (event,) = detector.events
    assert (event.task, event.verdict) == ("task1", Verdict.FULL)
    assert 80 <= event.onset <= 82
    assert "rose from 0.4 to 7" in event.reason


def test_it_stops_after_patience():
    detector = Detector(patience=20)
    verdict([*LEARNING, *[7.0] * 100], detector=detector)
    (event,) = detector.events
    assert event.end - event.onset == 20


def test_a_task_that_never_rose_but_lost_everything_makes_the_run_full():
    shaken = [*LEARNING[:20], *[60.0] * 10, *[0.4] * 70]
    dead = [1.0] * 100
    assert verdict(shaken, dead) is Verdict.FULL
    assert verdict(shaken, LEARNING) is Verdict.MICRO


def test_the_healthy_level_takes_nothing_from_an_event():
    twice = [*LEARNING, *[7.0] * 30, *[0.4] * 20, *[7.0] * 100]
    detector = Detector()
    assert verdict(twice, detector=detector) is Verdict.FULL
    assert [event.verdict for event in detector.events] == [Verdict.MICRO, Verdict.FULL]
    assert "rose from 0.4" in detector.events[1].reason
