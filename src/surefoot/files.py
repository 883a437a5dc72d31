"""Atomic writes, checksums of files, and reading of JSON and TOML."""

import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from surefoot.errors import InputError

SUMS = "SHA256SUMS"  # in the format of `sha256sum --check`


def make_folder(path: Path) -> None:
    """Create a folder if there is none, and check that it can be written to.

    Raises:
        InputError: naming the folder and the reason, if it cannot be created or written to.
    """
    probe = path / f".probe-{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            path.stat()  # raises for symbolic links in a circle
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{path} cannot be used: {error.strerror}; expected a folder that can be made and written"
        ) from None


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name, then rename it: no reader sees half a file. Return its path.

    Raises:
        InputError: naming the file and the reason, if it cannot be written; an older file of that name stays.
    """
    draft = path.with_name(f"{path.name}.draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        return draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}; expected a folder with room for it") from None


def write_sums(folder: Path, paths: Iterable[Path]) -> None:
    """Write the checksums of files into the folder that holds them.

    Raises:
        InputError: if they cannot be written.
    """
    lines = [f"{_digest(path.read_bytes())}  {path.relative_to(folder).as_posix()}\n" for path in sorted(paths)]
    write_whole(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in a folder, by its path relative to the folder.

    Raises:
        InputError: naming the file of checksums, if it cannot be read.
    """
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a checksum and a file name on each line") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read_checked(path: Path, folder: Path, sums: dict[str, str]) -> bytes:
    """Return a file's bytes after comparing them with its checksum.

    Raises:
        InputError: naming the file, if it cannot be read, has no checksum or has changed.
    """
    name = path.relative_to(folder).as_posix()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected the file as it was written") from None
    if name not in sums:
        raise InputError(f"{path} has no checksum in {folder / SUMS}; expected one for each file that is read")
    if sums[name] != _digest(content):
        raise InputError(
            f"{path} has changed since it was written: its bytes do not fit its checksum in {folder / SUMS}; "
            "expected the file as it was written"
        )
    return content


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes; opening a pipe in a foreign folder would block for ever.

    Raises:
        InputError: if it is a pipe, a device or a folder.
        OSError: if it cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is a folder, a pipe or a device; expected a file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def parse_json(content: bytes | str, origin: object) -> dict[str, Any]:
    """Parse JSON text whose top level is an object.

    Args:
        content: the text, UTF-8.
        origin: where it came from, for the message.

    Raises:
        InputError: if the text is not JSON, or its top level is not an object.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not JSON: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{origin} holds {_kind(found)}; expected a table with names")
    return found


def parse_toml(content: bytes | str, origin: object) -> dict[str, Any]:
    """Parse TOML text.

    Args:
        content: the text, UTF-8, with or without a byte order mark.
        origin: where it came from, for the message.

    Raises:
        InputError: if the text is not TOML.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not TOML: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), "a number")


def refuse_changed(folder: Path, under: str) -> None:
    """Refuse files below ``folder / under`` that have changed since their checksums were written; ignore missing ones.

    Raises:
        InputError: naming the first changed file.
    """
    sums = read_sums(folder) if (folder / SUMS).exists() else {}
    for name in sums:
        if name.startswith(f"{under}/") and (folder / name).exists():
            read_checked(folder / name, folder, sums)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
