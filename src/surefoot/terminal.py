"""What the commands share: where they print, how tables look, what an interruption and wrong input say."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

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


class _Ended(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended(number)


@contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Exit with 130 on Ctrl-C, with 143 on SIGTERM, with 129 on SIGHUP, and say what becomes of the work."""
    asked = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in asked:  # not those that nohup, or whoever calls, has seen to
        signal.signal(number, _end)
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {consequence}")
        raise typer.Exit(INTERRUPTED) from None
    except _Ended as end:
        say(f"ended by {end.signal.name}; {consequence}")
        raise typer.Exit(128 + end.signal) from None
    finally:
        for number in asked:
            signal.signal(number, signal.SIG_DFL)


def refuse_full(out: Path) -> None:
    """Refuse an output folder that has something in it.

    Raises:
        InputError: naming it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty; expected a new or an empty folder")


def say(sentence: str) -> None:
    """Print a sentence to stderr; the terminal may be gone."""
    with suppress(OSError):
        Console(stderr=True).print(f"surefoot: {sentence}", soft_wrap=True, highlight=False, markup=False)
