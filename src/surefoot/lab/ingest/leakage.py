"""Features that tell a label nearly alone: as a rule they are known only after the event, and no model may see them."""

import math

import numpy as np
import polars as pl
import torch

from surefoot.lab.ingest.description import Description
from surefoot.lab.metrics import auc

_SUSPECT = 0.9  # AUC, or share of the variance of a regression label's ranks
_BINS = 64  # of a dense feature, at most
_FEW_IDS = 1000  # values of an id: of one with more, most values have too few rows
_FEW_ROWS = 200


def leaks(sample: pl.DataFrame, description: Description) -> list[str]:
    """Return a sentence on each feature that alone tells a label, whatever the form of the relation.

    The feature is cut into bins; the label's mean in each, over every second row, predicts the other rows. So a feature
    that rises and falls with the label, and one that is only there where the event has happened, are found too.

    Args:
        sample: (rows) dense columns and labels as typed, ids as hashes; ids of several values are not there.
        description: of the log.
    """
    sentences = []
    for feature in (*description.categorical, *description.dense):
        bins = _bins(sample[feature.name]) if feature.name in sample.columns else None
        if bins is None:
            continue
        for label in description.label:
            binary = label.kind == "binary"
            told = _told(bins, sample[label.name].to_numpy(), binary=binary)
            if binary and sample[feature.name].dtype.is_float():
                told = max(told, _told_by_order(sample.select(feature.name, label.name)))  # finer than bins
            if told > _SUSPECT:
                measure = f"with an AUC of {told:.3f}" if binary else f"up to {told:.0%} of the variance of its ranks"
                sentences.append(
                    f"{feature.name} alone tells {label.name} {measure}: is it known before the event? If not, name "
                    "it in after_event"
                )
    return sentences


def _bins(values: pl.Series) -> np.ndarray | None:
    """Return each row's bin, (rows,), a bin of its own for rows without a value; None for an id of many values."""
    known = values.fill_nan(None) if values.dtype.is_float() else values
    distinct = known.drop_nulls().unique().sort().to_numpy()
    if values.dtype.is_float() and len(distinct) > _BINS:
        edges = np.unique(np.quantile(distinct, np.linspace(0, 1, min(_BINS, max(4, len(values) // 100)))))
    elif len(distinct) <= _FEW_IDS:
        edges = distinct
    else:
        return None
    return np.where(known.is_null(), len(edges) + 1, np.searchsorted(edges, known.fill_null(0), side="right"))


def _told_by_order(both: pl.DataFrame) -> float:
    """Return the AUC of a feature itself, or of its negative; 0 of too few rows."""
    feature, label = both.drop_nulls().drop_nans()
    value = auc(feature.to_torch(), label.to_torch()) if len(feature) >= _FEW_ROWS else 0.0
    return max(value, 1 - value) if value > 0 else 0.0


def _told(bins: np.ndarray, label: np.ndarray, *, binary: bool) -> float:
    """Return how well the bins of a feature tell a label: AUC, or share of its ranks' variance; NaN of too few rows."""
    known = np.isfinite(label)
    bins, label = bins[known], label[known].astype(float)
    if not binary:
        label = pl.Series(label).rank().to_numpy()  # a few large values would be most of its variance
    if len(label) < _FEW_ROWS:
        return math.nan
    rows = np.bincount(bins[::2], minlength=bins.max() + 1)
    sums = np.bincount(bins[::2], label[::2], minlength=len(rows))
    means = (sums + label[::2].mean()) / (rows + 1)
    predicted, true = means[bins[1::2]], label[1::2]
    if binary:
        return auc(torch.from_numpy(predicted), torch.from_numpy(true))
    return 1 - np.mean((true - predicted) ** 2) / np.var(true) if np.var(true) > 0 else math.nan
