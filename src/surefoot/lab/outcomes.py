"""Summarises the runs of one setting over seeds and rates. A diverged run counts as the worst result."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# Student's t, two-sided, 95 %, for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.960


@dataclass(frozen=True)
class Score:
    """A metric over the seeds of one setting.

    Args:
        values: by seed, without the diverged seeds.
        diverged: number of diverged seeds.
    """

    values: Mapping[int, float]
    diverged: int = 0

    @classmethod
    def over(cls, values: Iterable[float], tried: int | None = None) -> "Score":
        """Return the score of seeds 0, 1 and so on; if ``tried`` is above the number of values, the others diverged."""
        found = dict(enumerate(values))
        return cls(found, 0 if tried is None else tried - len(found))

    @property
    def tried(self) -> int:
        """Number of seeds."""
        return len(self.values) + self.diverged

    @property
    def mean(self) -> float:
        """The mean over the seeds that did not diverge; NaN if all diverged."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def std(self) -> float | None:
        """The sample standard deviation; None if fewer than two seeds did not diverge."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def standing(self, *, least: bool = False) -> tuple[float, float]:
        """Return the rank, higher is better: the share of seeds that did not diverge, then the mean.

        Args:
            least: whether a lower value of the metric is better.

        >>> Score.over([0.9, 0.9]).standing() > Score.over([0.99], tried=2).standing()
        True
        """
        if not self.values:
            return 0.0, -math.inf
        return len(self.values) / self.tried, -self.mean if least else self.mean

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return ``mean ± std``, with the number of diverged seeds if there are any.

        >>> Score.over([0.97, 0.98]).text(2, 100), Score.over([0.97], 3).text(2, 100), Score.over([], 2).text(2)
        ('97.50 ± 0.71', '97.00 (2 of 3 seeds diverged)', 'diverged')
        """
        if not self.values:
            return "diverged" if self.diverged else ""
        spread = "" if self.std is None else f" ± {scale * self.std:.{digits}f}"
        lost = f" ({self.diverged} of {self.tried} seeds diverged)" if self.diverged else ""
        return f"{scale * self.mean:.{digits}f}{spread}{lost}"

    def near(self, other: "Score") -> bool | None:
        """Return whether the difference is not significant; None if there are too few seeds for an interval.

        Scores with different shares of diverged seeds are never near each other.
        """
        if self.standing()[0] != other.standing()[0]:
            return False
        lead = difference(self, other)
        return None if lead.low is None or lead.high is None else lead.low <= 0 <= lead.high


class Difference(NamedTuple):
    """How much one score is above another."""

    mean: float
    low: float | None  # of the 95 % interval; None with fewer than two common seeds
    high: float | None
    seeds: int  # number of common seeds


def difference(one: Score, other: Score) -> Difference:
    """Return how much ``one`` is above ``other``, seed by seed, with Student's 95 % interval of the mean.

    A seed that diverged in one of them is left out, so compare ``standing`` first.

    >>> difference(Score.over([0.5, 0.6, 0.7]), Score.over([0.4, 0.5, 0.6]))[0]
    0.1
    """
    leads = [one.values[seed] - other.values[seed] for seed in one.values if seed in other.values]
    if len(leads) < 2:
        return Difference(one.mean - other.mean, None, None, len(leads))
    mean = statistics.fmean(leads)
    half = _student(len(leads) - 1) * statistics.stdev(leads) / math.sqrt(len(leads))
    return Difference(round(mean, 12), mean - half, mean + half, len(leads))


class ScoredRun(NamedTuple):
    """One run at a rate."""

    multiple: float  # of the base rate
    diverged: bool
    score: float  # the selection metric on day N - 1; NaN if undefined or not scored on that day


@dataclass(frozen=True)
class Rate:
    """All runs of one method at one rate.

    Args:
        multiple: multiple of the base rate.
        tried: number of runs.
        diverged: number of diverged runs.
        mean: mean score of the other runs; NaN if none has a score.
        lost: whether the rate is above the best rate and its mean is too far below the best rate's.
    """

    multiple: float
    tried: int
    diverged: int
    mean: float
    lost: bool = False

    @property
    def fell(self) -> bool:
        """Whether a run diverged, or the mean score is too low."""
        return self.diverged > 0 or self.lost


