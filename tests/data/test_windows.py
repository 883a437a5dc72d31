"""The moving window draws from the right days, reproducibly."""

import pytest
import torch

from surefoot.data import synthetic
from surefoot.data.schema import Log
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
