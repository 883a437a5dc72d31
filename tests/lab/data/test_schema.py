"""A log refuses what cannot be trained on, naming column, day and count."""

import math

import pytest
import torch

from surefoot.errors import InputError
from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
from surefoot.tasks import TaskKind

SCHEMA = Schema(
    (Categorical("user", 3),), ("age", "count"), (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))
)


def rows(count: int = 6) -> Batch:
    return Batch(torch.zeros(count, 1, dtype=torch.int32), torch.zeros(count, 2), torch.zeros(count, 2))


def log(batch: Batch, starts: tuple[int, ...] = (0, 2, 4, 6)) -> Log:
    return Log("mine", SCHEMA, ("mon", "tue", "wed"), starts, batch)


def test_a_day_is_its_rows():
    batch = rows()
    batch.dense[2:4] = 1.0
    assert log(batch).day(1).dense.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert len(log(batch).window(0, 1).labels) == 4


def test_a_day_without_rows():
    with pytest.raises(InputError, match="mine: day tue has no rows"):
        log(rows(), (0, 2, 2, 6))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_feature_that_is_not_finite(bad: float):
    batch = rows()
    batch.dense[3:5, 1] = bad
    with pytest.raises(InputError, match=r"column count has 1 non-finite values on day tue \(2 on all days\)"):
        log(batch)


def test_a_label_that_is_not_finite():
    batch = rows()
    batch.labels[5, 1] = math.nan
    with pytest.raises(InputError, match="column time has 1 non-finite labels on day wed"):
        log(batch)


def test_a_binary_label_that_is_neither():
    batch = rows()
    batch.labels[0, 0] = 2.0
    with pytest.raises(InputError, match="column click has 1 labels other than 0 and 1 on day mon"):
        log(batch)


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_out_of_range(bad: int):
    batch = rows()
    batch.categorical[4, 0] = bad
    with pytest.raises(InputError, match="column user has 1 ids out of range on day wed"):
        log(batch)


def test_ids_that_are_not_integers():
    with pytest.raises(InputError, match=r"torch.float32; expected integers"):
        log(rows()._replace(categorical=torch.zeros(6, 1)))
