"""Which rows of a window are drawn from together, and in what order: plans first, then rows.

A *visit* is what is drawn from one window. Over rows in memory it has one pool, the window. Over rows on disk it has as
many pools as the memory allows for asks, each of row groups from all over the window. A plan depends on numbers alone,
so that any batch can be reached without reading what comes before its pool.
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

_ROW_GROUPS = 16  # in a pool at least, where the memory allows: what is drawn together comes from so many places

P = TypeVar("P")
R = TypeVar("R")


class Draw(Enum):
    """How a window's rows are drawn."""

    REPLACED = "replaced"  # each from all rows, whatever was drawn before
    ONCE = "once"  # every row exactly once while the window stays where it is


@dataclass(frozen=True)
class Pool:
    """Rows that are held together, and the batches drawn from them; nothing has been read yet.

    Args:
        stretches: of row numbers in the log, ascending.
        draw: with replacement, or once.
        batch_size: rows a batch.
        steps: batches.
        share: of the shuffled rows; what is drawn when each is drawn once. The last batch takes what is left.
        seed: of the draws.
    """

    stretches: tuple[range, ...]
    draw: Draw
    batch_size: int
    steps: int
    share: range
    seed: int

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(map(len, self.stretches))

    def places(self, first: int = 0) -> Iterator[Tensor]:
        """Return the rows of each batch from ``first`` on, (batch_size,) int64, as places in the pool."""
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

    def numbers(self, places: Tensor) -> Tensor:
        """Return the row numbers in the log of places in the pool, (places,) int64."""
        starts = torch.tensor([stretch.start for stretch in self.stretches], dtype=torch.int64, device="cpu")
        ends = torch.tensor([len(stretch) for stretch in self.stretches], dtype=torch.int64, device="cpu").cumsum(0)
        shifts = starts - torch.cat([ends.new_zeros(1), ends[:-1]])
        return places + shifts[torch.bucketize(places, ends, right=True)]


class Room(NamedTuple):
    """What pools have to go by where the rows are on disk."""

    rows: int  # that a pool may hold
    row_group: int  # rows that are read at once
    row_groups: Callable[[range], list[range]]  # cuts row numbers where a row group ends


@dataclass(frozen=True)
class Visit:
    """What is drawn while a window stays where it is.

    Args:
        window: its row numbers.
        day: its newest, which the draws depend on.
        draw: with replacement, or once.
        batch_size: rows a batch.
        steps: batches, of each rank.
        seed: of the draws.
        rank: which of the ranks draws.
        ranks: that share the visit.
        room: for rows on disk; None if they are in memory.
    """

    window: range
    day: int
    draw: Draw
    batch_size: int
    steps: int
    seed: int
    rank: int
    ranks: int
    room: Room | None

    @property
    def share(self) -> range:
        """The places in the visit's order that are the rank's."""
        rows = len(self.window)
        return range(self.rank * rows // self.ranks, (self.rank + 1) * rows // self.ranks)

    def pools(self, first: int = 0) -> Iterator[tuple[Pool, int]]:
        """Yield the pools of the batches from ``first`` on, each with how many of its batches come before that."""
        room = self.room
        if room is None or (self.draw is Draw.REPLACED and len(self.window) <= room.rows):
            yield self._whole(), first
            return
        most = (room.rows - 1) // self.batch_size  # a visit's last batch may have a row more
        each = ceil(self.steps / ceil(self.steps / most))
        for i in range(first // each, ceil(self.steps / each)):
            steps = min(each, self.steps - i * each)
            stretches = self._once(i * each, steps, room) if self.draw is Draw.ONCE else self._any(i, each, room)
            ascending = tuple(sorted(stretches, key=lambda stretch: stretch.start))
            share = range(sum(map(len, ascending)))
            seed = _seed(self.seed, self.day, self.rank, i)
            yield Pool(ascending, self.draw, self.batch_size, steps, share, seed), max(0, first - i * each)

    def _whole(self) -> Pool:
        """Return the window as one pool; ranks that share it agree on the order, and take their parts of that."""
        seed = _seed(self.seed, self.day, 0 if self.draw is Draw.ONCE else self.rank, 0)
        return Pool((self.window,), self.draw, self.batch_size, self.steps, self.share, seed)

    def _once(self, step: int, steps: int, room: Room) -> list[range]:
        """Return the rows of a rank's batches: its share of the row groups in an order that all ranks agree on."""
        order = _shuffled(room.row_groups(self.window), _generator("order", self.seed, self.day))
        start = self.share.start + step * self.batch_size
        last = step + steps == self.steps
        return stretches_at(order, range(start, self.share.stop if last else start + steps * self.batch_size))

    def _any(self, index: int, steps: int, room: Room) -> list[range]:
        """Return rows that are the same number for every pool, and each row of the window as likely as any other.

        Row groups differ in size: taken whole, rows of small ones would be drawn more often. So the row groups are laid
        around a circle at random, and the rows taken from a random one on.
        """
        generator = _generator("circle", self.seed, self.day, self.rank, index)
        circle = 2 * _shuffled(room.row_groups(self.window), generator)
        rows = min(room.rows, max(steps * self.batch_size, _ROW_GROUPS * room.row_group))
        start = int(torch.randint(len(self.window), (), generator=generator, dtype=torch.int64, device="cpu"))
        return stretches_at(circle, range(start, start + rows))


def stretches_at(order: Iterable[range], places: range) -> list[range]:
    """Return the rows at these places of stretches laid end to end.

    >>> stretches_at([range(10, 15), range(0, 5)], range(3, 7))
    [range(13, 15), range(0, 2)]
    """
    order = list(order)
    edges = accumulate(map(len, order), initial=0)
    cut = (
        stretch[max(0, places.start - edge) : max(0, places.stop - edge)]
        for stretch, edge in zip(order, edges, strict=False)
    )
    return [stretch for stretch in cut if stretch]


def read_ahead(plans: Iterable[P], read: Callable[[P], R]) -> Iterator[R]:
    """Yield what is read for each plan, in order; a thread reads the next while one is used.

    An error of the thread is raised where its result would come. Dropping the iterator ends the thread after what it is
    reading.
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
    """Return the seed of a pool's draws; studies were made with that of the first."""
    return _hash("draw", seed, day, rank, pool) if rank or pool else seed * 1_000_003 + day
