"""The synthetic log: seeded, heavy-tailed, with a drift day, and learnable."""

import pytest
import torch

from surefoot.lab.sources import synthetic
from surefoot.tasks import TaskKind


def test_the_same_seed_gives_the_same_log_and_another_seed_another():
    first, again, other = (synthetic.make(days=3, rows_per_day=64, seed=seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(first.rows, again.rows, strict=True))
    assert not first.rows.dense.equal(other.rows.dense)


def test_a_longer_log_starts_with_the_shorter_one():
    short, long = synthetic.make(days=2, rows_per_day=64), synthetic.make(days=4, rows_per_day=64)
    assert long.rows.dense[:128].equal(short.rows.dense)


def test_the_drift_day_changes_a_quarter_of_the_features_at_once():
    calm, drifting = (synthetic.make(days=4, rows_per_day=64, drift_day=day, drift=30.0) for day in (None, 2))
    ratio = drifting.rows.dense / calm.rows.dense
    assert (ratio[:128] == 1).all()
    torch.testing.assert_close(ratio[128:, :2], torch.full((128, 2), 30.0))
    assert (ratio[128:, 2:] == 1).all()
    assert drifting.rows.labels.equal(calm.rows.labels)


def test_six_tasks_of_both_kinds_with_heavy_tailed_features():
    log = synthetic.make(days=4, rows_per_day=1024)
    assert len(log.schema.tasks) == 6
    assert {task.kind for task in log.schema.tasks} == set(TaskKind)
    centred = log.rows.dense - log.rows.dense.mean(0)
    kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square()
    assert (kurtosis > 10).all()  # 3 for a normal distribution


@pytest.mark.parametrize("argument", ["days", "rows_per_day", "drift"])
def test_numbers_out_of_range_are_refused(argument: str):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        synthetic.make(**{argument: 0})


def test_a_drift_day_outside_the_log_is_refused():
    with pytest.raises(ValueError, match="drift_day is 9; expected 0 to 2"):
        synthetic.make(days=3, drift_day=9)
