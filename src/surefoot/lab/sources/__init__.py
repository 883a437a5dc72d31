"""Where logs come from: one file a data set, and the sources that installed packages register."""

from importlib import import_module
from typing import TYPE_CHECKING

from surefoot.errors import InputError
from surefoot.lab import extensions

if TYPE_CHECKING:
    from surefoot.lab.ingest.source import Source

OURS = ("kuairand", "movielens", "criteo")


def names() -> list[str]:
    """Return the layouts of files that are known: ours, then those of installed packages."""
    return [*OURS, *(name for name in extensions.names(extensions.SOURCES) if name not in OURS)]


def open_source(name: str, path: str) -> "Source":
    """Return the log at a path, in one of the known layouts; a package cannot take one of our names.

    Raises:
        InputError: if the files are not there or not of this layout; if what a package registers cannot be imported,
            fails, or returns no source.
    """
    from surefoot.lab.ingest.source import Source

    if name in OURS:
        return import_module(f"surefoot.lab.sources.{name}").source(path)
    function = extensions.registered(extensions.SOURCES, name)
    try:
        source = function(path)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign function does
        raise InputError(f"source {name}, called with {path!r}, failed: {extensions.told(error)}") from error
    if not isinstance(source, Source):
        raise InputError(f"source {name} returned an object of type {type(source).__name__}; expected a Source")
    return source
