"""Reads and writes configurations as TOML, with one sentence about the first error."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
from pydantic import BaseModel, ValidationError

from surefoot.errors import InputError
from surefoot.files import parse_toml

T = TypeVar("T", bound=BaseModel)


def load(kind: type[T], path: Path) -> T:
    """Return the configuration of a TOML file.

    Raises:
        InputError: naming the file and the first error in it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a TOML file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}; expected a TOML file") from None
    table = parse_toml(content, path)
    return parse(kind, table, str(path))


def parse(kind: type[T], table: Mapping[str, Any], origin: str) -> T:
    """Return the configuration of a table.

    Args:
        kind: class of the configuration.
        table: the table, as read from TOML.
        origin: name of the source, for messages.

    Raises:
        InputError: with one sentence about the first error.
    """
    for key, value in _whole_numbers(table):
        if not -(1 << 63) <= value < 1 << 63:
            raise InputError(f"{origin}: {key} is {_short(value)}; expected a whole number of at most 64 bits")
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(kind, error)}") from None


def dump(config: BaseModel) -> str:
    """Return the complete configuration as TOML, without keys whose value is None."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    """Return a sentence about the first of pydantic's errors."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(key, str(first["loc"][-1]), _keys_at(kind, first["loc"][:-1]))
    if first["type"] == "missing":
        return f"{key} is missing; expected a value"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        about_it = message.startswith("is ")  # the key's own value
        return f"{key} {message}" if about_it else f"{key}: {message}" if key else message
    if first["type"] == "literal_error":
        known = [word.strip(" '") for word in first.get("ctx", {})["expected"].replace(" or ", ",").split(",")]
        return choice(key, first["input"], known)
    return f"{key} is {_short(first['input'])}; {message[0].lower()}{message[1:]}"


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python does not print numbers with more than 4,300 digits
        return f"a number of {value.bit_length()} bits"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _whole_numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a table, with their keys."""
    if isinstance(value, int):
        yield key, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _whole_numbers(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from _whole_numbers(each, f"{key}.{i}")


def _keys_at(kind: type, path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at ``path``, each section a model or a dataclass."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = get_type_hints(kind)[part]
        arguments = getattr(annotation, "__args__", (annotation,))
        kind = next(a for a in arguments if isinstance(a, type) and (is_dataclass(a) or issubclass(a, BaseModel)))
    return list(kind.model_fields if issubclass(kind, BaseModel) else kind.__dataclass_fields__)


def unknown_key(key: str, name: str, known: list[str]) -> str:
    """Return the sentence about an unknown key."""
    if not known:
        return f"{key} is not a known key; expected none here"
    return f"{key} is not a known key; the closest is {get_close_matches(name, known, 1, 0.0)[0]!r}"


def one_of(key: str, value: str, known: list[str]) -> None:
    """Refuse an unknown value.

    Raises:
        ValueError: naming the key, the value, the known values and the closest one.
    """
    if value not in known:
        raise ValueError(choice(key, value, known))


def choice(key: str, value: Any, known: list[str]) -> str:
    """Return the sentence about an unknown value."""
    closest = get_close_matches(str(value)[:80], known, 1, 0.0)
    hint = f" (closest: {closest[0]})" if closest else ""
    return f"{key} is {_short(value)}; expected one of {', '.join(known) or 'none'}{hint}"
