"""The moving window draws from the right days, reproducibly."""

import json
from collections.abc import Iterable

import pytest
import torch

from properties import over
from surefoot.data import synthetic
from surefoot.data.schema import Batch, Log
from surefoot.data.windows import MovingWindow


@pytest.fixture(scope="module")
def log() -> Log:
    made = synthetic.make(days=5, rows_per_day=50)
    days = torch.arange(5.0).repeat_interleave(50)
    made.rows.dense[:, 0] = days  # so that a row tells its day
    return made


@pytest.mark.parametrize(("day", "width", "expected"), [(3, 2, {2, 3}), (0, 2, {0}), (4, 1, {4}), (1, 9, {0, 1})])
def test_batches_come_from_the_window(log: Log, day: int, width: int, expected: set[int]):
    batches = list(MovingWindow(log, 64, width, steps_per_day=4).batches(day))
    assert {int(d) for batch in batches for d in batch.dense[:, 0]} == expected


def test_rows_stay_whole(log: Log):
    known = {tuple(row.tolist()) for row in torch.cat([log.rows.dense, log.rows.labels], 1)}
    (batch,) = MovingWindow(log, 50).batches(2)
    assert {tuple(row.tolist()) for row in torch.cat([batch.dense, batch.labels], 1)} <= known


def test_steps_cover_the_newest_day_once_by_default(log: Log):
    assert MovingWindow(log, 20).steps(1) == 3
    assert len(list(MovingWindow(log, 20).batches(1))) == 3


def test_the_same_seed_draws_the_same_and_another_seed_another(log: Log):
    def draw(seed: int) -> torch.Tensor:
        return torch.cat([batch.dense for batch in MovingWindow(log, 20, 2, seed=seed).batches(3)])

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))


@pytest.mark.parametrize("argument", ["batch_size", "width", "steps_per_day"])
def test_numbers_below_one_are_refused(log: Log, argument: str):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        MovingWindow(log, **({"batch_size": 1} | {argument: 0}))


def drawn(batches: Iterable[tuple[int, Batch]]) -> list[tuple[int, bytes]]:
    """Return days and batches in a form that can be compared."""
    return [(day, b"".join(part.numpy().tobytes() for part in batch)) for day, batch in batches]


WINDOWS: dict[str, dict[str, int]] = {
    "one day": {"batch_size": 20},
    "a wider window": {"batch_size": 20, "width": 3, "seed": 7},
    "fixed steps": {"batch_size": 33, "width": 2, "steps_per_day": 4},
}


def test_the_draws_are_those_of_the_first_release(log: Log):
    """Numbers in the README were measured with these batches."""
    window = MovingWindow(log, 4, 2, seed=3)
    assert window.rows_of(2, 0).tolist() == [104, 58, 97, 89]
    assert window.rows_of(2, 12).tolist() == [110, 125, 87, 86]


@over("settings", WINDOWS)
def test_a_stream_is_the_days_batches_in_order(log: Log, settings: dict[str, int]):
    window = MovingWindow(log, **settings)
    expected = [(day, batch) for day in range(4) for batch in window.batches(day)]
    stream = window.stream(4)
    assert drawn(stream) == drawn(expected)
    assert (stream.steps, stream.position, list(stream)) == (len(expected), (4, 0), [])


@over("settings", WINDOWS)
def test_a_stream_resumes_at_every_position(log: Log, settings: dict[str, int]):
    window = MovingWindow(log, **settings)
    whole = drawn(window.stream(3))
    for position in range(len(whole) + 1):
        stream = window.stream(3)
        for _ in range(position):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        list(stream)
        stream.load_state_dict(state)
        assert drawn(stream) == whole[position:]


def test_a_stream_moves_within_a_running_loop(log: Log):
    stream = MovingWindow(log, 25).stream(3)
    start, seen = stream.state_dict(), []
    for day, _ in stream:
        seen.append(day)
        if len(seen) == 3:
            stream.load_state_dict(start)
    assert seen == [0, 0, 1, 0, 0, 1, 1, 2, 2]


@over("settings", WINDOWS)
def test_rows_of_a_batch_can_be_had_again(log: Log, settings: dict[str, int]):
    window = MovingWindow(log, **settings)
    for day in range(5):
        for index, batch in enumerate(window.batches(day)):
            again = window.batch(window.rows_of(day, index))
            assert all(mine.equal(theirs) for mine, theirs in zip(again, batch, strict=True))


def test_what_is_not_there_is_refused(log: Log):
    window = MovingWindow(log, 20)
    for day, index, words in ((5, 0, "day is 5; expected 0 to 4"), (1, 3, "index is 3; expected 0 to 2")):
        with pytest.raises(ValueError, match=words):
            window.rows_of(day, index)
    with pytest.raises(ValueError, match="days is 6; expected 1 to 5"):
        window.stream(6)
    state = window.stream(3).state_dict()
    with pytest.raises(ValueError, match="state has seed 0; expected 1"):
        MovingWindow(log, 20, seed=1).stream(3).load_state_dict(state)
    for day, index in ((3, 1), (1, 3), (-1, 0)):
        with pytest.raises(ValueError, match=f"state is at day {day}, batch {index}; expected a batch of the days"):
            window.stream(3).load_state_dict(state | {"day": day, "index": index})
