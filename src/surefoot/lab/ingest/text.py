"""A text file's bytes as a reader of rows wants them: UTF-8, one byte between two cells, every quoted cell closed."""

import codecs
import csv as standard_csv
import io
import re
from threading import Lock

import pyarrow as pa

from surefoot.errors import InputError
from surefoot.lab.ingest.description import Csv

LONGEST_LINE = 8 << 20  # bytes
KEPT = "surefoot.kept"  # how to decode: bytes that are no text become private characters, one each
_FIRST_LOST = 0x10FF00
LOST = f"[{chr(_FIRST_LOST)}-{chr(_FIRST_LOST + 255)}]"  # a regular expression
_MARK = "\x1f"  # the unit separator, in place of one of several bytes
_BOMS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-16": b""}  # it needs its own


def _kept(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_FIRST_LOST + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEPT, _kept)


def readable(text: str) -> str:
    r"""Return text with bytes that are none as escapes.

    >>> readable(b"Ren\xe9".decode(errors=KEPT))
    'Ren\\xe9'
    """
    return re.sub(LOST, lambda found: f"\\x{ord(found[0]) - _FIRST_LOST:02x}", text)


def mark(csv: Csv) -> str:
    """Return the character that ``TextStream`` has between two cells."""
    return csv.separator if len(csv.separator.encode()) == 1 else _MARK


class TextStream:
    """A stream of bytes to read from, in blocks of about the size that is asked for; b"" at the end.

    Bytes that are not of the file's encoding come as ``KEPT`` says, and ``lost`` becomes true.

    Args:
        stream: the file's bytes, unpacked.
        csv: how it is written.
        path: of the file.

    Raises:
        InputError: naming the line, if a quoted cell is not closed.
    """

    def __init__(self, stream: pa.NativeFile, csv: Csv, path: str) -> None:
        self.closed = self.lost = self._stopped = False
        self._reading = Lock()
        self._stream, self._path, self._quote = stream, path, csv.quote
        encoding = codecs.lookup(csv.encoding).name
        self._bom = _BOMS.get(encoding, codecs.BOM_UTF8)
        self._decoder = codecs.getincrementaldecoder(encoding)(KEPT)
        self._separator, self._mark = csv.separator.encode(), mark(csv).encode()
        self._quotes = _Quotes(mark(csv), csv.quote) if csv.quote else None
        self._kept = b""  # the end of what was read, if it may be the beginning of a separator
        self._ahead, self._begun = b"", False  # a block more has been read, to know which is the last

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; none after ``stop``."""
        with self._reading:
            return b"" if self._stopped else self._read(size)

    def stop(self) -> None:
        """End it early, once a read under way in another thread is over: Arrow's reads ahead after an error too.

        A thread that still unpacks a large file when the interpreter ends takes the process down with it.
        """
        self._stopped = True
        with self._reading:
            pass

    def _read(self, size: int) -> bytes:
        block = size if size and size > 0 else None
        if not self._begun:
            self._ahead, self._begun = self._stream.read(block).removeprefix(self._bom), True
        while True:
            raw, self._ahead = self._ahead, self._stream.read(block)
            ended = not self._ahead
            text = self._decoder.decode(raw, final=ended)
            self.lost = self.lost or (not text.isascii() and re.search(LOST, text) is not None)
            ready = self._with_marks(text.encode(), ended=ended)
            if raw and ended and ready[-1:] not in b"\r\n":
                ready += b"\n"
            if self._quotes is not None and (line := self._quotes.unclosed(ready, ended=ended)) is not None:
                raise InputError(
                    f"{self._path} line {line}: a cell begins with {self._quote} and does not end with it; expected "
                    "quotes around a cell and doubled within one (csv.quote = '' where they are a part of the text)"
                )
            if ready or ended:
                return ready

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self.closed = True

    def _with_marks(self, data: bytes, *, ended: bool) -> bytes:
        if self._separator == self._mark:
            return data
        whole = (self._kept + data).replace(self._separator, self._mark)
        longest = 0 if ended else len(self._separator) - 1
        keep = next((n for n in range(longest, 0, -1) if whole.endswith(self._separator[:n])), 0)
        self._kept = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]


class _Quotes:
    """Follows each cell that begins with a quote to the one that closes it, over the blocks of a file.

    A quote that is not closed would take all lines up to the next one into its cell, and they would be lost in silence.
    So a separator or a line's end must follow the closing one. Within a cell that does not begin with one, a quote is a
    character as others are.
    """

    def __init__(self, mark: str, quote: str) -> None:
        edge = rf"{re.escape(mark)}\r\n"
        cell = rf"{quote}[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+"
        sound = rf"(?:[^{quote}]++|(?<=[^{edge}]){quote}|(?<![^{edge}]){cell}{quote}(?=[{edge}]))*+"
        self._quote, self._sound = quote.encode(), re.compile(sound.encode())
        self._open = re.compile(rf"{cell}{quote}?".encode())
        self._waiting = b"\n"  # a cell to be closed, and the byte before it
        self._newlines = self._returns = 0  # before that

    def unclosed(self, data: bytes, *, ended: bool) -> int | None:
        """Follow a block; return the line of the first cell that is not closed, if there is one."""
        text = self._waiting + data
        sound = self._sound.match(text, 1) if self._quote in text else None
        stop = len(text) if sound is None else sound.end()
        self._newlines += text.count(b"\n", 1, stop)
        self._returns += text.count(b"\r", 1, stop)
        self._waiting = text[stop - 1 :]
        goes_on = not ended and len(text) - stop <= LONGEST_LINE and self._open.fullmatch(text, stop)
        return None if stop == len(text) or goes_on else (self._newlines or self._returns) + 1


def header(stream: TextStream, csv: Csv, path: str) -> list[str]:
    """Return the names in the first line.

    Raises:
        InputError: if it has none.
    """
    text = stream.read(1 << 20).decode(errors="replace")
    quoting = standard_csv.QUOTE_MINIMAL if csv.quote else standard_csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    rows = standard_csv.reader(lines, delimiter=mark(csv), quotechar=csv.quote or None, quoting=quoting)
    try:
        names = [name.strip() for name in next(rows, [])]
    except standard_csv.Error as error:
        raise InputError(f"{path} has no header in its first line ({error}); expected the columns' names") from None
    if not any(names):
        raise InputError(f"{path} begins with an empty line; expected a header with the names of the columns")
    if "\0" in "".join(names):
        raise InputError(f"{path} has NUL bytes in its first line; expected {csv.encoding} (csv.encoding says which)")
    return names
