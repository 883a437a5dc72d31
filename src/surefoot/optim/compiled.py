"""Compiles the package's C++ sources on first use, caches the libraries on disk, and loads them.

The cache is ``$XDG_CACHE_HOME/surefoot`` (``~/.cache/surefoot``). The name of a library has a digest of what it was
built from (source, compiler, processor) and a digest of its content; a file that does not match its name is built
again. Loading a library runs its code, so a folder or a file that another user can write to is not used. Without a
usable folder, the library is built for this process alone, and a warning says why. Without a compiler surefoot works
the same, but more slowly.
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

# -ffp-contract=off: product and sum are fused only where the source says so. The other two -fno flags: nobody reads
# errno or catches floating-point traps; without these flags roots and comparisons are not vectorised.
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
    """Return the library of a source file of surefoot; None without a compiler or, with a warning, if building fails.

    Args:
        file: the path of the source within the package.
        functions: the functions that the library must export.
    """
    try:
        compiler = _compiler()
        if compiler is None:
            return None
        return _cached_or_built(Path(file).stem, (files("surefoot") / file).read_bytes(), compiler, functions)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        _warn(f"surefoot's C++ kernel cannot be built, torch's slower operations are used: {why}")
        return None


def threads() -> int:
    """Return how many threads a library may use: as many as torch, but 1 in a forked process that would hang with more.

    A fork does not copy the threads of its parent, but OpenMP would wait for them.
    """
    global _used_threads
    count = 1 if _forked else torch.get_num_threads()
    _used_threads |= count > 1
    return count


_used_threads = False  # this process has used more than one thread
_forked = False  # the process that this one was forked from had


def _after_fork() -> None:
    global _forked
    _forked |= _used_threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compiler() -> list[str] | None:
    """Return the compiler and its arguments, from $CXX if it is set; None if there is no compiler."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ValueError(f"CXX is {os.environ['CXX']!r}, which is not a command ({error})") from None
    found = shutil.which("g++") or shutil.which("clang++")
    return given or ([found] if found else None)


def _cached_or_built(stem: str, source: bytes, compiler: Sequence[str], functions: Sequence[str]) -> ctypes.CDLL:
    """Return the cached library; if there is none, build it, and cache it if there is a folder."""
    built_from = hashlib.sha256(b"\0".join([source, *map(str.encode, (*compiler, *_FLAGS)), _processor()])).hexdigest()
    prefix, folder, why = f"{stem}-{built_from[:16]}-", None, OSError()
    try:
        folder = _folder()
        for path in folder.glob(f"{prefix}*.so"):
            if (cached := _cached(path, functions)) is not None:
                return cached
    except OSError as error:
        why = error
    with tempfile.TemporaryDirectory() as scratch:
        built = _compile(compiler, source, Path(scratch))
        if folder is not None:
            try:
                return _loaded(_put_in_cache(built, folder / f"{prefix}{_digest(built)}.so"), functions)
            except OSError as error:
                why = error
        _warn(f"surefoot's C++ kernel is compiled for this process alone, not cached: {why}")
        return _loaded(built, functions)


def _cached(path: Path, functions: Sequence[str]) -> ctypes.CDLL | None:
    """Load a cached library if it belongs to this user and matches its name; otherwise delete it."""
    try:
        _check_owner(path)
        if path.stem.rpartition("-")[2] == _digest(path):
            return _loaded(path, functions)
    except OSError as error:
        _warn(f"a cached C++ kernel is not used, but built again: {error}")
    path.unlink(missing_ok=True)
    return None


def _put_in_cache(built: Path, path: Path) -> Path:
    """Copy a library into the cache by a rename, so that several processes can do so at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        return Path(shutil.copy(built, scratch)).rename(path)


def _folder() -> Path:
    """Return the cache folder; an OSError says why there is none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # a relative path is ignored
    except RuntimeError:
        raise OSError("the user has no home folder; expected XDG_CACHE_HOME or HOME to name one") from None
    folder = base / "surefoot"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(folder)
    for above in folder.resolve().parents:  # whoever may rename our folder can put another in its place
        found = above.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(f"{above} belongs to user {found.st_uid}; expected this user or root")
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise OSError(f"{above} may be written by everybody; expected write access for this user alone")
    return folder


def _check_owner(path: Path) -> None:
    """Refuse a folder or a file that another user owns or can write to."""
    if not hasattr(os, "geteuid"):
        raise OSError(f"the owner of {path} is not known on this system")
    found = path.stat() if path.is_dir() else path.lstat()
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise OSError(f"{path} is not a folder or a regular file")
    if found.st_uid != os.geteuid():
        raise OSError(f"{path} belongs to user {found.st_uid}; expected {os.geteuid()}, who runs this process")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(found.st_mode):o}"
        raise OSError(f"{path} may be written by others (mode {mode}); expected write access for this user alone")


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
