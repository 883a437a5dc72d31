"""One bad batch early in a run: does it end as well as its unharmed twin?

    python benchmarks/early_faults.py [--only regression ranking] [--seeds 5] [--out FILE]

The bad batch has all its dense features multiplied by 10,000, at one step; the run is under `Recovery` and a `Monitor`
with their defaults, the twin under neither. For each step of the fault there is the worst seed, and all of them.

- regression: `Linear(8, 64), ReLU, Linear(64, 1)` on y = sum(x) + x0 x1, 400 steps of 256 rows; the final mean squared
  error on 20,000 other rows over the twin's.
- ranking: the multitask rankers of `benchmarks/recovery.py`, 230 steps of 256 rows; the mean AUC of the binary tasks on
  the two days after the last one trained on, in points below the twin's.
"""

import argparse
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import recovery as ranking
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import surefoot
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.metrics import evaluate
from surefoot.lab.models.ranker import task_losses
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.embedding_tables import split_parameters
from surefoot.recover.policy import Action
from surefoot.tasks import TaskKind

FACTOR = 1e4
FIRST_SEED = 200
REGRESSION_STEPS, REGRESSION_FAULTS = 400, (10, 20, 30, 50, 70, 80)
DAYS, STEPS_PER_DAY = 10, 23
RANKING_FAULTS = (20, 60, 100)
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "ClippyAdagrad from .1": lambda m: surefoot.ClippyAdagrad(m.parameters(), lr=0.05, initial_accumulator_value=0.1),
    "ClippyAdagrad from 1e-6": lambda m: surefoot.ClippyAdagrad(
        m.parameters(), lr=0.05, initial_accumulator_value=1e-6
    ),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
}


def rows(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 8, generator=generator)
    return x, x.sum(1) + x[:, 0] * x[:, 1]


def regression(make: Callable[[nn.Module], Optimizer], seed: int, fault: int | None) -> float:
    """Return the final mean squared error, infinite if the run was stopped."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer, generator = make(model), torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        watch = None
        if fault is not None:
            monitor = surefoot.Monitor(model, optimizer, tasks={"y": "regression"})
            watch = monitor, surefoot.Recovery(model, optimizer, folder, monitor=monitor)
        for step in range(REGRESSION_STEPS):
            x, y = rows(256, generator)
            prediction = model(FACTOR * x if step == fault else x)[:, 0]
            loss = (prediction - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if watch is not None:
                alarm = watch[0].step({"y": loss}, outputs={"y": prediction}, labels={"y": y})
                if watch[1].step(alarm) is Action.STOP:
                    return torch.inf
    x, y = rows(20_000, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        return float((model(x)[:, 0] - y).square().mean())


def rank(data: str, rule: str, seed: int, fault: int | None) -> float:
    """Return the final AUC, 0 if the run was stopped."""
    log = ranking.load(data, seed // ranking.SEEDS)
    torch.manual_seed(seed)
    model = ranking.make_model(log)
    parameters, (sigma, rate) = split_parameters(model), ranking.RULES[rule]
    optimizers = [
        Adagrad(parameters.dense.values(), rate, rule=sigma),
        torch.optim.Adagrad(parameters.embedding.values(), 0.1, initial_accumulator_value=1e-6),
    ]
    stream = MovingWindow(log, ranking.BATCH, 3, STEPS_PER_DAY, seed).stream(DAYS)
    judged = {task.name: i for i, task in enumerate(log.schema.tasks) if task.judged}
    kinds = {task.name: task.kind for task in log.schema.tasks if task.judged}
    with tempfile.TemporaryDirectory() as folder:
        watch = None
        if fault is not None:
            monitor = surefoot.Monitor(model, optimizers, tasks=kinds)
            watch = monitor, surefoot.Recovery(model, optimizers, folder, monitor=monitor, loader=stream)
        for step, (_, batch) in enumerate(stream):
            outputs = model(batch.categorical, FACTOR * batch.dense if step == fault else batch.dense)
            losses = task_losses(outputs, batch.labels, log.schema.tasks)
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses.sum().backward()
            for optimizer in optimizers:
                optimizer.step()
            if watch is not None:
                of_losses, of_outputs, of_labels = (
                    {name: values[..., i] for name, i in judged.items()} for values in (losses, outputs, batch.labels)
                )
                alarm = watch[0].step(of_losses, outputs=of_outputs, labels=of_labels)
                if watch[1].step(alarm) is Action.STOP:
                    return 0.0
    unseen = log.window(DAYS, DAYS + 1)
    with torch.no_grad():
        scores = evaluate(model(unseen.categorical, unseen.dense), unseen.labels, log.schema.tasks)
    aucs = [scores[f"auc/{name}"] for name, kind in kinds.items() if kind is TaskKind.BINARY]
    return sum(aucs) / len(aucs)


def lines(only: list[str], seeds: range) -> Iterator[str]:
    """Yield the table."""
    if "regression" in only:
        yield "regression: final mean squared error over the twin's; worst of all seeds, then each"
        for name, make in OPTIMIZERS.items():
            twins = [regression(make, seed, None) for seed in seeds]
            yield f"{name}: twins {' '.join(f'{twin:.4f}' for twin in twins)}"
            for fault in REGRESSION_FAULTS:
                ratios = [regression(make, seed, fault) / twin for seed, twin in zip(seeds, twins, strict=True)]
                yield f"    fault at {fault:3d}: {max(ratios):.2f}   ({' '.join(f'{ratio:.2f}' for ratio in ratios)})"
    if "ranking" in only:
        yield "ranking: AUC points below the twin; worst of all seeds, then each"
        for data in ranking.DATA:
            for rule in ranking.RULES:
                twins = [rank(data, rule, seed, None) for seed in seeds]
                yield f"{data}, {rule}: twins {' '.join(f'{100 * twin:.2f}' for twin in twins)}"
                for fault in RANKING_FAULTS:
                    lost = [
                        100 * (twin - rank(data, rule, seed, fault)) for seed, twin in zip(seeds, twins, strict=True)
                    ]
                    yield f"    fault at {fault:3d}: {max(lost):+.2f}   ({' '.join(f'{each:+.2f}' for each in lost)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["regression", "ranking"], choices=["regression", "ranking"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    shown = [f"torch {torch.__version__}, {platform.machine()}, seeds {seeds[0]} to {seeds[-1]}"]
    print(shown[0], flush=True)
    for line in lines(options.only, seeds):
        print(line, flush=True)
        shown.append(line)
    if options.out:
        options.out.write_text("\n".join(shown) + "\n")


if __name__ == "__main__":
    main()
