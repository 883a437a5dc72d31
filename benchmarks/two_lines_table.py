"""The tables of ``two_lines.py``: each run less the same seed's run of torch's Adagrad at its best rate."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

REFERENCE = ("naive", 0.0)
CLOSE = 0.3  # points of AUC
T_95 = {3: 4.30, 4: 3.18, 5: 2.78, 16: 2.13}  # of Student's t, by the number of seeds

Runs = dict[float, dict[int, float]]  # by rate and seed, in points of AUC (of 100)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return all tables as text."""
    found: dict[str, dict[tuple[str, float | None], Runs]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows:
        found[row["setup"]][row["rule"], row["start"]][row["rate"]][row["seed"]] = 100 * row["auc"]
    lines = [
        "AUC in points, less that of torch's Adagrad (no clipping, accumulator from 0) at its best rate, same seeds:",
        "the mean, with its 95 % interval where there are 3 seeds or more; how many in brackets where it is not 5.",
        f"'within': at how many rates the mean is no more than {CLOSE} points below. A rate is that of the dense",
        "layers, in deepctr-torch, unless 'tables apart', of all parameters; Adam has a tenth of it.",
    ]
    for setup, by_rule in found.items():
        lines += ["", *_of_setup(setup, by_rule)]
    return "\n".join([*_summary(found), "", *lines])


SHOWN = (
    ("naive from 0", "naive", 0.0),
    ("Clippy from 0.1", "Clippy", 0.1),
    ("Clippy from 1e-06", "Clippy", 1e-6),
    ("tables apart", "Clippy, tables apart", 1e-6),
    ("Adam/10", "Adam/10", None),
    ("Adam/10 + Clippy", "Adam/10 + Clippy", None),
)


def _summary(found: Mapping[str, dict[tuple[str, float | None], Runs]]) -> list[str]:
    """Return the lowest and the highest AUC, each the mean over the seeds, of all rates from 0.05 to 3.2."""
    lines = [
        "AUC, mean over the seeds: lowest to highest at rates from 0.05 to 3.2 (Adam: a tenth of three of them)",
        f"{'':31}{'best of naive':>16}" + "".join(f"{name:>20}" for name, _, _ in SHOWN),
    ]
    for setup, by_rule in found.items():
        reference = _complete(by_rule.get(REFERENCE, {}))
        line = f"{setup:31}{max(map(_mean, reference.values()), default=0.0):>16.2f}"
        for _, rule, start in SHOWN:
            means = [_mean(seeds) for rate, seeds in by_rule.get((rule, start), {}).items() if rate >= 0.05]
            line += f"{f'{min(means):.2f} to {max(means):.2f}' if means else '':>20}"
        lines.append(line)
    return lines


def _mean(seeds: Mapping[int, float]) -> float:
    return fmean(seeds.values())


def _complete(runs: Runs) -> Runs:
    """Return the rates that were run with all seeds."""
    most = max(map(len, runs.values()), default=0)
    return {rate: seeds for rate, seeds in runs.items() if len(seeds) == most}


def _of_setup(setup: str, by_rule: dict[tuple[str, float | None], Runs]) -> list[str]:
    reference = by_rule.get(REFERENCE)
    if not reference:
        return [f"{setup}: the reference has not been run"]
    complete = _complete(reference)
    best = max(complete, key=lambda rate: _mean(complete[rate]))
    edge = ", the lowest that was tried" if best == min(complete) else ""
    lines = [
        f"{setup}: the reference has {_mean(complete[best]):.2f} at rate {best:g}{edge} ({len(complete[best])} seeds)"
    ]
    rates = sorted({rate for runs in by_rule.values() for rate in runs if rate >= 0.05})
    lines.append(f"{'':37}{'within':>8}" + "".join(f"{rate:>18g}" for rate in rates))
    for (rule, start), runs in sorted(by_rule.items(), key=lambda item: _order(*item[0])):
        gaps = {rate: _gaps(runs[rate], complete[best]) for rate in rates if rate in runs}
        gaps = {rate: values for rate, values in gaps.items() if values}
        within = sum(fmean(values) >= -CLOSE for values in gaps.values())
        name = rule if start is None else f"{rule} from {start:g}"
        cells = "".join(f"{_cell(gaps.get(rate, [])):>18}" for rate in rates)
        lines.append(f"  {name:35}{f'{within} / {len(gaps)}':>8}{cells}")
    return lines


def _order(rule: str, start: float | None) -> tuple[bool, str, float]:
    return not rule.startswith(("Clippy", "naive")), rule, -1.0 if start is None else -start


def _gaps(runs: dict[int, float], reference: dict[int, float]) -> list[float]:
    return [runs[seed] - reference[seed] for seed in runs if seed in reference]


def _cell(gaps: list[float]) -> str:
    if not gaps:
        return ""
    text = f"{fmean(gaps):+.2f}"
    if len(gaps) in T_95:
        text += f" ±{T_95[len(gaps)] * stdev(gaps) / len(gaps) ** 0.5:.2f}"
    return text if len(gaps) == 5 else f"{text} ({len(gaps)})"


WHY = """\
Where Clippy loses, and why (two_lines.py --why). 'std': the normal deviation that hidden layers start from; 0.0001 is
deepctr-torch's own. 'steady': drift's log without the change of units. 'gap': AUC less that of torch's Adagrad at its
best rate, same seeds, with its interval; in deepctr-torch always from std 0.0001. 'trained on': AUC of the last 8,192
rows trained on. 'alike': the share of a hidden layer's squared weights along its first singular direction after
training, the mean over hidden layers; it is 1 where all units of a layer look at the same."""
PERIODS = {"days 11-13": slice(0, 3), "day 14": slice(3, 4), "days 15-16": slice(4, 6), "days 17-19": slice(6, 9)}


def why(rows: Sequence[dict[str, Any]]) -> str:
    """Return what isolates the cause where Clippy loses, as text."""
    lines = [WHY]
    for log in dict.fromkeys(row["setup"].partition(", ")[0] for row in rows):
        by_key: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if row["setup"].partition(", ")[0] == log:
                by_key[row["setup"], row["rule"], row["rate"]][row["seed"]] = row
        of_torch = [key for key in by_key if key[:2] == (log, REFERENCE[0])]
        best = by_key[max(of_torch, key=lambda key: _auc(by_key[key]))]
        drifts = "days" in next(iter(best.values()))
        start = "" if drifts else "std 0.0001"
        more = list(PERIODS) if drifts else ["trained on", "alike"]
        lines += ["", f"{log:31}{'rule':37}{'rate':>8}{'AUC':>8}{'gap':>18}" + "".join(f"{name:>12}" for name in more)]
        for (setup, rule, rate), seeds in by_key.items():
            gaps = _gaps(_points(seeds), _points(best))
            line = f"  {setup.partition(', ')[2] or start:29}{rule:37}{rate:>8g}{_auc(seeds):>8.2f}{_cell(gaps):>18}"
            lines.append(line + "".join(f"{number:>12.2f}" for number in _more(list(seeds.values()), drifts=drifts)))
    return "\n".join(lines)


def _points(seeds: Mapping[int, dict[str, Any]]) -> dict[int, float]:
    return {seed: 100 * row["auc"] for seed, row in seeds.items()}


def _auc(seeds: Mapping[int, dict[str, Any]]) -> float:
    return _mean(_points(seeds))


def _more(rows: Sequence[dict[str, Any]], *, drifts: bool) -> list[float]:
    if drifts:
        return [100 * fmean(fmean(row["days"][days]) for row in rows) for days in PERIODS.values()]
    finished = [row for row in rows if "alike" in row]  # deepctr-torch ends where outputs are NaN
    if not finished:
        return []
    return [100 * fmean(row["train_auc"] for row in finished), fmean(row["alike"] for row in finished)]
