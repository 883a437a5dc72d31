"""The journal of a run, ``events.jsonl``, read as it was written or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

from surefoot.errors import InputError

_DIVERGENCE = {"step": int, "end": int, "task": str, "verdict": str, "reason": str}


def divergences(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Return the divergences that a trial's journal tells of.

    Raises:
        InputError: naming the file, and the line that is none of a journal.
    """
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            event = json.loads(line)
            if event["event"] == "divergence":
                found.append({key: kind(event[key]) for key, kind in _DIVERGENCE.items()})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}, cannot be read: {error!r}; expected a JSON object that a run wrote"
            ) from None
    return found
