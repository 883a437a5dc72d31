"""Disks that become full: a file system of 3 MB where one can be mounted, and a limit on files anywhere."""

import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

_BYTES = 3 << 20


class Fillable(Protocol):
    """What can be made full, and be given room again."""

    def fill(self) -> None: ...
    def empty(self) -> None: ...


Disk = Callable[[Path], AbstractContextManager[tuple[Path, Fillable]]]


class _Mounted:
    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave room for a few bytes at most."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (65536, 4096):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    pass

    def empty(self) -> None:
        self._filler.unlink()


class _Limited:
    """A limit on the size of every file that this process writes."""

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def empty(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def mounted(folder: Path) -> Iterator[tuple[Path, Fillable]]:
    """A file system of 3 MB, for which one has to be root."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "none", str(disk)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield disk, _Mounted(disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextmanager
def limited(folder: Path) -> Iterator[tuple[Path, Fillable]]:
    """A folder in which, once full, no file can be larger than a byte."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    disk = _Limited()
    try:
        yield folder, disk
    finally:
        disk.empty()
        signal.signal(signal.SIGXFSZ, before)


FULL: dict[str, Disk] = {"a disk of 3 MB": mounted, "a limit on files": limited}
