"""What a detector is shown of a step's values: all but what is chance, since the batch has few rows."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from surefoot.detect.signals import Signals
from surefoot.observe.step_record import OF_BATCH

_SIGNALS = {
    "loss": "losses",
    "relative_loss": "relative_losses",
    "clip_ratio": "clip_ratios",
    "batch_shift": "batch_shifts",
    "l2_norm/grad": "grad_norms",
    "auc": "aucs",
    "calibration": "calibrations",
    "prediction_std_ratio": "prediction_std_ratios",
    "auc_error": "auc_errors",
}


class DetectorInput:
    """Makes of each step's values what the detector is shown.

    What is finite of a step of few rows is chance, and left out: of one with less than half of the rows that a batch
    usually has, such as the rest that ends an epoch, and of a masked task for which too few rows count.

    Args:
        masked: tasks of which only some rows have a label.
    """

    def __init__(self, masked: Collection[str] = ()) -> None:
        self._masked = frozenset(masked)
        self._usual_rows: deque[float] = deque(maxlen=64)  # of the last batches

    def signals(self, values: Mapping[tuple[str, str], float]) -> Signals:
        """Take in a step's values by kind and key; return what the detector is shown of them."""
        rows = values.get(("rows", ""), math.nan)
        few = rows == rows and self._are_few(rows)
        by_kind: dict[str, dict[str, float]] = {kind: {} for kind in _SIGNALS}
        for (kind, key), value in values.items():
            by_chance = kind == "loss" and key in self._masked and ("relative_loss", key) not in values
            by_chance |= few and kind in OF_BATCH and math.isfinite(value)
            if kind in by_kind and not by_chance:
                by_kind[kind][key] = value
        return Signals(**{_SIGNALS[kind]: of_kind for kind, of_kind in by_kind.items()})

    def state_dict(self) -> list[float]:
        """Return how many rows the last batches had."""
        return list(self._usual_rows)

    def load_state_dict(self, state: Iterable[float]) -> None:
        """Take over how many rows the last batches had."""
        self._usual_rows = deque(state, maxlen=64)

    def _are_few(self, rows: float) -> bool:
        """Take in a batch's number of rows; return whether that is less than half the upper median of those before."""
        usual = self._usual_rows
        few = bool(usual) and rows < sorted(usual)[len(usual) // 2] / 2
        usual.append(rows)
        return few
