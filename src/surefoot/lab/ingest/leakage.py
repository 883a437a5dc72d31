"""Finds features that predict a label almost alone; they are usually known only after the event."""

import math

import numpy as np
import polars as pl
import torch

from surefoot.lab.ingest.description import Description
from surefoot.lab.metrics import auc

_SUSPECT = 0.9  # AUC, or explained share of the variance of a regression label's ranks
_BINS = 64  # most bins of a dense feature
_FEW_IDS = 1000  # an id with more values has too few rows for most of them
_FEW_ROWS = 200


def leaks(sample: pl.DataFrame, description: Description) -> list[str]:
    """Return a sentence on each feature that predicts a label almost alone, for any form of the relation.

    The feature is split into bins. The mean label of a bin over every second row predicts the other rows. This
    also finds relations that are not monotone, and features that are missing unless the event happened.

    Args:
        sample: rows with the dense columns and labels of ``typed``, and hashes of the ids that have one value a row.
        description: description of the log.
    """
    sentences = []
    for feature in (*description.categorical, *description.dense):
        bins = _bins(sample[feature.name]) if feature.name in sample.columns else None
        if bins is None:
            continue
        for label in description.label:
            binary = label.kind == "binary"
            found = _predictive_power(bins, sample[label.name].to_numpy(), binary=binary)
            if binary and sample[feature.name].dtype.is_float():
                found = max(found, _auc_of_feature(sample.select(feature.name, label.name)))  # finer than bins
            if found > _SUSPECT:
                measure = f"with an AUC of {found:.3f}" if binary else f"up to {found:.0%} of the variance of its ranks"
                sentences.append(
                    f"{feature.name} alone predicts {label.name} {measure}: is it known before the event? If not, "
                    "name it in after_event"
                )
    return sentences


def _bins(values: pl.Series) -> np.ndarray | None:
    """Return each row's bin, (rows,); missing values have their own bin. None for an id with too many values."""
    known = values.fill_nan(None) if values.dtype.is_float() else values
    distinct = known.drop_nulls().unique().sort().to_numpy()
    if values.dtype.is_float() and len(distinct) > _BINS:
        edges = np.unique(np.quantile(distinct, np.linspace(0, 1, min(_BINS, max(4, len(values) // 100)))))
    elif len(distinct) <= _FEW_IDS:
        edges = distinct
    else:
        return None
    return np.where(known.is_null(), len(edges) + 1, np.searchsorted(edges, known.fill_null(0), side="right"))


def _auc_of_feature(both: pl.DataFrame) -> float:
    """Return the AUC of a feature or of its negative, the larger of both; 0 for too few rows."""
    feature, label = both.drop_nulls().drop_nans()
    value = auc(feature.to_torch(), label.to_torch()) if len(feature) >= _FEW_ROWS else 0.0
    return max(value, 1 - value) if value > 0 else 0.0


def _predictive_power(bins: np.ndarray, label: np.ndarray, *, binary: bool) -> float:
    """Return how well bins predict a label: AUC, or R^2 of the label's ranks; NaN for too few rows."""
    known = np.isfinite(label)
    bins, label = bins[known], label[known].astype(float)
    if not binary:
        label = pl.Series(label).rank().to_numpy()  # otherwise a few large values dominate the variance
    if len(label) < _FEW_ROWS:
        return math.nan
    rows = np.bincount(bins[::2], minlength=bins.max() + 1)
    sums = np.bincount(bins[::2], label[::2], minlength=len(rows))
    means = (sums + label[::2].mean()) / (rows + 1)
    predicted, true = means[bins[1::2]], label[1::2]
    if binary:
        return auc(torch.from_numpy(predicted), torch.from_numpy(true))
    return 1 - np.mean((true - predicted) ** 2) / np.var(true) if np.var(true) > 0 else math.nan
