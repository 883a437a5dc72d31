"""What the parts of a roll-back buy: the look before it, the hold after it, the acceptance of changed data.

    python benchmarks/recovery_parts.py [--seeds 2] [--faults drift_day ...] [--parts look ...] --runs FILE
    python benchmarks/recovery_parts.py --table FILE [FILE ...] [--out FILE]

The runs are those of `benchmarks/recovery.py`, with the seeds for changing things. Each is run with the whole policy,
and again without each part whose events are in its journal; without the others it would be the same run. A line of
``--runs`` is one run, and says how many AUC points it ended below its unharmed twin; a run that ends just as under the
whole policy has no line. ``--table`` compares pairs of the same data, model, rule, seed and fault. A run ends well
within half a point of its twin, if it was not stopped; "lost" are pairs that end well only with the part, "won" those
only without, with the two-sided p of a fair coin. Intervals are Clopper-Pearson, 95 %.
"""

import argparse
import math
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import recovery as ranking
import torch

from surefoot.recover.policy import Action, Alarm, RecoveryPolicy, RollBack, Slow
from surefoot.recover.recovery import Recovery


class WithoutAcceptance(Recovery):
    """Goes on after the longest hold as after any other, with the detector as it is."""

    def _start_detector_anew(self) -> None:
        if self._state.excused:
            super()._start_detector_anew()

    def _decide(self, alarm: Alarm | None) -> Action:
        action = super()._decide(alarm)
        self._state.accepted = -1
        return action


class WithoutPreference(Recovery):
    """Rolls back past accepted data without slowing down first."""

    def _go_back(self, how: RollBack, reason: str, *, at_once: bool = False) -> Action:
        path = self.checkpoints.latest_healthy_of_all(self._state.onset, pending=at_once)
        return Action.NONE if path is None else self._roll_back(how, path, reason, at_once=at_once)


class WithoutNewest(Recovery):
    """Goes back to a healthy checkpoint always, never to the newest one."""

    def _go_back(self, how: RollBack, reason: str, *, at_once: bool = False) -> Action:
        return super()._go_back(how, reason)


class WithoutLowering(Recovery):
    """Lowers no rate while it holds."""

    def _lower(self, slow: Slow, reason: str) -> None:
        if not self.holding:
            super()._lower(slow, reason)


# how it is left out, and the events, one after another, that say that it may have done something
PARTS: dict[str, tuple[type[Recovery], RollBack, str]] = {
    "look": (Recovery, RollBack(look=0), "looking"),
    "hold": (Recovery, RollBack(hold=0), "rolled_back"),
    "acceptance": (WithoutAcceptance, RollBack(), "accepted"),
    "all three": (Recovery, RollBack(look=0, hold=0), "looking|rolled_back"),
    "preference": (WithoutPreference, RollBack(), "accepted"),
    "newest": (WithoutNewest, RollBack(), "(^|released |accepted |restored )alarm rolled_back"),
    "lowering": (WithoutLowering, RollBack(), "rolled_back (alarm )*slowed"),
}
POINTS = 0.5  # of AUC below the twin, at the most, where a run ends well
LINE = re.compile(r"(?:whole|  without ([a-z ]+)) ([a-z_]+) [a-z]+ [A-Za-z]+ \d+: lost ([-+.\d]+) ?(.*)")


def leave_out(part: str | None) -> None:
    kind, how, _ = (Recovery, RollBack(), ()) if part is None else PARTS[part]
    ranking.Recovery = kind
    ranking.POLICIES["on"] = RecoveryPolicy(roll_back=how)


def acted(part: str, outcome: ranking.Outcome) -> bool:
    names = " ".join(event.partition("@")[0] for event in outcome.events)
    return re.search(PARTS[part][2], names) is not None


def chance(lost: int, won: int) -> float:
    """Return the two-sided p of the sign test."""
    total = lost + won
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(min(lost, won) + 1)) / 2**total)


class Pair(NamedTuple):
    """One case, with a part and without it: AUC points lost, and whether the run was stopped."""

    fault: str
    differ: bool
    lost: tuple[float, float]
    stopped: tuple[bool, bool]

    @property
    def well(self) -> tuple[bool, bool]:
        a, b = (lost <= POINTS and not stopped for lost, stopped in zip(self.lost, self.stopped, strict=True))
        return a, b


