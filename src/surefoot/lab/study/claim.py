"""The folder of a study or of a run belongs to it alone, and to one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from surefoot.errors import InputError
from surefoot.files import make_folder, write_whole
from surefoot.lab.settings import dump, load
from surefoot.lab.study.config import StudyConfig

CONFIG, LOCK = "study.toml", "study.lock"
RUN_LOCK = "run.lock"


@contextmanager
def claimed(out: Path, config: StudyConfig) -> Iterator[None]:
    """Make the folder this study's and hold it; the system lets go of it however this process ends.

    Raises:
        InputError: if it holds something else or another study, if a process runs the study there already, or if it
            cannot be written.
    """
    _refuse_other_files(out)
    with _held(out, LOCK, "study"):
        _settle(out, config)
        yield


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if there is none.

    Raises:
        InputError: if a process trains there already, or it cannot be written.
    """
    with _held(out, RUN_LOCK, "training"):
        yield


@contextmanager
def _held(out: Path, name: str, what: str) -> Iterator[None]:
    make_folder(out)
    lock = _lock(out / name, what)
    try:
        yield
    finally:
        (out / name).unlink(missing_ok=True)  # while it is still held
        os.close(lock)


def _refuse_other_files(out: Path) -> None:
    if (out / CONFIG).exists() or not out.exists():
        return
    if not out.is_dir() or {path.name for path in out.iterdir()} - {LOCK}:
        raise InputError(f"{out} exists and is not a study's folder; expected a new or an empty one")


def _lock(path: Path, what: str) -> int:
    """Lock a folder by a file in it; return its descriptor."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip()
            os.close(lock)
            raise InputError(
                f"{path.parent} is in use: process {holder or 'unknown'} runs a {what} there; expected it to end "
                "first, or another folder"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            with suppress(OSError):  # a full disk still holds a lock
                os.ftruncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
            return lock
        os.close(lock)  # its last holder has removed the file in the meantime


def _settle(out: Path, config: StudyConfig) -> None:
    written = out / CONFIG
    if not written.exists():
        write_whole(written, dump(config))
        return
    found = load(StudyConfig, written)
    if found != config:
        raise InputError(
            f"{out} holds another study: {difference(found, config, CONFIG)}; expected a new folder, or this study's"
        )


def difference(found: BaseModel, asked: BaseModel, file: str) -> str:
    """Return the first key in which what is asked for differs from what a file has, in words."""
    key, there, wanted = _first_difference(found.model_dump(mode="json"), asked.model_dump(mode="json"))
    return f"in its {file} {key} is {_shown(there) or 'not set'}, and {_shown(wanted) or 'none'} is asked for"


def _shown(value: Any) -> str:
    return "" if value is None else "a section" if isinstance(value, dict) else repr(value)


def _first_difference(found: Any, asked: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(found, dict) and isinstance(asked, dict):
        for name in (*found, *(name for name in asked if name not in found)):
            if found.get(name) != asked.get(name):
                return _first_difference(found.get(name), asked.get(name), f"{key}.{name}".lstrip("."))
    if isinstance(found, list) and isinstance(asked, list) and len(found) == len(asked):
        for i, pair in enumerate(zip(found, asked, strict=True)):
            if pair[0] != pair[1]:
                return _first_difference(*pair, f"{key}.{i}")
    return key, found, asked
