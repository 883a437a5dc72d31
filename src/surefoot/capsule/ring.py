"""The last steps of a training, kept so that they can be run again: a ring, written out as a capsule on an alarm."""

import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot import checks
from surefoot.capsule import snapshot, storage
from surefoot.capsule.snapshot import Plain, Stateful
from surefoot.capsule.storage import Contents, Segment, StepRecord
from surefoot.optim.unwrap import with_in_backward


class Draws(StrEnum):
    """Whose random states are kept before every step; all of them are at every snapshot."""

    TORCH = "torch"
    ALL = "all"  # numpy's and Python's too: 0.1 ms a step


_STEP_OVERHEAD = 4096  # bytes of the small objects that a step is kept in, at the most


@dataclass
class _Pending:
    """A capsule that waits for more steps."""

    folder: Path
    alarm: dict[str, Any] | None
    config: str | None
    left: int


@dataclass
class _Segment:
    """A snapshot, and the steps that were taken from it."""

    state: Plain
    nbytes: int
    steps: list["_Step"] = field(default_factory=list)


@dataclass
class _Step:
    """One step: what went in, and what came out once it was observed."""

    step: int
    batch: Plain
    rows: Tensor | None
    note: dict[str, Any]
    generators: dict[str, Any]
    observed: tuple[tuple[str, ...], tuple[str, ...], list[Tensor]] | None = None  # names of losses, of norms, values


@dataclass
class _Open:
    """A step that has begun, and whose batch is not known yet."""

    item: _Step
    start: _Segment | None  # if it is the first step of a segment
    nbytes: int  # of the step


