"""Reads the journal of a run, ``events.jsonl``, and refuses a damaged one with one sentence."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import InputError

_DIVERGENCE = {"step": int, "end": int, "task": str, "verdict": str, "reason": str}
_VERDICTS = ("healthy", "micro", "full")


class Event(NamedTuple):
    """A line of a journal."""

    kind: str  # "alarm", "rolled_back" and so on
    step: int | None
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        """The reason of the event; empty if the line has none."""
        return str(self.details.get("reason") or "")


def divergences(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Return the divergences in a trial's journal.

    Raises:
        InputError: naming the file, and the line that cannot be read.
    """
    return [event.details | {"step": event.step} for event in events(path, content) if event.kind == "divergence"]


def events(path: Path, content: bytes) -> list[Event]:
    """Return the events of a journal, oldest first.

    Raises:
        InputError: naming the file, and the line that cannot be read.
    """
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            found.append(_event(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}, cannot be read: {error!r}; expected a JSON object that a run wrote"
            ) from None
    return found


def _event(line: dict[str, Any]) -> Event:
    """Return a line as an event; a wrong line raises one of the errors that ``events`` catches."""
    kind, step = str(line["event"]), line.get("step")
    details = {key: value for key, value in line.items() if key not in ("event", "step")}
    if kind == "divergence":
        known = {key: of(line[key]) for key, of in _DIVERGENCE.items()}
        details |= {key: value for key, value in known.items() if key != "step"}
    elif kind == "finished":
        details |= {"steps": int(line["steps"])}
        details |= {key: math.nan if value is None else float(value) for key, value in details.items() if "/" in key}
        if line["verdict"] not in _VERDICTS:
            raise ValueError(f"verdict is {line['verdict']!r}; expected one of {', '.join(_VERDICTS)}")
    return Event(kind, None if step is None else int(step), details)
