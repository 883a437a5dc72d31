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


class Tail:
    """Follows a journal that is being written.

    Args:
        path: the file, which need not be there yet; what it has now is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._size()

    def new(self) -> list[Event]:
        """Return the events that were written since the last call."""
        if self._size() <= self._read:
            return []
        content = self._path.read_bytes()[self._read :]
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return events(self._path, whole)

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


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
