# pyright: reportMissingImports=false
"""How long steps should stay small after an early signal: what it costs in other people's trainers.

Run ``make test-clients`` once, which installs the clients; then ``.venv/bin/python benchmarks/slow_stage.py``. It
trains five clients of ``tests/clients`` with the faults that lead to smaller steps (a feature of a batch times 1e4, the
rate times 50 for five steps; at the steps 10, 40 and 150 of 230), on three seeds, with ``Slow(steps=20)``,
``Slow(steps=5)`` and no slow stage, and prints how far from the unharmed twin the mean AUC ends. About ten minutes on a
core.
"""

import logging
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.simplefilter("ignore")  # the clients' own
logging.disable(logging.WARNING)

import torch  # noqa: E402

import surefoot  # noqa: E402
from clients.bed import FAULTS, Client, Kind, Use, run  # noqa: E402
from clients.every import CLIENTS  # noqa: E402

CHOSEN = (
    "deepctr-torch MMOE",
    "torch-rechub MMOE",
    "Lightning, automatic",
    "Hugging Face Trainer",
    "TorchRec, combined",
)
SEEDS = (0, 1, 2)
STEPS = (20, 5, None)
KEPT = Path(__file__).parent / "results" / "slow_stage.txt"


def line_of(client: Client, steps: int | None) -> str:
    policy = surefoot.RecoveryPolicy(slow=None if steps is None else surefoot.Slow(steps=steps))
    lost: dict[Kind, list[float]] = {Kind.FEATURE: [], Kind.RATE: []}
    for seed in SEEDS:
        twin = run(client, use=Use.ALL, rate=client.sane, folder=Path(tempfile.mkdtemp()), seed=seed, policy=policy)
        for fault in FAULTS:
            if fault.kind in lost:
                folder = Path(tempfile.mkdtemp())
                harmed = run(
                    client, use=Use.ALL, rate=client.sane, fault=fault, folder=folder, seed=seed, policy=policy
                )
                lost[fault.kind].append(100 * (harmed.auc - twin.auc))
    cells = [f"{statistics.mean(each):+.2f} {min(each):+.2f}" for each in lost.values()]
    return f"{client.name:<22}  {'no stage' if steps is None else steps!s:>8}  {cells[0]:>13}  {cells[1]:>13}"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        f"AUC points beside the unharmed twin, mean and worst of 9 runs (3 steps, 3 seeds); torch {torch.__version__}",
        f"{'client':<22}  {'slow for':>8}  {'feature x 1e4':>13}  {'rate x 50':>13}",
    ]
    for client in [each for each in CLIENTS if each.name in CHOSEN]:
        for steps in STEPS:
            lines.append(line_of(client, steps))
            print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    KEPT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
