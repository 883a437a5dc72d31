# pyright: reportMissingImports=false
"""Every client in one table: what a user adds, what holds at a high rate, what is told of faults and left by them.

Run ``make test-clients`` once, which installs the clients; then ``.venv/bin/python benchmarks/clients.py``. It prints
the table and keeps it in ``benchmarks/results/clients.txt``. About fifteen minutes on a core. With names of clients as
arguments only these are run, and the other lines stay.
"""

import logging
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.simplefilter("ignore")  # the clients' own
logging.disable(logging.WARNING)

import torch  # noqa: E402

from clients.bed import FAULTS, Client, Kind, Outcome, Use, lines, named, run, run_again  # noqa: E402
from clients.every import CLIENTS  # noqa: E402

SEEDS = (0, 1, 2)
POINT = 0.01
KEPT = Path(__file__).parent / "results" / "clients.txt"


class Row(NamedTuple):
    """One client's line."""

    client: str
    lines: str  # to clip; to have everything
    sane: str  # stock, clipped: the mean AUC
    high: str  # stock, clipped: the best of stock, the worst of clipped
    named: str
    early: str  # alarms before the fault, or of the unharmed twins
    within: str
    worst: str  # by kind of fault
    replayed: str
    overhead: str  # clipping, everything


HEAD = Row(
    "client",
    "lines added:|clip/all",
    "AUC, sane rate:|stock/clipped",
    "AUC, high rate:|stock/clipped",
    "named",
    "false|alarms",
    "within|1 point",
    "worst, points:|nan/feature/rate",
    "replayed",
    "time to stock:|clip/all",
)


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="surefoot-client-"))


def row_of(client: Client) -> Row:
    runs: dict[tuple[Use, int], Outcome] = {}
    run(client, use=Use.ALL, rate=client.sane, folder=folder(), steps=20)  # kernels are compiled, modules imported
    for seed in SEEDS:  # interleaved
        for use in Use:
            runs[use, seed] = run(client, use=use, rate=client.sane, folder=folder(), seed=seed)
    high = {use: [run(client, use=use, rate=client.high, seed=seed).auc for seed in SEEDS] for use in list(Use)[:2]}
    twin, told, survived, equal, early = runs[Use.ALL, 0], 0, 0, 0, 0
    early = sum(len(runs[Use.ALL, seed].alarms) for seed in SEEDS)
    worst = dict.fromkeys(Kind, 0.0)
    capsules = 0
    for fault in FAULTS:
        outcome = run(client, use=Use.ALL, rate=client.sane, fault=fault, folder=folder())
        told += named(outcome, fault) is not None
        early += sum(alarm.step < fault.step for alarm in outcome.alarms)
        difference = outcome.auc - twin.auc
        survived += difference > -POINT and not outcome.stopped
        worst[fault.kind] = min(worst[fault.kind], difference)
        print(f"  {client.name}: {fault.kind} at {fault.step}: {100 * difference:+.2f}", file=sys.stderr, flush=True)
        for path in outcome.capsules:
            assert outcome.data is not None
            capsules += 1
            again = run_again(client, path, rate=client.sane, fault=fault, data=outcome.data)
            equal += again.difference is None
    sane = [statistics.mean(runs[use, seed].auc for seed in SEEDS) for use in list(Use)[:2]]
    ratios = [
        statistics.median(runs[use, seed].seconds / runs[Use.NOTHING, seed].seconds for seed in SEEDS)
        for use in (Use.CLIP, Use.ALL)
    ]
    clip = len(client.make(client.sane).optimizers)
    clip += client.name.endswith(("combined", "in backward"))  # each of two; and those at the tables
    return Row(
        client.name,
        f"{clip}/{lines(client)}",
        "/".join(f"{value:.3f}" for value in sane),
        f"{max(high[Use.NOTHING]):.3f}/{min(high[Use.CLIP]):.3f}",
        f"{told}/{len(FAULTS)}",
        str(early),
        f"{survived}/{len(FAULTS)}",
        "/".join(f"{100 * value:.2f}" for value in worst.values()),
        f"{equal}/{capsules}",
        "/".join(f"{ratio:.2f}" for ratio in ratios),
    )


def table(rows: list[Row]) -> str:
    upper, lower = zip(*(cell.partition("|")[::2] for cell in HEAD), strict=True)
    every = [upper, lower, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in every)


def kept() -> dict[str, Row]:
    """Return the lines of the table that was kept last."""
    cells = [line.split("  ") for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    rows = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    names = {client.name for client in CLIENTS}
    return {row[0]: Row(*row) for row in rows if row and row[0] in names}


def main() -> None:
    torch.set_num_threads(1)
    chosen = [client for client in CLIENTS if not sys.argv[1:] or client.name in sys.argv[1:]]
    fresh = {client.name: row_of(client) for client in chosen}
    known = fresh if len(chosen) == len(CLIENTS) else kept() | fresh
    rows = [known[client.name] for client in CLIENTS if client.name in known]
    text = f"""Nine clients, 230 steps of 128 rows each, torch {torch.__version__}, one thread.
Rates: three seeds, at the high rate the best of the stock optimizer and the worst of the clipped one. Faults: nine, on
seed 0: NaN in a row, a feature of a batch times 1e4, the rate times 50 for five steps; at the steps 10, 40 and 150.
named: an alarm tells the step, and the task or the layer. False alarms: before the fault, or of three unharmed twins.
within: the mean AUC is within a point of the unharmed twin's. Time: medians of three interleaved runs.

{table(rows)}
"""
    print(text)
    KEPT.write_text(text)


if __name__ == "__main__":
    main()
