"""What is wrong with a command line, in one sentence that names what was given and what was expected."""

import re
from typing import Any

from typer.core import TyperGroup

from surefoot.errors import InputError
from surefoot.lab.settings import choice

_EXPECTED = {  # by what typer's own check is called
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
}


class Commands(TyperGroup):
    """A group of commands that says which ones it has when it is asked for another."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is asked for.

        Raises:
            InputError: naming the commands, if it is none of them.
        """
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise InputError(choice("the command", args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def in_a_sentence(error: Exception) -> InputError | None:
    """Return the input error that a usage error of typer's is; None of any other error.

    typer had these classes from click once and has its own copy now: they are told apart by their names.
    """
    if not hasattr(error, "format_message"):
        return None
    say = {
        "NoSuchOption": _no_such_option,
        "MissingParameter": _missing,
        "BadParameter": _bad_value,
        "BadOptionUsage": _bad_option,
        "NoArgsIsHelpError": _no_command,
    }.get(type(error).__name__, _other)
    return InputError(say(error))


def _no_such_option(error: Any) -> str:
    known = [
        name
        for parameter in error.ctx.command.get_params(error.ctx)
        for name in parameter.opts
        if name.startswith("--")
    ]
    return choice("the option", error.option_name, known)


def _missing(error: Any) -> str:
    expected = (error.param.help or "a value").rstrip(".")
    return f"{_name(error.param)} is missing; expected {expected[0].lower()}{expected[1:]}"


def _bad_value(error: Any) -> str:
    found = getattr(error.__cause__, "errors", list)()  # pydantic's
    if not found or found[0]["type"] not in _EXPECTED:
        return f"{_name(error.param)}: {error.message.strip().rstrip('.')}"
    expected = _EXPECTED[found[0]["type"]].format(**found[0].get("ctx", {}))
    return f"{_name(error.param)} is {found[0]['input']!r}; expected {expected}"


def _no_command(error: Any) -> str:
    return f"no command is given; expected one of {', '.join(error.ctx.command.list_commands(error.ctx))}"


def _bad_option(error: Any) -> str:
    if "requires" in error.message:
        return f"{error.option_name} has no value; expected one"
    return f"{error.option_name} is given a value; expected none"


def _other(error: Any) -> str:
    message = error.format_message().strip().rstrip(".")
    extra = re.fullmatch(r".*unexpected extra arguments?(?:\(s\))? \((.*)\)", message)
    if extra is None:
        return message[:1].lower() + message[1:]
    taken = [_name(each) for each in error.ctx.command.params if each.param_type_name == "argument"]
    return f"{error.ctx.command_path} is given {extra[1]!r} too; expected no more than {' '.join(taken)} and options"


def _name(parameter: Any) -> str:
    """Return what a parameter is called on the command line."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return long[0] if long else parameter.metavar or parameter.name