def run(faults: Sequence[str], parts: Sequence[str], seeds: range) -> Iterator[str]:
    """Yield the parts that are compared, then a line for each run."""
    yield "parts: " + ", ".join(parts)
    twins: dict[ranking.Case, ranking.Outcome] = {}
    for case in ranking.cases(faults, ["on"], seeds):
        leave_out(None)
        whole = ranking.run(case)
        if case.fault is None:
            twins[case] = whole
            continue
        for part in (None, *parts):
            outcome = whole
            if part is not None and acted(part, whole):
                leave_out(part)
                outcome = ranking.run(case)
            if part is None or outcome != whole:
                lost = 100 * (twins[case.twin].auc - outcome.auc)
                name = "whole" if part is None else f"  without {part}"
                yield (
                    f"{name} {case.fault} {case.data} {case.rule} {case.seed}: lost {lost:+.2f} "
                    f"{' '.join(outcome.events)}"
                )


def pairs_of(lines: Iterable[str]) -> dict[str, list[Pair]]:
    """Return the pairs by part, as ``run`` has told them."""
    found: dict[str, list[Pair]] = {}
    parts: list[str] = []
    for line in lines:
        if line.startswith("parts: "):
            parts = line.removeprefix("parts: ").strip().split(", ")
        elif match := LINE.match(line):
            part, fault, lost, events = match.groups()
            stopped = "stopped@" in events
            if part is None:
                same = Pair(fault, False, (float(lost),) * 2, (stopped,) * 2)
                for each in parts:
                    found.setdefault(each, []).append(same)
            elif part in parts:
                whole = found[part][-1]
                found[part][-1] = Pair(fault, True, (whole.lost[0], float(lost)), (whole.stopped[0], stopped))
    return found


def table(pairs: dict[str, list[Pair]]) -> Iterator[str]:
    """Yield a line for each part and kind of fault."""
    groups = {
        "survivable": [*ranking.SURVIVABLE],
        "drift": ["drift_day"],
        "rate for good": ["rate_step", "rate_ramp"],
    }
    for (part, several), (group, faults) in product(pairs.items(), groups.items()):
        some = [pair for pair in several if pair.fault in faults]
        if not some:
            continue
        with_, without = (sum(pair.well[i] for pair in some) for i in (0, 1))
        lost, won = (sum(pair.well == (i == 0, i == 1) for pair in some) for i in (0, 1))
        more = [pair.lost[1] - pair.lost[0] for pair in some if pair.differ]
        low, high = ranking.interval(without, len(some))
        line = f"{part:15s} {group:13s} well with it {with_:2d}, without {without:2d} / {len(some)} "
        line += f"({low:.2f} to {high:.2f}); "
        line += f"lost {lost}, won {won}, p {chance(lost, won):.2g}; stopped {sum(p.stopped[0] for p in some)}, "
        line += f"{sum(p.stopped[1] for p in some)}; {len(more)} runs differ"
        if more:
            worse = sum(each > 0 for each in more)
            line += f", without it {statistics.fmean(more):+.2f} points lost on average, {worse} worse"
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*ranking.SURVIVABLE, *ranking.FOR_GOOD]
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--faults", nargs="+", default=known, choices=known)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--runs", type=Path, help="write a line for each run there")
    parser.add_argument("--table", type=Path, nargs="+", help="run nothing; compare what is written there")
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first = ranking.LOOKING_SEEDS
    if options.table:
        lines = [line for path in options.table for line in path.read_text().splitlines()]
    else:
        lines = []
        for line in run(options.faults, options.parts, range(first, first + options.seeds)):
            print(line, flush=True)
            lines.append(line)
        if options.runs:
            options.runs.write_text("\n".join(lines) + "\n")
    head = f"torch {torch.__version__}, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    shown = [head, *table(pairs_of(lines))]
    print("\n".join(shown))
    if options.out:
        options.out.write_text("\n".join([*shown, "", "Each run:", *lines]) + "\n")


if __name__ == "__main__":
    main()
