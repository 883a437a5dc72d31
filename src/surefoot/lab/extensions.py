"""What users bring from outside of this package: objects by name, and what other packages register by entry points."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from surefoot.errors import InputError

RULES, SOURCES = "surefoot.rules", "surefoot.sources"  # groups of entry points


def names(group: str) -> list[str]:
    """Return the names that installed packages register in a group, in alphabetical order; nothing is imported."""
    return sorted({point.name for point in entry_points(group=group)})


def registered(group: str, name: str) -> Any:
    """Return what a package registers under a name.

    Raises:
        InputError: naming the package and the entry point, if several packages register the name or its import fails.
    """
    points = list(entry_points(group=group, name=name))
    if len(points) > 1:
        raise InputError(
            f"{name} is registered for {group} by {' and by '.join(_package(point) for point in points)}; "
            "expected one package"
        )
    point = points[0]
    try:
        return point.load()
    except Exception as error:  # whatever a foreign module does when it is imported
        raise InputError(
            f"{name}, which {_package(point)} registers for {group} as {point.value}, cannot be imported: "
            f"{told(error)}; expected that it can"
        ) from error


def find(name: str) -> Any:
    """Return the object of a name such as ``package.module:function``; a module may lie in the working folder.

    Raises:
        InputError: in words that follow the name of whatever holds the name: ``is 'a.b:c'; expected ...``.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"is {name!r}; expected 'package.module:function'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a foreign module does when it is imported
        raise InputError(f"is {name!r}, which cannot be imported: {told(error)}; expected a function") from error
    return found


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which another process finds a function.

    Raises:
        InputError: in words that follow the name of whatever holds it, if none would: a lambda, a function within
            another, or one of the script that runs.
    """
    module, attribute = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if module in ("", "__main__") or not attribute or "<" in attribute:
        raise InputError(
            f"is {attribute or repr(function)} of {module or 'no module'}; expected a function at the top of a module "
            "that other processes can import"
        )
    return f"{module}:{attribute}"


def told(error: BaseException) -> str:
    """Return an error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package"
