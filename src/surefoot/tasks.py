"""What a task predicts, and so which loss it has."""

from enum import Enum


class TaskKind(Enum):
    """How a task's label is distributed, hence its loss."""

    BINARY = "binary"  # label 0 or 1, log-loss on a logit
    REGRESSION = "regression"  # real label, squared error