class Ring:
    """Keep what it takes to run the last steps of any training loop again, within a fixed number of bytes.

    The ring holds segments: a copy of weights and states, then the batches of the steps from there on, with the
    states of the random generators before each step. When a new segment would make it larger than ``max_bytes``, the
    oldest goes first; a segment ends early when it takes half of ``max_bytes``, so that two of them fit always.
    Nothing in a step waits for the device: losses and norms are read when a capsule is written. One process: of
    sharded weights nothing is known here.

    Args:
        model: all of whose state (``state_dict()``) is kept.
        optimizers: the optimizer, or all of them.
        others: what else a step changes and has ``state_dict``: schedulers, a ``GradScaler``, averages of weights.
        steps: how many of the last steps to keep at least, memory permitting; up to ``every - 1`` more are there.
        every: steps from one snapshot to the next. A snapshot copies weights and states once.
        draws: whose random states are kept before every step, an enum or its value. ``"all"`` is needed where the
            steps themselves draw from numpy's or Python's global generator, and the loop does so between them too.
        max_bytes: of memory, for everything that the ring holds.
        max_disk_bytes: for all capsules in the folder written to; the oldest are deleted to make room for a new one.

    A step that outgrows ``max_bytes`` later on is not kept, nor what came before it, with a warning.

    Raises:
        ValueError: if a number is not above 0; at the first two steps, if ``max_bytes`` does not hold two segments
            of one step each.
        TypeError: at the first step, if a state or a batch holds what cannot be written safely, saying what.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> ring = Ring(model, optimizer)
    >>> for step in range(3):
    ...     x = torch.randn(8, 2)
    ...     ring.record(step, x)
    ...     loss = model(x).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     _ = ring.observe(step, {"loss": loss})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in ring.write(Path(folder)).iterdir())
    ['capsule.json', 'state-00000000.pt', 'steps-00000000.pt']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        others: Sequence[Stateful] = (),
        steps: int = 128,
        every: int = 32,
        draws: Draws | str = Draws.TORCH,
        max_bytes: int = 1 << 30,
        max_disk_bytes: int = 4 << 30,
    ) -> None:
        numbers = {"steps": steps, "every": every, "max_bytes": max_bytes, "max_disk_bytes": max_disk_bytes}
        for name, value in numbers.items():
            checks.positive(name, value)
        self._model, self._others = model, list(others)
        self._optimizers = with_in_backward(model, optimizers)
        self._least, self._every, self._draws = steps, every, Draws(draws)
        self._layers = list(model.named_parameters())
        self._max_bytes, self._max_disk_bytes = max_bytes, max_disk_bytes
        self._segments: deque[_Segment] = deque()
        self._generators_size = snapshot.size_of(snapshot.random_state())
        self._pending: _Pending | None = None
        self._open: _Open | None = None
        self._recorded = 0
        self._batch_size = 0  # until the first is seen
        self._observed_size = 8 * snapshot.TENSOR_OVERHEAD  # until the first is seen

    @property
    def nbytes(self) -> int:
        """How many bytes the ring takes now; never more than ``max_bytes``."""
        opened = 0 if self._open is None else self._open.nbytes + (self._open.start.nbytes if self._open.start else 0)
        return opened + sum(segment.nbytes for segment in self._segments)

    @property
    def steps(self) -> range:
        """The steps that can be run again, from the oldest snapshot on; empty before the first."""
        kept = [item.step for segment in self._segments for item in segment.steps]
        return range(kept[0], kept[-1] + 1) if kept else range(0)

    def record(
        self,
        step: int,
        batch: Plain = None,
        *,
        rows: Tensor | None = None,
        note: Mapping[str, float | int | str] | None = None,
    ) -> None:
        """Keep what a step starts from, and its batch; call it before anything of the step draws a random number.

        Args:
            step: its number, above the last one's.
            batch: tensors, numbers, strings, None, in tuples, lists and dicts as the loop has them; named tuples come
                back as tuples. None if ``rows`` is enough to have the batch again.
            rows: (rows,) integers: which rows of a log the batch is made of. With both, the batch is what is run again
                and the ids name its rows.
            note: numbers and words to find again in the capsule, such as the day.
        """
        _check_given(batch, rows)
        self._begin(step, dict(note or {}), snapshot.size_of((batch, rows)))
        self.attach(batch, rows=rows)

    def begin(self, step: int, *, note: Mapping[str, float | int | str] | None = None) -> None:
        """Keep what a step starts from, where its batch is not known yet; ``attach`` gives the batch before
        ``observe``.

        Without ``attach`` the step is not kept, and a second call begins again.

        Args:
            step: its number, above that of the last step kept.
            note: as for ``record``.
        """
        self._begin(step, dict(note or {}), self._batch_size)

    @torch.no_grad()
    def attach(
        self, batch: Plain = None, *, rows: Tensor | None = None, note: Mapping[str, float | int | str] | None = None
    ) -> None:
        """Give the step that was begun its batch, which must not have changed since the step began.

        Args:
            batch: as for ``record``.
            rows: as for ``record``.
            note: is added to that of ``begin``.
        """
        _check_given(batch, rows)
        if (opened := self._open) is None:
            return  # a step too large to keep
        segment = self._segments[-1] if opened.start is None else opened.start
        size = snapshot.size_of((batch, rows)) + snapshot.size_of(dict(note or {}))
        room = opened.nbytes + size + self._observed_size
        if segment.nbytes + room > (self._max_bytes if opened.start is None else self._max_bytes // 2):
            self._refuse(segment.nbytes, room)
            return
        self._make_room(size)
        self._open = None
        item = opened.item
        item.batch, item.rows = snapshot.host_copy(batch, "batch"), snapshot.host_copy(rows, "rows")
        item.note |= note or {}
        if opened.start is not None:
            self._segments.append(segment)
        segment.steps.append(item)
        segment.nbytes += opened.nbytes + size
        self._batch_size = size
        self._recorded += 1
        while self._pending is None and self._covered(1) >= self._least:
            self._segments.popleft()

    @torch.no_grad()
    def observe(
        self, step: int, losses: Mapping[str, Tensor | float], norms: Mapping[str, Tensor | float] | None = None
    ) -> Path | None:
        """Keep what a step showed; call it after the optimizers' steps, while the gradients are still there.

        Args:
            step: the number last given to ``record``.
            losses: by name, 0-d, before the step; they are read when a capsule is written.
            norms: by layer; by default ``layer_norms`` of the model. Whoever passes others must return them from the
                function that replays a step.

        Returns:
            The capsule, if one that ``write_later`` had asked for has been written now.
        """
        if not self._segments:
            return None  # a batch too large to keep
        item = self._segments[-1].steps[-1]
        if item.step != step:
            raise ValueError(f"step is {step}; expected {item.step}, the step recorded last")
        norms = layer_norms(self._layers) if norms is None else norms
        values = _stacked([*losses.values(), *norms.values()])
        self._observed_size = len(values) * snapshot.TENSOR_OVERHEAD + 128 * (len(losses) + len(norms))
        self._make_room(self._observed_size)
        if not self._segments:
            return None
        item.observed = tuple(losses), tuple(norms), values
        self._segments[-1].nbytes += self._observed_size
        if self._pending is None:
            return None
        self._pending.left -= 1
        return self.flush() if self._pending.left <= 0 else None

    def write(self, folder: Path, *, alarm: Mapping[str, Any] | None = None, config: str | None = None) -> Path | None:
        """Write what the ring holds as a capsule: a folder in ``folder``, whole or not there.

        Args:
            folder: of the capsules; made if it does not exist.
            alarm: what happened, in numbers, words and None; its ``"step"`` is the step to look at.
            config: the run's configuration as TOML, so that ``surefoot replay`` can build the training again.

        Returns:
            The capsule's folder, named after the alarm's step, or the last one. None, with a warning, if it cannot be
            written (an empty ring, a full disk, or more than ``max_disk_bytes`` even for the newest segment alone): no
            training is lost for a capsule.
        """
        if not self.steps:
            _warn("no capsule is written: the ring holds no step")
            return None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies may still be under way
        last = self._segments[-1].steps[-1]
        digests = storage.digests(self._model) if last.observed is not None and self._open is None else None
        contents = Contents(
            alarm=dict(alarm) if alarm is not None else None,
            facts=snapshot.facts(),
            config=config,
            parts=[Segment(segment.state, [_read(item) for item in segment.steps]) for segment in self._segments],
            digests=digests,
        )
        name = f"step-{int((alarm or {}).get('step', last.step)):08d}"
        return storage.write(folder, name, contents, self._max_disk_bytes)

    def write_later(
        self, after: int, folder: Path, *, alarm: Mapping[str, Any] | None = None, config: str | None = None
    ) -> None:
        """Write a capsule once ``after`` more steps have been observed, so that it shows what came of the event.

        It is written earlier if the ring would have to let go of anything it held by now, or by ``flush``. A second
        call before it is written changes nothing: the first alarm is where it began.

        Args:
            after: steps, 0 or more.
            folder: as for ``write``, like the rest.
            alarm: what happened.
            config: the run's configuration.
        """
        checks.non_negative("after", after)
        if self._pending is None:
            self._pending = _Pending(folder, None if alarm is None else dict(alarm), config, after)

    def flush(self) -> Path | None:
        """Write now what ``write_later`` still waits with; call it at the end of a run and before a roll-back."""
        pending, self._pending = self._pending, None
        return None if pending is None else self.write(pending.folder, alarm=pending.alarm, config=pending.config)

    def clear(self) -> None:
        """Forget everything, after ``flush``: the next step, of any number, starts from a new snapshot."""
        self.flush()
        self._segments.clear()
        self._open = None

    def close(self) -> None:
        """Write what ``write_later`` still waits with. A second call changes nothing."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @torch.no_grad()
    def _begin(self, step: int, note: dict[str, Any], batch_size: int) -> None:
        """Begin a step whose batch takes about so many bytes."""
        self._open = None
        if self._segments and self._segments[-1].steps[-1].step >= step:
            raise ValueError(f"step is {step}; expected one above {self._segments[-1].steps[-1].step}, the last one")
        current = self._segments[-1] if self._segments else None
        half = self._max_bytes // 2
        size = snapshot.size_of((note,)) + _STEP_OVERHEAD
        room = size + batch_size + self._generators_size + self._observed_size
        early = self._recorded < 2  # optimizers make their states in the first step
        due = current is None or len(current.steps) >= self._every or current.nbytes + room > half
        start = None
        if due or early:
            state = snapshot.live_state(self._model, self._optimizers, self._others)
            nbytes = snapshot.size_of(state)
            if nbytes + room > half:
                self._refuse(nbytes, room)
                return
            if due:
                self._make_room(nbytes + room)
                start = _Segment(snapshot.host_copy(state, "state"), nbytes)
        every = self._draws is Draws.ALL or start is not None
        generators = snapshot.random_state() if every else snapshot.torch_random_state()
        size += snapshot.size_of(generators)
        self._make_room(size + (0 if start is None else start.nbytes))
        self._open = _Open(_Step(step, None, None, note, generators), start, size)

    def _refuse(self, size: int, room: int) -> None:
        """Keep no step that takes ``room`` bytes beside a segment of ``size``; refuse the limit if it is the first."""
        if self._recorded < 2:
            raise ValueError(
                f"max_bytes is {self._max_bytes}; expected at least {2 * (size + room)}, for two snapshots of "
                f"{size} bytes, each with a batch"
            )
        self.clear()
        _warn(f"a step is not kept: it takes {room} bytes, and {size} its snapshot, of max_bytes {self._max_bytes}")

    def _covered(self, first: int) -> int:
        return sum(len(segment.steps) for segment in list(self._segments)[first:])

    def _make_room(self, need: int) -> None:
        while self._segments and self.nbytes + need > self._max_bytes:
            self.flush()
            self._segments.popleft()


