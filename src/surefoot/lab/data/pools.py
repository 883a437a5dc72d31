"""Plans how batches are drawn from a window of a log: which rows are loaded together, and in what order.

A *visit* is all the batches drawn from one window. In memory, it has one pool: the window. On disk, it has several
pools that fit into the memory limit, each with random row groups of the window. A plan is computed from numbers alone,
so any batch can be reached without reading the pools before it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from itertools import accumulate
from math import ceil
from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

_ROW_GROUPS = 16  # least row groups of a pool, if the memory allows: more of them mix the rows better

P = TypeVar("P")
R = TypeVar("R")


class Draw(Enum):
    """How a window's rows are drawn."""

    REPLACED = "replaced"  # with replacement
    ONCE = "once"  # without replacement: every row exactly once in each visit


@dataclass(frozen=True)
class Pool:
    """The plan of a pool: rows that are in memory together, and the batches drawn from them.

    Args:
        ranges: row numbers in the log, ascending.
        draw: with replacement, or every row once.
        batch_size: rows of a batch.
        steps: number of batches.
        share: if every row is drawn once: the positions in the shuffled order that this pool uses. The last batch takes
            all rows that are left.
        seed: seed of the draws.
    """

    ranges: tuple[range, ...]
    draw: Draw
    batch_size: int
    steps: int
    share: range
    seed: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self.ranges))

    def positions(self, first: int = 0) -> Iterator[Tensor]:
        """Yield the rows of each batch from number ``first`` on, (batch_size,) int64, as positions in the pool."""
        generator, size, last = Generator().manual_seed(self.seed), self.batch_size, self.steps - 1
        if self.draw is Draw.ONCE:
            order = torch.randperm(self.rows, generator=generator, dtype=torch.int64, device="cpu")[
                self.share.start : self.share.stop
            ]
            ends = (size * (step + 1) if step < last else len(order) for step in range(first, self.steps))
            return (order[size * step : end] for step, end in enumerate(ends, first))
        for _ in range(first):
            torch.randint(self.rows, (size,), generator=generator, dtype=torch.int64, device="cpu")
        return (
            torch.randint(self.rows, (size,), generator=generator, dtype=torch.int64, device="cpu")
            for _ in range(first, self.steps)
        )

    def numbers(self, positions: Tensor) -> Tensor:
        """Return the row numbers in the log of positions in the pool, (positions,) int64."""
        starts = torch.tensor([rows.start for rows in self.ranges], dtype=torch.int64, device="cpu")
        ends = torch.tensor([len(rows) for rows in self.ranges], dtype=torch.int64, device="cpu").cumsum(0)
        shifts = starts - torch.cat([ends.new_zeros(1), ends[:-1]])
        return positions + shifts[torch.bucketize(positions, ends, right=True)]


class DiskLimits(NamedTuple):
    """The limits of pools for a log on disk."""

    rows: int  # most rows of a pool
    row_group: int  # rows of a row group
    row_groups: Callable[[range], list[range]]  # splits a range of row numbers at the ends of row groups


