"""How good the recent predictions are: scores over a window of the last rows, and losses beside a constant's.

Nothing here waits for the device. A row whose label is NaN was not observed; it is left out, and so is a row whose
output is not finite: the loss tells of those. A score that is not defined, an AUC over one class for one, is
``ABSENT``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from surefoot.optim.nonfinite import readable

ABSENT = -math.inf
"""What stands where there is no number, since a tensor has no empty places."""
ENOUGH = 32
"""Labels of a masked task in a batch from which on its loss is shown to a detector: that of a few rows is chance."""
_TINY = torch.finfo(torch.float32).tiny
_LAST = (1 << 40) | 2  # a key above those of all outputs, and neither a negative nor a positive


class Kinds(NamedTuple):
    """Which tasks are binary, on the host and beside their values.

    Args:
        binary: for each task; the others are regressions.
        mask: the same, (tasks,), on the device of the outputs: made once, since a copy to an accelerator may wait.
    """

    binary: tuple[bool, ...]
    mask: Tensor


class Window:
    """The last rows of some tasks: outputs and labels, on their device, in a ring of fixed size.

    Args:
        rows: how many; the memory is three floats for each, for each task.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._ring: Tensor | None = None  # (3, tasks, rows), as ``clean`` returns it
        self._added = 0

    def add(self, cleaned: Tensor) -> None:
        """Take in a batch as ``clean`` returns it; of one larger than the window the last rows."""
        if self._ring is None:
            self._ring = cleaned.new_empty(*cleaned.shape[:2], self.rows)
        start, count = self._added % self.rows, min(cleaned.shape[2], self.rows)
        first = min(count, self.rows - start)
        cleaned = cleaned[:, :, -count:]
        self._ring[:, :, start : start + first].copy_(cleaned[:, :, :first])
        if first < count:
            self._ring[:, :, : count - first].copy_(cleaned[:, :, first:])
        self._added += count

    def scores(self, kinds: Kinds) -> dict[str, Tensor]:
        """Return the scores of the rows in the window, each (tasks,), by name; nothing before the first batch."""
        return {} if self._ring is None else scores(self._ring[:, :, : min(self._added, self.rows)], kinds)


