"""Scores of many outputs at once: one row of numbers for each step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.lab.data.schema import Task
from surefoot.tasks import TaskKind


def constant_losses(labels: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Return each task's loss under the best constant prediction on these rows, (tasks,); never 0."""
    mean = labels.mean(0)
    rate = mean.clamp(1 / len(labels), 1 - 1 / len(labels))
    entropy = -rate * rate.log() - (1 - rate) * (1 - rate).log()
    variance = labels.var(0, correction=0).clamp(min=torch.finfo(labels.dtype).tiny)
    binary = torch.tensor([task.kind is TaskKind.BINARY for task in tasks])
    return torch.where(binary, entropy, variance)


def scores(outputs: Tensor, labels: Tensor, kinds: Sequence[Task]) -> np.ndarray:
    """Return (steps, 2 * tasks): AUC where binary, then relative loss.

    Args:
        outputs: (steps, rows, tasks).
        labels: (rows, tasks).
        kinds: the tasks.
    """
    steps, _, tasks = outputs.shape
    constants = constant_losses(labels, kinds)
    table = np.full((steps, 2 * tasks), np.nan, dtype=np.float32)
    for i, task in enumerate(kinds):
        truth = labels[:, i].expand(steps, -1)
        if task.kind is TaskKind.BINARY:
            table[:, i] = aucs(outputs[:, :, i].numpy(), truth.numpy())
            each = nn.functional.binary_cross_entropy_with_logits(outputs[:, :, i], truth, reduction="none")
        else:
            each = (outputs[:, :, i] - truth).square()
        table[:, tasks + i] = (each.double().mean(1) / constants[i]).numpy()
    return table


def aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUC of each row of scores and 0/1 labels, (runs, rows) each; NaN where a score is not finite.

    Equal scores count half: a constant prediction has AUC 0.5.
    """
    order = scores.argsort(axis=1)
    ordered = np.take_along_axis(scores, order, 1)
    truth = np.take_along_axis(labels, order, 1)
    count = scores.shape[1]
    place = np.arange(count)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    ends = np.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place, count)[:, ::-1], axis=1)[:, ::-1]
    ranks = (first + last) / 2
    positives = truth.sum(1)
    negatives = count - positives
    with np.errstate(invalid="ignore", divide="ignore"):
        area = ((ranks * truth).sum(1) - positives * (positives - 1) / 2) / (positives * negatives)
    return np.where(np.isfinite(scores).all(1), area, np.nan)
