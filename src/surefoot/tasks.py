"""The kinds of tasks, each with its own loss."""

from enum import Enum


class TaskKind(Enum):
    """The kind of a task's label, which decides the loss."""

    BINARY = "binary"  # label 0 or 1, log-loss on a logit
    REGRESSION = "regression"  # real label, squared error
