"""Where a monitor's values go: a sink is a function of the step and the values by name.

If it has them, ``close`` ends it, ``flush`` writes what it holds, and ``rewind`` forgets steps that are taken again.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

Sink = Callable[[int, Mapping[str, float]], object]
_VALUES = 1 << 16  # numbers held before they are written: a few MB
_SECONDS = 30.0  # after which they are written though they are fewer
_MOST_VALUES = 1 << 20  # numbers held while they cannot be written; then the oldest are given up
_files = count()


def default_sinks(folder: Path, *, every: int) -> list[Sink]:
    """Return what a monitor with a run folder writes to: ``metrics.parquet`` and, if it is installed, TensorBoard.

    Raises:
        ModuleNotFoundError: if polars is missing.
    """
    sinks: list[Sink] = [parquet_sink(folder / "metrics.parquet")]
    with suppress(ModuleNotFoundError):
        sinks.append(tensorboard_sink(folder / "tensorboard", every=every))
    return sinks


def parquet_sink(path: Path) -> "ParquetSink":
    """Return a sink that makes a Parquet file, one row a step, one column a name; null where a step has no value.

    While the run goes on, its rows are in files of their own in a folder beside, ``metrics.parts`` for
    ``metrics.parquet``, each whole or not there. Closing puts them together; ``path`` is whole or not there. A run that
    is resumed goes on from what it finds.

    Args:
        path: of the file, whose folder is made.

    Raises:
        ModuleNotFoundError: if polars is missing.
    """
    return ParquetSink(path)


class ParquetSink:
    """What ``parquet_sink`` returns."""

    def __init__(self, path: Path) -> None:
        import polars  # said at once if missing, not after the first thousand steps  # noqa: F401

        self.path = Path(path)
        self.parts = self.path.with_suffix(".parts")
        self._rows: list[dict[str, float]] = []
        self._held = 0
        self._tried = time.monotonic()  # to write them
        self._failed = False
        self.parts.mkdir(parents=True, exist_ok=True)
        if self.path.exists():  # a run that was closed is resumed
            for part in self.parts.iterdir():  # closing was cut short after the last rename: the file holds them all
                part.unlink()
            self.path.rename(self.parts / "00000000.parquet")

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.append({"step": step, **values})
        self._held += len(values)
        waited = time.monotonic() - self._tried >= _SECONDS
        if waited or (self._held >= _VALUES and not self._failed):
            self.flush()

    def flush(self) -> None:
        """Write the rows held.

        Raises:
            OSError: if they cannot be written; they are held, the newest million numbers of them, and tried again.
        """
        import polars as pl

        if not self._rows:
            return
        self._tried, self._failed = time.monotonic(), True
        while self._held > _MOST_VALUES:
            self._held -= len(self._rows.pop(0)) - 1
        last = max((int(part.stem) for part in self.parts.glob("*.parquet")), default=-1)
        names = dict.fromkeys(name for row in self._rows for name in row)
        columns = {name: [row.get(name) for row in self._rows] for name in names}
        schema = {name: pl.Int64 if name == "step" else pl.Float64 for name in names}
        with _draft_of(self.parts / f"{last + 1:08d}.parquet") as draft:
            draft.write_bytes(_bytes_of(pl.DataFrame(columns, schema=schema)))
        self._rows, self._held, self._failed = [], 0, False

    def rewind(self, step: int) -> None:
        """Forget the rows of ``step`` and of all after it: a run goes on from a checkpoint made before it.

        Raises:
            OSError: if what is on the disk cannot be read or written.
        """
        import polars as pl

        self._rows = [row for row in self._rows if row["step"] < step]
        self._held = sum(len(row) - 1 for row in self._rows)
        for part in sorted(self.parts.glob("*.parquet"), reverse=True):
            table = pl.read_parquet(part)
            kept = table.filter(pl.col("step") < step)
            if len(kept) == len(table):
                return
            if len(kept):
                with _draft_of(part) as draft:
                    draft.write_bytes(_bytes_of(kept))
            else:
                part.unlink()

    def close(self) -> None:
        """Put the parts together; harmless when called again.

        Raises:
            OSError: if they cannot be written; the parts stay.
        """
        import polars as pl

        self.flush()
        if not self.parts.exists():
            return
        if parts := sorted(self.parts.glob("*.parquet")):
            with _draft_of(self.path) as draft:
                pl.concat([pl.scan_parquet(part) for part in parts], how="diagonal").sink_parquet(draft)
        for part in self.parts.iterdir():
            part.unlink()
        self.parts.rmdir()


def _bytes_of(table: "pl.DataFrame") -> bytes:
    file = BytesIO()
    table.write_parquet(file)
    return file.getvalue()


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Give the name to write under, and rename the file when it is whole; leave nothing of one that is not."""
    import polars as pl

    draft = path.with_suffix(".draft")
    try:
        yield draft
        draft.rename(path)
    except pl.exceptions.PolarsError as error:  # what polars makes of a full disk
        raise OSError(f"{path}: {' '.join(str(error).split())}") from None
    finally:
        draft.unlink(missing_ok=True)


def tensorboard_sink(folder: Path, *, every: int = 1) -> "TensorBoardSink":
    """Return a sink that writes scalars for TensorBoard.

    Args:
        folder: for the event file.
        every: write the values of steps whose number it divides; the others are left to other sinks.

    The file is made with the first value, and open only while one is written.

    Raises:
        ModuleNotFoundError: if tensorboard is missing.
    """
    return TensorBoardSink(folder, every)


class TensorBoardSink:
    """What ``tensorboard_sink`` returns; a value that could not be written leaves the file as it was."""

    def __init__(self, folder: Path, every: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path, self._every, self._records = Path(folder) / name, every, RecordWriter
        self._size = 0  # of whole records
        self._last: int | None = None

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if step % self._every:
            return
        from tensorboard.compat.proto import summary_pb2

        summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        self._add(step=step, summary=summary)
        self._last = step

    def rewind(self, step: int) -> None:
        """Let TensorBoard forget ``step`` and all after it: a run goes on from a checkpoint made before it."""
        from tensorboard.compat.proto import event_pb2

        if self._last is None or step <= self._last:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # pyright: ignore[reportAttributeAccessIssue]
            self._add(step=step, session_log=start)
            self._last = step

    def _add(self, **event: Any) -> None:
        """Write a record, and the file's first one before it."""
        from tensorboard.compat.proto import event_pb2

        for content in ({"file_version": "brain.Event:2"}, event) if self._size == 0 else (event,):
            record = event_pb2.Event(wall_time=time.time(), **content)  # pyright: ignore[reportAttributeAccessIssue]
            self._write(record.SerializeToString())

    def _write(self, record: bytes) -> None:
        whole = _Whole()
        self._records(whole).write(record)  # the length and checksums around it
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            try:
                written = file.write(whole.content)
                if written != len(whole.content):
                    raise OSError(f"{self._path}: {written} of {len(whole.content)} bytes were written")
            except OSError:
                file.truncate(self._size)  # a reader stops at a record that is cut short
                raise
        self._size += len(whole.content)


class _Whole:
    """Takes what is written to it."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, content: bytes) -> None:
        self.content += content
