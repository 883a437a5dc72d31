"""The journal of a run, ``events.jsonl``: one line for each thing that happened, in the order in which it did."""

import json
import math
from pathlib import Path
from typing import Any


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

    def write(self, event: str, **details: Any) -> None:
        """Append one event; a number that is not finite becomes null, which is what JSON has for it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"event": event, **{key: _plain(value) for key, value in details.items()}}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(path: Path | str) -> list[dict[str, Any]]:
    """Return the events of a journal, oldest first; a last line that was cut off by a kill is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
