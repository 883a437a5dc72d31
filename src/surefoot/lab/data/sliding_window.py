"""The order of rows in sequential training: a window of days that moves on, with random batches inside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from surefoot import checks
from surefoot.lab.data.dayfile import empty
from surefoot.lab.data.pools import DiskLimits, Draw, Pool, Visit, read_ahead
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Batch, Log

_ORDER_BYTES = 8  # bytes for a row's position in the shuffled order of a pool
# Values for states of older versions, which lack these names.
_FIRST_STATES: dict[str, Any] = {"draw": Draw.REPLACED.value, "ranks": 1, "pool_rows": None}


class Drawn(NamedTuple):
    """A batch, with the plan that it was drawn by."""

    day: int
    batch: Batch
    pool: Pool
    positions: Tensor  # of the rows in the pool, (batch_size,) int64

    @property
    def rows(self) -> Tensor:
        """The row numbers in the log, (batch_size,) int64."""
        return self.pool.numbers(self.positions)


class _Plan(NamedTuple):
    day: int
    pool: Pool
    first: int  # number of the first batch to draw
    memory: Batch | None  # for a log on disk: where the pool is read to


class _LoadedPool(NamedTuple):
    day: int
    pool: Pool
    rows: Batch
    positions: Iterator[Tensor]  # of the rows of each batch


@dataclass(frozen=True)
class MovingWindow:
    """Batches from a window of the last few days, day after day.

    In memory, rows are drawn from the whole window. A log on disk is read in pools of random row groups of the window;
    the next pool is read while one is used. With replacement, a window that fits into one pool is drawn from as if it
    were in memory.

    Args:
        log: the log, in memory or on disk.
        batch_size: rows of a batch of each rank.
        width: day partitions in the window, including the newest; fewer at the start of the log.
        steps_per_day: batches before the window moves on by one day. Default with replacement: the newest day's rows
            divided by the batch size, so that a row is drawn about once during its days in the window. If every row is
            drawn once, it must be None, and there are as many batches as the window's rows need.
        seed: seed of the draws; the batches of day i depend on the seed and i alone.
        draw: with replacement, or every row of the window once before it moves on.
        rank: number of this rank. With replacement, each rank draws from all rows. Otherwise the ranks share the rows
            and take the same number of steps; the last batch may be smaller, or one row larger than ``batch_size``.
        ranks: number of ranks that train together.
        cache: bytes of memory for rows of a log on disk; half of it is for the pool that is read ahead.
        pin: whether batches are in pinned memory, which makes copies to a GPU asynchronous; ignored without a GPU.

    Raises:
        ValueError: if a number is out of range, if ``steps_per_day`` is given although every row is drawn once, if
            there are more ranks than rows in a window, or if half of the cache is too small for a batch.
    """

    log: Log | PreparedLog
    batch_size: int
    width: int = 1
    steps_per_day: int | None = None
    seed: int = 0
    draw: Draw = Draw.REPLACED
    rank: int = 0
    ranks: int = 1
    cache: int = 256 << 20
    pin: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "width", "ranks", "cache"):
            checks.positive(name, getattr(self, name))
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank is {self.rank}; expected 0 to {self.ranks - 1}, one of the ranks")
        if self.steps_per_day is not None:
            checks.positive("steps_per_day", self.steps_per_day)
            if self.draw is Draw.ONCE:
                raise ValueError(f"steps_per_day is {self.steps_per_day}; expected None when every row is drawn once")
        if self.draw is Draw.ONCE:
            rows, day = min((len(self._rows(day)), day) for day in range(len(self.log.days)))
            if rows < self.ranks:
                name = self.log.days[day]
                raise ValueError(
                    f"ranks is {self.ranks}; expected at most {rows}, the rows in the window of day {name}"
                )
        if self.pool_rows is not None and self.pool_rows <= self.batch_size:
            least = 2 * (self.batch_size + 1) * (self.log.schema.row_bytes + _ORDER_BYTES)
            raise ValueError(f"cache is {self.cache}; expected at least {least} bytes, two batches of this log")

    @property
    def pool_rows(self) -> int | None:
        """Most rows of a pool; one more pool is read ahead. None for a log in memory."""
        if isinstance(self.log, Log):
            return None
        return self.cache // 2 // (self.log.schema.row_bytes + _ORDER_BYTES)

    def steps(self, day: int) -> int:
        """Return the number of batches of each rank while ``day`` is the newest day of the window."""
        if self.draw is Draw.ONCE:
            return ceil(len(self._rows(day)) // self.ranks / self.batch_size)
        rows = self.log.starts[day + 1] - self.log.starts[day]
        return self.steps_per_day or ceil(rows / (self.batch_size * self.ranks))

    def batches(self, day: int) -> Iterator[Batch]:
        """Yield the batches while ``day`` is the newest day of the window."""
        for drawn in self.drawn(range(day, day + 1)):
            yield drawn.batch

    def batch(self, rows: Tensor) -> Batch:
        """Return the rows with the given numbers in the log, (batch_size,) int64, in the given order."""
        return self.log.take(rows)

    def rows_of(self, day: int, index: int) -> Tensor:
        """Return the row numbers in the log, (batch_size,) int64, of batch ``index`` (0 is the first) of ``day``.

        The draws before it, in its day or pool, are computed again, which takes about 20 ns a row; no row is read.

        Raises:
            ValueError: if the day or the batch does not exist.
        """
        if not 0 <= day < len(self.log.days):
            raise ValueError(f"day is {day}; expected 0 to {len(self.log.days) - 1}, one of the log's days")
        if not 0 <= index < self.steps(day):
            raise ValueError(f"index is {index}; expected 0 to {self.steps(day) - 1}, a batch of day {day}")
        pool, first = next(self._visit(day).pools(index))
        return pool.numbers(next(pool.positions(first)))

    def stream(self, days: int) -> "Stream":
        """Return the batches of the days 0 to ``days - 1``, in order, as a stream that can be resumed at any batch."""
        return Stream(self, days)

    def drawn(self, days: range, index: int = 0) -> Iterator[Drawn]:
        """Yield the batches of the days, in order, from batch ``index`` of the first day on."""
        memory = cycle(self._memory())
        plans = (
            _Plan(day, pool, first, next(memory))
            for day in days
            for pool, first in self._visit(day).pools(index if day == days.start else 0)
        )
        read = map(self._read, plans) if isinstance(self.log, Log) else read_ahead(plans, self._read)
        for day, pool, rows, positions_of_batches in read:
            for positions in positions_of_batches:
                yield Drawn(day, self._gather(rows, positions), pool, positions)

    def _rows(self, day: int) -> range:
        return range(self.log.starts[max(0, day - self.width + 1)], self.log.starts[day + 1])

    def _visit(self, day: int) -> Visit:
        log, rows, limits = self.log, self.pool_rows, None
        if not isinstance(log, Log):
            assert rows is not None
            limits = DiskLimits(rows, log.row_group, log.row_groups)
        steps = self.steps(day)
        return Visit(self._rows(day), day, self.draw, self.batch_size, steps, self.seed, self.rank, self.ranks, limits)

    def _memory(self) -> list[Batch | None]:
        """Return memory for two pools, used alternately: one is read while batches are copied from the other."""
        if isinstance(self.log, Log):
            return [None]
        assert self.pool_rows is not None
        rows = min(self.pool_rows, self.log.starts[-1] - self.log.starts[0])
        return [empty(self.log.schema, rows) for _ in range(2)]

    def _read(self, plan: _Plan) -> _LoadedPool:
        day, pool, first, memory = plan
        if isinstance(self.log, Log):
            (rows,) = pool.ranges
            loaded = Batch(*(part[rows.start : rows.stop] for part in self.log.rows))
        else:
            loaded = self.log.read(pool.ranges, memory)
        return _LoadedPool(day, pool, loaded, pool.positions(first))

    def _gather(self, rows: Batch, positions: Tensor) -> Batch:
        if not (self.pin and torch.cuda.is_available()):
            return Batch(*(part.index_select(0, positions) for part in rows))
        pinned = Batch(*(part.new_empty(len(positions), part.shape[1], pin_memory=True) for part in rows))
        return Batch(*(torch.index_select(a, 0, positions, out=b) for a, b in zip(rows, pinned, strict=True)))


class Stream:
    """The batches of a moving window, each with its day: ``for day, batch in stream``.

    A stream has a position. Iterating starts at that position, not at the first batch. ``load_state_dict`` changes it,
    also inside a running loop.

    Args:
        window: the moving window.
        days: number of day partitions, from the start of the log.

    Raises:
        ValueError: if the log has fewer days.

    >>> from surefoot.lab.sources import synthetic
    >>> stream = MovingWindow(synthetic.make(days=3, rows_per_day=100), batch_size=50).stream(days=3)
    >>> [day for day, batch in stream]
    [0, 0, 1, 1, 2, 2]
    >>> stream.load_state_dict({**stream.state_dict(), "day": 1, "index": 1})
    >>> [day for day, batch in stream]
    [1, 2, 2]
    """

    def __init__(self, window: MovingWindow, days: int) -> None:
        if not 1 <= days <= len(window.log.days):
            raise ValueError(f"days is {days}; expected 1 to {len(window.log.days)}, the log's day partitions")
        self.window, self.days = window, days
        self._last: Drawn | None = None
        self._move_to(0, 0)

    @property
    def rows(self) -> Tensor | None:
        """The row numbers in the log of the last batch, (batch_size,) int64; None before the first."""
        return None if self._last is None else self._last.rows

    @property
    def position(self) -> tuple[int, int]:
        """The day of the next batch, and its index in that day; (days, 0) at the end."""
        return self._day, self._index

    @property
    def steps(self) -> int:
        """Number of batches of the whole stream."""
        return sum(self.window.steps(day) for day in range(self.days))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._day == self.days:
            raise StopIteration
        try:
            drawn = next(self._drawn)
        except BaseException:
            self._move_to(*self.position)  # the next call tries again; a failed generator would just end
            raise
        self._last = drawn
        self._index += 1
        if self._index == self.window.steps(self._day):
            self._day, self._index = self._day + 1, 0
        return drawn.day, drawn.batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the settings that the draws depend on, as plain numbers."""
        return {"day": self._day, "index": self._index, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move to the position of a state; the same batches follow as followed when the state was taken.

        Raises:
            ValueError: if the state is of a stream with other settings, or its position is not in this one.
        """
        for name, mine in self._identity().items():
            if (theirs := state.get(name, _FIRST_STATES.get(name))) != mine:
                raise ValueError(f"state has {name} {theirs}; expected {mine}, the value of this stream")
        day, index = state["day"], state["index"]
        steps = self.window.steps(day) if 0 <= day < self.days else int(day == self.days)
        if not 0 <= index < steps:
            raise ValueError(f"state is at day {day}, batch {index}; expected a batch of the days 0 to {self.days - 1}")
        self._move_to(day, index)

    def _identity(self) -> dict[str, Any]:
        """Return the settings that the draws depend on, without the rank: the state of one rank serves all ranks."""
        window = self.window
        names = ("batch_size", "width", "steps_per_day", "seed", "ranks", "pool_rows")
        numbers = {name: getattr(window, name) for name in names} | {"draw": window.draw.value}
        return {**numbers, "log": window.log.name, "rows": window.log.starts[self.days]}

    def _move_to(self, day: int, index: int) -> None:
        self._day, self._index = day, index
        self._drawn = self.window.drawn(range(day, self.days), index)
