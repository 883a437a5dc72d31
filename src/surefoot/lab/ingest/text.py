"""Converts a text file for the CSV reader: to UTF-8, with a separator of one byte; refuses an unclosed quote."""

import codecs
import csv as standard_csv
import io
import re
from threading import Lock

import pyarrow as pa

from surefoot.errors import InputError
from surefoot.lab.ingest.description import Csv

LONGEST_LINE = 8 << 20  # bytes
KEPT = "surefoot.kept"  # error handler for decoding: each invalid byte becomes a private character
_FIRST_LOST = 0x10FF00
LOST = f"[{chr(_FIRST_LOST)}-{chr(_FIRST_LOST + 255)}]"  # a regular expression
_MARK = "\x1f"  # the ASCII unit separator, replaces a separator of several bytes
_BOMS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-16": b""}  # utf-16 needs its BOM


def _kept(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_FIRST_LOST + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEPT, _kept)


def readable(text: str) -> str:
    r"""Return text with invalid bytes as escapes.

    >>> readable(b"Ren\xe9".decode(errors=KEPT))
    'Ren\\xe9'
    """
    return re.sub(LOST, lambda found: f"\\x{ord(found[0]) - _FIRST_LOST:02x}", text)


def mark(csv: Csv) -> str:
    """Return the separator in the output of ``TextStream``."""
    return csv.separator if len(csv.separator.encode()) == 1 else _MARK


class TextStream:
    """A binary stream in UTF-8; ``read`` returns about ``size`` bytes, and b"" at the end.

    Bytes that are invalid in the file's encoding are decoded by ``KEPT``, and ``lost`` becomes true.

    Args:
        stream: the file's decompressed bytes.
        csv: format of the file.
        path: path of the file, for messages.

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
        self._kept = b""  # last bytes of a block that may be the start of a separator
        self._ahead, self._begun = b"", False  # the next block is read early, to know whether there is one

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; b"" after ``stop``."""
        with self._reading:
            return b"" if self._stopped else self._read(size)

    def stop(self) -> None:
        """End the stream, after waiting for a read in another thread: Arrow keeps reading ahead after an error.

        A thread that still decompresses a file when the interpreter exits would crash the process.
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
    """Finds cells with an opening quote and no closing quote, over the blocks of a file.

    With a missing quote, the CSV reader would silently take all lines up to the next quote as one cell. So a closing
    quote must be followed by a separator or the end of the line. In a cell that does not begin with a quote, a quote is
    an ordinary character.
    """

    def __init__(self, mark: str, quote: str) -> None:
        edge = rf"{re.escape(mark)}\r\n"
        cell = rf"{quote}[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+"
        sound = rf"(?:[^{quote}]++|(?<=[^{edge}]){quote}|(?<![^{edge}]){cell}{quote}(?=[{edge}]))*+"
        self._quote, self._sound = quote.encode(), re.compile(sound.encode())
        self._open = re.compile(rf"{cell}{quote}?".encode())
        self._waiting = b"\n"  # an open cell, and the byte before it
        self._newlines = self._returns = 0  # line ends before the open cell

    def unclosed(self, data: bytes, *, ended: bool) -> int | None:
        """Check the next block; return the line of the first cell without a closing quote, or None."""
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
        InputError: if the first line is not a header.
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
