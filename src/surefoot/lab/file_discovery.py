"""Finds a log's files: on which file system, under which names, in which order; names a file that cannot be read."""

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
    """Return the file system that a local path or a URL is on, and the path there.

    Of URLs only those of ``PROTOCOLS`` are opened, one at a time and without options: others can make whoever opens a
    log ask any machine of the network, or run what a file says (``reference://`` renders templates).

    Raises:
        InputError: if the URL is of another kind, or no such file system is known.
    """
    if not is_url(path):
        return fs.LocalFileSystem(), str(Path(path))
    refuse_other_urls(path)
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    except OSError as error:  # what is asked where a bucket is does not answer
        raise InputError(f"{path} cannot be reached: {_reason(error)}") from None
    try:
        import fsspec

        system, inside = fsspec.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{path} is on no file system that is known here ({error}); expected a path or a URL that pyarrow opens"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), inside


def is_url(path: str) -> bool:
    """Return whether a path is meant as a URL."""
    return "://" in path


def refuse_other_urls(url: str) -> None:
    """Refuse a URL that is not a plain one of a known protocol; nothing is opened.

    Raises:
        InputError: naming it and what was expected.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS:
        raise InputError(
            f"{url} is of the protocol {protocol!r}; expected a path or a URL of one of {', '.join(PROTOCOLS)}"
        )
    if "::" in url:
        raise InputError(f"{url} chains several URLs; expected one alone")
    if protocol in ("file", "memory"):
        return
    if "?" in rest:
        raise InputError(
            f"{url} has options; expected none after '?': they come from the environment, as AWS_ENDPOINT_URL does"
        )
    host = rest.split("/")[0].rpartition("@")[2]
    if protocol != "hdfs" and (":" in host or (protocol in _AZURE and not host.endswith(_AZURE_HOSTS))):
        known = f"a container at an account's name that ends in {_AZURE_HOSTS}" if protocol in _AZURE else "a bucket"
        raise InputError(f"{url} names the machine {host!r}; expected {known}")


def find_files(path: str) -> tuple[str, ...]:
    """Return the text and parquet files of a folder, at any depth, in natural order; of a file, itself.

    Names that begin with a dot or an underscore are passed over. A folder that links lead to twice comes once.

    Raises:
        InputError: if there is none.
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
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):  # arrow's ignores links to nothing
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
    """Return a file's name without its endings.

    >>> stem("logs/day_3.csv.gz")
    'day_3'
    """
    name = PurePosixPath(path.replace("\\", "/")).name
    while (suffix := PurePosixPath(name).suffix) in (*PARQUET, *TEXT, *PACKED):
        name = name.removesuffix(suffix)
    return name


def in_path(path: str) -> dict[str, str]:
    """Return the columns that a path tells: ``{"day": "2024-05-01"}`` of ``logs/day=2024-05-01/a.parquet``."""
    parts = (part.partition("=") for part in path.replace("\\", "/").split("/")[:-1])
    return {name: "" if value == _NO_VALUE else unquote(value) for name, equals, value in parts if equals}


@contextmanager
def input_errors(path: str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn what a reader raises into a sentence about the file."""
    try:
        yield
    except (EOFError, OSError, UnicodeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read{where()}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for part, meaning in {
        "straddling object": "a line is too long; expected a row a line, of at most 8 MiB",
        "Truncated compressed stream": "the packed file ends too early, it was cut short",
        "inflate failed": "by its name it is a packed file, and it is none or damaged",
        "decompress failed": "by its name it is a packed file, and it is none or damaged",
        "Parquet magic bytes": "it does not end as a parquet file does, it was cut short or is none",
        "Parquet file size is": "it is too short for a parquet file",
        "TProtocolException": "it is damaged, its description of the columns makes no sense",
    }.items():
        if part in text:
            return meaning
    return text


def _is_data(folder: str, path: str) -> bool:
    name, below = PurePosixPath(path).name, path.removeprefix(folder)
    hidden = any(part.startswith((".", "_")) for part in below.split("/"))
    return not hidden and (name.endswith((*PARQUET, *TEXT, *PACKED)) or "." not in name)