@dataclass(frozen=True)
class Fall:
    """The rates of a method, lowest first, and at which of them it falls off."""

    rates: tuple[Rate, ...]

    @property
    def at(self) -> Rate | None:
        """The lowest rate at which the method falls off."""
        return next((rate for rate in self.rates if rate.fell), None)

    @property
    def top(self) -> float:
        """The highest multiple of the base rate."""
        return self.rates[-1].multiple

    @property
    def spared(self) -> tuple[float, ...]:
        """Multiples above ``at`` at which the method does not fall off."""
        lowest = self.at
        return tuple(r.multiple for r in self.rates if lowest and r.multiple > lowest.multiple and not r.fell)

    def runs(self, *, fallen: bool) -> tuple[int, int]:
        """Return the numbers of diverged and of all runs, at the rates that fell off or at the others."""
        rates = [rate for rate in self.rates if rate.fell is fallen]
        return sum(rate.diverged for rate in rates), sum(rate.tried for rate in rates)

    def short(self) -> str:
        """Return the table's text: the lowest rate that falls off, with its diverged and all runs, or "AUC".

        >>> fall_of([ScoredRun(1, False, 0.9), ScoredRun(2, True, 0.5), ScoredRun(2, False, 0.9)], 0.02).short()
        '2x 1/2'
        >>> fall_of([ScoredRun(1, False, 0.9), ScoredRun(2, False, 0.8)], 0.02).short()
        '2x AUC'
        >>> fall_of([ScoredRun(1, False, 0.9)], 0.02).short()
        '> 1x'
        """
        if self.at is None:
            return f"> {self.top:g}x"
        how = f"{self.at.diverged}/{self.at.tried}" if self.at.diverged else "AUC"
        return f"{self.at.multiple:g}x {how}"


def fall_of(runs: Iterable[ScoredRun], allowed: float) -> Fall:
    """Return where a method falls off, from all of its runs.

    A method falls off at a rate if one of the runs diverged, or if the rate is above the one with the best mean score
    and its own mean score is more than ``allowed`` lower.

    Raises:
        ValueError: if there is no run.
    """
    by_rate: dict[float, list[ScoredRun]] = {}
    for run in runs:
        by_rate.setdefault(run.multiple, []).append(run)
    if not by_rate:
        raise ValueError("runs is empty; expected at least one run")
    rates = [_rate(multiple, by_rate[multiple]) for multiple in sorted(by_rate)]
    scored = [rate for rate in rates if not math.isnan(rate.mean)]
    if not scored:
        return Fall(tuple(rates))
    best = max(scored, key=lambda rate: (not rate.diverged, rate.mean))
    return Fall(
        tuple(
            Rate(r.multiple, r.tried, r.diverged, r.mean, r.multiple > best.multiple and r.mean < best.mean - allowed)
            for r in rates
        )
    )


class ScoredTrial(Protocol):
    """A row of a study's results."""

    @property
    def model(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def multiple(self) -> float: ...
    @property
    def value(self) -> float | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def until(self) -> str: ...
    @property
    def diverged(self) -> bool: ...
    @property
    def scores(self) -> Mapping[str, float]: ...


def fall_of_method(
    trials: Iterable[ScoredTrial], model: str, method: str, value: float | None, *, metric: str, allowed: float
) -> Fall | None:
    """Return where a method falls off on a model, at one value of its threshold; None if there are no runs.

    All runs count, including the final ones; only scores on day N - 1 are compared.
    """
    runs = [
        ScoredRun(t.multiple, t.diverged, t.scores[metric] if t.until == "selection" else math.nan)
        for t in trials
        if (t.model, t.method, t.value) == (model, method, value)
    ]
    return fall_of(runs, allowed) if runs else None


def score_of(trials: Iterable[ScoredTrial], metric: str) -> Score | None:
    """Return the score of trials with different seeds; None if there are none, or a score is undefined."""
    trials = list(trials)
    alive = {trial.seed: trial.scores[metric] for trial in trials if not trial.diverged}
    if not trials or any(math.isnan(value) for value in alive.values()):
        return None
    return Score(alive, len(trials) - len(alive))


def _rate(multiple: float, runs: list[ScoredRun]) -> Rate:
    scores = [run.score for run in runs if not run.diverged and not math.isnan(run.score)]
    mean = statistics.fmean(scores) if scores else math.nan
    return Rate(multiple, len(runs), sum(run.diverged for run in runs), mean)


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond the table, the normal quantile with two correction terms.

    >>> round(_student(11), 2), round(_student(10**9), 2)
    (2.2, 1.96)
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
