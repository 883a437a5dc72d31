"""Checks of the user's arguments, made once, at construction."""

import math


def positive(name: str, value: float) -> None:
    """Refuse ``value`` unless it is a finite number above 0.

    Raises:
        ValueError: naming the argument and the value.
    """
    if not (_finite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0")


def non_negative(name: str, value: float) -> None:
    """Refuse ``value`` unless it is a finite number, 0 or above.

    Raises:
        ValueError: naming the argument and the value.
    """
    if not (_finite(value) and value >= 0):
        raise ValueError(f"{name} is {value!r}; expected a finite number, 0 or above")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):  # not a number, or too large for a float
        return False
