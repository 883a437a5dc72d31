"""Whether a training came back from an event: each loss's level before it, and at the end."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from surefoot.capsule.replay import ReplayedStep

BEFORE, AFTER = 64, 16  # steps in the level before the event, and in the level at the end
_LEARNT = 0.95  # relative loss below which a task has learnt something


@dataclass(frozen=True)
class LossChange:
    """One loss around an event.

    Args:
        before: the median of the last steps before it; NaN if there are none, as before the first step of a run.
        worst: the highest since; infinite if one was not finite.
        end: the median of the last steps; infinite if most are not finite; NaN if there are too few since the event.
        limit: what ``end`` may be; NaN if there is nothing to compare it with.
    """

    before: float
    worst: float
    end: float
    limit: float

    @property
    def survived(self) -> bool:
        """Whether the loss came back."""
        return self.end <= self.limit


def loss_changes(
    seen: Sequence[ReplayedStep], event: int, *, names: Iterable[str], relative: bool
) -> dict[str, LossChange]:
    """Return the level of each loss before the event and at the end.

    A loss has come back if its end is not above the middle between its level before and 1, the loss of a constant
    prediction, where it is relative to that and something had been learnt; else, if it is not above one and a half
    times its level before; of a relative loss with no step before, that of a constant, 1. A fall to the base rate
    raises a plain log-loss by less: there, give relative losses; one of exactly 0 tells that no row counted, and is
    left out.

    Args:
        seen: the steps, in order.
        event: the step at which it began.
        names: the losses to look at.
        relative: whether they are relative to a constant prediction's.
    """
    return {name: _loss_change(seen, event, name, relative) for name in names}


def _loss_change(seen: Sequence[ReplayedStep], event: int, name: str, relative: bool) -> LossChange:
    values = [(each.step, _or_inf(each.losses.get(name, math.nan))) for each in seen]
    values = [(step, value) for step, value in values if value or not relative]
    earlier = [value for step, value in values if step < event][-BEFORE:]
    since = [value for step, value in values if step >= event]
    before = median(earlier) if earlier else math.nan
    usual = 1.0 if relative and math.isnan(before) else before
    limit = (1 + usual) / 2 if relative and usual < _LEARNT else 1.5 * usual
    end = median(since[-AFTER:]) if len(since) > AFTER else math.nan
    return LossChange(before, max(since, default=math.nan), end, limit)


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
