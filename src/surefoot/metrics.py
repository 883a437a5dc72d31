"""How good predictions are: AUC with its interval, normalised entropy, calibration, RMSE.

Every metric takes one-dimensional tensors of equal length and returns a float, NaN where it is undefined.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_auroc

from surefoot.data.schema import Task, TaskKind


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def auc(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve; NaN where the labels have one class or a score is not finite.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    0.75
    >>> auc(torch.tensor([0.1, 0.4]), torch.tensor([0.0, 0.0]))
    nan
    """
    if not 0 < labels.sum() < len(labels) or not scores.isfinite().all():
        return math.nan
    ranks = torch.unique(scores, return_inverse=True)[
        1
    ].double()  # exact at any scale, where a sigmoid would merge scores
    return binary_auroc(ranks / ranks.max().clamp(min=1), labels.int(), validate_args=False).item()


def auc_interval(value: float, positives: int, negatives: int) -> Interval:
    """Return the 95 % interval of an AUC, from Hanley and McNeil's standard error.

    >>> low, high = auc_interval(0.9, positives=50, negatives=5000)
    >>> round(low, 3), round(high, 3)
    (0.843, 0.957)

    Reference: J. A. Hanley and B. J. McNeil, Radiology 143 (1982).
    """
    if math.isnan(value):
        return Interval(math.nan, math.nan)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (q1 - value**2) + (negatives - 1) * (q2 - value**2)
    half = 1.96 * math.sqrt(max(variance, 0.0) / (positives * negatives))
    return Interval(max(0.0, value - half), min(1.0, value + half))


def normalised_entropy(logits: Tensor, labels: Tensor) -> float:
    """Return the log-loss over that of predicting the labels' own mean; NaN where the labels have one class.

    >>> normalised_entropy(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    1.0

    Reference: X. He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014.
    """
    rate = labels.mean()
    if not 0 < rate < 1:
        return math.nan
    constant = binary_cross_entropy(rate.expand_as(labels), labels)
    return (binary_cross_entropy_with_logits(logits, labels) / constant).item()


def calibration(logits: Tensor, labels: Tensor) -> float:
    """Return the mean prediction over the mean label; NaN where there is no positive.

    >>> calibration(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    2.0
    """
    return (logits.sigmoid().mean() / labels.mean()).item() if labels.any() else math.nan


def rmse(predictions: Tensor, labels: Tensor) -> float:
    """Return the root of the mean squared error, in the label's units.

    >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    1.4142135381698608
    """
    return (predictions - labels).square().mean().sqrt().item()


def evaluate(outputs: Tensor, labels: Tensor, tasks: tuple[Task, ...]) -> dict[str, float]:
    """Return the metrics of every task as ``{"auc/promo": 0.9, "rmse/log_sales": 0.4, ...}``.

    Args:
        outputs: (rows, tasks), logits where the task is binary.
        labels: (rows, tasks).
        tasks: in the order of the columns.
    """
    scores: dict[str, float] = {}
    for i, task in enumerate(tasks):
        output, label = outputs[:, i].float(), labels[:, i]
        if task.kind is TaskKind.BINARY:
            scores[f"auc/{task.name}"] = value = auc(output, label)
            positives = int(label.sum())
            interval = auc_interval(value, positives, len(label) - positives)
            scores[f"auc_low/{task.name}"], scores[f"auc_high/{task.name}"] = interval
            scores[f"ne/{task.name}"] = normalised_entropy(output, label)
            scores[f"calibration/{task.name}"] = calibration(output, label)
        else:
            scores[f"rmse/{task.name}"] = rmse(output, label)
            scores[f"rmse_constant/{task.name}"] = label.std(correction=0).item()
    return scores
