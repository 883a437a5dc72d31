"""How far a preparation is: what the folder has already, and what is done of the work beside it."""

import json
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from surefoot.data.description import Description
from surefoot.data.prepared import MANIFEST
from surefoot.data.reader import Rejections, locate, natural, sentence
from surefoot.errors import InputError

STATE = "state.json"


class Before:
    """What is in the folder already."""

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out, self.manifest = out, manifest
        self.days: dict[str, int] = {each["day"]: each["rows"] for each in manifest.get("days", ())}
        self.files: list[str] = manifest.get("files", [])
        report = manifest.get("report", {})
        self.rows_in, self.rows_out = report.get("rows_in", 0), report.get("rows_out", 0)
        self.rejected, self.counts = Counter(report.get("rejected", {})), Counter(report.get("counts", {}))
        self.last_day = max(self.days, key=natural, default="")

    @classmethod
    def of(cls, out: Path, description: Description) -> "Before":
        """Read the manifest, if there is one.

        Raises:
            InputError: if the folder is of something else.
        """
        if not (out / MANIFEST).exists():
            under_way = (partial(out) / STATE).exists()
            if out.exists() and not under_way and (not out.is_dir() or any(out.iterdir())):
                raise InputError(f"{out} is there and is no prepared log; expected a new folder or one of this log")
            return cls(out, {})
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("description") != json.loads(description.model_dump_json()):
            raise InputError(
                f"{out} was prepared with another schema than this one; expected the same to add days, or a new folder"
            )
        return cls(out, manifest)


class Work:
    """The folder of a preparation under way, and how far it is."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state

    @classmethod
    def beside(cls, before: Before, description: Description, files: list[str], stretch: int) -> "Work":
        """Return the work as it stands, new if it was of other files or of another description."""
        made_of = [description.model_dump_json(), stretch, before.files, *((file, *look(file)) for file in files)]
        digest = sha256(json.dumps(made_of).encode()).hexdigest()
        folder = partial(before.out)
        path = folder / STATE
        if path.exists() and (state := json.loads(path.read_text()))["digest"] == digest:
            return cls(folder, state)
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "rows").mkdir(parents=True)
        (folder / "rejected").mkdir()
        per_day = description.day.rows or 1
        position = -(-before.rows_out // per_day) * per_day  # a pseudo-day that was not full stays so
        numbers = {"file": 0, "consumed": 0, "rows_in": before.rows_in, "position": position}
        at_start = [before.rows_in, 0]  # rows in and rows rejected when the file began
        tables = {key: {} for key in ("types", "rejected", "first_rejected", "counts", "encoded", "columns")}
        return cls(folder, {"digest": digest, "files": files, "at_start": at_start, **numbers, **tables})

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / STATE).exists()

    def save(self) -> None:
        """Write down how far it is."""
        draft = self.folder / f"{STATE}.draft"
        draft.write_text(json.dumps(self.state))
        draft.rename(self.folder / STATE)

    def count(self, name: str, counts: Counter[str]) -> None:
        """Add to a table of counts."""
        self.state[name] = dict(Counter(self.state[name]) + counts)

    def note(self, part: str, rejected: Rejections) -> None:
        """Keep rows that were left out; the same part again replaces what was kept of it."""
        if not rejected.rows:
            return
        rejected.frame().write_parquet(self.folder / "rejected" / f"{part}.parquet")
        told: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for row in rejected.rows:
            key = f"{row[2] + ': ' if row[2] else ''}{row[4]}"
            counts[key] += 1
            told.setdefault(key, sentence(*row))
        self.count("rejected", counts)
        self.state["first_rejected"] = told | self.state["first_rejected"]


def partial(out: Path) -> Path:
    """Return the folder of the work for ``out``."""
    return out.with_name(f"{out.name}.partial")


def look(file: str) -> tuple[int, int]:
    """Return a file's size and time, by which a change shows."""
    system, inside = locate(file)
    info = system.get_file_info(inside)
    return info.size or 0, info.mtime_ns or 0
