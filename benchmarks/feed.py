"""How fast batches come: rows a second against peers measured in the same rounds, and how long a training step waits.

    python benchmarks/feed.py [--rows 4000000] [--cache 64] [--rounds 10] [--batches 1024 8192 65536] [--threads 2]

A made-up log of 9 id columns, 9 numbers and 5 labels in four days; the window is the last two. "index_select" copies
rows at random numbers, drawn beforehand, out of the same three tensors, and nothing else: the limit. "Memory" and
"parquet" are ``MovingWindow``, with replacement and once; its file is larger than the cache, in MiB, that it is given,
and in the system's page cache. The DataLoaders are torch's over a ``TensorDataset`` of the window: a row at a time, as
its documentation shows, with the default collation; and with a ``BatchSampler`` as sampler, whose lists of row numbers
index the tensors at once, in this process and in two workers. Every rival starts anew in every round, and what it takes
to start counts; each goes through the window, but for the DataLoader of single rows, which takes 20,000.

Waiting is the time inside ``next(stream)`` over that of the whole step of a small ranker (two layers of 64, ids as 16
numbers) under ClippyAdagrad, its embeddings under torch's Adagrad; the wait for the first batch is told apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import psutil
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import surefoot
from surefoot.lab.data import prepared
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Batch, Categorical, Log, Schema, Task
from surefoot.lab.data.sliding_window import Draw, MovingWindow
from surefoot.lab.study.config import ModelConfig
from surefoot.lab.study.model import ranker
from surefoot.lab.training.loop import take_step
from surefoot.optim.embedding_tables import split_parameters
from surefoot.tasks import TaskKind

DAYS, NEWEST = 4, 3
SCHEMA = Schema(
    tuple(Categorical(f"id_{i}", 10 ** (2 + i % 5)) for i in range(9)),
    tuple(f"number_{i}" for i in range(9)),
    tuple(Task(f"label_{i}", TaskKind.BINARY) for i in range(5)),
)
LIMIT, PEER = "index_select", "DataLoader, batch sampler"
FEW = 20_000  # rows for the DataLoader of single rows
Feed = Callable[[int], Iterable[Iterable[Tensor]]]  # from a batch size to the batches of one round


def make(rows: int) -> Log:
    """Return the log, its ids skewed, some of its numbers counts."""
    draw = torch.Generator().manual_seed(0)
    rows = rows // DAYS * DAYS
    sizes = torch.tensor([column.rows for column in SCHEMA.categorical])
    dense = torch.randn(rows, 9, generator=draw)
    dense[:, 5:] = dense[:, 5:].exp().round()
    return Log(
        "made up",
        SCHEMA,
        tuple(f"day {day}" for day in range(DAYS)),
        tuple(range(0, rows + 1, rows // DAYS)),
        Batch(
            (torch.rand(rows, 9, generator=draw) ** 3 * sizes).to(torch.int32),
            dense,
            (torch.rand(rows, 5, generator=draw) < 0.1).float(),
        ),
    )


def bare(log: Log) -> Feed:
    rows = log.window(NEWEST - 1, NEWEST)
    numbers = torch.randint(len(rows.labels), (len(rows.labels),))

    def batches(batch_size: int) -> Iterator[Batch]:
        for drawn in numbers.split(batch_size):
            yield Batch(*(part.index_select(0, drawn) for part in rows))

    return batches


def moving(log: Log | PreparedLog, draw: Draw, cache: int) -> Feed:
    return lambda batch_size: MovingWindow(log, batch_size, 2, draw=draw, cache=cache).batches(NEWEST)


def loader_of_rows(log: Log) -> Feed:
    dataset = TensorDataset(*log.window(NEWEST - 1, NEWEST))

    def batches(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        sampler = RandomSampler(dataset, replacement=True, num_samples=FEW)  # else the window's order is drawn for few
        return DataLoader(dataset, min(batch_size, FEW), sampler=sampler)

    return batches


def loader_of_batches(log: Log, workers: int) -> Feed:
    dataset = TensorDataset(*log.window(NEWEST - 1, NEWEST))

    def batches(batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers)

    return batches


def rivals(log: Log, stored: PreparedLog, cache: int) -> dict[str, Feed]:
    named = {"with replacement": Draw.REPLACED, "once": Draw.ONCE}
    return {
        LIMIT: bare(log),
        **{f"memory, {name}": moving(log, draw, cache) for name, draw in named.items()},
        **{f"parquet, {name}": moving(stored, draw, cache) for name, draw in named.items()},
        "DataLoader, row by row": loader_of_rows(log),
        PEER: loader_of_batches(log, 0),
        f"{PEER}, 2 workers": loader_of_batches(log, 2),
    }


def measure(feeds: dict[str, Feed], batch_size: int, rounds: int) -> list[str]:
    """Return the table's lines for one batch size."""
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(rounds):
        for name, feed in feeds.items():
            start, rows = time.perf_counter(), 0
            for *_, labels in feed(batch_size):
                rows += len(labels)
            rates[name].append(rows / (time.perf_counter() - start))
    medians = {name: statistics.median(several) for name, several in rates.items()}
    lines = []
    for name, several in rates.items():
        low, _, high = (q / 1e6 for q in statistics.quantiles(several, n=4))
        lines.append(
            f"{batch_size:6} {name:36} {medians[name] / 1e6:7.3f} ({low:.3f} to {high:.3f}) M rows/s"
            f"  x{medians[name] / medians[LIMIT]:6.3f} {LIMIT}  x{medians[name] / medians[PEER]:6.2f} {PEER}"
        )
    return lines


