"""How far a run is: all that weights, optimizers and detector do not know of it, so that it goes on where it was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surefoot.lab.data.sliding_window import Stream

Row = dict[str, float | int | str]
_WHOLE = ("step", "day")  # columns of a step's row that are whole numbers; all others are real


@dataclass
class Progress:
    """What goes into a checkpoint beside the model, in the place of the loader: a roll-back leaves it as it is.

    Args:
        stream: the batches, and where in them the run is.
        today: the day partition of the last batch.
        steps: a row for each step.
        next_day: a row for each day scored.
        curve: a row for each day after which the curve's day was scored.
        pending: gives the row of the last step where ``steps`` does not have it yet.
    """

    stream: Stream
    today: int = 0
    steps: list[Row] = field(default_factory=list)
    next_day: list[Row] = field(default_factory=list)
    curve: list[Row] = field(default_factory=list)
    pending: Callable[[], Row | None] = lambda: None

    def state_dict(self) -> dict[str, Any]:
        """Return it all in plain numbers, words and tensors."""
        last = self.pending()
        return {
            "stream": self.stream.state_dict(),
            "today": self.today,
            "steps": _packed([*self.steps, last] if last is not None else self.steps),
            "next_day": [dict(row) for row in self.next_day],
            "curve": [dict(row) for row in self.curve],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken; the lists stay the same objects."""
        self.stream.load_state_dict(state["stream"])
        self.today = state["today"]
        self.steps[:] = _unpacked(state["steps"])
        self.next_day[:], self.curve[:] = state["next_day"], state["curve"]


def _packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows of numbers, all of the same names, as one tensor."""
    names = list(rows[0]) if rows else []
    return {
        "names": names,
        "values": torch.tensor([list(row.values()) for row in rows], dtype=torch.float64, device="cpu"),
    }


def _unpacked(packed: Mapping[str, Any]) -> list[Row]:
    names = packed["names"]
    return [
        {name: int(x) if name in _WHOLE else x for name, x in zip(names, row, strict=True)}
        for row in packed["values"].tolist()
    ]
