"""Scores of detectors on recorded runs: what was found, how soon, and how often they cried wolf."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

import numpy as np
from detection_labels import Limits, Outcome, shaken
from detection_load import Run
from detection_record import BATCH, WINDOW_ROWS
from detection_rivals import RIVALS, Flags

from surefoot.detect.detector import Detector

QUIET = {"shuffled_ids", "zeroed_features", "lost_embeddings", "lost_accumulators"}
SHIFTS = {"drift_day", "shifted_day"}
RATES = {"rate_spike", "rate_step", "rate_ramp", "lower_rate", "warm_restart", "higher_rate"}
_LEAD = 50  # steps before the onset within which an alarm counts as a warning of it
_PAUSE = 10  # steps without a flag after which the next flag is a new alarm


@dataclass(frozen=True)
class Case:
    """One run as the scores see it: its outcome, and the steps on which each detector raised an alarm."""

    run: str
    fault: str
    first: int
    harmless: bool
    twin: bool
    binary_only: bool
    rare: bool
    drift: bool  # since before the fault
    outcome: Outcome
    healthy: frozenset[int]  # steps
    alarms: dict[str, list[int]]  # steps on which one starts
    open: dict[str, list[int]]  # steps on which one is open, or a rule would act
    verdict: str  # the detector's own, at the end

    def found(self, detector: str) -> int | None:
        """Return the step of the alarm that tells of this divergence, if there is one."""
        onset, end = self.outcome.onset, self.outcome.end
        assert onset is not None
        last = math.inf if end is None else max(end, onset)  # a full divergence can be found to the end of the run
        steps = [s for s in self.alarms[detector] if max(self.first, onset - _LEAD) <= s <= last]
        return steps[0] if steps else None


@dataclass(frozen=True)
class Watched:
    """A run and what the detectors said of it; outcomes may be told by various limits later."""

    run: Run
    alarms: dict[str, list[int]]
    open: dict[str, list[int]]
    verdict: str  # of the first of our detectors, at the end

    def case(self, limits: Limits = Limits()) -> Case:
        """Return the run with its outcome."""
        run, found = self.run, self.run.outcome(limits)
        return Case(
            run=run.name,
            fault=run.fault["name"],
            first=run.first,
            harmless=run.fault["harmless"],
            twin=run.is_twin,
            binary_only=all(run.binary),
            rare=run.setup.get("rare", False),
            drift=run.setup.get("drift") is not None,
            outcome=found,
            healthy=frozenset(healthy_steps(run, found)),
            alarms=self.alarms,
            open=self.open,
            verdict=self.verdict,
        )


def watch(run: Run, detectors: Mapping[str, Callable[[], Detector]]) -> Watched:
    """Let all detectors look at a run."""
    alarms, opened, verdict = {}, {}, ""
    for name, make in detectors.items():
        detector = make()
        opened[name] = _show(run, detector)
        verdict = verdict or detector.finish(len(run.steps)).value
        alarms[name] = [alarm.step for alarm in detector.alarms]
    for name, rule in RIVALS.items():
        with np.errstate(invalid="ignore", over="ignore"):
            flags = rule(run.loss, run.norm)
        alarms[name], opened[name] = starts(flags), np.flatnonzero(flags).tolist()
    return Watched(run, alarms, opened, verdict)


def _show(run: Run, detector: Detector) -> list[int]:
    """Show a run to a detector as a monitor at its defaults does; return the steps on which an alarm was open."""
    opened, window_from = [], 0
    for step in range(len(run.steps)):
        was_healthy = detector.healthy
        detector.update(step, run.signals(step, window_from=window_from, scored_from=window_from))
        if not detector.healthy:
            opened.append(step)
        elif not was_healthy:
            window_from = (
                step + 2
            )  # the monitor reads a step when the next has been taken, and lets its window begin anew
    return opened


def is_reported(setup: int) -> bool:
    """Whether a set-up's runs are reported; the others may set thresholds. Both logs are in both halves.

    The fresh ones, that nothing was ever chosen by, are reported apart.
    """
    return setup // 2 % 2 == 1


def healthy_steps(run: Run, found: Outcome) -> list[int]:
    """Return the steps on which an alarm is false.

    All of a twin but those on which it was shaken itself; of a run that its fault did not harm those from the fault on,
    but, if the fault spoilt the data, only once the spoilt batches have left the monitor's window: an alarm about a
    spoilt batch is neither right nor wrong here.
    """
    if run.is_twin and run.setup.get("rare"):
        return list(range(len(run.steps)))  # few positives cannot tell that it was shaken; nothing was done to it
    if found.label != "healthy" or (run.is_twin and run.setup.get("drift")):
        return []
    first = run.first
    if not run.is_twin and run.fault["name"] not in RATES | SHIFTS:
        if run.fault["steps"] is None:
            return []
        first += run.fault["steps"] + WINDOW_ROWS // BATCH
    bad = shaken(run.probe, run.past)
    return [step for step in range(first, len(run.steps)) if not bad[step]]


def starts(flags: Flags) -> list[int]:
    """Return the flagged steps that follow ``_PAUSE`` steps without a flag."""
    steps = np.flatnonzero(flags).tolist()
    return [step for i, step in enumerate(steps) if not i or step - steps[i - 1] > _PAUSE]


@dataclass(frozen=True)
class Score:
    """What a detector did on some runs."""

    full: int
    full_found: int
    micro: int
    micro_found: int
    lost: int  # full divergences in which the probe's AUC lost a point
    early: int  # of those, alarmed before
    delivered: int  # of those, alarmed in time for the loop to hear of it, which is one step late
    delays: Sequence[int]  # of those found, full
    healthy: int  # steps
    false: int  # alarms
    open: int  # of the healthy steps, those with an alarm open

    @property
    def false_rate(self) -> float:
        """False alarms per 10,000 healthy steps."""
        return 1e4 * self.false / self.healthy if self.healthy else float("nan")

    @property
    def delay(self) -> tuple[float, float]:
        """Median and 90 % quantile."""
        return (median(self.delays), float(np.quantile(self.delays, 0.9))) if self.delays else (math.nan, math.nan)


def score(cases: Iterable[Case], detector: str) -> Score:
    """Return what a detector did."""
    cases = list(cases)
    full = [c for c in cases if c.outcome.label == "full"]
    micro = [c for c in cases if c.outcome.label == "micro"]
    hits = [(c, step) for c in full if (step := c.found(detector)) is not None]
    early = sum(c.outcome.point_lost is not None and step < c.outcome.point_lost for c, step in hits)
    delivered = sum(c.outcome.point_lost is not None and step + 1 < c.outcome.point_lost for c, step in hits)
    false = sum(len(c.healthy & set(c.alarms[detector])) for c in cases)
    return Score(
        len(full),
        len(hits),
        len(micro),
        sum(c.found(detector) is not None for c in micro),
        sum(c.outcome.point_lost is not None for c in full),
        early,
        delivered,
        [step - (c.outcome.onset or 0) for c, step in hits],
        sum(len(c.healthy) for c in cases),
        false,
        sum(len(c.healthy & set(c.open[detector])) for c in cases),
    )


def clopper_pearson(found: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share.

    >>> low, high = clopper_pearson(99, 100)
    >>> round(low, 4), round(high, 4)
    (0.9455, 0.9997)
    """
    tail = (1 - confidence) / 2

    def at_most(successes: int, share: float) -> float:
        return sum(comb(total, i) * share**i * (1 - share) ** (total - i) for i in range(successes + 1))

    def solve(holds: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return (low + high) / 2

    lower = 0.0 if found == 0 else solve(lambda share: 1 - at_most(found - 1, share) < tail)
    upper = 1.0 if found == total else solve(lambda share: at_most(found, share) > tail)
    return lower, upper


def poisson(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of the mean of a Poisson count.

    >>> low, high = poisson(0)
    >>> low, round(high, 2)
    (0.0, 3.69)
    """
    tail = (1 - confidence) / 2

    def at_most(successes: int, mean: float) -> float:
        return sum(math.exp(-mean + i * math.log(mean) - math.lgamma(i + 1)) for i in range(successes + 1))

    def solve(holds: Callable[[float], bool]) -> float:
        low, high = 1e-9, 10.0 * (count + 5)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return (low + high) / 2

    lower = 0.0 if count == 0 else solve(lambda mean: 1 - at_most(count - 1, mean) < tail)
    return lower, solve(lambda mean: at_most(count, mean) > tail)
