"""A capsule's folder: written whole or not at all and never above a limit, read without unpickling anything.

``capsule.json`` says what happened, on what machine, and what every step showed; ``state-*.pt`` holds weights and
states before a step, ``steps-*.pt`` the batches and random states of the steps from there on; ``config.toml`` is the
run's, if there is one. Sizes and checksums of all files stand in ``capsule.json``.
"""

import json
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from surefoot.capsule.snapshot import Plain, size_of
from surefoot.errors import InputError
from surefoot.files import open_regular, parse_json

FORMAT = "surefoot capsule 1"
MOST_THREADS = 1024
_PRECISIONS = ("highest", "high", "medium")
_JSON, _CONFIG, _DRAFT = "capsule.json", "config.toml", ".draft"


@dataclass(frozen=True)
class StepRecord:
    """One step of a capsule.

    Args:
        step: its number.
        batch: what went in, named tuples as tuples; None if only ``rows`` is known.
        rows: row numbers in the log, (rows,), or None.
        generators: the states of the random generators before the step.
        losses: by name, before the step.
        norms: by layer.
        observed: whether the step was seen to its end, so that losses and norms are known.
        note: what the loop noted.
    """

    step: int
    batch: Plain
    rows: Tensor | None
    generators: dict[str, Any]
    losses: dict[str, float]
    norms: dict[str, float]
    observed: bool
    note: dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """A snapshot and the steps from there on."""

    state: Plain
    steps: list[StepRecord]


@dataclass(frozen=True)
class Contents:
    """What a capsule is written from."""

    alarm: dict[str, Any] | None
    facts: dict[str, Any]
    config: str | None
    parts: list[Segment]
    digests: dict[str, int] | None  # of the weights after the last step


@dataclass(frozen=True)
class Capsule:
    """A capsule on the disk; batches and states are read when they are asked for.

    Args:
        folder: where it is.
        alarm: what happened, or None.
        facts: of the machine, as ``snapshot.facts`` gives them.
        config: the run's configuration as TOML, or None.
        snapshots: the steps before which the state is known, oldest first.
        digests: checksums of the weights after the last step, or None if that step was not seen to its end.
    """

    folder: Path
    alarm: dict[str, Any] | None
    facts: dict[str, Any]
    config: str | None
    snapshots: tuple[int, ...]
    digests: dict[str, int] | None
    _record: dict[str, Any]

    @cached_property
    def steps(self) -> tuple[StepRecord, ...]:
        """Every step, oldest first.

        Raises:
            InputError: if a file is damaged.
        """
        found = []
        try:
            inputs = [item for start in self.snapshots for item in _load(self.folder / f"steps-{start:08d}.pt")]
            for item, seen in zip(inputs, self._record["steps"], strict=True):
                losses, norms = (_by_name(self._record[kind], seen[kind]) for kind in ("losses", "norms"))
                found.append(
                    StepRecord(**item, losses=losses, norms=norms, observed=seen["observed"], note=seen["note"])
                )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder} holds steps that are none: {error}; expected a capsule's") from None
        if [each.step for each in found] != [each["step"] for each in self._record["steps"]]:
            raise InputError(f"{self.folder / _JSON} has other steps than the files beside it; expected the same")
        return tuple(found)

    @property
    def event(self) -> int:
        """The step to look at: the alarm's, or the last one."""
        last = self._record["steps"][-1]["step"]
        return last if self.alarm is None else min(max(int(self.alarm.get("step", last)), self.snapshots[0]), last)

    def state(self, step: int) -> dict[str, Any]:
        """Return the state before ``step``, one of ``snapshots``.

        Raises:
            InputError: if the file is damaged.
        """
        path = self.folder / f"state-{step:08d}.pt"
        state = _load(path)
        if not (isinstance(state, dict) and {"model", "optimizers", "others"} <= state.keys()):
            raise InputError(f"{path} holds no state of a training; expected what Ring.write has written")
        return state


