"""What keeping the last steps costs: time inside the ring over the time of a step, memory, disk, and a replay.

    python benchmarks/ring.py [--layouts Large Small] [--threads 2] [--steps 96]

Layouts: Large, four layers of 4096 on a 1000-wide input (54.5M numbers); Small, two of 512 (0.8M); batch 1024, which is
4 MB; ClippyAdagrad, whose state is as large as the weights. "step" is the training step without the ring; "a step" the
median of ``record`` and ``observe`` in a step without a snapshot, "snapshot" what one adds, and the share is of all the
time inside the ring over all the time of the steps, snapshots included, one in 32.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch
from torch import Tensor, nn

import surefoot
from surefoot.capsule import storage
from surefoot.capsule.replay import Training, replay
from surefoot.capsule.ring import Ring

LAYOUTS = {"Large": [1000, 4096, 4096, 4096, 4096, 1], "Small": [1000, 512, 512, 1]}
EVERY = 32


def training(widths: list[int]) -> Training:
    torch.manual_seed(0)
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    optimizer = surefoot.ClippyAdagrad(model.parameters(), lr=0.01)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        loss = (model(batch[0]) - batch[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return Training(model, [optimizer], step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3 * EVERY)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.steps} steps")
    for layout in arguments.layouts:
        measure(layout, arguments.steps)


def measure(layout: str, steps: int) -> None:
    """Train with a ring, write a capsule, replay it; print what each took."""
    subject = training(LAYOUTS[layout])
    ring = Ring(subject.model, subject.optimizers, steps=EVERY, every=EVERY, max_bytes=4 << 30)
    inside, outside = [], []
    for number in range(steps):
        batch = torch.randn(1024, LAYOUTS[layout][0]), torch.randn(1024, 1)
        begun = time.perf_counter()
        ring.record(number, batch)
        recorded = time.perf_counter()
        losses = subject.step(batch)
        stepped = time.perf_counter()
        ring.observe(number, losses)
        inside.append(recorded - begun + time.perf_counter() - stepped)
        outside.append(stepped - recorded)
    plain = statistics.median(seconds for i, seconds in enumerate(inside) if i % EVERY)
    snapshots = statistics.median(inside[EVERY::EVERY]) - plain if steps > EVERY else float("nan")
    share = sum(inside[EVERY:]) / sum(outside[EVERY:])  # the first steps warm up
    print(
        f"{layout}: step {1e3 * statistics.median(outside):.2f} ms; inside the ring {1e3 * plain:.3f} ms a step, "
        f"{1e3 * snapshots:.1f} ms a snapshot: {100 * share:.1f} % in all; ring {ring.nbytes / 2**20:.0f} MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        path = ring.write(Path(folder))
        assert path is not None
        written = time.perf_counter()
        capsule = storage.read(path)
        read = time.perf_counter()
        result = replay(capsule, training(LAYOUTS[layout]), what_if={})
        replayed = time.perf_counter()
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        print(f"    capsule {size:.0f} MiB, written in {written - begun:.1f} s, checked in {read - written:.1f} s;")
        outcome = "equal bit for bit" if result.difference is None else str(result.difference)
        print(f"    {len(result.steps)} steps replayed in {replayed - read:.1f} s: {outcome}")


if __name__ == "__main__":
    main()
