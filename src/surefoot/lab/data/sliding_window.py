"""Sequential training's order: a window of days that moves on, batches at random inside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from surefoot import checks
from surefoot.lab.data.dayfile import empty
from surefoot.lab.data.pools import Draw, Pool, Room, Visit, read_ahead
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Batch, Log

_ORDER_BYTES = 8  # of a row's place in a pool's shuffled order
# What a state from before these names were written had.
_FIRST_STATES: dict[str, Any] = {"draw": Draw.REPLACED.value, "ranks": 1, "pool_rows": None}


class Drawn(NamedTuple):
    """A batch, and where it is from."""

    day: int
    batch: Batch
    pool: Pool
    places: Tensor  # of its rows in the pool

    @property
    def rows(self) -> Tensor:
        """The row numbers in the log, (batch_size,) int64."""
        return self.pool.numbers(self.places)


class _Plan(NamedTuple):
    day: int
    pool: Pool
    first: int  # of its batches that is drawn
    room: Batch | None  # to read it into


class _Held(NamedTuple):
    day: int
    pool: Pool
    rows: Batch
    places: Iterator[Tensor]  # of each batch


@dataclass(frozen=True)
class MovingWindow:
    """Batches from a window of the last few days, day after day.

    Rows in memory are drawn from the whole window. Rows on disk are read in pools, each of row groups from all over the
    window, the next while one is used; with replacement, a window that fits into a pool is drawn from as one in memory.

    Args:
        log: the log, in memory or on disk.
        batch_size: rows a batch, of each rank.
        width: day partitions in the window, the newest included; fewer at the log's start.
        steps_per_day: batches drawn before the window moves on; by default as many as hold the newest day's rows,
            so that a row is drawn about once while it is in the window for each day of its width, divided by the width.
            When rows are drawn once, as many as hold the window's.
        seed: of the draws; day i's batches depend on the seed and i alone.
        draw: with replacement, or every row of the window once before it moves on.
        rank: which of the ranks this is. With replacement each draws by itself; else they share the window's rows, and
            all take the same number of steps: the last batch may be smaller, or a row larger than ``batch_size``.
        ranks: that train together.
        cache: bytes of memory that rows on disk may take up, half of it for the pool that is read ahead.
        pin: whether batches are in pinned memory, from where a GPU copies while it computes; without one they are not.

    Raises:
        ValueError: if a number is out of range, ``steps_per_day`` is given though rows are drawn once, or there are
            more ranks than rows in a window, or less room than for a batch in each half of the cache.
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
            raise ValueError(f"cache is {self.cache}; expected at least {least} bytes, two batches of the log's rows")

    @property
    def pool_rows(self) -> int | None:
        """How many rows on disk are held at once, as many again being read ahead; None if the log is in memory."""
        if isinstance(self.log, Log):
            return None
        return self.cache // 2 // (self.log.schema.row_bytes + _ORDER_BYTES)

    def steps(self, day: int) -> int:
        """Return how many batches each rank draws while ``day`` is the newest."""
        if self.draw is Draw.ONCE:
            return ceil(len(self._rows(day)) // self.ranks / self.batch_size)
        rows = self.log.starts[day + 1] - self.log.starts[day]
        return self.steps_per_day or ceil(rows / (self.batch_size * self.ranks))

    def batches(self, day: int) -> Iterator[Batch]:
        """Yield the batches drawn while ``day`` is the newest."""
        for drawn in self.drawn(range(day, day + 1)):
            yield drawn.batch

    def batch(self, rows: Tensor) -> Batch:
        """Return the rows of these numbers in the log, (batch_size,) int64, in their order."""
        return self.log.take(rows)

    def rows_of(self, day: int, index: int) -> Tensor:
        """Return the row numbers in the log, (batch_size,) int64, of batch ``index`` (0 is the first) of ``day``.

        The draws of the day, or the pool, before it are made again, at about 20 ns a row; nothing is read.

        Raises:
            ValueError: if the day or the batch does not exist.
        """
        if not 0 <= day < len(self.log.days):
            raise ValueError(f"day is {day}; expected 0 to {len(self.log.days) - 1}, one of the log's days")
        if not 0 <= index < self.steps(day):
            raise ValueError(f"index is {index}; expected 0 to {self.steps(day) - 1}, a batch of day {day}")
        pool, first = next(self._visit(day).pools(index))
        return pool.numbers(next(pool.places(first)))

    def stream(self, days: int) -> "Stream":
        """Return the batches of the days 0 to ``days - 1``, in order, as a stream that can be resumed anywhere."""
        return Stream(self, days)

    def drawn(self, days: range, index: int = 0) -> Iterator[Drawn]:
        """Yield the batches of the days, in order, from batch ``index`` of the first on."""
        rooms = cycle(self._rooms())
        plans = (
            _Plan(day, pool, first, next(rooms))
            for day in days
            for pool, first in self._visit(day).pools(index if day == days.start else 0)
        )
        read = map(self._read, plans) if isinstance(self.log, Log) else read_ahead(plans, self._read)
        for day, pool, rows, places_of_batches in read:
            for places in places_of_batches:
                yield Drawn(day, self._gather(rows, places), pool, places)

    def _rows(self, day: int) -> range:
        return range(self.log.starts[max(0, day - self.width + 1)], self.log.starts[day + 1])

    def _visit(self, day: int) -> Visit:
        log, rows, room = self.log, self.pool_rows, None
        if not isinstance(log, Log):
            assert rows is not None
            room = Room(rows, log.row_group, log.row_groups)
        steps = self.steps(day)
        return Visit(self._rows(day), day, self.draw, self.batch_size, steps, self.seed, self.rank, self.ranks, room)

    def _rooms(self) -> list[Batch | None]:
        """Return memory for two pools, used in turn: one is read while batches are copied out of the other."""
        if isinstance(self.log, Log):
            return [None]
        assert self.pool_rows is not None
        rows = min(self.pool_rows, self.log.starts[-1] - self.log.starts[0])
        return [empty(self.log.schema, rows) for _ in range(2)]

    def _read(self, plan: _Plan) -> _Held:
        day, pool, first, room = plan
        if isinstance(self.log, Log):
            (rows,) = pool.stretches
            held = Batch(*(part[rows.start : rows.stop] for part in self.log.rows))
        else:
            held = self.log.read(pool.stretches, room)
        return _Held(day, pool, held, pool.places(first))

    def _gather(self, rows: Batch, places: Tensor) -> Batch:
        if not (self.pin and torch.cuda.is_available()):
            return Batch(*(part.index_select(0, places) for part in rows))
        room = Batch(*(part.new_empty(len(places), part.shape[1], pin_memory=True) for part in rows))
        return Batch(*(torch.index_select(a, 0, places, out=b) for a, b in zip(rows, room, strict=True)))


class Stream:
    """The batches of a moving window, one after another, with its day: ``for day, batch in stream``.

    It is at a position, not at a start: iterating goes on from where it is, and after ``load_state_dict`` from there,
    in a loop that is under way too.

    Args:
        window: what is drawn.
        days: how many day partitions, the first ones of the log.

    Raises:
        ValueError: if the log does not have so many days.

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
        """The day and the index in it of the batch that comes next; (days, 0) at the end."""
        return self._day, self._index

    @property
    def steps(self) -> int:
        """How many batches the whole stream has."""
        return sum(self.window.steps(day) for day in range(self.days))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._day == self.days:
            raise StopIteration
        try:
            drawn = next(self._drawn)
        except BaseException:
            self._move_to(*self.position)  # so that going on tries again, instead of ending
            raise
        self._last = drawn
        self._index += 1
        if self._index == self.window.steps(self._day):
            self._day, self._index = self._day + 1, 0
        return drawn.day, drawn.batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what the draws depend on, in plain numbers."""
        return {"day": self._day, "index": self._index, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a state: the batches from there on are those that followed it then.

        Raises:
            ValueError: if the state is of a stream that draws otherwise, or its position is not in this one.
        """
        for name, mine in self._identity().items():
            if (theirs := state.get(name, _FIRST_STATES.get(name))) != mine:
                raise ValueError(f"state has {name} {theirs}; expected {mine}, as this stream draws")
        day, index = state["day"], state["index"]
        steps = self.window.steps(day) if 0 <= day < self.days else int(day == self.days)
        if not 0 <= index < steps:
            raise ValueError(f"state is at day {day}, batch {index}; expected a batch of the days 0 to {self.days - 1}")
        self._move_to(day, index)

    def _identity(self) -> dict[str, Any]:
        """Return what the draws depend on; the rank apart, so that one rank's state serves them all."""
        window = self.window
        names = ("batch_size", "width", "steps_per_day", "seed", "ranks", "pool_rows")
        numbers = {name: getattr(window, name) for name in names} | {"draw": window.draw.value}
        return {**numbers, "log": window.log.name, "rows": window.log.starts[self.days]}

    def _move_to(self, day: int, index: int) -> None:
        self._day, self._index = day, index
        self._drawn = self.window.drawn(range(day, self.days), index)
