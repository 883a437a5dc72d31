"""Clippy in a plain training loop: dense layers and embeddings, skipped together when a gradient is not finite."""

import torch

import surefoot
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.models.layers import CrossNetwork, FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import Ranker, task_losses
from surefoot.lab.sources import synthetic


def main() -> None:
    torch.manual_seed(0)
    log = synthetic.make(days=3, rows_per_day=512)
    rows, tasks = [column.rows for column in log.schema.categorical], log.schema.tasks
    width = 8 * len(rows) + len(log.schema.dense)
    model = Ranker(
        embedding=FeatureEmbedding(rows, 8),
        interaction=CrossNetwork(width, 1),
        bottom=SharedBottom(width, [32, 32], len(tasks)),
        heads=torch.nn.ModuleDict({task.name: torch.nn.Linear(32, 1) for task in tasks}),
    )
    dense, embedding = surefoot.split_parameters(model)
    clippy = surefoot.ClippyAdagrad(dense.values(), lr=0.2)
    tables = torch.optim.Adagrad(embedding.values(), lr=0.1, initial_accumulator_value=1e-6)
    surefoot.guard(clippy, tables)

    window = MovingWindow(log, batch_size=128, width=2)
    told = float("nan")
    for day in range(len(log.days)):
        for batch in window.batches(day):
            losses = task_losses(model(batch.categorical, batch.dense), batch.labels, tasks)
            for optimizer in (clippy, tables):
                optimizer.zero_grad()
            losses.sum().backward()
            clippy.step()
            tables.step()
            told = losses.sum().item()
        tightest = min(clippy.clip_factors().values(), key=float)
        print(f"{log.days[day]}: loss {told:.3f}, smallest clip factor {float(tightest):.3f}")


if __name__ == "__main__":
    main()