def waiting(log: Log | PreparedLog, batch_size: int, steps: int, cache: int) -> str:
    """Return how much of a training step goes by until its batch is there."""
    torch.manual_seed(0)
    model = ranker(ModelConfig(), SCHEMA)
    parameters = split_parameters(model)
    optimizers = [
        surefoot.ClippyAdagrad(parameters.dense.values(), lr=0.1),
        torch.optim.Adagrad(parameters.embedding.values(), lr=0.1, initial_accumulator_value=1e-6),
    ]
    stream = MovingWindow(log, batch_size, 2, steps_per_day=steps, cache=cache).stream(DAYS)
    waits, whole = [], []
    for _ in range(steps):
        start = time.perf_counter()
        _, batch = next(stream)
        waits.append(time.perf_counter() - start)
        take_step(model, batch, optimizers, SCHEMA.tasks)
        whole.append(time.perf_counter() - start)
    share = sum(waits[1:]) / sum(whole[1:])
    median = 1e3 * statistics.median(whole)
    return f"{median:8.2f} ms a step, {100 * share:5.2f} % of it waiting; {waits[0]:.2f} s at first"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--cache", type=int, default=64, help="MiB")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 8192, 65536])
    parser.add_argument("--steps", type=int, default=40, help="of training, at the largest batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/feed.txt"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless told either way
    with tempfile.TemporaryDirectory() as folder:
        log = make(arguments.rows)
        prepared.write(log, Path(folder))
        stored = PreparedLog.open(folder)
        window = sum(path.stat().st_size for path in sorted(Path(folder).glob("day=*/*"))[NEWEST - 1 :])
        machine = f"{psutil.cpu_count()} cores, {arguments.threads} threads, {arguments.rounds} rounds"
        machine += f", a load of {os.getloadavg()[0]:.1f} before"
        sizes = f"window of {len(log.window(NEWEST - 1, NEWEST).labels):,} rows, {window >> 20} MiB on disk"
        lines = [
            f"torch {torch.__version__}, {machine}; {sizes}, {stored.bytes >> 21} in memory; cache {arguments.cache}"
        ]
        print(lines[0])
        for batch_size in arguments.batches:
            lines += measure(rivals(log, stored, arguments.cache << 20), batch_size, arguments.rounds)
            print("\n".join(lines[-8:]), flush=True)
        largest = max(arguments.batches)
        for batch_size in sorted({min(arguments.batches), largest}):
            steps = arguments.steps * min(32, largest // batch_size)
            for name, source in (("memory", log), ("parquet", stored)):
                told = waiting(source, batch_size, steps, arguments.cache << 20)
                lines.append(f"{batch_size:6} training from {name:7} {told}, {steps} steps")
                print(lines[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
