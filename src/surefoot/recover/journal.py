"""The journal of a run, ``events.jsonl``: one line for each thing that happened, in the order in which it did."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from surefoot.detect.detector import Event

_HELD_BACK = 1000  # lines that wait for room on the disk, at the most


class Journal:
    """Appends events to a file, each at once, so that a process killed later leaves them there.

    Args:
        path: the file; made, with its folder, by the first event.

    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()) / "events.jsonl")
    >>> journal.write("alarm", step=7, value=math.inf)
    >>> journal.path.read_text()
    '{"event": "alarm", "step": 7, "value": null}\\n'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._held_back: list[str] = []  # lines for which there was no room

    def write(self, event: str, **details: Any) -> None:
        """Append one event; a number that is not finite becomes null, which is what JSON has for it.

        Raises:
            OSError: if it cannot be written whole; nothing of it is in the file then, and all that was there still is.
        """
        line = json.dumps({"event": event, **{key: _plain(value) for key, value in details.items()}}, allow_nan=False)
        self._append("".join([*self._held_back, line + "\n"]))
        self._held_back = []

    def tell(self, event: str, **details: Any) -> None:
        """Append one event if that can be done; if the disk is full, warn, and write it when there is room.

        For whoever only watches: it ends nothing.
        """
        try:
            self.write(event, **details)
        except OSError as error:
            if not self._held_back:
                warnings.warn(f"{self.path} cannot be written, so events wait for room: {error}", stacklevel=3)
            line = {"event": event, **{key: _plain(value) for key, value in details.items()}}
            self._held_back = [*self._held_back, json.dumps(line, allow_nan=False) + "\n"][-_HELD_BACK:]

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            end = _end_of_lines(self.path, file.seek(0, os.SEEK_END))
            file.truncate(end)  # of a line that a kill cut off: the next one would not be one
            left = text.encode()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise


def read(path: Path | str) -> list[dict[str, Any]]:
    """Return the events of a journal, oldest first; a last line that was cut off by a kill is left out.

    A run in which nothing happened has no journal: that is no event.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _end_of_lines(path: Path, size: int) -> int:
    """Return where the last whole line of a file of that size ends."""
    with path.open("rb") as file:
        end, piece = size, b""
        while end and b"\n" not in piece:
            start = max(0, end - 4096)
            file.seek(start)
            piece = file.read(end - start)
            if b"\n" in piece:
                return start + piece.rindex(b"\n") + 1
            end = start
    return end


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def described(event: Event) -> dict[str, str | int | None]:
    """Return a divergence as the journal has it."""
    return {
        "task": event.task,
        "layer": event.layer,
        "signal": event.signal,
        "step": event.onset,
        "end": event.end,
        "verdict": event.verdict.value,
        "reason": event.reason,
    }
