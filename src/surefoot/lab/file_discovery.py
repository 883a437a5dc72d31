"""Finds the files of a log on a file system, and turns errors of reading into sentences that name the file."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from surefoot.errors import InputError

PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".dat", ".inter", ".log")
PACKED = (".gz", ".zst", ".bz2", ".lz4")
PROTOCOLS = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "memory")
_AZURE, _AZURE_HOSTS = ("abfs", "abfss"), ".core.windows.net"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or a URL, and the path on it.

    Only URLs with one of ``PROTOCOLS`` are opened, without chains or options. Others could send requests to any machine
    of the network, or run code from a file (``reference://`` renders templates).

    Raises:
        InputError: if the URL is of another kind, or its file system is not supported.
    """
    if not is_url(path):
        return fs.LocalFileSystem(), str(Path(path))
    refuse_other_urls(path)
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    except OSError as error:  # the server that knows the bucket does not answer
        raise InputError(f"{path} cannot be reached: {_reason(error)}") from None
    try:
        import fsspec

        system, inside = fsspec.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{path} is on a file system that is not supported ({error}); expected a path or a URL that pyarrow opens"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), inside


def is_url(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def refuse_other_urls(url: str) -> None:
    """Refuse a URL with another protocol, a chain or options; nothing is opened.

    Raises:
        InputError: naming the URL and what was expected.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS:
        raise InputError(
            f"{url} has the protocol {protocol!r}; expected a path or a URL of one of {', '.join(PROTOCOLS)}"
        )
    if "::" in url:
        raise InputError(f"{url} chains several URLs; expected one URL")
    if protocol in ("file", "memory"):
        return
    if "?" in rest:
        raise InputError(
            f"{url} has options; expected none after '?': set them in the environment, such as AWS_ENDPOINT_URL"
        )
    host = rest.split("/")[0].rpartition("@")[2]
    if protocol != "hdfs" and (":" in host or (protocol in _AZURE and not host.endswith(_AZURE_HOSTS))):
        known = f"a container at an account's name that ends in {_AZURE_HOSTS}" if protocol in _AZURE else "a bucket"
        raise InputError(f"{url} names the machine {host!r}; expected {known}")


def find_files(path: str) -> tuple[str, ...]:
    """Return the text and parquet files of a folder and its subfolders, in natural order; for a file, the file.

    Names that begin with a dot or an underscore are skipped. A folder that is reached twice by links counts once.

    Raises:
        InputError: if there is no such file.
    """
    system, inside = locate(path)
    with input_errors(path):
        info = system.get_file_info(inside)
        if info.type == fs.FileType.NotFound:
            raise InputError(f"{path} is not there; expected a folder or a file of a log")
        if info.type != fs.FileType.Directory:
            return (path,)
        found = [each for each in _below(system, inside) if _is_data(inside, each)]
    if not found:
        raise InputError(f"{path} has no file of a log; expected names that end in {', '.join((*PARQUET, *TEXT))}")
    return tuple(
        path.replace(inside, each, 1).rstrip("/") if "://" in path else each for each in sorted(found, key=natural)
    )


def _below(system: fs.FileSystem, folder: str) -> Iterator[str]:
    """Yield the paths of all files below a folder."""
    if not isinstance(system, fs.LocalFileSystem):
        below = system.get_file_info(fs.FileSelector(folder, recursive=True))
        yield from (each.path for each in below if each.type == fs.FileType.File)
        return
    seen = {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):  # Arrow ignores dangling links
        yield from (f"{here}/{name}" for name in files)
        real = {os.path.realpath(f"{here}/{name}"): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for path, name in real.items() if path not in seen]
        seen |= set(real)


def _raise(error: OSError) -> None:
    raise error


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts day_2 before day_10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def stem(path: str) -> str:
    """Return a file's name without its suffixes.

    >>> stem("logs/day_3.csv.gz")
    'day_3'
    """
    name = PurePosixPath(path.replace("\\", "/")).name
    while (suffix := PurePosixPath(name).suffix) in (*PARQUET, *TEXT, *PACKED):
        name = name.removesuffix(suffix)
    return name


def in_path(path: str) -> dict[str, str]:
    """Return the columns in a path: ``{"day": "2024-05-01"}`` for ``logs/day=2024-05-01/a.parquet``."""
    parts = (part.partition("=") for part in path.replace("\\", "/").split("/")[:-1])
    return {name: "" if value == _NO_VALUE else unquote(value) for name, equals, value in parts if equals}


@contextmanager
def input_errors(path: str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn an error of reading into an ``InputError`` that names the file and the place in it, ``where()``."""
    try:
        yield
    except (EOFError, OSError, UnicodeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read{where()}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for part, meaning in {
        "straddling object": "a line is too long; expected one row in each line, of at most 8 MiB",
        "Truncated compressed stream": "the compressed file is incomplete",
        "inflate failed": "it is named like a compressed file, but is not compressed or is damaged",
        "decompress failed": "it is named like a compressed file, but is not compressed or is damaged",
        "Parquet magic bytes": "it does not end like a parquet file; it is incomplete or another kind of file",
        "Parquet file size is": "it is too short for a parquet file",
        "TProtocolException": "it is damaged: its metadata cannot be read",
    }.items():
        if part in text:
            return meaning
    return text


def _is_data(folder: str, path: str) -> bool:
    name, below = PurePosixPath(path).name, path.removeprefix(folder)
    hidden = any(part.startswith((".", "_")) for part in below.split("/"))
    return not hidden and (name.endswith((*PARQUET, *TEXT, *PACKED)) or "." not in name)
