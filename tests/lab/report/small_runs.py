"""Real runs, as small as they can be and still have all of a report in them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from surefoot import Monitor, Recovery, Supervisor
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
    """Train a model of one's own in a loop of one's own, watched by a monitor and a recovery, with one bad batch."""
    model, optimizer = _parts()
    monitor = Monitor(model, optimizer, tasks={"like": "binary"}, folder=folder, every=20)
    recovery = Recovery(model, optimizer, folder, monitor=monitor, every=20)
    for x, y in _batches():
        loss, logits = _step(model, optimizer, x, y)
        recovery.step(monitor.step({"like": loss}, outputs={"like": logits}, labels={"like": y}))
    monitor.close()
    return folder


def supervised(folder: Path) -> Path:
    """Train the same in the care of one object."""
    model, optimizer = _parts()
    with Supervisor(model, optimizer, folder, tasks={"like": "binary"}) as supervisor:
        for x, y in _batches():
            loss, logits = _step(model, optimizer, x, y)
            supervisor.step({"like": loss}, outputs={"like": logits}, labels={"like": y}, batch=(x, y))
    return folder


def _parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    return model, torch.optim.Adagrad(model.parameters(), lr=0.1)


def _batches() -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.randn(2048, 8)
    y = (x.sum(1) + torch.randn(2048) > 0).float()
    for step in range(BAD_STEP + 80):
        rows = torch.randint(2048, (64,))
        yield x[rows] * (1e4 if step == BAD_STEP else 1), y[rows]


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x).squeeze(1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, logits
