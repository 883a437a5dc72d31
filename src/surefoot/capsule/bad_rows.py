"""Which rows of a batch made an event: the fewest found whose removal avoids it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surefoot.capsule import snapshot
from surefoot.capsule.batch_rows import UnusualValue, row_scores, rows_in, take_rows
from surefoot.capsule.counterfactual import Counterfactual
from surefoot.capsule.replay import ReplayedStep, Training, as_recorded, begin, run
from surefoot.capsule.snapshot import Plain
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.errors import InputError

_REACH = 3  # steps before the event whose batch may be to blame
_OUT_OF_LINE = 1.25  # times the highest of the steps before: less happens in any run
_FEW_STEPS, _OUT_OF_LINE_OF_FEW = 8, 2.0  # before which steps say little of what is usual
_FEW = 24  # rows found one by one; more are no longer a few bad rows
_RECENT = 32  # steps before the event that say what is healthy
_NOTHING = Counterfactual({}, {})


@dataclass(frozen=True)
class Signal:
    """A number of one step, and how high it may be.

    Args:
        kind: ``"loss"``, ``"norm"`` (of a gradient), ``"clip_ratio"``, or ``"error"``: 0, or NaN if the step raises
            ``FloatingPointError``.
        name: the loss's or the layer's.
        limit: above it, or where it is not finite, the event is there.
        healthy: the highest of the recent steps before.
        value: in the step as it was.
    """

    kind: str
    name: str
    limit: float
    healthy: float
    value: float


@dataclass(frozen=True)
class BadRow:
    """A row whose removal helps.

    Args:
        number: its place in the batch, from 0.
        row: its number in the log, if the ring was told.
        values: what is unusual about it, the worst first.
    """

    number: int
    row: int | None
    values: list[UnusualValue]


@dataclass(frozen=True)
class Bisection:
    """What the search found.

    Args:
        event: the step at which the signal was too high.
        step: the step whose batch is to blame: the event's, or one before it that harmed the weights.
        signal: what was looked at.
        without: the signal's value once the rows are removed.
        rows: the rows, none of which can stay if ``complete``.
        batch_rows: how many the batch has.
        tried: how many steps with a part of the batch were run.
        complete: whether the search came to its end; if not, it is not a few rows, and fewer might do.
    """

    event: int
    step: int
    signal: Signal
    without: float
    rows: list[BadRow]
    batch_rows: int
    tried: int
    complete: bool


def bisect(
    capsule: Capsule,
    training: Training,
    *,
    event: int | None = None,
    take: Callable[[Plain, Tensor], Plain] = take_rows,
    trials: int = 300,
) -> Bisection:
    """Find the rows whose removal avoids the event, by halving.

    The event is a number of its step, a loss, a gradient's norm or Clippy's ratio, that is not finite or lies a quarter
    above all of the steps before (a loss twice as high, if there are fewer than 8): of the alarm's task or layer if it
    names one, else the one farthest out. If it goes away when a step just before it is not taken, that step's batch is
    searched, else the event's own. Rows with the most unusual values are tried first; removing means that the step is
    taken on the other rows.

    Args:
        capsule: as ``storage.read`` returns it; healthy steps before the event say what is usual.
        training: made as the recorded one, its rule included.
        event: the step to look at; by default the capsule's.
        take: returns some rows of a batch.
        trials: how many steps with a part of the batch to run at most.

    Raises:
        ValueError: if the training does not fit the capsule.
        InputError: if the step is not in the capsule, or shows nothing out of line with those before it.
    """
    event = capsule.event if event is None else event
    places = {record.step: i for i, record in enumerate(capsule.steps)}
    if event not in places:
        raise InputError(
            f"step {event} cannot be looked into: the capsule holds the steps {capsule.steps[0].step} to "
            f"{capsule.steps[-1].step}; expected one of them"
        )
    with as_recorded(capsule):
        begin(capsule, training, rules="compare")
        records = capsule.steps[: places[event] + 1]
        search = _Search(training, records, take, trials)
        signal = _signal(search.seen, capsule.alarm or {}, search.reach)
        return search.bisect(signal)


class _Search:
    """The steps up to the event, run once, with the states before the last few of them."""

    def __init__(
        self, training: Training, records: Sequence[StepRecord], take: Callable[[Plain, Tensor], Plain], trials: int
    ) -> None:
        self.training, self.records, self.take, self.left = training, records, take, trials
        self.limit = trials
        self.states: dict[int, Plain] = {}
        self.seen: list[ReplayedStep] = []
        self.reach = min(_REACH, (len(records) - 1) // 2)  # as many steps before those say what is healthy
        first = len(records) - 1 - self.reach
        self.seen += run(training, records[:first], {})
        for i in range(first, len(records)):
            live = snapshot.live_state(training.model, training.optimizers, training.others)
            self.states[i] = snapshot.host_copy(live, "state")
            self.seen += _run(training, [records[i]])

    def bisect(self, signal: Signal) -> Bisection:
        last = len(self.records) - 1
        blamed = next((i for i in range(last - 1, last - 1 - self.reach, -1) if self._avoided(signal, i, None)), last)
        record = self.records[blamed]
        batch = self.training.batch_of(record)
        count = rows_in(batch)
        before = (self.training.batch_of(each) for each in self.records[max(0, blamed - _RECENT) : blamed])
        unusual = row_scores(batch, before, self.training.columns)
        order = sorted(range(count), key=lambda i: -unusual.rank[i])
        found, complete = self._necessary(signal, blamed, batch, order)
        kept = torch.tensor(sorted(set(range(count)) - set(found)), dtype=torch.int64, device="cpu")
        without = self._value(signal, blamed, self.take(batch, kept)) if len(kept) else math.nan
        return Bisection(
            event=self.records[-1].step,
            step=record.step,
            signal=signal,
            without=without,
            rows=[
                BadRow(i, None if record.rows is None else int(record.rows[i]), unusual.values(i))
                for i in sorted(found)
            ],
            batch_rows=count,
            tried=self.limit - self.left,
            complete=complete,
        )

    def _necessary(self, signal: Signal, blamed: int, batch: Plain, order: list[int]) -> tuple[list[int], bool]:
        """Return rows whose removal avoids the event, and whether each of them is needed.

        Of the rows in order, the shortest beginning whose removal avoids the event ends with a row that is needed;
        with that row removed for good the search goes on in the rows before it.
        """
        count, needed = len(order), list[int]()

        def avoided(removed: list[int]) -> bool:
            kept = sorted(set(range(count)) - set(removed))
            return not kept or self._avoided(
                signal, blamed, self.take(batch, torch.tensor(kept, dtype=torch.int64, device="cpu"))
            )

        while not (needed and avoided(needed)):
            low, high = 0, len(order)  # removing order[:low] does not help, removing order[:high] does
            while high - low > 1:
                if self.left <= 0 or len(needed) == _FEW:
                    return [*needed, *order[:high]], False
                middle = (low + high) // 2
                low, high = (low, middle) if avoided([*needed, *order[:middle]]) else (middle, high)
            needed.append(order[high - 1])
            order = order[: high - 1]
            if not order:
                break
        return needed, True

    def _avoided(self, signal: Signal, blamed: int, batch: Plain) -> bool:
        value = self._value(signal, blamed, batch)
        return math.isfinite(value) and value <= signal.limit

    def _value(self, signal: Signal, blamed: int, batch: Plain) -> float:
        """Return the signal at the event if the blamed step is taken on ``batch``, or not at all if that is None."""
        training = self.training
        self.left -= 1
        snapshot.restore(self.states[blamed], training.model, training.optimizers, training.others)
        records = list(self.records[blamed + (batch is None) :])
        if batch is not None:
            records[0] = replace(records[0], batch=batch, losses={})
        return _number(_run(training, records)[-1], signal.kind, signal.name)


def _run(training: Training, records: Sequence[StepRecord]) -> list[ReplayedStep]:
    """Take the steps; one that raises for numbers that are not finite shows nothing."""
    seen: list[ReplayedStep] = []
    try:
        seen += run(training, records, {})
    except FloatingPointError:
        seen.append(ReplayedStep(records[-1].step, {}, {}, _NOTHING))
    return seen


def _signal(seen: Sequence[ReplayedStep], alarm: Mapping[str, Any], reach: int) -> Signal:
    """Return the number of the last step that is farthest above those of the steps before, the alarm's own first."""
    last, event = len(seen) - 1 - reach, seen[-1]
    before = seen[max(0, last - _RECENT) : last]
    few = len(before) < _FEW_STEPS  # in a run's first steps gradients rise from nothing
    least = _OUT_OF_LINE_OF_FEW if few else _OUT_OF_LINE
    out: list[tuple[float, Signal]] = []
    for kind, name in _names(event):
        value = _number(event, kind, name)
        healthy = max((x for each in before if math.isfinite(x := _number(each, kind, name))), default=0.0)
        if not math.isfinite(value):
            out.append((math.inf, Signal(kind, name, math.inf, healthy, value)))
        elif value > least * healthy > 0 and not (few and kind != "loss"):
            excess = value / healthy
            out.append((excess, Signal(kind, name, healthy * min(2.0, math.sqrt(excess)), healthy, value)))
    if not out:
        raise InputError(
            f"step {event.step} shows no loss, gradient norm or Clippy ratio out of line with those of the "
            f"{len(before)} steps before, {least:g} times the highest of them; expected an event that one step shows"
        )
    for fits in (_of_layer, _of_task, _of_kind):
        out = [each for each in out if fits(each[1], alarm)] or out
    return max(out, key=lambda each: each[0])[1]  # of equals the first: losses before norms


def _of_layer(signal: Signal, alarm: Mapping[str, Any]) -> bool:
    layer = alarm.get("layer")
    return bool(layer) and signal.kind != "loss" and f"{signal.name}.".startswith(f"{layer}.")


def _of_task(signal: Signal, alarm: Mapping[str, Any]) -> bool:
    task = alarm.get("task")
    return bool(task) and signal.kind == "loss" and signal.name.split("/")[-1] == task


def _of_kind(signal: Signal, alarm: Mapping[str, Any]) -> bool:
    return any(word in str(alarm.get("signal", "")) for word in signal.kind.split("_")[-1:])


def _names(seen: ReplayedStep) -> Iterator[tuple[str, str]]:
    if not seen.losses:
        yield "error", ""
    yield from (("loss", name) for name in seen.losses)
    yield from (("norm", name) for name in seen.norms)
    yield from (("clip_ratio", name) for name in seen.counterfactual.clip_ratios)


def _number(seen: ReplayedStep, kind: str, name: str) -> float:
    if kind == "error":
        return 0.0 if seen.losses else math.nan
    numbers = {"loss": seen.losses, "norm": seen.norms, "clip_ratio": seen.counterfactual.clip_ratios}[kind]
    return numbers.get(name, math.nan)
