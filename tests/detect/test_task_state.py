"""One task's event: how long it may last, when it is over, and what it leaves in the level of before."""

import pytest

from surefoot.detect.task_state import TaskLimits, TaskState, Verdict

LIMITS = TaskLimits(window=5, history=64, learnt=0.95, patience=20)


def fed(*stretches: tuple[float, int]) -> TaskState:
    """Return a task after stretches of relative losses, each a value and for how many steps."""
    state, step = TaskState(LIMITS, "click"), 0
    for value, count in stretches:
        for _ in range(count):
            state.update(step, value)
            step += 1
    return state


def test_steps_that_do_not_show_the_task_do_not_count_as_its_event() -> None:
    state = fed((0.5, 50), (2.0, 5))
    assert state.onset == 50
    for _ in range(100):
        state.miss()
    for step in range(155, 170):
        assert state.update(step, 2.0) is None
    event = state.update(170, 2.0)
    assert event is not None
    assert event.verdict is Verdict.FULL


def test_the_rise_of_an_event_is_never_part_of_the_healthy_level() -> None:
    state = fed((0.5, 50), (0.97, 10), (0.5, 60))
    assert not state.diverged
    accepted = state.state_dict()["accepted"]
    assert len(accepted["accepted"]) > 60
    assert {*accepted["accepted"], *accepted["waiting"]} == {0.5}


def test_a_task_that_had_learnt_nothing_has_recovered_when_it_has_learnt_something() -> None:
    losses = (1.0, 50), (2.0, 10)
    assert fed(*losses).diverged
    assert fed(*losses, (0.97, 10)).diverged
    assert not fed(*losses, (0.9, 10)).diverged


@pytest.mark.parametrize(("end", "diverged"), [(0.8, True), (0.7, False)])
def test_a_task_that_had_learnt_has_recovered_below_the_middle_to_a_constant(end: float, diverged: bool) -> None:
    assert fed((0.5, 50), (2.0, 8), (end, 8)).diverged is diverged
