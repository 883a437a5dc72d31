"""The moving window draws from the right days, reproducibly."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from properties import over
from surefoot.lab.data.pools import Draw
from surefoot.lab.data.schema import Batch, Log
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.sources import synthetic


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


@pytest.mark.parametrize("argument", ["batch_size", "width", "steps_per_day", "ranks", "cache"])
def test_numbers_below_one_are_refused(log: Log, argument: str):
    settings: dict[str, Any] = {"batch_size": 1, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        MovingWindow(log, **settings)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such rank": ({"rank": 2, "ranks": 2}, "rank is 2; expected 0 to 1"),
    "a rank below 0": ({"rank": -1}, "rank is -1; expected 0 to 0"),
    "steps when drawn once": ({"steps_per_day": 4, "draw": Draw.ONCE}, "steps_per_day is 4; expected None"),
    "more ranks than rows": ({"ranks": 51, "draw": Draw.ONCE}, "ranks is 51; expected at most 50, .* of day day-00"),
}


@over("refused", REFUSED)
def test_what_cannot_be_drawn_is_refused(log: Log, refused: tuple[dict[str, Any], str]):
    settings, words = refused
    with pytest.raises(ValueError, match=words):
        MovingWindow(log, 10, **settings)


def drawn(batches: Iterable[tuple[int, Batch]]) -> list[tuple[int, bytes]]:
    """Return days and batches in a form that can be compared."""
    return [(day, b"".join(part.numpy().tobytes() for part in batch)) for day, batch in batches]


WINDOWS: dict[str, dict[str, Any]] = {
    "one day": {"batch_size": 20},
    "a wider window": {"batch_size": 20, "width": 3, "seed": 7},
    "fixed steps": {"batch_size": 33, "width": 2, "steps_per_day": 4},
    "once": {"batch_size": 20, "width": 2, "draw": Draw.ONCE},
    "a rank of three": {"batch_size": 7, "width": 2, "rank": 2, "ranks": 3},
    "once, a rank of three": {"batch_size": 7, "width": 2, "rank": 1, "ranks": 3, "draw": Draw.ONCE},
}


def test_the_draws_are_those_of_the_first_release(log: Log):
    """Numbers in the README were measured with these batches."""
    window = MovingWindow(log, 4, 2, seed=3)
    assert window.rows_of(2, 0).tolist() == [104, 58, 97, 89]
    assert window.rows_of(2, 12).tolist() == [110, 125, 87, 86]


def test_drawn_once_a_window_comes_whole_and_shuffled(log: Log):
    window = MovingWindow(log, 40, 2, draw=Draw.ONCE)
    rows = [window.rows_of(3, index) for index in range(window.steps(3))]
    assert [len(batch) for batch in rows] == [40, 40, 20]
    together = torch.cat(rows)
    assert not together.equal(torch.arange(100, 200))
    assert together.sort().values.equal(torch.arange(100, 200))
    assert not together.equal(torch.cat([MovingWindow(log, 100, 2, seed=1, draw=Draw.ONCE).rows_of(3, 0)]))


def test_ranks_share_a_window_in_the_order_of_one(log: Log):
    """And where the shares of a row more would need a batch more, their last batch takes it."""
    order = MovingWindow(log, 1000, 3, draw=Draw.ONCE).rows_of(4, 0)
    windows = [MovingWindow(log, 37, 3, draw=Draw.ONCE, rank=rank, ranks=4) for rank in range(4)]
    assert {window.steps(4) for window in windows} == {1}
    rows = [window.rows_of(4, 0) for window in windows]
    assert [len(share) for share in rows] == [37, 38, 37, 38]
    assert torch.cat(rows).equal(order)


def test_with_replacement_ranks_draw_by_themselves_and_share_the_steps(log: Log):
    windows = [MovingWindow(log, 10, 2, rank=rank, ranks=2) for rank in range(2)]
    assert [window.steps(1) for window in windows] == [3, 3]  # 50 rows, 20 a step
    assert windows[0].rows_of(1, 0).equal(MovingWindow(log, 10, 2).rows_of(1, 0))
    assert not windows[1].rows_of(1, 0).equal(windows[0].rows_of(1, 0))


def test_rows_stay_in_ordinary_memory_where_no_gpu_is(log: Log):
    plain, pinned = (next(MovingWindow(log, 10, pin=pin).batches(0)) for pin in (False, True))
    assert all(a.equal(b) for a, b in zip(plain, pinned, strict=True))
    assert all(part.is_pinned() == torch.cuda.is_available() for part in pinned)


def test_a_state_of_the_first_release_is_understood(log: Log):
    state = {"day": 1, "index": 2, "batch_size": 20, "width": 1, "steps_per_day": None, "seed": 0}
    state |= {"log": "synthetic", "rows": 150}
    stream = MovingWindow(log, 20).stream(3)
    stream.load_state_dict(state)
    assert stream.position == (1, 2)
    with pytest.raises(ValueError, match="state has draw replaced; expected once"):
        MovingWindow(log, 20, draw=Draw.ONCE).stream(3).load_state_dict(state)


@over("settings", WINDOWS)
def test_a_stream_is_the_days_batches_in_order(log: Log, settings: dict[str, Any]):
    window = MovingWindow(log, **settings)
    expected = [(day, batch) for day in range(4) for batch in window.batches(day)]
    stream = window.stream(4)
    assert drawn(stream) == drawn(expected)
    assert (stream.steps, stream.position, list(stream)) == (len(expected), (4, 0), [])


@over("settings", WINDOWS)
def test_a_stream_resumes_at_every_position(log: Log, settings: dict[str, Any]):
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
def test_rows_of_a_batch_can_be_had_again(log: Log, settings: dict[str, Any]):
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
