"""Log sources: one file for each data set, and the sources that installed packages register."""

from importlib import import_module
from typing import TYPE_CHECKING

from surefoot.errors import InputError
from surefoot.lab import extensions

if TYPE_CHECKING:
    from surefoot.lab.ingest.source import Source

OURS = ("kuairand", "movielens", "criteo")


def names() -> list[str]:
    """Return the names of the known sources: ours, then those of installed packages."""
    return [*OURS, *(name for name in extensions.names(extensions.SOURCES) if name not in OURS)]


def open_source(name: str, path: str) -> "Source":
    """Return the log at a path, read by the source ``name``; a package cannot replace one of our sources.

    Raises:
        InputError: if files are missing or do not fit the source; if a package's source cannot be imported, fails, or
            returns no ``Source``.
    """
    from surefoot.lab.ingest.source import Source

    if name in OURS:
        return import_module(f"surefoot.lab.sources.{name}").source(path)
    function = extensions.registered(extensions.SOURCES, name)
    try:
        source = function(path)
    except InputError:
        raise
    except Exception as error:  # a package's function may raise anything
        raise InputError(f"source {name}, called with {path!r}, failed: {extensions.told(error)}") from error
    if not isinstance(source, Source):
        raise InputError(f"source {name} returned an object of type {type(source).__name__}; expected a Source")
    return source
