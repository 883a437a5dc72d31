"""The report's sentences: numbers in, words out."""

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.lab.outcomes import Fall, Score, difference


@dataclass(frozen=True)
class Falling:
    """Where a method falls off, and what to call it as a sentence's subject."""

    who: str
    fall: Fall

    def text(self, points: float, *, only: bool = False) -> str:
        """Return the clause; ``points`` of AUC lost count as fallen off, ``only`` stresses that it is late.

        >>> from surefoot.lab.outcomes import ScoredRun, fall_of
        >>> Falling("Clippy", fall_of([ScoredRun(1, False, 0.9), ScoredRun(32, False, 0.9)], 0.02)).text(2)
        'Clippy holds at every rate up to 32x (none of 2 runs diverged)'
        >>> runs = [ScoredRun(1, False, 0.9), ScoredRun(2, True, 0.5), ScoredRun(2, False, 0.9)]
        >>> Falling("GC", fall_of(runs, 0.02)).text(2)
        'GC diverges at 2x (1 of 2 runs)'
        """
        at = self.fall.at
        if at is None:
            tried = self.fall.runs(fallen=False)[1]
            runs = f"none of {tried} runs diverged" if tried > 1 else "its only run did not diverge"
            return f"{self.who} holds at every rate up to {self.fall.top:g}x ({runs})"
        diverged, tried = self.fall.runs(fallen=True)
        fallen = [rate.multiple for rate in self.fall.rates if rate.fell]
        if self.fall.spared:
            where = f"at {multiples(fallen)}"
        elif len(fallen) > 1:
            where = f"{'only ' if only else ''}from {at.multiple:g}x on"
        else:
            where = f"{'only ' if only else ''}at {at.multiple:g}x"
        said = "diverges" if at.diverged else f"loses over {points:g} points of AUC"
        counted = f" ({diverged} of {tried} run{'s' if tried > 1 else ''}{'' if at.diverged else ' diverged'})"
        spared = f", yet not at {multiples(self.fall.spared)}" if self.fall.spared else ""
        return f"{self.who} {said} {where}{counted if diverged else ''}{spared}"


CHANCE = 0.5  # the AUC of a constant


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


def stability(model: str, falls: Sequence[Falling], points: float) -> str:
    """Say where the methods fall off on a model; the first is what the others are compared with."""
    if not falls:
        return ""
    first, *others = falls
    clauses = [first.text(points)]
    for falling in others:
        one, other = first.fall.at, falling.fall.at
        clauses.append(falling.text(points, only=bool(one and other and other.multiple > one.multiple)))
    return sentence(f"on {model}, {'; '.join(clauses)}")


def rest(falls: Sequence[Falling], points: float) -> str:
    """Say where all other methods fall off."""
    return sentence("; ".join(falling.text(points) for falling in falls)) if falls else ""


def onset(falling: Falling, onsets: dict[float, list[int]], steps: int) -> str:
    """Say where in training a method that fell off did so; its first steps are ten, or a twentieth of them.

    Args:
        falling: the method.
        onsets: by multiple, the first step of the divergence of each run that did.
        steps: of a run that does not diverge.
    """
    if falling.fall.at is None:
        return ""
    if not onsets:
        return sentence(f"{falling.who} falls off without diverging: its loss stays below that of a constant")
    first = max(10, 0.05 * steps)
    early = {rate: early for rate, at in onsets.items() if (early := [step for step in at if step < first])}
    late = {rate: late for rate, at in onsets.items() if (late := [step for step in at if step >= first])}
    parts = [("in its first steps", early), ("after a healthy stretch", late)]
    return sentence(f"{falling.who} diverges " + ", ".join(_where(how, at, steps) for how, at in parts if at))


def _where(how: str, onsets: dict[float, list[int]], steps: int) -> str:
    found = sorted(step for at in onsets.values() for step in at)
    at = f"at step {found[0]} of {steps}" if found[0] == found[-1] else f"at steps {found[0]} to {found[-1]} of {steps}"
    return f"{how} ({at}) at {multiples(sorted(onsets))}"


def cure(who: str, steps: int, at: float, there: tuple[int, int], *, holds: bool, fall: Fall) -> str:
    """Say whether a warm-up holds at the multiple ``at``, where the plain optimizer fell off.

    Args:
        who: the method with the warm-up.
        steps: of the warm-up.
        at: the multiple.
        there: how many of the runs with the warm-up diverged at that multiple, and how many there are.
        holds: whether it did not fall off there.
        fall: of the method with the warm-up.
    """
    subject = f"A warm-up of {steps} steps ({who})"
    runs = f"{there[0] or 'none'} of {there[1]} run{'s' if there[1] > 1 else ''} diverged"
    if not holds:
        return f"{subject} does not cure it at {at:g}x ({runs})."
    above = fall.at
    after = f"holds at every rate up to {fall.top:g}x" if above is None else f"itself falls off at {above.multiple:g}x"
    return f"{subject} cures it at {at:g}x ({runs}) and {after}."


