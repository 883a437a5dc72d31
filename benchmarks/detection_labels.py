"""What became of a recorded run: full, micro, healthy or unclear, from the probe set alone.

Damage is what the probe has lost to the unharmed twin's, in units of what makes a micro-divergence: points of AUC of
a binary task, or the share of what the twin explains (1 - relative loss) of any task; the worst task counts. Slower
learning is no damage: a run must also have lost as much against its own weights of up to three days (60 steps) before,
on the same rows. By that alone a twin's own steps are judged.

Where a fault changes the data for good, weights that fit the old world or the new are undamaged. Where the data
arrive damaged and the weights do not suffer, the served scores fall nevertheless: such a run is unclear.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What counts.

    Args:
        auc: AUC lost in a micro-divergence.
        share: of what the twin explains, lost in a micro-divergence.
        steps: in a row that it must last.
        slight: damage, in these units, below which a run is healthy; between it and 1 it is unclear.
        full: share of the twin's skill that is lost at the end of a full divergence.
        last: steps at the end over which the median is taken.
    """

    auc: float = 0.03
    share: float = 0.25
    steps: int = 3
    slight: float = 0.5
    full: float = 0.5
    last: int = 20


@dataclass(frozen=True)
class Probe:
    """Scores of the probe at every step.

    Args:
        aucs: (steps, binary tasks).
        relative: (steps, tasks), loss over that of the best constant.
    """

    aucs: Table
    relative: Table

    def best_of(self, other: "Probe") -> "Probe":
        return Probe(np.fmax(self.aucs, other.aucs), np.fmin(self.relative, other.relative))


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        label: "full", "micro", "healthy" or "unclear".
        onset: the first step whose weights were damaged, if full or micro.
        end: the step at which a micro-divergence was over.
        point_lost: the first step whose weights had lost a point of AUC.
    """

    label: str
    onset: int | None = None
    end: int | None = None
    point_lost: int | None = None


def outcome(
    run: Probe, twin: Probe, past: Probe, *, start: int, served: Probe | None, for_good: bool, limits: Limits = Limits()
) -> Outcome:
    """Return what became of a run.

    Args:
        run: its probe scores, from step 0 on.
        twin: those of the twin.
        past: those of the run's own past weights.
        start: the fault's first step.
        served: those of the probe as the fault would serve it, if it changes the data.
        for_good: whether it does so to the end.
        limits: what counts.
    """
    judged = run.best_of(served) if served is not None and for_good else run
    gap = _gap(judged, twin, limits)
    fall = _gap(judged, past, limits)
    full = _is_full(judged, twin, limits)
    damage = gap if full else np.minimum(gap, fall)
    damage[:start] = 0.0
    lasting = _lasting(damage, limits.steps)
    if full or lasting.max() >= 1:
        hit = int(np.argmax(lasting >= 1)) if lasting.max() >= 1 else len(damage) - 1
        before = np.flatnonzero(damage[: hit + 1] < limits.slight)
        onset = max(start, int(before[-1]) + 1 if len(before) else 0)
        over = np.flatnonzero(lasting >= limits.slight)
        end = None if full else int(over[-1]) + limits.steps
        return Outcome(
            "full" if full else "micro", min(onset, hit), end, _point_lost(judged, twin, past, start, limits)
        )
    if lasting.max() >= limits.slight:
        return Outcome("unclear")
    if served is not None and _lasting(_gap(served, twin, limits)[start:], limits.steps).max() >= 1:
        return Outcome("unclear")
    return Outcome("healthy")


def _gap(run: Probe, twin: Probe, limits: Limits) -> Table:
    """Return how much worse the run is, (steps,), in units of a micro-divergence; infinite where not finite."""
    lost = (twin.aucs - run.aucs) / limits.auc
    explained = np.maximum(1 - twin.relative, 0.2)
    rise = (run.relative - twin.relative) / (limits.share * explained)
    both = np.concatenate([lost, rise], axis=1)
    return np.where(np.isfinite(both), both, np.inf).max(axis=1)


def _lasting(damage: Table, steps: int) -> Table:
    """Return the least damage of each step and the ``steps`` - 1 that follow."""
    padded = np.concatenate([damage, np.repeat(damage[-1:], steps - 1)])
    return np.lib.stride_tricks.sliding_window_view(padded, steps).min(axis=1)


def _is_full(run: Probe, twin: Probe, limits: Limits) -> bool:
    """Whether a task has lost most of its skill at the end, or a binary one is worse than a constant."""
    pieces = (run.aucs, run.relative, twin.aucs, twin.relative)
    with np.errstate(invalid="ignore"):
        aucs, relative, twin_aucs, twin_relative = (np.median(piece[-limits.last :], axis=0) for piece in pieces)
    if not (np.isfinite(aucs).all() and np.isfinite(relative).all()):
        return True
    ranks = (twin_aucs >= 0.6) & (aucs - 0.5 < (1 - limits.full) * (twin_aucs - 0.5))
    binary = len(aucs)  # binary tasks come first
    worthless = (twin_relative[:binary] <= 0.9) & (relative[:binary] >= 1)
    values = (twin_relative <= 0.8) & (1 - relative < (1 - limits.full) * (1 - twin_relative))
    return bool(ranks.any() or worthless.any() or values[binary:].any())


def _point_lost(run: Probe, twin: Probe, past: Probe, start: int, limits: Limits) -> int | None:
    """Return the first step, if any, from which a point of AUC is lost for some steps in a row, as damage is told."""
    lost = np.minimum(twin.aucs - run.aucs, past.aucs - run.aucs).max(axis=1)
    lost = (~(lost < 0.01)).astype(float)  # NaN is lost too
    lost[:start] = 0.0
    lasting = _lasting(lost, limits.steps)
    return int(np.argmax(lasting)) if lasting.any() else None


def shaken(run: Probe, past: Probe, *, limits: Limits = Limits(), after: int = 20) -> NDArray[np.bool_]:
    """Return the steps, (steps,), on which a run has harmed itself, and ``after`` more: neither healthy nor a case."""
    lasting = _lasting(_gap(run, past, limits), limits.steps) >= limits.slight
    found = np.zeros(len(lasting), dtype=bool)
    for step in np.flatnonzero(lasting):
        found[max(0, step - 1) : step + limits.steps + after] = True  # the step before is the one that did it
    return found
