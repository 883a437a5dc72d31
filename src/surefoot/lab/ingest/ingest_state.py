"""The state of a preparation: the log that is in the output folder already, and the progress of the work."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from surefoot.errors import InputError
from surefoot.files import open_regular, parse_json
from surefoot.lab.data.prepared import MANIFEST
from surefoot.lab.file_discovery import locate, natural
from surefoot.lab.ingest.description import Description
from surefoot.lab.ingest.reader import Rejections, sentence

STATE = "state.json"
FILE = "__file__"  # column with the number of a row's file
_PARTS = {STATE, f"{STATE}.draft", "rows", "rejected", "days", "vocabularies"}
Progress = Callable[[str, float], object]


class ExistingLog:
    """The prepared log that is in the output folder already; empty if there is none."""

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out, self.manifest = out, manifest
        self.days: dict[str, int] = {each["day"]: each["rows"] for each in manifest.get("days", ())}
        self.files: dict[str, int] = manifest.get("files", {})  # size of each file in bytes
        self.types: dict[str, str] = manifest.get("types", {})
        self.report: dict[str, Any] = manifest.get("report", {})
        self.rejected, self.counts = Counter(self.report.get("rejected")), Counter(self.report.get("counts"))
        self.first_rejected: dict[str, str] = manifest.get("first_rejected", {})
        self.last_day = max(self.days, key=natural, default="")

    @classmethod
    def of(cls, out: Path, description: Description) -> "ExistingLog":
        """Read the manifest, if there is one.

        Raises:
            InputError: if the folder holds anything else, or a log with another description.
        """
        if not (out / MANIFEST).exists():
            under_way = (partial(out) / STATE).exists()
            if out.exists() and not under_way and (not out.is_dir() or any(out.iterdir())):
                raise InputError(f"{out} exists and is not a prepared log; expected a new folder, or one with this log")
            return cls(out, {})
        manifest = _json(out / MANIFEST)
        if manifest.get("description") != json.loads(description.model_dump_json()):
            raise InputError(
                f"{out} was prepared with another schema than this one; expected the same to add days, or a new folder"
            )
        try:
            return cls(out, manifest)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{out / MANIFEST} lacks or misstates {error}; expected it as prepared") from None

    def new(self, files: Iterable[str]) -> list[str]:
        """Return the files that are not prepared yet.

        Raises:
            InputError: if a prepared file has changed since.
        """
        for file in files:
            if file in self.files and (size := size_and_time(file)[0]) != self.files[file]:
                raise InputError(
                    f"{file} has {size} bytes, and {self.files[file]} when {self.out} was prepared; expected the "
                    "unchanged file, and new rows in new files"
                )
        return [file for file in files if file not in self.files]


class Preparation:
    """The working folder of a preparation, and its progress."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state

    @classmethod
    def under_way(
        cls, before: ExistingLog, description: Description, files: list[str], beside: tuple[str, ...], stretch: int
    ) -> "Preparation":
        """Continue an interrupted preparation, or start a new one if files or description have changed.

        Args:
            before: the log that is in the output folder already.
            description: description of the log.
            files: files to add.
            beside: files of side tables.
            stretch: rows held in memory.

        Raises:
            InputError: if the working folder holds anything else.
        """
        seen = [(file, *size_and_time(file)) for file in (*files, *beside)]
        made_of = [description.model_dump_json(), stretch, *before.files, *seen]
        digest = sha256(json.dumps(made_of).encode()).hexdigest()
        folder = partial(before.out)
        path = folder / STATE
        if path.exists() and (state := _json(path)).get("digest") == digest:
            return cls(folder, state)
        if folder.exists():
            if others := {each.name for each in folder.iterdir()} - _PARTS:
                raise InputError(
                    f"{folder} has {min(others)} in it; expected no such folder, since {before.out} is prepared there"
                )
            shutil.rmtree(folder)
        (folder / "rows").mkdir(parents=True)
        (folder / "rejected").mkdir()
        per_day, last = description.day.rows, before.last_day.removeprefix("rows-")
        rows_in = before.report.get("rows_in", 0)
        state = {
            "digest": digest,
            "files": files,
            "empty": [],
            "file": 0,  # number of the current file
            "consumed": 0,  # its rows that are done
            "rows_in": rows_in,
            "at_start": [rows_in, 0],  # rows read and rows rejected before the current file
            "position": (int(last) + 1) * per_day if per_day and last else 0,  # an incomplete pseudo-day stays so
            "types": dict(before.types),
        }
        return cls(
            folder, state | {name: {} for name in ("rejected", "first_rejected", "counts", "encoded", "columns")}
        )

    @property
    def begun(self) -> bool:
        """Whether a part of the work is done and saved."""
        return (self.folder / STATE).exists() and any((self.folder / "rows").iterdir())

    def save(self) -> None:
        """Save the progress."""
        draft = self.folder / f"{STATE}.draft"
        draft.write_text(json.dumps(self.state))
        draft.rename(self.folder / STATE)

    def count(self, name: str, counts: Counter[str]) -> None:
        """Add to a table of counts."""
        self.state[name] = dict(Counter(self.state[name]) + counts)

    def note_beside(self, rejected: Rejections) -> None:
        """Save the rejected rows of side tables; they do not count as rows of the log."""
        if rejected.rows:
            rejected.frame().write_parquet(self.folder / "rejected" / "beside.parquet")

    def note(self, part: str, rejected: Rejections) -> None:
        """Save and count rejected rows. A part that is done again after an interruption replaces its file."""
        if not rejected.rows:
            return
        rejected.frame().write_parquet(self.folder / "rejected" / f"{part}.parquet")
        first: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for row in rejected.rows:
            key = f"{row[2] + ': ' if row[2] else ''}{row[4]}"
            counts[key] += 1
            first.setdefault(key, sentence(*row))
        self.count("rejected", counts)
        self.state["first_rejected"] = first | self.state["first_rejected"]


def partial(out: Path) -> Path:
    """Return the working folder for ``out``."""
    out = out.absolute()
    return out.with_name(f"{out.name}.partial")


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file; return an empty dictionary if it is damaged."""
    try:
        with open_regular(path) as file:
            return parse_json(file.read(), path)
    except InputError:
        return {}


def size_and_time(file: str) -> tuple[int, int]:
    """Return a file's size in bytes and time of change in ns, to detect a change."""
    system, inside = locate(file)
    info = system.get_file_info(inside)
    return info.size or 0, info.mtime_ns or 0
