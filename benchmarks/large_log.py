"""A log larger than memory, from raw files to a trained model: rows a second, and the most memory that was held.

    python benchmarks/large_log.py [--rows 100000000] [--days 20] [--folder DIR] [--threads 2] [--out FILE]

Raw parquet files of a made-up log, one a day, with 9 ids (1,000 to 1,000,000 values each, some far more frequent), 9
numbers with gaps and 5 labels, are prepared (two passes over the disk) and every row is fed once, in random order
within its day, through a tiny model that trains. The peak is that of the process that prepares and trains, the pages of
mapped files included. About 300 bytes of disk a row are needed on the way.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import numpy as np
import polars as pl

IDS, NUMBERS, LABELS = 9, 9, 5
CACHE = 256 << 20


def make_day(folder: Path, day: int, rows: int) -> None:
    """Write one day's raw file."""
    draw = np.random.default_rng([7, day])
    columns: dict[str, object] = {"date": pl.repeat(f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}", rows, eager=True)}
    for i in range(IDS):
        columns[f"id_{i}"] = (10 ** (3 + 3 * i / (IDS - 1)) * draw.power(3, size=rows)).astype(np.int64)
    for i in range(NUMBERS):
        values = draw.normal(i, 1 + i, size=rows).astype(np.float32)
        values[draw.random(rows) < 0.01] = np.nan
        columns[f"number_{i}"] = values
    chance = (columns["id_0"] % 7 < 3) * 0.3 + 0.1  # pyright: ignore
    for i in range(LABELS):
        columns[f"label_{i}"] = (draw.random(rows) < chance).astype(np.int8)
    pl.DataFrame(columns).write_parquet(folder / f"day_{day:03d}.parquet", row_group_size=1 << 18)


def prepare_and_feed(raw: Path, out: Path, threads: int) -> None:
    """Prepare the log, train one pass, print what it took."""
    import torch

    import surefoot
    from surefoot.lab.data.prepared import PreparedLog
    from surefoot.lab.data.sliding_window import Draw, MovingWindow
    from surefoot.lab.file_discovery import find_files
    from surefoot.lab.ingest.description import Description
    from surefoot.lab.ingest.prepare import prepare
    from surefoot.lab.ingest.source import Source
    from surefoot.lab.models.layers import FeatureEmbedding, SharedBottom
    from surefoot.lab.models.ranker import Ranker
    from surefoot.lab.training.loop import take_step
    from surefoot.optim.embedding_tables import split_parameters

    torch.set_num_threads(threads)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless told either way
    description = Description.model_validate(
        {
            "name": "made up",
            "day": {"column": "date"},
            "categorical": [f"id_{i}" for i in range(IDS)],
            "dense": [f"number_{i}" for i in range(NUMBERS)],
            "label": [f"label_{i}" for i in range(LABELS)],
        }
    )
    began = time.perf_counter()
    report = prepare(Source(description, find_files(str(raw))), out)
    took = time.perf_counter() - began
    print(
        f"prepared {report.rows_out:,} rows of {report.rows_in:,} in {took:.0f} s, {report.rows_out / took:,.0f} rows/s"
    )
    print(f"peak memory after it {peak():.2f} GiB", flush=True)
    log = PreparedLog.open(out)
    tasks, rows = log.schema.tasks, [column.rows for column in log.schema.categorical]
    torch.manual_seed(0)
    model = Ranker(
        embedding=FeatureEmbedding(rows, 4),
        interaction=torch.nn.Identity(),
        bottom=SharedBottom(4 * IDS + NUMBERS, (16,), LABELS),
        heads=torch.nn.ModuleDict({task.name: torch.nn.Linear(16, 1) for task in tasks}),
    )
    parameters = split_parameters(model)
    optimizers = [
        surefoot.ClippyAdagrad(parameters.dense.values(), lr=0.1),
        torch.optim.Adagrad(parameters.embedding.values(), 0.1, initial_accumulator_value=1e-6),
    ]
    stream = MovingWindow(log, 1 << 16, draw=Draw.ONCE, cache=CACHE).stream(len(log.days))
    fed, waited, first, last = 0, 0.0, [], []
    began = time.perf_counter()
    while True:
        asked = time.perf_counter()
        drawn = next(stream, None)
        waited += time.perf_counter() - asked
        if drawn is None:
            break
        losses = take_step(model, drawn[1], optimizers, tasks).losses
        fed += len(drawn[1].labels)
        (first if len(first) < 20 else last).append(float(losses.mean()))
    took = time.perf_counter() - began
    print(f"fed and trained {fed:,} rows in {took:.0f} s, {fed / took:,.0f} rows/s, {waited / took:.1%} of it waiting")
    print(f"mean loss of the first 20 steps {np.mean(first):.4f}, of the last 20 {np.mean(last[-20:]):.4f}")
    assert fed == report.rows_out
    print(f"peak memory {peak():.2f} GiB")


def peak() -> float:
    """Return the most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files, which are removed at the end")
    parser.add_argument("--out", type=Path, help="also write the result there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        prepare_and_feed(Path(options.child[0]), Path(options.child[1]), options.threads)
        return
    work = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        (work / "raw").mkdir()
        for day in range(options.days):
            make_day(work / "raw", day, options.rows // options.days)
        size = sum(path.stat().st_size for path in (work / "raw").iterdir())
        child = [sys.executable, __file__, "--threads", str(options.threads)]
        ran = subprocess.run(
            [*child, "--child", str(work / "raw"), str(work / "prepared")],
            env=os.environ | {"POLARS_MAX_THREADS": str(options.threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        head = (
            f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads; raw files {size / 2**30:.1f} GiB"
        )
        text = f"{head}\n{ran.stdout}"
        print(text, end="")
        if options.out:
            options.out.write_text(text)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
