"""Real runs, as small as they can be and still have all of a report in them."""

from pathlib import Path

import torch

from surefoot import Monitor, Recovery
from surefoot.lab.settings import parse
from surefoot.lab.study.config import RunConfig
from surefoot.lab.study.trial import run_trial

CONFIG = {
    "rate": 0.2,
    "seed": 1,
    "data": {"days": 5, "rows_per_day": 512},
    "model": {"hidden": [8], "cross_layers": 1},
    "training": {"batch_size": 64},
    "monitor": {},
    "recovery": {"every": 20},
}
KINDS = {
    "healthy": CONFIG | {"rule": {"name": "clippy"}},
    "diverged": CONFIG | {"rule": {"name": "naive"}, "rate": 6.4},
    "unwatched": {key: value for key, value in CONFIG.items() if key not in ("monitor", "recovery")},
}
BAD_STEP = 120  # of a loop of one's own


def run(kind: str, folder: Path) -> Path:
    """Train as configured into the folder; return it."""
    run_trial(parse(RunConfig, KINDS[kind], "the tests"), folder)
    return folder


def own_loop(folder: Path) -> Path:
    """Train a model of one's own in a loop of one's own, watched by the library alone, with one bad batch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    monitor = Monitor(model, optimizer, tasks={"like": "binary"}, folder=folder, every=20)
    recovery = Recovery(model, optimizer, folder, monitor=monitor, every=20)
    x = torch.randn(2048, 8)
    y = (x.sum(1) + torch.randn(2048) > 0).float()
    for step in range(BAD_STEP + 80):
        rows = torch.randint(2048, (64,))
        logits = model(x[rows] * (1e4 if step == BAD_STEP else 1)).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alarm = monitor.step({"like": loss}, outputs={"like": logits}, labels={"like": y[rows]})
        recovery.step(alarm)
    monitor.close()
    return folder