@dataclass(frozen=True)
class Visit:
    """All batches drawn from one window.

    Args:
        window: the row numbers of the window.
        day: the newest day of the window; the draws depend on it.
        draw: with replacement, or every row once.
        batch_size: rows of a batch.
        steps: number of batches of each rank.
        seed: seed of the draws.
        rank: the rank that draws.
        ranks: number of ranks that share the visit.
        limits: for a log on disk; None for a log in memory.
    """

    window: range
    day: int
    draw: Draw
    batch_size: int
    steps: int
    seed: int
    rank: int
    ranks: int
    limits: DiskLimits | None

    @property
    def share(self) -> range:
        """The positions in the visit's order that belong to the rank."""
        rows = len(self.window)
        return range(self.rank * rows // self.ranks, (self.rank + 1) * rows // self.ranks)

    def pools(self, first: int = 0) -> Iterator[tuple[Pool, int]]:
        """Yield the pools from the one with batch ``first`` on, each with the number of its first batch to draw."""
        limits = self.limits
        if limits is None or (self.draw is Draw.REPLACED and len(self.window) <= limits.rows):
            yield self._whole(), first
            return
        most = (limits.rows - 1) // self.batch_size  # the last batch of a visit may have one row more
        each = ceil(self.steps / ceil(self.steps / most))
        for i in range(first // each, ceil(self.steps / each)):
            steps = min(each, self.steps - i * each)
            once = self.draw is Draw.ONCE
            ranges = self._once(i * each, steps, limits) if once else self._any(i, each, limits)
            ascending = tuple(sorted(ranges, key=lambda rows: rows.start))
            share = range(sum(map(len, ascending)))
            seed = _seed(self.seed, self.day, self.rank, i)
            yield Pool(ascending, self.draw, self.batch_size, steps, share, seed), max(0, first - i * each)

    def _whole(self) -> Pool:
        """Return the window as one pool; if every row is drawn once, all ranks shuffle it in the same order."""
        seed = _seed(self.seed, self.day, 0 if self.draw is Draw.ONCE else self.rank, 0)
        return Pool((self.window,), self.draw, self.batch_size, self.steps, self.share, seed)

    def _once(self, step: int, steps: int, limits: DiskLimits) -> list[range]:
        """Return the rows of a rank's batches: its share of the shuffled row groups, in one order for all ranks."""
        order = _shuffled(limits.row_groups(self.window), _generator("order", self.seed, self.day))
        start = self.share.start + step * self.batch_size
        last = step + steps == self.steps
        return ranges_at(order, range(start, self.share.stop if last else start + steps * self.batch_size))

    def _any(self, index: int, steps: int, limits: DiskLimits) -> list[range]:
        """Return random rows for a pool; every pool has the same number, and every row has the same probability.

        Row groups differ in size, so whole row groups would make the rows of small ones more probable. Instead, all row
        groups are shuffled into a circle, and consecutive rows are taken from a random row on.
        """
        generator = _generator("circle", self.seed, self.day, self.rank, index)
        circle = 2 * _shuffled(limits.row_groups(self.window), generator)
        rows = min(limits.rows, max(steps * self.batch_size, _ROW_GROUPS * limits.row_group))
        start = int(torch.randint(len(self.window), (), generator=generator, dtype=torch.int64, device="cpu"))
        return ranges_at(circle, range(start, start + rows))


def ranges_at(order: Iterable[range], positions: range) -> list[range]:
    """Return the rows at the positions ``positions`` of the concatenation of ``order``.

    >>> ranges_at([range(10, 15), range(0, 5)], range(3, 7))
    [range(13, 15), range(0, 2)]
    """
    order = list(order)
    edges = accumulate(map(len, order), initial=0)
    cut = (
        rows[max(0, positions.start - edge) : max(0, positions.stop - edge)]
        for rows, edge in zip(order, edges, strict=False)
    )
    return [rows for rows in cut if rows]


def read_ahead(plans: Iterable[P], read: Callable[[P], R]) -> Iterator[R]:
    """Yield the result of ``read`` for each plan, in order; a thread reads the next one while the last one is used.

    An error of the thread is raised in place of its result. If the iterator is dropped, the thread ends after its
    current read.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    coming: Future[R] | None = None
    try:
        for plan in plans:
            after = executor.submit(read, plan)
            if coming is not None:
                yield coming.result()
            coming = after
        if coming is not None:
            yield coming.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _shuffled(groups: list[range], generator: Generator) -> list[range]:
    return [
        groups[i] for i in torch.randperm(len(groups), generator=generator, dtype=torch.int64, device="cpu").tolist()
    ]


def _generator(purpose: str, *numbers: int) -> Generator:
    return Generator().manual_seed(_hash(purpose, *numbers))


def _hash(purpose: str, *numbers: int) -> int:
    text = " ".join([purpose, *map(str, numbers)])
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest())


def _seed(seed: int, day: int, rank: int, pool: int) -> int:
    """Return the seed of a pool's draws; the first pool of rank 0 keeps the seed of older versions."""
    return _hash("draw", seed, day, rank, pool) if rank or pool else seed * 1_000_003 + day
