"""The report's sentences: numbers in, words out."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A metric over the seeds that did not diverge.

    Args:
        mean: over them.
        std: of the sample; None where a single one is left.
        alive: how many did not diverge.
        tried: how many were run.
    """

    mean: float
    std: float | None
    alive: int
    tried: int

    @classmethod
    def over(cls, values: Sequence[float], tried: int | None = None) -> "Score":
        """Return the score of one value a seed; there must be one at least."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values), len(values) if tried is None else tried)

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return ``mean ± std``, and how many seeds diverged if any did.

        >>> Score.over([0.97, 0.98]).text(2, 100), Score.over([0.97], 3).text(2, 100)
        ('97.50 ± 0.71', '97.00 (2 of 3 seeds diverged)')
        """
        spread = "" if self.std is None else f" ± {scale * self.std:.{digits}f}"
        lost = self.tried - self.alive
        return f"{scale * self.mean:.{digits}f}{spread}" + (f" ({lost} of {self.tried} seeds diverged)" if lost else "")

    def near(self, other: "Score") -> bool | None:
        """Return whether mean ± std of the two overlap; None if either has no spread."""
        if self.std is None or other.std is None:
            return None
        return abs(self.mean - other.mean) <= self.std + other.std


@dataclass(frozen=True)
class Fall:
    """Where a method falls off on a model.

    Args:
        who: the sentence's subject.
        at: the lowest multiple of the base rate at which it fell off; None if it held.
        top: the highest multiple that was tried.
        diverged: whether it diverged at ``at``; otherwise it lost too much AUC.
        spared: multiples above ``at`` at which it did not fall off all the same.
    """

    who: str
    at: float | None
    top: float
    diverged: bool = True
    spared: tuple[float, ...] = ()

    def text(self, points: float, *, only: bool = False) -> str:
        """Return the clause, ``Clippy holds at every rate up to 32x``; ``points`` of AUC lost count as fallen off."""
        if self.at is None:
            return f"{self.who} holds at every rate up to {self.top:g}x"
        where = f"{'only ' if only else ''}at {self.at:g}x"
        if self.spared:
            where += f" (yet not at {multiples(self.spared)})"
        return f"{self.who} " + (
            f"diverges {where}" if self.diverged else f"loses over {points:g} points of AUC {where}"
        )


@dataclass(frozen=True)
class Entry:
    """A method's final score on a model."""

    who: str
    setting: str
    score: Score


def listed(words: Sequence[str], last: str = "and") -> str:
    """Return the words with commas, and a word before the last.

    >>> listed(["GC", "AGC", "LAMB"])
    'GC, AGC and LAMB'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def multiples(values: Sequence[float]) -> str:
    """Return multiples of the base rate in words.

    >>> multiples([0.5, 2, 16])
    '0.5x, 2x and 16x'
    """
    return listed([f"{value:g}x" for value in values])


def sentence(clause: str) -> str:
    """Return the clause with a capital and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."


def stability(model: str, falls: Sequence[Fall], points: float) -> str:
    """Say where the methods fall off on a model; the first is what the others are compared with."""
    if not falls:
        return ""
    first, *others = falls
    clauses = [first.text(points)]
    for fall in others:
        later = first.at is not None and fall.at is not None and fall.at > first.at
        clauses.append(fall.text(points, only=later))
    return sentence(f"on {model}, {'; '.join(clauses)}")


def rest(falls: Sequence[Fall], points: float) -> str:
    """Say where all other methods fall off."""
    return sentence("; ".join(fall.text(points) for fall in falls)) if falls else ""


def onset(fall: Fall, onsets: dict[float, int], steps: int) -> str:
    """Say where in training a method that fell off did so; its first steps are ten, or a twentieth of them.

    Args:
        fall: of the method.
        onsets: by multiple, the first step of the departure of each run that diverged.
        steps: of a run that does not diverge.
    """
    if fall.at is None:
        return ""
    if not onsets:
        return sentence(f"{fall.who} falls off without diverging: its loss never leaves the road, its AUC is lower")
    early = sorted(multiple for multiple, step in onsets.items() if step < max(10, 0.05 * steps))
    late = sorted(set(onsets) - set(early))
    parts = [("in its first steps", early), ("after a healthy stretch", late)]
    return sentence(
        f"{fall.who} diverges " + ", ".join(_where(how, onsets, rates, steps) for how, rates in parts if rates)
    )