def clean(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return outputs and labels, both 0 where one of them is not finite, and 1 where both are, else 0.

    Args:
        outputs: (tasks, rows).
        labels: (tasks, rows), NaN where not observed.

    Returns:
        (3, tasks, rows) float32.
    """
    outputs, labels = outputs.float(), labels.to(outputs.device, torch.float32, non_blocking=True)
    seen = (outputs + labels).isfinite()
    return torch.stack([torch.where(seen, x, 0.0) for x in (outputs, labels)] + [seen.float()])


def label_moments(cleaned: Tensor, binary: Sequence[bool]) -> dict[str, Tensor]:
    """Return what ``constant_loss`` needs of the labels of rows as ``clean`` returns them, each (tasks,), by name.

    ``label_count``, ``label_mean`` and, unless all tasks are binary, ``label_variance``; the last two are NaN where no
    label was seen.
    """
    _, labels, seen = cleaned
    count = seen.sum(1)
    mean = labels.sum(1) / count
    found = {"label_count": count, "label_mean": mean}
    return found if all(binary) else found | {"label_variance": _variance(labels, mean, seen, count)}


def constant_loss(count: float, mean: float, variance: float = math.nan, *, binary: bool) -> float:
    """Return the mean loss of the best constant prediction: log-loss in nats or squared error.

    Never 0: labels without a positive, or a negative, count as if they had a single one. NaN if no label was seen, or a
    single one of a regression, which does not vary.

    Args:
        count: of the labels.
        mean: of the labels.
        variance: of the labels, the divisor being their number; of a binary task it is not needed.
        binary: whether the task is.

    >>> constant_loss(100, 0.5, binary=True)
    0.6931471805599453
    """
    if not binary:
        return max(variance, _TINY) if count >= 2 else math.nan
    if mean != mean:
        return mean
    least = 1 / max(count, 2)
    rate = min(max(mean, least), 1 - least)
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def scores(cleaned: Tensor, kinds: Kinds) -> dict[str, Tensor]:
    """Return the scores of rows as ``clean`` returns them, each (tasks,), by name.

    Binary, the outputs being logits: ``auc``, ``ne`` (log-loss over that of the labels' mean), ``calibration``
    (mean prediction over mean label), ``prediction_std_ratio`` (standard deviation of the predictions over the
    labels') and ``auc_error``, the standard error of the AUC after Hanley and McNeil, who take it from the numbers of
    both classes. Regression: ``ne``, the squared error over the labels' variance, and ``prediction_std_ratio``; the
    others are absent.
    """
    outputs, labels, seen = cleaned
    is_binary = kinds.mask
    predictions = torch.where(is_binary[:, None], outputs.sigmoid(), outputs)
    log_losses = binary_cross_entropy_with_logits(outputs, labels, seen, reduction="none")
    losses = torch.where(is_binary[:, None], log_losses, (outputs - labels).square())  # 0 where not seen
    count = seen.sum(1)
    label = labels.sum(1) / count
    prediction = (predictions * seen).sum(1) / count  # all finite: the factor 0 leaves out what was not seen
    variance = _variance(labels, label, seen, count)
    constant = torch.where(is_binary, _entropy(label), variance)
    found = {
        "ne": losses.sum(1) / count / constant,
        "prediction_std_ratio": (_variance(predictions, prediction, seen, count) / variance).sqrt(),
        "calibration": torch.where(is_binary, prediction / label, ABSENT),
    }
    areas = [
        auc(*task) if is_task else label.new_full((), ABSENT)
        for task, is_task in zip(cleaned.unbind(1), kinds.binary, strict=True)
    ]
    found["auc"] = torch.stack(areas)
    positives = ((labels > 0.5) * seen).sum(1)
    found["auc_error"] = torch.where(is_binary, auc_error(found["auc"], positives, count - positives), ABSENT)
    return {name: torch.where(variance > 0, value, ABSENT) for name, value in found.items()}


def auc(outputs: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
    """Return the area under the ROC curve, 0-d, ties counted half; ABSENT if a class is missing.

    Args:
        outputs: (rows,), finite.
        labels: (rows,), 1 or 0.
        seen: (rows,), 1 where the row counts, else 0.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.ones(4))
    tensor(0.7500)
    """
    bits = (outputs.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: they are equal and their bits are not
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 2  # in the order of the outputs, with room for the label
    keys |= (labels > 0.5).long()
    keys = torch.where(seen > 0, keys, _LAST)
    wins = _wins(keys, positive=1) + _wins(keys ^ 1, positive=0)  # of ties the positive comes last, then first
    positives = (labels * seen > 0.5).sum()
    pairs = positives * (seen.sum().long() - positives)
    wins = wins - positives * (positives - 1)  # a positive that comes first is no win, in either order
    return torch.where(pairs > 0, wins.float() / (2 * pairs).float(), ABSENT)


def auc_error(area: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the standard error of AUCs from the numbers of rows of both classes, each (tasks,).

    An AUC of 1, or of 0, over few rows is no certainty: it counts as if half a row had been ranked wrongly.

    >>> auc_error(torch.tensor([0.9, 1.0]), torch.tensor([50, 2]), torch.tensor([5000, 254]))
    tensor([0.0292, 0.2012])

    Reference: J. A. Hanley and B. J. McNeil, Radiology 143 (1982).
    """
    a = torch.maximum(area, 1 - area)
    a = torch.minimum(a, 1 - 0.5 / torch.minimum(positives, negatives))
    q1, q2 = a / (2 - a) - a.square(), 2 * a.square() / (1 + a) - a.square()
    variance = a * (1 - a) + (positives - 1) * q1 + (negatives - 1) * q2
    return (variance.clamp(min=0) / (positives * negatives)).sqrt()


def _wins(keys: Tensor, *, positive: int) -> Tensor:
    """Return how many keys come before each positive, in all; what was not seen comes last."""
    order = _sorted(keys)
    return (torch.arange(len(order), dtype=torch.int64, device=order.device) * ((order & 3) == positive)).sum()


def _sorted(keys: Tensor) -> Tensor:
    if readable(keys):
        return torch.from_numpy(np.sort(keys.numpy()))  # ten times as fast as torch's
    return keys.sort().values


def _variance(x: Tensor, mean: Tensor, seen: Tensor, count: Tensor) -> Tensor:
    return ((x - mean[:, None]).square() * seen).sum(1) / count


def _entropy(rate: Tensor) -> Tensor:
    return torch.special.entr(rate) + torch.special.entr(1 - rate)
