"""Configurations out of TOML, and the sentences that say what is wrong with one."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from surefoot.errors import InputError

T = TypeVar("T", bound=BaseModel)


def load(kind: type[T], path: Path) -> T:
    """Return the configuration of a TOML file.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a TOML file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise InputError(
            f"{path} is not TOML: it is nested too deeply; expected tables as a run or a study has"
        ) from None
    return parse(kind, table, str(path))


def parse(kind: type[T], table: Mapping[str, Any], origin: str) -> T:
    """Return the configuration of a table.

    Args:
        kind: what to make.
        table: as read from TOML.
        origin: where it came from, for the message.

    Raises:
        InputError: one sentence on the first thing wrong.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(kind, error)}") from None


def dump(config: BaseModel) -> str:
    """Return the complete configuration as TOML; a key whose value is none is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    """Put the first of pydantic's errors into a sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
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
    return f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}"


def _keys_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at ``path``."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", (annotation,))
        kind = next(a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel))
    return list(kind.model_fields)


def unknown_key(key: str, name: str, known: list[str]) -> str:
    """Return the sentence about a key that is not one."""
    if not known:
        return f"{key} is not a known key; expected none here"
    return f"{key} is not a known key; the closest is {get_close_matches(name, known, 1, 0.0)[0]!r}"


def one_of(key: str, value: str, known: list[str]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        ValueError: naming the key, the value, the known ones and the closest of them.
    """
    if value not in known:
        raise ValueError(choice(key, value, known))


def choice(key: str, value: Any, known: list[str]) -> str:
    """Return the sentence about a value that is not among the known ones."""
    closest = get_close_matches(str(value), known, 1, 0.0)
    hint = f" (closest: {closest[0]})" if closest else ""
    return f"{key} is {value!r}; expected one of {', '.join(known) or 'none'}{hint}"
