"""Sequential training's order: a window of days that moves on, batches at random inside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch

from surefoot import checks
from surefoot.data.schema import Batch, Log


@dataclass(frozen=True)
class MovingWindow:
    """Batches from a window of the last few days, day after day.

    Args:
        log: the log.
        batch_size: rows a batch, drawn with replacement from the window.
        width: day partitions in the window, the newest included; fewer at the log's start.
        steps_per_day: batches drawn before the window moves on; by default as many as hold the newest day's rows,
            so that a row is drawn about once while it is in the window for each day of its width, divided by the width.
        seed: of the draws; day i's batches depend on the seed and i alone.

    Raises:
        ValueError: if a number is not above 0.
    """

    log: Log
    batch_size: int
    width: int = 1
    steps_per_day: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.positive("batch_size", self.batch_size)
        checks.positive("width", self.width)
        if self.steps_per_day is not None:
            checks.positive("steps_per_day", self.steps_per_day)

    def steps(self, day: int) -> int:
        """Return how many batches are drawn while ``day`` is the newest."""
        rows = self.log.starts[day + 1] - self.log.starts[day]
        return self.steps_per_day or ceil(rows / self.batch_size)

    def batches(self, day: int) -> Iterator[Batch]:
        """Yield the batches drawn while ``day`` is the newest."""
        window = self.log.window(max(0, day - self.width + 1), day)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + day)
        for _ in range(self.steps(day)):
            rows = torch.randint(len(window.labels), (self.batch_size,), generator=generator)
            yield Batch(*(part.index_select(0, rows) for part in window))
