"""Checkpoints that survive whatever kills the process, and what goes into one: everything a step depends on."""

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.optim import Optimizer
from torch.serialization import get_unsafe_globals_in_checkpoint

from surefoot import checks
from surefoot.capsule import snapshot
from surefoot.capsule.snapshot import Stateful
from surefoot.errors import InputError

_NAME = re.compile(r"step-(\d{9,})(?:\.(healthy|suspect))?\.pt")


class Tag(StrEnum):
    """What is known of a checkpoint."""

    PENDING = "pending"  # saved, and nothing more is known yet
    HEALTHY = "healthy"  # training went on well after it
    SUSPECT = "suspect"  # made after the onset of a divergence: never chosen


class Entry(NamedTuple):
    """One checkpoint of a folder."""

    step: int  # steps taken before it was saved
    tag: Tag
    path: Path


def step_of(path: Path) -> int:
    """Return how many steps had been taken when a checkpoint was saved."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


class Checkpoints:
    """A folder of checkpoints, each whole or not there.

    A file is written under another name, flushed to the disk and renamed, so that a process killed at any moment leaves
    every earlier checkpoint as it was. A tag is part of the file's name and set by a rename too. Files are read with
    ``weights_only=True``, and a state that could not be read so is refused when it is saved. A file whose checksums do
    not fit is never chosen. The folder belongs to one process: a rank of a distributed run has its own.

    Kept are the newest ``keep`` healthy ones; of those pending after them the oldest ``waiting``, which are the next to
    become healthy, and the newest; and the newest suspect one, for whoever looks into it.

    Args:
        folder: made on the first save.
        keep: how many healthy checkpoints stay.
        waiting: how many pending ones stay beside the newest.

    Raises:
        ValueError: if ``keep`` or ``waiting`` is below 1.

    >>> import tempfile
    >>> checkpoints = Checkpoints(tempfile.mkdtemp())
    >>> path = checkpoints.save(100, {"weight": torch.ones(2)})
    >>> checkpoints.latest_healthy() is None
    True
    >>> checkpoints.tag_healthy(up_to=120)
    >>> checkpoints.load(checkpoints.latest_healthy(before=130))
    {'weight': tensor([1., 1.])}
    """

    def __init__(self, folder: Path | str, *, keep: int = 3, waiting: int = 3) -> None:
        checks.positive("keep", keep)
        checks.positive("waiting", waiting)
        self.folder, self.keep, self.waiting = Path(folder), int(keep), int(waiting)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, not tagged yet; return its file.

        Raises:
            TypeError: if the state holds what cannot be read back safely.
            OSError: if it cannot be written: the disk is full, say. Nothing is left of it then, and every earlier
                checkpoint is as it was.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(step, Tag.PENDING)
        draft = path.with_suffix(".draft")
        for left in self.folder.glob("step-*.draft"):  # by a process that was killed
            left.unlink()
        try:
            _write(draft, dict(state))
            if unsafe := get_unsafe_globals_in_checkpoint(draft):
                raise TypeError(
                    f"state holds an object made by {unsafe[0]}; expected tensors, numbers, strings, and lists, tuples "
                    "or dicts of them, which can be read without running code"
                )
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
        for tag in (Tag.HEALTHY, Tag.SUSPECT):
            self._path(step, tag).unlink(missing_ok=True)  # of the same step, made before
        self._prune()
        self._flush_names()
        return path

    def tag_healthy(self, up_to: int) -> None:
        """Tag all pending checkpoints of the first ``up_to`` steps healthy, but for files that were cut short."""
        self._tag(
            Tag.HEALTHY, [each for each in self.entries() if each.step <= up_to and zipfile.is_zipfile(each.path)]
        )

    def tag_suspect(self, after: int) -> None:
        """Tag all pending checkpoints of more than ``after`` steps suspect."""
        self._tag(Tag.SUSPECT, [entry for entry in self.entries() if entry.step > after])

    def delete(self, after: int) -> None:
        """Delete all checkpoints of more than ``after`` steps."""
        for entry in self.entries():
            if entry.step > after:
                entry.path.unlink()

    def entries(self) -> list[Entry]:
        """Return what is there, oldest first, damaged files included."""
        if not self.folder.is_dir():
            return []
        found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(Entry(int(match[1]), Tag(match[2] or "pending"), path) for match, path in found)

    def latest_healthy(self, before: int | None = None) -> Path | None:
        """Return the newest intact checkpoint tagged healthy; None if there is none.

        Args:
            before: a step's number, counted from 0, that must not be in it, nor any later one; None: any may.
        """
        return next((entry.path for entry in self._intact({Tag.HEALTHY}, before)), None)

    def latest_healthy_of_all(self, before: int | None = None, *, pending: bool = False) -> Path | None:
        """Return the newest that every rank of a distributed run has; elsewhere the same as ``latest_healthy``.

        All ranks must call it, each on its own folder.

        Args:
            before: as for ``latest_healthy``.
            pending: whether one that is not known to be healthy yet will do.
        """
        tags = {Tag.HEALTHY, Tag.PENDING} if pending else {Tag.HEALTHY}
        if not (distributed.is_available() and distributed.is_initialized()):
            return next((entry.path for entry in self._intact(tags, before)), None)
        mine = {entry.step: entry.path for entry in self._intact(tags, before)}
        theirs: list[set[int]] = [set()] * distributed.get_world_size()
        distributed.all_gather_object(theirs, set(mine))
        common = set.intersection(*theirs)
        return mine[max(common)] if common else None

    def latest(self) -> Path | None:
        """Return the newest intact checkpoint that is not suspect, to go on from after an interruption."""
        return next((entry.path for entry in self._intact({Tag.HEALTHY, Tag.PENDING}, None)), None)

    def load(self, path: Path) -> dict[str, Any]:
        """Return the state in a file, its tensors on the CPU.

        Raises:
            InputError: if the file is not there, damaged, or no checkpoint.
        """
        if not path.is_file():
            raise InputError(f"checkpoint {path} does not exist; expected a file that Checkpoints.save has written")
        try:
            return _read(path)
        except Exception as error:  # damage makes the readers fail in any way
            reason = str(error).split("\n")[0]
            raise InputError(f"checkpoint {path} is damaged or not one of ours: {reason}") from None

    def _intact(self, tags: set[Tag], before: int | None) -> Iterator[Entry]:
        for entry in reversed(self.entries()):
            if entry.tag in tags and (before is None or entry.step <= before) and _is_intact(entry.path):
                yield entry

    def _tag(self, tag: Tag, entries: Iterable[Entry]) -> None:
        pending = [entry for entry in entries if entry.tag is Tag.PENDING]
        for entry in pending:
            entry.path.rename(self._path(entry.step, tag))
        if pending:
            self._prune()
            self._flush_names()

    def _prune(self) -> None:
        """Delete what is not to be kept."""
        by_tag: dict[Tag, list[Entry]] = {tag: [e for e in self.entries() if e.tag is tag] for tag in Tag}
        healthy = by_tag[Tag.HEALTHY]
        newest = healthy[-1].step if healthy else -1
        waiting = [entry for entry in by_tag[Tag.PENDING] if entry.step > newest]
        kept = [*healthy[-self.keep :], *waiting[: self.waiting], *waiting[-1:], *by_tag[Tag.SUSPECT][-1:]]
        for entry in self.entries():
            if entry not in kept:
                entry.path.unlink()

    def _path(self, step: int, tag: Tag) -> Path:
        return self.folder / f"step-{step:09d}{'' if tag is Tag.PENDING else f'.{tag}'}.pt"

    def _flush_names(self) -> None:
        """Bring the folder's list of names to the disk, where the system can."""
        if os.name == "posix":
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class _File(io.FileIO):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the data."""
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return memoryview(data).nbytes


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write a state and bring it to the disk."""
    with _File(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError:  # which is what torch makes of an OSError
            if file.error is None:
                raise
            raise file.error from None
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds; raise anything at all if it is not whole: torch itself does not look at checksums."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_intact(path: Path) -> bool:
    try:
        _read(path)
    except Exception:
        return False
    return True


def collect_state(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    schedulers: Sequence[Stateful] = (),
    loader: Stateful | None = None,
    detector: Stateful | None = None,
    monitor: Stateful | None = None,
    more: Mapping[str, Stateful] | None = None,
) -> dict[str, Any]:
    """Return all that the next step depends on, the random generators of torch, CUDA, numpy and Python included.

    The tensors are those in use, not copies: save them, or copy them, before the next step.

    Args:
        model: its parameters and persistent buffers.
        optimizers: state and options.
        schedulers: of the rate.
        loader: what yields the batches, if it knows its position.
        detector: what judges the run, if it is no part of a monitor.
        monitor: what watches it.
        more: anything else with a state, by name: a gradient scaler, an average of weights.
    """
    named = _named(more, loader=loader, detector=detector, monitor=monitor)
    return {
        **snapshot.live_state(model, optimizers, schedulers),
        "named": {name: each.state_dict() for name, each in named.items()},
        "generators": snapshot.random_state(),
    }


def restore_state(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    schedulers: Sequence[Stateful] = (),
    loader: Stateful | None = None,
    detector: Stateful | None = None,
    monitor: Stateful | None = None,
    more: Mapping[str, Stateful] | None = None,
) -> None:
    """Give back what ``collect_state`` returned, to the same parts; a loader or a detector left out stays as it is.

    Raises:
        ValueError: if the state has other parts, naming which.
    """
    for what, key, given in (("optimizers", "optimizers", optimizers), ("schedulers", "others", schedulers)):
        if len(state[key]) != len(given):
            raise ValueError(f"{what} are {len(given)}; expected {len(state[key])}, as in the checkpoint")
    named = _named(more, loader=loader, detector=detector, monitor=monitor)
    for name in named:
        if name not in state["named"]:
            raise ValueError(f"{name} is given; expected none: the checkpoint was saved without it")
    snapshot.restore({key: state[key] for key in ("model", "optimizers", "others")}, model, optimizers, schedulers)
    for name, each in named.items():
        each.load_state_dict(state["named"][name])
    snapshot.set_random_state(state["generators"])


def _named(more: Mapping[str, Stateful] | None, **parts: Stateful | None) -> dict[str, Stateful]:
    return {name: each for name, each in {**parts, **(more or {})}.items() if each is not None}
