"""A small ranking model on the synthetic log, its loop with a ring in it, and the same made anew for a replay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import surefoot
from surefoot.capsule import storage
from surefoot.capsule.replay import Training
from surefoot.capsule.ring import Ring
from surefoot.capsule.storage import Capsule
from surefoot.lab.data.schema import Batch, Log
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.models.layers import FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import Ranker, task_losses
from surefoot.lab.sources import synthetic
from surefoot.lab.training.loop import warm_up
from surefoot.optim.clip_updates import clip_updates
from surefoot.optim.embedding_tables import split_parameters

LOG = synthetic.make(days=4, rows_per_day=1024)
WINDOW = MovingWindow(LOG, 32, width=2)

MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]


class DroppedOut(nn.Module):
    """A bottom whose output is dropped at random."""

    def __init__(self, bottom: nn.Module) -> None:
        super().__init__()
        self.bottom, self.dropout = bottom, nn.Dropout(0.2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.dropout(seen) for seen in self.bottom(x)]


def adam(params: Sequence[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(params, lr=0.01)


def clipped_adam(params: Sequence[nn.Parameter]) -> Optimizer:
    optimizer = torch.optim.Adam(params, lr=0.1)
    clip_updates(optimizer, surefoot.Clippy(relative=0.05, absolute=1e-3))
    return optimizer


def clippy_adagrad(params: Sequence[nn.Parameter]) -> Optimizer:
    return surefoot.ClippyAdagrad.paper(params, lr=0.1)


def adagrad(params: Sequence[nn.Parameter]) -> Optimizer:
    return surefoot.Adagrad(params, lr=0.1, nonfinite="propagate")


def training(make: MakeOptimizer = adagrad, *, seed: int = 0, log: Log = LOG) -> Training:
    """Return a training of two optimizers and a schedule; the seed decides the weights that it starts from."""
    torch.manual_seed(seed)
    torch.sparse.check_sparse_tensor_invariants.disable()
    tasks = log.schema.tasks
    rows, widths = [column.rows for column in log.schema.categorical], [c.width for c in log.schema.categorical]
    width = 4 * len(rows) + len(log.schema.dense)
    model = Ranker(
        embedding=FeatureEmbedding(rows, 4, widths=widths),
        interaction=nn.Identity(),
        bottom=DroppedOut(SharedBottom(width, [16], len(tasks))),
        heads=nn.ModuleDict({task.name: nn.Linear(16, 1) for task in tasks}),
    )
    parameters = split_parameters(model)
    dense = make(list(parameters.dense.values()))
    embedding = torch.optim.Adagrad(parameters.embedding.values(), 0.1, initial_accumulator_value=1e-6)
    schedulers = [warm_up(dense, 20), warm_up(embedding, 0)]

    def step(batch: Any) -> dict[str, Tensor]:
        batch = Batch(*batch)
        losses = task_losses(model(batch.categorical, batch.dense), batch.labels, tasks)
        for optimizer in (dense, embedding):
            optimizer.zero_grad()
        losses.sum().backward()
        for optimizer in (dense, embedding):
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        return dict(zip([task.name for task in tasks], losses.detach().unbind(), strict=True))

    columns = {"batch[1]": log.schema.dense}
    return Training(model, [dense, embedding], step, others=schedulers, fetch=WINDOW.batch, columns=columns)


def nothing(step: int, batch: Batch) -> None:
    """Leave the batch as it is."""


def record(
    subject: Training,
    count: int,
    *,
    spoil: Callable[[int, Batch], None] = nothing,
    ids_only: bool = False,
    window: MovingWindow = WINDOW,
    **ring: Any,
) -> Ring:
    """Take ``count`` steps with a ring looking on; ``spoil`` may write into each batch before its step."""
    kept = Ring(subject.model, subject.optimizers, others=subject.others, **ring)
    for step in range(count):
        rows = window.rows_of(*divmod(step, window.steps(0)))
        batch = window.batch(rows)
        spoil(step, batch)
        torch.rand(3)  # a loop draws random numbers of its own
        kept.record(step, None if ids_only else batch, rows=rows)
        kept.observe(step, subject.step(batch))
    return kept


def written(ring: Ring, folder: Path, **arguments: Any) -> Capsule:
    """Return the capsule that a ring writes."""
    path = ring.write(folder, **arguments)
    assert path is not None
    return storage.read(path)
