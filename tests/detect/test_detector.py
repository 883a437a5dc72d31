"""The verdict: floats in, verdict out."""

import math
import random

import pytest

from surefoot.detect.detector import Detector, FreshScore, Signals, Verdict

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
        ("has not recovered at the end", [*LEARNING, *[30.0] * 10], Verdict.FULL),
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


SHAKEN = [*LEARNING[:20], *[60.0] * 10, *[0.4] * 170]
LOSES_SLOWLY = [*[0.7] * 50, *(0.7 + 0.0018 * step for step in range(150))]  # to 0.97, and leaves no level behind


def test_a_task_that_never_rose_but_lost_everything_makes_the_run_full():
    assert verdict(SHAKEN, LOSES_SLOWLY) is Verdict.FULL
    assert verdict(SHAKEN, [*LEARNING, *[0.4] * 100]) is Verdict.MICRO
    assert verdict(LOSES_SLOWLY) is Verdict.HEALTHY


def test_a_task_that_has_learnt_nothing_has_nothing_to_lose():
    """One positive in a hundred rows, say: its loss hardly ever lies clearly below that of a constant."""
    draw = random.Random(3)
    rare = [0.99 + 0.03 * draw.gauss(0, 1) for _ in SHAKEN]
    assert verdict(SHAKEN, rare) is Verdict.MICRO
    assert verdict(SHAKEN, [1.0] * len(SHAKEN)) is Verdict.MICRO


def test_a_rare_task_alone_is_not_killed_by_its_first_batches():
    """Its loss starts at log 2; beside a constant that knows how few positives a batch has, that is 12 or 28 times."""
    detector, draw = Detector(), random.Random(3)
    for step in range(300):
        loss = max(0.056, 0.69 * 0.9**step) * (1 + 0.02 * draw.gauss(0, 1))
        constant = draw.choice([0.025, 0.056, 0.056, 0.08])
        relative = loss / constant if step < 40 else 1.0 + 0.02 * abs(draw.gauss(0, 1))
        detector.update(step, Signals(losses={"rare": loss}, relative_losses={"rare": relative}))
    assert detector.finish(300) is not Verdict.FULL
    assert detector.never_learnt == ["rare"]


def test_a_task_that_still_ranks_has_not_ended_at_a_constant():
    """Log-loss of rare positives can end near a constant's though the task ranks well; rows apart say so."""
    for low, expected in ((0.7, Verdict.MICRO), (0.5, Verdict.FULL)):
        detector = Detector()
        for step, (shaken, lost) in enumerate(zip(SHAKEN, LOSES_SLOWLY, strict=True)):
            detector.update(step, {"sales": shaken, "click": lost})
        assert detector.finish(len(SHAKEN), {"click": FreshScore(0.97, low)}) is expected


def test_an_auc_that_has_kept_half_of_what_it_had_is_no_constant_either():
    for last, expected in ((0.72, Verdict.MICRO), (0.52, Verdict.FULL)):
        detector = Detector()
        for step, (shaken, lost) in enumerate(zip(SHAKEN, LOSES_SLOWLY, strict=True)):
            auc = last + (0.75 - last) * min(1.0, (len(SHAKEN) - step) / 150)  # falls so slowly that no alarm is open
            aucs = {"click": auc} if step % 8 == 0 else {}
            detector.update(step, Signals(relative_losses={"sales": shaken, "click": lost}, aucs=aucs))
        assert detector.finish(len(SHAKEN)) is expected


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("one loss of 430 in the first steps, then a constant's", [1.2, 1.1, 1.1, 1.0, 430.0, *[1.01] * 100]),
        ("the same while another task learns", [1.2, 1.1, 1.1, 1.0, 430.0, *[1.01] * 100]),
        ("six times a constant's loss, from above", [25.0, 20.0, 15.0, *[6.0] * 100]),
        ("a rise to twice a constant's at the end, too slow for an alarm", [1 + step / 300 for step in range(300)]),
    ],
)
def test_an_end_that_is_worse_than_a_constant_is_no_health(name: str, losses: list[float]):
    others = [[max(0.4, 2.0 - 0.05 * step) for step in range(len(losses))]] if "another" in name else []
    assert verdict(losses, *others) is Verdict.FULL, name


def test_rows_apart_overrule_the_last_batches():
    """RMSE 6.03 where a constant has 1.80."""
    for relative, expected in (((6.03 / 1.8) ** 2, Verdict.FULL), (2.0, Verdict.HEALTHY), (math.nan, Verdict.HEALTHY)):
        detector = Detector()
        for step, loss in enumerate(LEARNING):
            detector.update(step, {"hours": loss})
        assert detector.finish(len(LEARNING), {"hours": FreshScore(relative)}) is expected


def test_a_task_that_never_learns_is_told_of_by_itself():
    detector, draw = Detector(), random.Random(3)
    for step in range(200):
        rare = 0.99 + 0.03 * draw.gauss(0, 1)
        aucs = {"rare": 0.7, "noise": 0.51, "click": 0.8} if step % 8 == 0 else {}
        errors = dict.fromkeys(aucs, 0.02)
        losses = {"noise": 1.0 + 0.02 * (step % 3), "rare": rare, "click": max(0.8, 1.0 - 0.01 * step)}
        detector.update(step, Signals(relative_losses=losses, aucs=aucs, auc_errors=errors))
        if step < 100:
            assert detector.never_learnt == []
    assert detector.never_learnt == ["noise"]
    assert detector.finish(200) is Verdict.HEALTHY
    assert detector.alarms == []


def test_the_healthy_level_takes_nothing_from_an_event():
    twice = [*LEARNING, *[7.0] * 30, *[0.4] * 20, *[7.0] * 100]
    detector = Detector()
    assert verdict(twice, detector=detector) is Verdict.FULL
    assert [event.verdict for event in detector.events] == [Verdict.MICRO, Verdict.FULL]
    assert "rose from 0.4" in detector.events[1].reason
