"""The synthetic log as somebody's own may be: labels that are not observed, a column with several values, users."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from surefoot.lab.data.schema import Categorical, Log
from surefoot.lab.sources import synthetic

TAGS = Categorical("tags", 9, width=3)


def masked(log: Log, observed: Mapping[str, float]) -> Log:
    """Return the log with some labels of these tasks not observed, at random.

    Args:
        log: any.
        observed: by task, the share of rows whose label is; the tasks are masked even where it is 1.
    """
    labels, draw = log.rows.labels.clone(), torch.Generator().manual_seed(0)
    for i, task in enumerate(log.schema.tasks):
        gone = torch.rand(len(labels), generator=draw) >= observed.get(task.name, 1.0)
        labels[gone, i] = torch.nan
    tasks = tuple(replace(task, masked=task.name in observed) for task in log.schema.tasks)
    return replace(log, schema=replace(log.schema, tasks=tasks), rows=log.rows._replace(labels=labels))


def with_tags(log: Log) -> Log:
    """Return the log with a column of up to three values a row in front of the others."""
    draw = torch.Generator().manual_seed(0)
    tags = torch.randint(1, TAGS.rows, (len(log.rows.labels), TAGS.width), generator=draw, dtype=torch.int32)
    tags[torch.rand(tags.shape, generator=draw) < 0.5] = 0
    schema = replace(log.schema, categorical=(TAGS, *log.schema.categorical))
    return replace(log, schema=schema, rows=log.rows._replace(categorical=torch.cat([tags, log.rows.categorical], 1)))


def with_users(log: Log) -> Log:
    """Return the log with its users as groups."""
    return replace(log, schema=replace(log.schema, group="user"), groups=log.rows.categorical[:, 0].clone())


def make(*, days: int = 5, rows_per_day: int = 1024, observed: Mapping[str, float] | None = None) -> Log:
    """Return a log with all of this; by default half the labels of a binary and of a regression task are observed."""
    shares = {"like": 0.5, "rating": 0.5} if observed is None else observed
    return with_tags(with_users(masked(synthetic.make(days=days, rows_per_day=rows_per_day), shares)))
