"""The tables of benchmarks/detection.py."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from detection_labels import Limits
from detection_score import QUIET, SHIFTS, Case, Score, Watched, clopper_pearson, poisson, score

_LABELS = ("full", "micro", "unclear", "healthy")
_LIMITS = {
    "as reported (3 points or 25 %)": Limits(),
    "2 points or 15 %": Limits(auc=0.02, share=0.15),
    "5 points or 40 %": Limits(auc=0.05, share=0.4),
    "full from a third lost": Limits(full=1 / 3),
    "full from three quarters lost": Limits(full=0.75),
    "unclear counts as healthy": Limits(slight=1.0),
}
_GROUPS: dict[str, Callable[[Case], bool]] = {
    "quiet (ids, features, embeddings, accumulators)": lambda case: case.fault in QUIET,
    "binary tasks only": lambda case: case.binary_only,
    "onset before step 100": lambda case: (case.outcome.onset or case.first) < 100,
    "onset from step 100 on": lambda case: (case.outcome.onset or case.first) >= 100,
    "covariate shift (drift, shifted days)": lambda case: case.fault in SHIFTS,
    "all but covariate shift": lambda case: case.fault not in SHIFTS,
    "harmless rate changes": lambda case: case.harmless and not case.twin,
    "rate spikes, steps, ramps": lambda case: case.fault.startswith("rate_"),
}


_FRESH: dict[str, Callable[[Case], bool]] = {
    "a second fault, 8 to 40 steps after a drift whose alarm may be open": lambda case: case.drift,
    "one positive in a hundred rows": lambda case: case.rare,
    "binary tasks only": lambda case: not case.drift and not case.rare,
}


def report_fresh(watched: list[Watched], ours: list[str]) -> Iterator[str]:
    """Yield the lines of the report on the fresh set-ups, as ``report`` does on the reported half."""
    cases = [each.case() for each in watched]
    yield "Fresh set-ups, other seeds, that nothing was ever chosen by."
    yield from _summary(cases)
    for title, holds in _FRESH.items():
        yield ""
        yield from _table([case for case in cases if holds(case)], f"Fresh: {title}")
    yield ""
    yield from _by_fault(cases, ours[0])


def report(watched: list[Watched], ours: list[str]) -> Iterator[str]:
    """Yield the lines of the report on the reported half.

    Args:
        watched: its runs.
        ours: names of our detectors; the groups are shown for them and for the rivals alike.
    """
    cases = [each.case() for each in watched]
    yield from _summary(cases)
    yield ""
    yield from _table(cases, "All reported runs")
    for title, holds in _GROUPS.items():
        group = [case for case in cases if holds(case)]
        yield ""
        yield from _table(group, f"Apart: {title}")
    yield ""
    yield from _by_fault(cases, ours[0])
    yield ""
    yield from _verdicts(cases, ours[0])
    yield ""
    yield from _borders(watched, ours[0])


def _summary(cases: list[Case]) -> Iterator[str]:
    faulty = [case for case in cases if not case.twin]
    late = sum((case.outcome.onset or case.first) > 200 for case in faulty)
    unharmed = len(cases) - len(faulty)
    yield f"{len(cases)} runs: {unharmed} unharmed, {len(faulty)} with a fault, {late} of them after step 200."
    counts = Counter(case.outcome.label for case in faulty)
    yield "Faults by outcome: " + ", ".join(f"{counts[label]} {label}" for label in _LABELS) + "."


def _table(cases: list[Case], title: str) -> Iterator[str]:
    first = score(cases, next(iter(cases[0].alarms))) if cases else None
    if first is None:
        return
    yield (
        f"{title}: {first.full} full ({first.lost} of which lost a point of AUC), {first.micro} micro, "
        f"{first.healthy} healthy steps"
    )
    heads = f"{'full found':>28s} {'micro found':>13s} {'false / 10k':>22s} {'open / 10k':>10s} {'delay':>10s}"
    yield f"  {'':48s} {heads} {'early: seen':>12s} {'delivered':>12s}"
    for name in cases[0].alarms:
        yield f"  {name:48s} " + _row(score(cases, name))


def _row(s: Score) -> str:
    if s.full:
        low, high = clopper_pearson(s.full_found, s.full)
        full = f"{s.full_found}/{s.full} = {s.full_found / s.full:.3f} ({low:.3f}-{high:.3f})"
    else:
        full = "-"
    micro = f"{s.micro_found}/{s.micro} = {s.micro_found / s.micro:.2f}" if s.micro else "-"
    false = "-"
    if s.healthy:
        low, high = poisson(s.false)
        false = f"{s.false_rate:.1f} ({1e4 * low / s.healthy:.1f}-{1e4 * high / s.healthy:.1f}) [{s.false}]"
    opened = f"{1e4 * s.open / s.healthy:.0f}" if s.healthy else "-"
    early = f"{s.early}/{s.lost} = {s.early / s.lost:.2f}" if s.lost else "-"
    delivered = f"{s.delivered}/{s.lost} = {s.delivered / s.lost:.2f}" if s.lost else "-"
    delay = f"{s.delay[0]:g}, {s.delay[1]:.0f}" if s.delays else "-"
    return f"{full:>28s} {micro:>13s} {false:>22s} {opened:>10s} {delay:>10s} {early:>12s} {delivered:>12s}"


def _by_fault(cases: list[Case], ours: str) -> Iterator[str]:
    yield f"By fault, {ours}: found / all"
    for fault in sorted({case.fault for case in cases if not case.twin}):
        group = [case for case in cases if case.fault == fault]
        s, counts = score(group, ours), Counter(case.outcome.label for case in group)
        yield (
            f"  {fault:20s} full {s.full_found:3d}/{s.full:<3d} micro {s.micro_found:3d}/{s.micro:<3d} "
            f"unclear {counts['unclear']:2d}, alarmed {_alarmed(group, ours):2d}   healthy {counts['healthy']:2d}, "
            f"{s.false} false alarms in {s.healthy} steps"
        )


def _alarmed(cases: Iterable[Case], ours: str) -> int:
    """Return how many unclear runs have an alarm from the fault on."""
    return sum(
        case.outcome.label == "unclear" and any(step >= case.first for step in case.alarms[ours]) for case in cases
    )


def _verdicts(cases: list[Case], ours: str) -> Iterator[str]:
    yield f"The verdict at the end, {ours}: rows are outcomes, columns its verdicts"
    counts = Counter((case.outcome.label, case.verdict) for case in cases if not case.twin)
    yield f"  {'':10s} {'full':>6s} {'micro':>6s} {'healthy':>8s}"
    for label in _LABELS:
        row = [counts[label, verdict] for verdict in ("full", "micro", "healthy")]
        yield f"  {label:10s} {row[0]:6d} {row[1]:6d} {row[2]:8d}"


def _borders(watched: list[Watched], ours: str) -> Iterator[str]:
    yield f"How labels move with what counts as one, and what that does to {ours}"
    for title, limits in _LIMITS.items():
        cases = [each.case(limits) for each in watched]
        counts = Counter(case.outcome.label for case in cases if not case.twin)
        s = score(cases, ours)
        yield (
            f"  {title:32s} "
            + ", ".join(f"{label} {counts[label]:3d}" for label in _LABELS)
            + f"   found: full {s.full_found}/{s.full}, micro {s.micro_found}/{s.micro}; "
            + f"{s.false} false alarms in {s.healthy} steps"
        )