def read(folder: Path) -> Capsule:
    """Return the capsule in a folder, after looking at every file's size and checksum.

    Raises:
        InputError: if there is none, it is of another kind or version, or it is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}; expected a capsule's folder"
        )
    try:
        document = parse_json(_bytes(folder / _JSON), folder / _JSON)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {_JSON}; expected a capsule's folder") from None
    except OSError as error:
        raise InputError(f"{folder / _JSON} cannot be read: {error.strerror}; expected a capsule's") from None
    if (kind := document.get("format")) != FORMAT:
        raise InputError(f"{folder / _JSON} has the format {kind!r}; expected {FORMAT!r}")
    try:
        for name, (size, checksum) in document["files"].items():
            _verify(folder / Path(name).name, size, checksum)
        return Capsule(
            folder=folder,
            alarm=_checked_alarm(document["alarm"]),
            facts=_checked_facts(document["facts"]),
            config=_bytes(folder / _CONFIG).decode() if _CONFIG in document["files"] else None,
            snapshots=_checked_snapshots(document["snapshots"], document["files"]),
            digests=None if document["digests"] is None else dict(document["digests"]),
            _record=_checked_record(document["record"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / _JSON} is damaged: {type(error).__name__} {error}") from None


def _checked_alarm(alarm: Any) -> dict[str, Any] | None:
    if alarm is not None:
        int(dict(alarm).get("step", 0))
    return alarm


def _checked_facts(facts: Any) -> dict[str, Any]:
    """Refuse facts that cannot be put in force: a thread for each of a billion is asked of the system one by one."""
    if not (isinstance(facts["threads"], int) and 1 <= facts["threads"] <= MOST_THREADS):
        raise ValueError(f"threads is {facts['threads']!r}; expected 1 to {MOST_THREADS}")
    if facts["matmul_precision"] not in _PRECISIONS:
        raise ValueError(f"matmul_precision is {facts['matmul_precision']!r}; expected one of {', '.join(_PRECISIONS)}")
    if not isinstance(facts["deterministic"], bool):
        raise ValueError(f"deterministic is {facts['deterministic']!r}; expected true or false")
    return {**facts, "versions": dict(facts["versions"])}


def _checked_snapshots(snapshots: Any, files: Mapping[str, Any]) -> tuple[int, ...]:
    found = tuple(map(int, snapshots))
    if not found or list(found) != sorted(set(found)):
        raise ValueError(f"snapshots is {snapshots!r}; expected the numbers of steps, rising")
    for name in (f"{kind}-{step:08d}.pt" for step in found for kind in ("state", "steps")):
        files[name]  # whose size and checksum have been looked at
    return found


def _checked_record(record: Any) -> dict[str, Any]:
    steps = [int(each["step"]) for each in record["steps"]]
    if not steps or steps != sorted(set(steps)):
        raise ValueError("the steps do not rise")
    for each in record["steps"]:
        for kind in ("losses", "norms"):
            _by_name(record[kind], each[kind])
        dict(each["note"])
    return record


def write(folder: Path, name: str, contents: Contents, max_bytes: int) -> Path | None:
    """Write a capsule into ``folder``; delete the oldest ones there if all would take more than ``max_bytes``.

    Returns:
        Its folder, ``name`` or ``name-2`` and so on; None, after a warning, if it could not be written.
    """
    parts = contents.parts
    estimate = _estimate(contents, parts)
    while estimate > max_bytes and len(parts) > 1:
        parts = parts[1:]
        estimate = _estimate(contents, parts)
    if estimate > max_bytes:
        _warn(f"the capsule {name} is not written: its newest part alone takes more than {max_bytes} bytes")
        return None
    draft = folder / f"{name}-{os.getpid()}{_DRAFT}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = _make_room(folder, max_bytes - estimate)
        draft.mkdir()
        _fill(draft, contents, parts, max_bytes - used)
        return _settle(draft, folder / name)
    except OSError as error:  # a full disk, a folder that may not be written
        shutil.rmtree(draft, ignore_errors=True)
        _warn(f"the capsule {name} is not written: {error}")
        return None


def digests(model: nn.Module) -> dict[str, int]:
    """Return a checksum of each tensor in the model's state."""
    state = model.state_dict()
    return {name: _checksum(value) for name, value in state.items() if isinstance(value, Tensor)}