def _where(how: str, onsets: dict[float, int], rates: Sequence[float], steps: int) -> str:
    low, high = (pick(onsets[rate] for rate in rates) for pick in (min, max))
    at = f"at step {low} of {steps}" if low == high else f"at steps {low} to {high} of {steps}"
    return f"{how} ({at}) at {multiples(rates)}"


def cure(who: str, steps: int, at: float, *, holds: bool, fall: Fall) -> str:
    """Say whether a warm-up holds at the multiple ``at``, where the plain optimizer fell off."""
    subject = f"A warm-up of {steps} steps ({who})"
    if not holds:
        return f"{subject} does not cure it at {at:g}x."
    after = f"holds at every rate up to {fall.top:g}x" if fall.at is None else f"itself falls off at {fall.at:g}x"
    return f"{subject} cures it at {at:g}x and {after}."


def quality(day: str, entries: Sequence[Entry], reference: str | None) -> str:
    """Say who is best on a day and by how much.

    Args:
        day: day N.
        entries: the methods of which a seed survived.
        reference: the method to compare a winner with; None, or one that did not survive: the runner-up.
    """
    if not entries:
        return f"No method is left to score on {day}: all final runs diverged."
    ranked = sorted(entries, key=lambda entry: -entry.score.mean)
    best, *others = ranked
    said = f"Best on {day}: {best.who} at {best.setting}, AUC {best.score.text(2, 100)}"
    if not others:
        return f"{said}."
    rival = next((entry for entry in others if entry.who == reference), others[0])
    lead = 100 * (best.score.mean - rival.score.mean)
    near = best.score.near(rival.score)
    if near is None:
        verdict = f"{lead:.2f} less, from too few seeds to know their spread"
    else:
        verdict = "within the spread of the seeds" if near else f"{lead:.2f} less, beyond the spread of the seeds"
    title = "" if rival.who == reference else "next, "
    return f"{said}; {title}{rival.who} at {rival.setting} has {rival.score.text(2, 100)}, {verdict}."


def against_floor(best: Entry, floor: Score) -> str:
    """Say whether the best method beats the linear floor."""
    what = f"the linear floor ({floor.text(2, 100)})"
    if floor.mean >= best.score.mean:
        return f"No method beats {what}."
    if best.score.near(floor):
        return f"The lead of {best.who} over {what} is within the spread of the seeds."
    return f"{best.who} is {100 * (best.score.mean - floor.mean):.2f} above {what}."


def ties(best: Entry, others: Sequence[Entry]) -> str:
    """Say whose scores the seeds cannot tell from the best one."""
    if best.score.std is None or not others:
        return ""
    near = [entry.who for entry in others if best.score.near(entry.score)]
    if not near:
        return f"{best.who} is ahead of all others beyond the spread of the seeds."
    return f"The seeds cannot tell {best.who} from {listed(near, 'or')}."


def lost(names: Sequence[str], day: str) -> str:
    """Say which methods have no score on day N."""
    return f"No final run of {listed(names, 'or')} survived to be scored on {day}." if names else ""


def paper_grid(day: str, rates: Sequence[float], winner: Entry | None, chosen: Entry) -> str:
    """Say what the paper's own grid alone would have put first on day N - 1."""
    grid = f"The paper's own grid alone ({listed([f'{rate:g}x' for rate in rates])})"
    if winner is None:
        return f"{grid} has no setting that survives on {day}."
    if (winner.who, winner.setting) == (chosen.who, chosen.setting):
        return f"{grid} would have put the same first on {day}: {chosen.who} at {chosen.setting}."
    return (
        f"{grid} would have put {winner.who} at {winner.setting} first on {day}, with {100 * winner.score.mean:.2f}; "
        f"the wider search puts {chosen.who} at {chosen.setting} first, with {100 * chosen.score.mean:.2f}."
    )


def edges(names: Sequence[str]) -> str:
    """Say whose search ended at the edge of what was tried."""
    if not names:
        return ""
    what = "best setting of" if len(names) == 1 else "best settings of"
    verb = "lies" if len(names) == 1 else "lie"
    return f"The {what} {listed(names)} {verb} at the edge of what was tried: a wider search may still find better."