def quality(day: str, entries: Sequence[Entry], reference: str | None) -> str:
    """Say who is best on a day and by how much: fewest diverged seeds first, then the mean.

    Args:
        day: day N.
        entries: the methods of which a seed survived.
        reference: the method to compare a winner with; None, or one that did not survive: the runner-up.
    """
    if not entries:
        return f"No method is left to score on {day}: all final runs diverged."
    best, *others = sorted(entries, key=lambda entry: entry.score.standing(), reverse=True)
    said = f"Best on {day}: {best.who} at {best.setting}, AUC {best.score.text(2, 100)}"
    if not others:
        return f"{said}."
    rival = next((entry for entry in others if entry.who == reference), others[0])
    title = "" if rival.who == reference else "next, "
    return f"{said}; {title}{rival.who} at {rival.setting} has {rival.score.text(2, 100)}, {_apart(best, rival)}."


def _apart(best: Entry, rival: Entry) -> str:
    """Say whether the seeds tell two methods apart."""
    if rival.score.standing()[0] < best.score.standing()[0]:
        return "and more of its seeds diverged"
    lead = difference(best.score, rival.score)
    if lead.low is None or lead.high is None:
        return f"{100 * lead.mean:.2f} less, from too few seeds to know their spread"
    interval = f"95 % interval {signed(100 * lead.low)} to {signed(100 * lead.high)} over {lead.seeds} seeds"
    if lead.low <= 0 <= lead.high:
        return f"which the seeds cannot tell apart (difference {signed(100 * lead.mean)}, {interval})"
    return f"{100 * lead.mean:.2f} less ({interval})"


def signed(value: float) -> str:
    """Return a difference with its sign.

    >>> signed(0.3), signed(-0.001)
    ('0.30', '0.00')
    """
    shown = f"{value:.2f}"
    return "0.00" if float(shown) == 0 else shown.replace("-", "\N{MINUS SIGN}")


def against_floor(best: Entry, floor: Score) -> str:
    """Say whether the best method beats the linear floor."""
    useless = "; the floor itself is no better than a constant" if floor.mean <= CHANCE else ""
    what = f"the linear floor ({floor.text(2, 100)})"
    if floor.standing() >= best.score.standing():
        return f"No method beats {what}{useless}."
    lead = 100 * (best.score.mean - floor.mean)
    if best.score.near(floor) is not False:
        return f"The seeds cannot tell {best.who} from {what}{useless}."
    if lead <= 0:
        return f"{best.who} is not above {what}, more of whose seeds diverged{useless}."
    return f"{best.who} is {lead:.2f} above {what}{useless}."


def ties(best: Entry, others: Sequence[Entry]) -> str:
    """Say whose scores the seeds cannot tell from the best one."""
    if best.score.std is None or not others:
        return ""
    near = [entry.who for entry in others if best.score.near(entry.score) is not False]
    if not near:
        return f"{best.who} is ahead of all others: no 95 % interval of a difference reaches 0."
    return f"The seeds cannot tell {best.who} from {listed(near, 'or')}."


def useless(task: str, metric: str, day: str, model: str, best: float, constant: float) -> str:
    """Say that no method predicts a task better than a constant does."""
    return (
        f"On {model}, no method predicts {task} on {day} better than a constant does "
        f"(best {metric} {best:.4g}, constant {constant:.4g}): nothing was learnt of it, and its scores "
        "compare nothing."
    )


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
    said = (
        f"{grid} would have put {winner.who} at {winner.setting} first on {day}, with {winner.score.text(2, 100)}; "
        f"the wider search puts {chosen.who} at {chosen.setting} first, with {chosen.score.text(2, 100)}"
    )
    return (
        f"{said}; the seeds cannot tell the two apart." if chosen.score.near(winner.score) is not False else f"{said}."
    )


def edges(names: Sequence[str]) -> str:
    """Say whose search ended at the edge of what was tried."""
    if not names:
        return ""
    what = "best setting of" if len(names) == 1 else "best settings of"
    verb = "lies" if len(names) == 1 else "lie"
    return f"The {what} {listed(names)} {verb} at the edge of what was tried: a wider search may still find better."
