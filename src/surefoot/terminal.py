"""What the commands share: where they print, how tables look, what an interruption and wrong input say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from surefoot.errors import InputError

INTERRUPTED = 130

console = Console()


def plain_table(title: str, *heads: str) -> Table:
    """Return an empty table; a column without a head does not wrap."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=head == "")
    return table


@contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Exit with 130 on Ctrl-C, and say what becomes of the work."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {consequence}")
        raise typer.Exit(INTERRUPTED) from None


def refuse_full(out: Path) -> None:
    """Refuse an output folder that has something in it.

    Raises:
        InputError: naming it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty; expected a new or an empty folder")


def say(sentence: str) -> None:
    """Print a sentence to stderr."""
    Console(stderr=True).print(f"surefoot: {sentence}", soft_wrap=True, highlight=False, markup=False)
