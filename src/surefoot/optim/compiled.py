"""The package's C++ sources, compiled on first use by the machine's own compiler, kept for the next process, loaded.

A library is kept in ``$XDG_CACHE_HOME/surefoot`` (``~/.cache/surefoot``) under the name of its source, of what it was
made with (source, compiler, processor) and of what it holds; a file that does not hold what its name says is made anew.
What is loaded runs, so a folder or a file that another user may write is not used. Where there is no folder to keep it
in, the library is made for this process alone, and a warning says why. Without a compiler nothing is lost but speed.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

# -ffp-contract=off: one rounding where the source says so and nowhere else. The other two flags only say that nobody
# reads errno or traps, without which roots and comparisons are not vectorised.
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)


@cache
def library(file: str, *functions: str) -> ctypes.CDLL | None:
    """Return the compiled library of a source file of surefoot; None, having said so once, where that cannot be.

    Args:
        file: its path within the package.
        functions: what the library must have.
    """
    try:
        compiler = _compiler()
        if compiler is None:
            return None
        return _obtained(Path(file).stem, (files("surefoot") / file).read_bytes(), compiler, functions)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        _warn(f"surefoot's C++ kernel is not to be had, the eager path serves: {why}")
        return None


def threads() -> int:
    """Return how many threads a function of a library may use: torch's number, but one where more would hang.

    A process forked from one whose threads have worked has none of them, and OpenMP would wait for them.
    """
    global _worked
    count = 1 if _forked else torch.get_num_threads()
    _worked |= count > 1
    return count


_worked = False  # more than one thread, in this process
_forked = False  # from a process in which they have


def _after_fork() -> None:
    global _forked
    _forked |= _worked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compiler() -> list[str] | None:
    """Return the compiler and the arguments that come with it, as $CXX has them; None if there is no compiler."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ValueError(f"CXX is {os.environ['CXX']!r}, which is no command ({error})") from None
    found = shutil.which("g++") or shutil.which("clang++")
    return given or ([found] if found else None)


def _obtained(stem: str, source: bytes, compiler: Sequence[str], functions: Sequence[str]) -> ctypes.CDLL:
    """Return the library that is kept; else make it, and keep it if there is a folder for it."""
    made_with = hashlib.sha256(b"\0".join([source, *map(str.encode, (*compiler, *_FLAGS)), _processor()])).hexdigest()
    prefix, folder, why = f"{stem}-{made_with[:16]}-", None, OSError()
    try:
        folder = _folder()
        for path in folder.glob(f"{prefix}*.so"):
            if (kept := _if_whole(path, functions)) is not None:
                return kept
    except OSError as error:
        why = error
    with tempfile.TemporaryDirectory() as scratch:
        built = _compile(compiler, source, Path(scratch))
        if folder is not None:
            try:
                return _loaded(_keep(built, folder / f"{prefix}{_digest(built)}.so"), functions)
            except OSError as error:
                why = error
        _warn(f"surefoot's C++ kernel is compiled for this process alone, not kept: {why}")
        return _loaded(built, functions)


def _if_whole(path: Path, functions: Sequence[str]) -> ctypes.CDLL | None:
    """Return a library that is kept, if it is ours and what its name says; else take it away."""
    try:
        _check_owner(path)
        if path.stem.rpartition("-")[2] == _digest(path):
            return _loaded(path, functions)
    except OSError as error:
        _warn(f"a kept C++ kernel is not used, and made anew: {error}")
    path.unlink(missing_ok=True)
    return None


def _keep(built: Path, path: Path) -> Path:
    """Copy a library to its place: whole or not there, however many processes do so at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        return Path(shutil.copy(built, scratch)).rename(path)


def _folder() -> Path:
    """Return the folder to keep libraries in; an OSError says why there is none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # what is relative counts for nothing
    except RuntimeError:
        raise OSError("neither HOME nor the user's entry names a home; expected XDG_CACHE_HOME or HOME") from None
    folder = base / "surefoot"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(folder)
    for above in folder.resolve().parents:  # whoever may rename our folder can put another in its place
        found = above.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(f"{above} belongs to user {found.st_uid}; expected ours or root's")
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise OSError(f"{above} may be written by everybody; expected a folder of ours alone")
    return folder


def _check_owner(path: Path) -> None:
    """Refuse a folder or a file that is not ours alone."""
    if not hasattr(os, "geteuid"):
        raise OSError(f"the owner of {path} cannot be told on this system")
    found = path.stat() if path.is_dir() else path.lstat()
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise OSError(f"{path} is no plain folder or file")
    if found.st_uid != os.geteuid():
        raise OSError(f"{path} belongs to user {found.st_uid}; expected {os.geteuid()}, who runs this process")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{path} may be written by others (mode {stat.S_IMODE(found.st_mode):o}); expected ours alone")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: Sequence[str], source: bytes, scratch: Path) -> Path:
    text, built = scratch / "kernel.cpp", scratch / "kernel.so"
    text.write_bytes(source)
    command = [*compiler, *_FLAGS, str(text), "-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    built.chmod(0o700)
    return built


def _loaded(path: Path, functions: Sequence[str]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for function in functions:
        if not hasattr(loaded, function):
            raise OSError(f"{path} has no function {function}")
    return loaded


def _processor() -> bytes:
    """Return what -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor().encode()
    return "".join(sorted({line for line in text.splitlines() if line.startswith(("flags", "Features"))})).encode()


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)
