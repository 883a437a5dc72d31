"""Sequential training's order: a window of days that moves on, batches at random inside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import torch
from torch import Tensor

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
        for rows in self._draws(day):
            yield self.batch(rows)

    def batch(self, rows: Tensor) -> Batch:
        """Return the rows of these numbers in the log, (batch_size,) int64, in their order."""
        return Batch(*(part.index_select(0, rows) for part in self.log.rows))

    def rows_of(self, day: int, index: int) -> Tensor:
        """Return the row numbers in the log, (batch_size,) int64, of batch ``index`` (0 is the first) of ``day``.

        The draws of the day before it are made again, at about 20 ns a row.

        Raises:
            ValueError: if the day or the batch does not exist.
        """
        if not 0 <= day < len(self.log.days):
            raise ValueError(f"day is {day}; expected 0 to {len(self.log.days) - 1}, one of the log's days")
        if not 0 <= index < self.steps(day):
            raise ValueError(f"index is {index}; expected 0 to {self.steps(day) - 1}, a batch of day {day}")
        draws = self._draws(day)
        for _ in range(index):
            next(draws)
        return next(draws)

    def stream(self, days: int) -> "Stream":
        """Return the batches of the days 0 to ``days - 1``, in order, as a stream that can be resumed anywhere."""
        return Stream(self, days)

    def _draws(self, day: int) -> Iterator[Tensor]:
        """Yield the row numbers of the day's batches."""
        first = self.log.starts[max(0, day - self.width + 1)]
        size = self.log.starts[day + 1] - first
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + day)
        for _ in range(self.steps(day)):
            yield torch.randint(size, (self.batch_size,), generator=generator) + first


class Stream:
    """The batches of a moving window, one after another, with its day: ``for day, batch in stream``.

    It is at a position, not at a start: iterating goes on from where it is, and after ``load_state_dict`` from there,
    in a loop that is under way too.

    Args:
        window: what is drawn.
        days: how many day partitions, the first ones of the log.

    Raises:
        ValueError: if the log does not have so many days.

    >>> from surefoot.data import synthetic
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
        self.rows: Tensor | None = None  # row numbers of the last batch, (batch_size,)
        self._move_to(0, 0)

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
        self.rows = next(self._draws)
        day, batch = self._day, self.window.batch(self.rows)
        self._index += 1
        if self._index == self.window.steps(day):
            self._move_to(day + 1, 0)
        return day, batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what the draws depend on, in plain numbers."""
        return {"day": self._day, "index": self._index, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a state: the batches from there on are those that followed it then.

        Raises:
            ValueError: if the state is of a stream that draws otherwise, or its position is not in this one.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ValueError(f"state has {name} {state.get(name)}; expected {mine}, as this stream draws")
        day, index = state["day"], state["index"]
        steps = self.window.steps(day) if 0 <= day < self.days else int(day == self.days)
        if not 0 <= index < steps:
            raise ValueError(f"state is at day {day}, batch {index}; expected a batch of the days 0 to {self.days - 1}")
        self._move_to(day, index)

    def _identity(self) -> dict[str, Any]:
        window = self.window
        numbers = {name: getattr(window, name) for name in ("batch_size", "width", "steps_per_day", "seed")}
        return {**numbers, "log": window.log.name, "rows": window.log.starts[self.days]}

    def _move_to(self, day: int, index: int) -> None:
        self._day, self._index = day, index
        self._draws = self.window._draws(day) if day < self.days else iter(())
        for _ in range(index):
            next(self._draws)
