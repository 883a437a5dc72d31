"""Metrics: AUC with its interval, grouped AUC, normalised entropy, calibration, RMSE.

Every metric takes one-dimensional tensors of equal length and returns a float, NaN if it is undefined.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from surefoot.lab.data.schema import Task
from surefoot.tasks import TaskKind


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def auc(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve; ties count half. NaN if there is one class or a score is not finite.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    0.75
    >>> auc(torch.tensor([0.1, 0.4]), torch.tensor([0.0, 0.0]))
    nan
    """
    return grouped_auc(scores, labels, labels.new_zeros(labels.shape, dtype=torch.int64))


def grouped_auc(scores: Tensor, labels: Tensor, groups: Tensor) -> float:
    """Return the mean of the groups' AUCs, weighted by their rows; ties count half.

    Only groups with both classes count. NaN if there is no such group or a score is not finite.

    Args:
        scores: (rows,).
        labels: (rows,), 1 or 0.
        groups: (rows,) integers, equal for rows of the same group, usually of the same user.

    >>> scores, labels = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.9]), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    >>> grouped_auc(scores, labels, torch.tensor([7, 7, 5, 5, 8]))  # 1 in group 7, 0 in group 5
    0.5

    Reference: G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978,
    eq. (7).
    """
    if not scores.isfinite().all():
        return math.nan
    ranks = torch.unique(scores, return_inverse=True)[1]
    owners = torch.unique(groups, return_inverse=True)[1]
    ties, tie = torch.unique(owners * len(scores) + ranks, return_inverse=True)  # sorted by group, then by score
    owner = ties // len(scores)
    positives, negatives = torch.bincount(tie, labels.double()), torch.bincount(tie, 1 - labels.double())
    all_positives, all_negatives = torch.bincount(owner, positives), torch.bincount(owner, negatives)
    below = negatives.cumsum(0) - negatives - (all_negatives.cumsum(0) - all_negatives)[owner]
    wins = torch.bincount(owner, positives * (below + negatives / 2))
    pairs, rows = all_positives * all_negatives, all_positives + all_negatives
    both = pairs > 0
    return ((wins / pairs * rows)[both].sum() / rows[both].sum()).item()


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
    """Return the log-loss divided by that of predicting the labels' mean; NaN if the labels have one class.

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
    """Return the mean prediction divided by the mean label; NaN if there is no positive.

    >>> calibration(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    2.0
    """
    return (logits.sigmoid().mean() / labels.mean()).item() if labels.any() else math.nan


def rmse(predictions: Tensor, labels: Tensor) -> float:
    """Return the root mean squared error, in the label's units.

    >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    1.4142135381698608
    """
    return (predictions - labels).square().mean().sqrt().item()


def evaluate(
    outputs: Tensor, labels: Tensor, tasks: tuple[Task, ...], groups: Tensor | None = None
) -> dict[str, float]:
    """Return the metrics of every task as ``{"auc/promo": 0.9, "rmse/log_sales": 0.4, ...}``.

    For a masked task, only rows whose label is not NaN count.

    Args:
        outputs: (rows, tasks), logits for binary tasks.
        labels: (rows, tasks).
        tasks: in the order of the columns.
        groups: (rows,) integers, for the grouped AUC of binary tasks; None: no grouped AUC.
    """
    scores: dict[str, float] = {}
    for i, task in enumerate(tasks):
        output, label, group = outputs[:, i].float(), labels[:, i], groups
        if task.masked:
            seen = ~label.isnan()
            output, label, group = output[seen], label[seen], None if groups is None else groups[seen]
        found = _of_binary(output, label, group) if task.kind is TaskKind.BINARY else _of_regression(output, label)
        scores |= {f"{metric}/{task.name}": value for metric, value in found.items()}
    return scores


def _of_binary(logits: Tensor, labels: Tensor, groups: Tensor | None) -> dict[str, float]:
    value, positives = auc(logits, labels), int(labels.sum())
    low, high = auc_interval(value, positives, len(labels) - positives)
    found = {"auc": value, "auc_low": low, "auc_high": high}
    found |= {"ne": normalised_entropy(logits, labels), "calibration": calibration(logits, labels)}
    return found if groups is None else found | {"gauc": grouped_auc(logits, labels, groups)}


def _of_regression(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    constant = labels.std(correction=0).item() if len(labels) else math.nan
    return {"rmse": rmse(predictions, labels), "rmse_constant": constant}
