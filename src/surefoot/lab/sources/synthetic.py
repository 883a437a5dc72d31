"""A synthetic multitask log with drift, made from a seed: nothing to install, nothing to download.

Users and items have latent vectors; features are heavy-tailed; the six tasks are related. The items drift a little
every day. On ``drift_day`` the unit of some features changes at once (they are multiplied by ``drift``), as when an
upstream pipeline is rewritten: the paper's abrupt change of the data distribution.
"""

import numpy as np
import torch

from surefoot import checks
from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
from surefoot.tasks import TaskKind

TASKS = (
    Task("click", TaskKind.BINARY),
    Task("like", TaskKind.BINARY),
    Task("share", TaskKind.BINARY, judged=False),  # about 2 % positive
    Task("watch_time", TaskKind.REGRESSION),
    Task("rating", TaskKind.REGRESSION),
    Task("dwell", TaskKind.REGRESSION),
)

_USERS, _ITEMS, _CATEGORIES, _DENSE, _TASTES = 500, 1000, 20, 8, 6


def make(
    *, days: int = 14, rows_per_day: int = 2048, drift_day: int | None = None, drift: float = 30.0, seed: int = 0
) -> Log:
    """Return the log.

    Args:
        days: number of day partitions.
        rows_per_day: rows in each.
        drift_day: from this partition on (0 is the first) a quarter of the dense features are multiplied by
            ``drift``; None: never.
        drift: the factor.
        seed: seed of the whole log; the same seed gives the same log, and a longer log starts with the shorter one.

    Raises:
        ValueError: if a number is out of range.

    >>> log = make(days=2, rows_per_day=100, seed=1)
    >>> log.days, log.starts, log.rows.labels.shape
    (('day-00', 'day-01'), (0, 100, 200), torch.Size([200, 6]))
    """
    checks.positive("days", days)
    checks.positive("rows_per_day", rows_per_day)
    checks.positive("drift", drift)
    if drift_day is not None and not 0 <= drift_day < days:
        raise ValueError(f"drift_day is {drift_day}; expected 0 to {days - 1}, one of the log's days")
    world = np.random.default_rng([seed, 0])
    users = world.normal(size=(_USERS, _TASTES))
    items = world.normal(size=(_ITEMS, _TASTES))
    category = world.integers(_CATEGORIES, size=_ITEMS)
    mix = world.normal(size=(_TASTES, _DENSE)) / np.sqrt(_TASTES)
    views = 0.5 * world.normal(size=(_TASTES, len(TASKS)))
    views[0] += 1.0  # a component common to all tasks
    parts = []
    for day in range(days):
        draw = np.random.default_rng([seed, 1, day])
        items += 0.05 * draw.normal(size=items.shape)  # slow drift
        user = draw.integers(_USERS, size=rows_per_day)
        item = (_ITEMS * draw.power(3, size=rows_per_day)).astype(int)  # some items are much more popular
        taste = 0.7 * (users[user] + items[item])
        noise = draw.standard_t(4, size=(rows_per_day, _DENSE))
        dense = np.sinh(taste @ mix + 0.5 * noise)  # heavy tails, like those of counts
        dense = np.clip(dense, -50, 50)
        if drift_day is not None and day >= drift_day:
            dense[:, : _DENSE // 4] *= drift
        parts.append((user, item, category[item], dense, _labels(_utility(taste, views), draw)))
    user, item, kind, dense, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Log(
        name="synthetic",
        schema=Schema(
            (Categorical("user", _USERS), Categorical("item", _ITEMS), Categorical("category", _CATEGORIES)),
            tuple(f"dense_{i}" for i in range(_DENSE)),
            TASKS,
        ),
        days=tuple(f"day-{day:02d}" for day in range(days)),
        starts=tuple(range(0, days * rows_per_day + 1, rows_per_day)),
        rows=Batch(
            torch.from_numpy(np.stack([user, item, kind], axis=1).astype(np.int32)),
            torch.from_numpy(dense.astype(np.float32)),
            torch.from_numpy(labels.astype(np.float32)),
        ),
    )


def _utility(taste: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Return each task's utility, (rows, tasks): a linear part, and a product that no linear model can learn."""
    return taste @ views + taste[:, 1:2] * taste[:, 2:3]


def _labels(utility: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the labels, (rows, tasks), from the utilities, of the same shape."""
    noisy = utility + draw.logistic(scale=0.5, size=utility.shape)
    click, like, share = noisy[:, 0] > 0.5, noisy[:, 1] > 1.5, noisy[:, 2] > 3.5
    watch, rating, dwell = np.logaddexp(0, noisy[:, 3]), np.clip(3 + noisy[:, 4], 1, 5), np.logaddexp(0, noisy[:, 5])
    return np.stack([click, like, share, watch, rating, dwell], axis=1)
