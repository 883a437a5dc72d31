"""Rules that other libraries use to tell a divergence, as their code has it, on a run's loss and gradient norm.

Each takes the summed loss and the norm of all gradients, (steps,) each, and returns the steps on which it would act,
(steps,) bool. A rule that stops or skips there is asked again at every later step, on the same run.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def six_sigma(loss: Values, norm: Values) -> Flags:
    """Loss or norm further than 6 standard deviations from the mean of the last 128, from the 64th step on.

    Reference: OLMo-core, ``optim/skip_step_optimizer.py`` (two-sided); levanter's is the same rule.
    """
    flags = np.zeros(len(loss), dtype=bool)
    for values in (loss, norm):
        padded = np.concatenate([np.full(128, np.nan), values])
        windows = sliding_window_view(padded, 128)[:-1]  # of step i: the 128 before it
        for step in range(63, len(values)):
            past = windows[step][-min(step, 128) :]
            with np.errstate(invalid="ignore"):
                score = abs(values[step] - past.mean()) / past.std(ddof=1)
            flags[step] |= not score <= 6
    return flags


def kill_loss_spike(loss: Values, _norm: Values) -> Flags:
    """More than 4 losses in a row of twice the mean of the last 100; or half of the last 100 above 10.

    Reference: LLM Foundry, ``callbacks/kill_loss_spike_callback.py``.
    """
    flags = np.zeros(len(loss), dtype=bool)
    window: deque[float] = deque(maxlen=100)
    outliers = 0
    for step, value in enumerate(loss):
        if len(window) == 100:
            outliers = outliers + 1 if value >= 2 * np.mean(window) else 0
            high = step >= 200 and sum(past > 10 for past in window) >= 50
            flags[step] = outliers > 4 or high
        window.append(value)
    return flags


def relative_tolerance(loss: Values, _norm: Values) -> Flags:
    """A loss that is higher than the last and at least 3 times the mean of the last 10; or not finite.

    Reference: Lightning, ``fabric/utilities/spike.py``: difference to the mean at least rtol = 2 times the mean.
    """
    flags = np.zeros(len(loss), dtype=bool)
    window: deque[float] = deque(maxlen=10)
    last = 0.0
    for step, value in enumerate(loss):
        if step and window:
            mean = np.mean(window)
            flags[step] = not np.isfinite(value) or (value > last and abs(value - mean) >= abs(2 * mean))
        if not flags[step] and np.isfinite(value):
            window.append(value)
            last = value
    return flags


def ten_times_first(loss: Values, _norm: Values) -> Flags:
    """A loss at least 10 times the largest of the first 100; finite ones only.

    Reference: Megatron-LM, ``core/rerun_state_machine.py``.
    """
    finite = np.isfinite(loss)
    first = np.flatnonzero(finite)[:100]
    flags = finite & (loss >= 10 * np.abs(loss[first]).max(initial=0.0))
    flags[: first[-1] + 1 if len(first) else 0] = False
    return flags


def z_clip(_loss: Values, norm: Values) -> Flags:
    """A norm more than 2.5 standard deviations above its moving average (0.97), which takes in the clipped norm.

    Reference: ZClip, ``zclip.py``, mode "zscore", "adaptive_scaling".
    """
    flags = np.zeros(len(norm), dtype=bool)
    mean, variance = norm[:25].mean(), norm[:25].var()
    for step in range(25, len(norm)):
        deviation = variance**0.5
        with np.errstate(over="ignore", invalid="ignore"):
            score = (norm[step] - mean) / (deviation + 1e-6)
        value = norm[step]
        if score > 2.5:
            flags[step] = True
            value = mean + 2.5 * deviation / (score / 2.5)
        mean = 0.97 * mean + 0.03 * value
        variance = 0.97 * variance + 0.03 * (value - mean) ** 2
    return flags


def twenty_times_average(_loss: Values, norm: Values) -> Flags:
    """A norm above 20 times its moving average (0.99), which takes in what is not flagged; the idea of axlearn's."""
    flags = np.zeros(len(norm), dtype=bool)
    mean = norm[0]
    for step in range(1, len(norm)):
        flags[step] = not norm[step] <= 20 * mean
        if not flags[step]:
            mean = 0.99 * mean + 0.01 * norm[step]
    return flags


def non_finite(loss: Values, norm: Values) -> Flags:
    """Loss or norm NaN or infinite (Keras' TerminateOnNaN, Lightning's detect_anomaly, torchtitan)."""
    return ~(np.isfinite(loss) & np.isfinite(norm))


RIVALS: dict[str, Callable[[Values, Values], Flags]] = {
    "mean + 6 sd over 128 (OLMo-core, levanter)": six_sigma,
    "2 x mean, more than 4 in a row (KillLossSpike)": kill_loss_spike,
    "relative tolerance 2 over 10 (Lightning)": relative_tolerance,
    "10 x max of first 100 (Megatron)": ten_times_first,
    "z 2.5 on the EMA of the norm (ZClip)": z_clip,
    "20 x EMA of the norm (axlearn)": twenty_times_average,
    "non-finite only (Keras, torchtitan)": non_finite,
}