class _Counted:
    """A file that counts and sums up what is written, and refuses to grow beyond its budget."""

    def __init__(self, file: BinaryIO, budget: int) -> None:
        self._file, self._budget = file, budget
        self.size, self.checksum = 0, 0
        self.failure: OSError | None = None  # which torch.save makes a RuntimeError of something else

    def write(self, data: Any) -> int:
        try:
            self.size += len(data)
            if self.size > self._budget:
                raise OSError(f"it would take more than the {self._budget} bytes left of max_disk_bytes")
            self.checksum = zlib.crc32(data, self.checksum)
            return self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _fill(draft: Path, contents: Contents, parts: Sequence[Segment], budget: int) -> None:
    """Write the files, ``capsule.json`` last."""
    files: dict[str, tuple[int, int]] = {}

    def put(name: str, content: Plain) -> None:
        with (draft / name).open("wb") as raw:
            file = _Counted(raw, budget - sum(size for size, _ in files.values()))
            try:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    torch.save(content, file)  # pyright: ignore[reportArgumentType]: write and flush are what it uses
            except RuntimeError as error:
                raise file.failure or OSError(str(error)) from None
            file.flush()
        files[name] = file.size, file.checksum

    for part in parts:
        start = part.steps[0].step
        put(f"state-{start:08d}.pt", part.state)
        put(f"steps-{start:08d}.pt", [_inputs(item) for item in part.steps])
    if contents.config is not None:
        put(_CONFIG, contents.config.encode())
    put(_JSON, json.dumps({**_document(contents, parts), "files": dict(files)}, indent=1).encode())


def _settle(draft: Path, place: Path) -> Path:
    """Rename the draft to the first free name."""
    for suffix in ("", *(f"-{i}" for i in range(2, 10_000))):
        target = place.with_name(place.name + suffix)
        if not target.exists():
            draft.rename(target)
            return target
    raise OSError(f"{place} exists 9999 times")


def _document(contents: Contents, parts: Sequence[Segment]) -> dict[str, Any]:
    steps = [item for part in parts for item in part.steps]
    names = {kind: list(dict.fromkeys(k for i in steps for k in getattr(i, kind))) for kind in ("losses", "norms")}
    rows = [
        {
            "step": item.step,
            "observed": item.observed,
            "note": item.note,
            **{kind: [_shown(getattr(item, kind).get(name)) for name in names[kind]] for kind in names},
        }
        for item in steps
    ]
    return {
        "format": FORMAT,
        "alarm": contents.alarm and {key: _shown(value) for key, value in contents.alarm.items()},
        "facts": contents.facts,
        "snapshots": [part.steps[0].step for part in parts],
        "record": {**names, "steps": rows},
        "digests": contents.digests,
    }


def _inputs(item: StepRecord) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("step", "batch", "rows", "generators")}


def _estimate(contents: Contents, parts: Sequence[Segment]) -> int:
    """Return no less than the capsule will take."""
    size = 4096 + len(contents.config or "") * 4
    size += len(json.dumps(_document(contents, parts), indent=1))
    for part in parts:
        size += 4096 + size_of(part.state)
        for item in part.steps:
            size += 256 + size_of((item.batch, item.rows, item.generators))
    return size


def _make_room(folder: Path, limit: int) -> int:
    """Delete the oldest capsules and drafts until they take no more than ``limit``; return what those left take."""
    found = [path for path in folder.iterdir() if (path / _JSON).is_file() or path.name.endswith(_DRAFT)]
    sizes = {path: _bytes_in(path) for path in found}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
        if sum(sizes.values()) <= limit:
            break
        shutil.rmtree(path)
        del sizes[path]
    return sum(sizes.values())


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _verify(path: Path, size: int, checksum: int) -> None:
    try:
        found, total = 0, 0
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                found, total = zlib.crc32(piece, found), total + len(piece)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected it in this capsule") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a file of this capsule") from None
    if (total, found) != (size, checksum):
        raise InputError(
            f"{path} is damaged: it has {total} bytes with the checksum {found}; expected {size}, {checksum}"
        )


def _bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _load(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _checksum(tensor: Tensor) -> int:
    numbers: Any = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(numbers)


def _shown(value: Any) -> Any:
    """Return what JSON can hold; a number that is not finite becomes its name, which ``float`` reads."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _by_name(names: Sequence[str], values: Sequence[Any]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True) if value is not None}


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)
