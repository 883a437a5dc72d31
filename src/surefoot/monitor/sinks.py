"""Where a monitor's values go: a sink is a function of the step and the values by name; ``close``, if any, ends it."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Sink = Callable[[int, Mapping[str, float]], object]
_VALUES = 1 << 16  # numbers held before they are written: a few MB


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
        self.parts.mkdir(parents=True, exist_ok=True)
        if self.path.exists():  # a run that was closed is resumed
            for part in self.parts.iterdir():  # closing was cut short after the last rename: the file holds them all
                part.unlink()
            self.path.rename(self.parts / "00000000.parquet")

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.append({"step": step, **values})
        self._held += len(values)
        if self._held >= _VALUES:
            self.flush()

    def flush(self) -> None:
        """Write the rows held."""
        import polars as pl

        if not self._rows:
            return
        last = max((int(part.stem) for part in self.parts.glob("*.parquet")), default=-1)
        target = self.parts / f"{last + 1:08d}.parquet"
        draft = target.with_suffix(".draft")
        names = dict.fromkeys(name for row in self._rows for name in row)
        columns = {name: [row.get(name) for row in self._rows] for name in names}
        schema = {name: pl.Int64 if name == "step" else pl.Float64 for name in names}
        pl.DataFrame(columns, schema=schema).write_parquet(draft)
        draft.rename(target)
        self._rows, self._held = [], 0

    def close(self) -> None:
        """Put the parts together; harmless when called again."""
        import polars as pl

        self.flush()
        if not self.parts.exists():
            return
        if parts := sorted(self.parts.glob("*.parquet")):
            draft = self.path.with_suffix(".draft")
            pl.concat([pl.scan_parquet(part) for part in parts], how="diagonal").sink_parquet(draft)
            draft.rename(self.path)
        for part in self.parts.iterdir():
            part.unlink()
        self.parts.rmdir()


def tensorboard_sink(folder: Path, *, every: int = 1) -> "TensorBoardSink":
    """Return a sink that writes scalars for TensorBoard.

    Args:
        folder: for the event file.
        every: write the values of steps whose number it divides; the others are left to other sinks.

    Raises:
        ModuleNotFoundError: if tensorboard is missing.
    """
    return TensorBoardSink(folder, every)


class TensorBoardSink:
    """What ``tensorboard_sink`` returns."""

    def __init__(self, folder: Path, every: int) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer: Any = EventFileWriter(str(folder))
        self._every = every

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if step % self._every:
            return
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)  # pyright: ignore[reportAttributeAccessIssue]
        self._writer.add_event(event)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
