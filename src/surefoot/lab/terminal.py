"""What the commands share: where they print, how tables look, what an interruption and wrong input say."""

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from surefoot.errors import InputError

INTERRUPTED = 130
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")  # as torch tells of it

# Control characters but for line ends and tabs, marks that turn the direction of text, and halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return text as a terminal may show it: what would move its cursor, colour it or turn it around is spelt out.

    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class _Terminal(Console):
    """Prints names and values out of files as they are: no control character passes, and no markup is obeyed."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().render_str(visible(text), **options)  # before it is laid out

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):  # whatever was not a str before
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


console = _Terminal()
errors = _Terminal(stderr=True)  # and whatever else is not the result


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
        errors.print(f"surefoot: {' '.join(sentence.splitlines())}", soft_wrap=True)


def outside(error: Exception) -> str | None:
    """Return the sentence about an error whose cause is the machine, not the program: its disk, its memory; else None.

    The last net: whoever knows more about what was being done says it before.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        what = " and ".join(named) or "what is read or written"
        return f"{what} cannot be used: {error.strerror or text or type(error).__name__}"
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return f"this machine has not enough memory: {text or 'none is left'}; expected a smaller model, batch or log"
    if "(os error " in text:  # as polars tells of a disk
        return f"what is read or written cannot be used: {text}"
    return None


class Loudness(Enum):
    """How much a command tells beside its result and what goes wrong."""

    QUIET = 0
    USUAL = 1
    VERBOSE = 2

    @classmethod
    def of(cls, quiet: bool, verbose: bool) -> "Loudness":
        """Return what the two options ask for.

        Raises:
            InputError: if both are given.
        """
        if quiet and verbose:
            raise InputError("--quiet and --verbose are both given; expected one of them")
        return cls.QUIET if quiet else cls.VERBOSE if verbose else cls.USUAL

    def notice(self, sentence: str) -> None:
        """Print what belongs to the data, unless only the result is wanted."""
        if sentence and self is not Loudness.QUIET:
            console.print(sentence, style="dim", soft_wrap=True)

    def note(self, sentence: str) -> None:
        """Say something about the work, unless only the result is wanted."""
        if sentence and self is not Loudness.QUIET:
            say(sentence)

    def detail(self, sentence: str) -> None:
        """Say something that only whoever asks for details wants to read."""
        if self is Loudness.VERBOSE:
            say(sentence)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what happens as it happens.")]