def _check_given(batch: Plain, rows: Tensor | None) -> None:
    if batch is None and rows is None:
        raise ValueError("batch and rows are both None; expected one of them")


@torch.no_grad()
def layer_norms(layers: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Return the L2 norm of the gradient of each parameter that has a dense one, 0-d, by name.

    Sparse gradients are left to the snapshots: their norm takes a sort of the rows.
    """
    grads = {name: p.grad for name, p in layers if p.grad is not None and not p.grad.is_sparse}
    norms = torch._foreach_norm(list(grads.values())) if grads else []  # pyright: ignore[reportPrivateImportUsage]
    return dict(zip(grads, norms, strict=True))


def _stacked(values: Iterable[Tensor | float]) -> list[Tensor]:
    """Return the values in few tensors that stay as they are: one for those in a row on the same device."""
    alike: list[list[Tensor]] = []
    device = None
    for value in values:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
        if device != tensor.device:
            device = tensor.device
            alike.append([])
        alike[-1].append(tensor if tensor.ndim == 0 else tensor.reshape(()))
    return [torch.stack(several) for several in alike]  # the widest of their types holds every number exactly


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def _read(item: _Step) -> StepRecord:
    losses, norms, values = item.observed or ((), (), [])
    numbers = [number for tensor in values for number in tensor.tolist()]
    return StepRecord(
        step=item.step,
        batch=item.batch,
        rows=item.rows,
        generators=item.generators,
        losses=dict(zip(losses, numbers[: len(losses)], strict=True)),
        norms=dict(zip(norms, numbers[len(losses) :], strict=True)),
        observed=item.observed is not None,
        note=item.note,
    )
