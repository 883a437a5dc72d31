"""Logs with everything that a schema can have, small, and their rows told apart by a number."""

from collections.abc import Sequence

import torch

from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
from surefoot.tasks import TaskKind

SCHEMA = Schema(
    (Categorical("user", 7), Categorical("tags", 20, width=3), Categorical("item", 1000)),
    ("age", "number"),
    (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION, 0.5, judged=False, masked=True)),
    group="user",
)


def mixed(rows: Sequence[int]) -> Log:
    """Return a log with so many rows on its days; the feature "number" is the row's."""
    generator, count = torch.Generator().manual_seed(0), sum(rows)

    def ids(below: int, width: int = 1) -> torch.Tensor:
        return torch.randint(below, (count, width), generator=generator, dtype=torch.int32)

    user = ids(7)
    time = torch.rand(count, 1, generator=generator)
    time[::3] = torch.nan
    numbers = torch.arange(float(count))[:, None]
    return Log(
        "mixed",
        SCHEMA,
        tuple(f"2022-04-{day + 1:02}" for day in range(len(rows))),
        (0, *torch.tensor(rows).cumsum(0).tolist()),
        Batch(
            torch.cat([user, ids(20, 3), ids(1000)], 1),
            torch.cat([torch.rand(count, 1, generator=generator), numbers], 1),
            torch.cat([ids(2).float(), time], 1),
        ),
        "Numbers out of a generator.",
        user[:, 0],
    )


def numbers(batch: Batch) -> list[int]:
    """Return which rows of the log a batch has."""
    return [int(number) for number in batch.dense[:, 1]]


def same(one: Batch, other: Batch) -> bool:
    """Return whether two batches are equal bit for bit, NaN and all."""
    return all(a.view(torch.int32).equal(b.view(torch.int32)) for a, b in zip(one, other, strict=True))
