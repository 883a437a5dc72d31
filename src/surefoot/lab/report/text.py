"""The report's sentences, each made from numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.lab.outcomes import Fall, Score, difference


@dataclass(frozen=True)
class Falling:
    """The rates at which a method falls off, and its name as the subject of a sentence."""

    who: str
    fall: Fall

    def text(self, points: float, *, only: bool = False) -> str:
        """Return the clause.

        Args:
            points: of AUC; a rate that loses more counts as fallen off.
            only: whether to write "only at", because the method compared with falls off at a lower rate.

        >>> from surefoot.lab.outcomes import ScoredRun, fall_of
        >>> Falling("Clippy", fall_of([ScoredRun(1, False, 0.9), ScoredRun(32, False, 0.9)], 0.02)).text(2)
        'Clippy trains well at every rate up to 32x (none of 2 runs diverged)'
        >>> runs = [ScoredRun(1, False, 0.9), ScoredRun(2, True, 0.5), ScoredRun(2, False, 0.9)]
        >>> Falling("GC", fall_of(runs, 0.02)).text(2)
        'GC diverges at 2x (1 of 2 runs)'
        """
        at = self.fall.at
        if at is None:
            tried = self.fall.runs(fallen=False)[1]
            runs = f"none of {tried} runs diverged" if tried > 1 else "its only run did not diverge"
            return f"{self.who} trains well at every rate up to {self.fall.top:g}x ({runs})"
        diverged, tried = self.fall.runs(fallen=True)
        fallen = [rate.multiple for rate in self.fall.rates if rate.fell]
        if self.fall.spared:
            where = f"at {multiples(fallen)}"
        elif len(fallen) > 1:
            where = f"{'only ' if only else ''}at {at.multiple:g}x and above"
        else:
            where = f"{'only ' if only else ''}at {at.multiple:g}x"
        said = "diverges" if at.diverged else f"loses more than {points:g} points of AUC"
        counted = f" ({diverged} of {tried} run{'s' if tried > 1 else ''}{'' if at.diverged else ' diverged'})"
        spared = f", but not at {multiples(self.fall.spared)}" if self.fall.spared else ""
        return f"{self.who} {said} {where}{counted if diverged else ''}{spared}"


CHANCE = 0.5  # the AUC of a constant prediction


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
    """Say at which rates the methods fall off on a model; the others are compared with the first."""
    if not falls:
        return ""
    first, *others = falls
    clauses = [first.text(points)]
    for falling in others:
        one, other = first.fall.at, falling.fall.at
        clauses.append(falling.text(points, only=bool(one and other and other.multiple > one.multiple)))
    return sentence(f"on {model}, {'; '.join(clauses)}")


def rest(falls: Sequence[Falling], points: float) -> str:
    """Say at which rates all other methods fall off."""
    return sentence("; ".join(falling.text(points) for falling in falls)) if falls else ""


def onset(falling: Falling, onsets: dict[float, list[int]], steps: int) -> str:
    """Say at which steps a method diverged: in its first steps (10, or 5 % of all if that is more) or later.

    Args:
        falling: the method.
        onsets: by multiple of the base rate, the step at which each diverged run began to diverge.
        steps: number of steps of a run that does not diverge.
    """
    if falling.fall.at is None:
        return ""
    if not onsets:
        return sentence(
            f"{falling.who} falls off without diverging: its loss stays below that of a constant prediction"
        )
    first = max(10, 0.05 * steps)
    early = {rate: early for rate, at in onsets.items() if (early := [step for step in at if step < first])}
    late = {rate: late for rate, at in onsets.items() if (late := [step for step in at if step >= first])}
    parts = [("in its first steps", early), ("after a healthy start", late)]
    return sentence(f"{falling.who} diverges " + ", ".join(_where(how, at, steps) for how, at in parts if at))


def _where(how: str, onsets: dict[float, list[int]], steps: int) -> str:
    found = sorted(step for at in onsets.values() for step in at)
    at = f"at step {found[0]} of {steps}" if found[0] == found[-1] else f"at steps {found[0]} to {found[-1]} of {steps}"
    return f"{how} ({at}) at {multiples(sorted(onsets))}"


def cure(who: str, steps: int, at: float, there: tuple[int, int], *, holds: bool, fall: Fall) -> str:
    """Say whether a warm-up helps at the multiple ``at``, where the optimizer without a warm-up fell off.

    Args:
        who: the method with the warm-up.
        steps: length of the warm-up.
        at: a multiple of the base rate.
        there: number of diverged runs and of all runs with the warm-up at that multiple.
        holds: whether the method with the warm-up did not fall off there.
        fall: the rates of the method with the warm-up.
    """
    subject = f"A warm-up of {steps} steps ({who})"
    runs = f"{there[0] or 'none'} of {there[1]} run{'s' if there[1] > 1 else ''} diverged"
    if not holds:
        return f"{subject} does not prevent this at {at:g}x ({runs})."
    above = fall.at
    after = f"and up to {fall.top:g}x" if above is None else f"but falls off at {above.multiple:g}x"
    return f"{subject} prevents this at {at:g}x ({runs}) {after}."


def quality(day: str, entries: Sequence[Entry], reference: str | None) -> str:
    """Say which method is best on a day and by how much: fewest diverged seeds first, then the highest mean.

    Args:
        day: day N.
        entries: the methods with a seed that did not diverge.
        reference: the method to compare the best one with; by default, or if it has no entry, the second best.
    """
    if not entries:
        return f"No method has a score on {day}: all final runs diverged."
    best, *others = sorted(entries, key=lambda entry: entry.score.standing(), reverse=True)
    said = f"Best on {day}: {best.who} at {best.setting}, AUC {best.score.text(2, 100)}"
    if not others:
        return f"{said}."
    rival = next((entry for entry in others if entry.who == reference), others[0])
    title = "" if rival.who == reference else "next, "
    return f"{said}; {title}{rival.who} at {rival.setting}: {rival.score.text(2, 100)}, {_apart(best, rival)}."


def _apart(best: Entry, rival: Entry) -> str:
    """Say whether the difference of two methods is significant over the seeds."""
    if rival.score.standing()[0] < best.score.standing()[0]:
        return "with more diverged seeds"
    lead = difference(best.score, rival.score)
    if lead.low is None or lead.high is None:
        return f"{100 * lead.mean:.2f} lower, with too few seeds to know whether that is significant"
    interval = f"95 % interval {signed(100 * lead.low)} to {signed(100 * lead.high)} over {lead.seeds} seeds"
    if lead.low <= 0 <= lead.high:
        return f"which is not significantly lower (difference {signed(100 * lead.mean)}, {interval})"
    return f"{100 * lead.mean:.2f} lower ({interval})"


def signed(value: float) -> str:
    """Return a difference with its sign.

    >>> signed(0.3), signed(-0.001)
    ('0.30', '0.00')
    """
    shown = f"{value:.2f}"
    return "0.00" if float(shown) == 0 else shown.replace("-", "\N{MINUS SIGN}")


def against_floor(best: Entry, floor: Score) -> str:
    """Say whether the best method beats the linear floor."""
    useless = "; the floor itself is no better than a constant prediction" if floor.mean <= CHANCE else ""
    what = f"the linear floor ({floor.text(2, 100)})"
    if floor.standing() >= best.score.standing():
        return f"No method beats {what}{useless}."
    lead = 100 * (best.score.mean - floor.mean)
    if best.score.near(floor) is not False:
        return f"{best.who} is not significantly better than {what}{useless}."
    if lead <= 0:
        return f"{best.who} has no higher AUC than {what}, but fewer diverged seeds{useless}."
    return f"{best.who} is {lead:.2f} points of AUC above {what}{useless}."


def ties(best: Entry, others: Sequence[Entry]) -> str:
    """Say which methods are not significantly worse than the best one."""
    if best.score.std is None or not others:
        return ""
    near = [entry.who for entry in others if best.score.near(entry.score) is not False]
    if not near:
        return f"{best.who} is significantly better than all others: no 95 % interval of a difference includes 0."
    return f"{best.who} is not significantly better than {listed(near, 'or')}."


def useless(task: str, metric: str, day: str, model: str, best: float, constant: float) -> str:
    """Say that no method predicts a task better than a constant prediction does."""
    return (
        f"On {model}, no method predicts {task} on {day} better than a constant does "
        f"(best {metric} {best:.4g}, constant {constant:.4g}): no model learnt anything about it, and its scores "
        "say nothing about the methods."
    )


def lost(names: Sequence[str], day: str) -> str:
    """Say which methods have no score on day N, because all their final runs diverged."""
    return f"All final runs of {listed(names)} diverged: no score on {day}." if names else ""


def paper_grid(day: str, rates: Sequence[float], winner: Entry | None, chosen: Entry) -> str:
    """Say which setting is best on day N - 1 if only the paper's own grid is tried."""
    grid = f"The paper's own grid alone ({listed([f'{rate:g}x' for rate in rates])})"
    if winner is None:
        return f"{grid} has no setting that does not diverge."
    if (winner.who, winner.setting) == (chosen.who, chosen.setting):
        return f"{grid} has the same best setting on {day}: {chosen.who} at {chosen.setting}."
    said = (
        f"{grid} has another best setting on {day}: {winner.who} at {winner.setting}, {winner.score.text(2, 100)}; "
        f"that of the wider search is {chosen.who} at {chosen.setting}, {chosen.score.text(2, 100)}"
    )
    return f"{said}; the difference is not significant." if chosen.score.near(winner.score) is not False else f"{said}."


def edges(names: Sequence[str]) -> str:
    """Say for which methods the best setting is at the edge of the search."""
    if not names:
        return ""
    what = "best setting of" if len(names) == 1 else "best settings of"
    verb = "lies" if len(names) == 1 else "lie"
    return f"The {what} {listed(names)} {verb} at the edge of the search: a wider search may find a better one."
