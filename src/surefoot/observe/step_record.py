"""What is known of one step, in one tensor: put together without a wait, combined over ranks, read a step later."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from surefoot.observe.reported_forms import MEASURED
from surefoot.observe.streaming_metrics import ABSENT, ENOUGH, constant_loss, label_moments

_FLAGS = {"loss": "loss", "grad": "l2_norm/grad"}  # by name of the flag, the kind that it tells of
_OF_GRADIENTS = ("l2_norm/grad", "clip_ratio")
_OF_LABELS = ("label_mean", "label_variance")  # NaN without a label
OF_BATCH = ("loss", "relative_loss", *_OF_GRADIENTS)
"""The kinds that are chance where a batch has few rows."""
SCORES = ("auc", "auc_error", "ne", "calibration", "prediction_std_ratio")
"""The kinds that tell of the rows in the window."""
_OF_A_STEP = ("clip_factor", "clip_measure", "clippy")  # the last two: Clippy's measure; of a rule that is Clippy


class Combine(IntEnum):
    """What becomes of a value that each rank has its own of. What is absent on a rank has no say."""

    MEAN = 0
    MAX = 1
    MIN = 2


class Record:
    """Named numbers of one step, on their devices."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []  # the kind, such as "loss", and the task or layer
        self._combine: list[Combine] = []
        self._parts: list[Tensor] = []
        self._ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def add(self, kind: str, keys: Iterable[str], values: Tensor, combine: Combine) -> None:
        """Put in the values of one kind, (keys,)."""
        names = [(kind, key) for key in keys]
        self.names += names
        self._combine += [combine] * len(names)
        self._parts.append(values.detach().float())

    def add_found(self, kind: str, keys: Iterable[str], found: Mapping[str, Tensor], combine: Combine) -> None:
        """Put in the 0-d values of one kind that were found; over several ranks the other keys too, as absent."""
        keys = list(keys)
        if len(found) == len(keys) > 0:
            self.add(kind, keys, torch.stack([found[key] for key in keys]), combine)
            return
        if not found or not keys:
            if self._ranks > 1:
                self.add(kind, keys, torch.full((len(keys),), ABSENT, dtype=torch.float32, device="cpu"), combine)
            return
        here = next(iter(found.values())).device
        nothing = torch.full((), ABSENT, dtype=torch.float32, device=here)
        values = [found[key].float().to(here, non_blocking=True) if key in found else nothing for key in keys]
        self.add(kind, keys, torch.stack(values), combine)

    def add_labels(self, tasks: Sequence[str], cleaned: Tensor, binary: Sequence[bool]) -> None:
        """Put in what a relative loss needs beside the loss: the number of rows and the moments of each task's labels.

        Args:
            tasks: in the order of the labels.
            cleaned: outputs and labels as ``clean`` returns them; of labels alone, these in the place of outputs.
            binary: whether each task is.
        """
        self.add("rows", [""], cleaned.new_full((1,), cleaned.shape[2]), Combine.MEAN)
        for kind, values in label_moments(cleaned, binary).items():
            self.add(kind, tasks, values, Combine.MEAN)

    def gathered(self) -> Tensor:
        """Return all values in one tensor, (ranks, names) float32, the same on all ranks of the default group."""
        devices = [part.device for part in self._parts]
        here = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
        values = torch.cat([part.to(here, non_blocking=True) for part in self._parts])
        if self._ranks == 1:
            return values[None]
        each = [torch.empty_like(values) for _ in range(self._ranks)]
        dist.all_gather(each, values)
        return torch.stack(each)

    def start(self) -> "Reading":
        """Send the values to the host."""
        return Reading(self.names, self._combine, self.gathered())


class Reading:
    """Values on their way to the host."""

    def __init__(self, names: list[tuple[str, str]], combine: list[Combine], values: Tensor) -> None:
        self._names, self._combine, self._values = names, combine, values
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True).copy_(
                values, non_blocking=True
            )
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> list[tuple[tuple[str, str], float]]:
        """Return them by kind and key, combined over ranks, after waiting for what is not there yet."""
        if self._event is not None:
            self._event.synchronize()
        ranks = [without_unseen(self._names, values) for values in self._values.tolist()]
        values = ranks[0]
        if len(ranks) > 1:
            combine = torch.tensor(self._combine, dtype=torch.int64, device="cpu")
            values = over_ranks(torch.tensor(ranks, dtype=torch.float32, device="cpu"), combine).tolist()
        return [(name, value) for name, value in zip(self._names, values, strict=True) if value != ABSENT]


def without_unseen(names: Sequence[tuple[str, str]], values: list[float]) -> list[float]:
    """Return the values of a rank; loss and label mean of a task of which no row was seen are ABSENT.

    A loss that is not finite stays: it may be why.
    """
    unseen = {key for (kind, key), value in zip(names, values, strict=True) if kind == "label_count" and not value}
    if not unseen:
        return values
    empty = {("loss", key) for key in unseen} | {(kind, key) for kind in _OF_LABELS for key in unseen}
    return [
        ABSENT if name in empty and (math.isfinite(value) or name[0] != "loss") else value
        for name, value in zip(names, values, strict=True)
    ]


def over_ranks(values: Tensor, combine: Tensor) -> Tensor:
    """Return (names,) from (ranks, names); NaN where a rank has NaN, ABSENT where no rank has anything."""
    present = values != ABSENT
    mean = torch.where(present, values, 0.0).sum(0) / present.sum(0)
    low = torch.where(present, values, math.inf).amin(0)
    chosen = torch.where(combine == Combine.MEAN, mean, torch.where(combine == Combine.MAX, values.amax(0), low))
    return torch.where(present.any(0), chosen, ABSENT)


def interpreted(
    found: Sequence[tuple[tuple[str, str], float]],
    binary: Mapping[str, bool],
    masked: Collection[str] = (),
    sums: Collection[str] = (),
) -> dict[tuple[str, str], float]:
    """Return the numbers that were read in the form in which they are told.

    Clippy's measure becomes ratio and factor, a task's loss and labels the relative loss, if enough labels were seen to
    tell; flags are added. With masked tasks a gradient of 0 may be that of a task without a row, and is left out.

    Args:
        found: by kind and key.
        binary: of each task with labels, whether it is.
        masked: tasks of which only some rows have a label.
        sums: tasks whose loss is the sum over its rows: it becomes the mean.
    """
    finite = {flag: all(math.isfinite(v) for (kind, _), v in found if kind == of) for flag, of in _FLAGS.items()}
    values: dict[tuple[str, str], float] = {}
    for (kind, key), value in found:
        if kind in MEASURED:
            continue
        if kind not in _OF_A_STEP:
            values[kind, key] = value
        elif not finite["grad"]:
            continue  # no step was taken, or one of NaN; the optimizer still tells of the one before
        elif kind == "clip_factor":
            values[kind, key] = value
        else:
            values["clip_ratio", key] = 1 / value if value else math.inf
            if kind == "clippy":
                values["clip_factor", key] = min(value, 1.0)
    for task in [key for kind, key in values if kind == "label_count"]:
        count, variance = values.pop(("label_count", task)), values.pop(("label_variance", task), math.nan)
        if task in sums and ("loss", task) in values:
            values["loss", task] /= max(count, 1.0)
        mean, loss = values.get(("label_mean", task), math.nan), values.get(("loss", task))
        constant = constant_loss(count, mean, variance, binary=binary[task])
        enough = not math.isnan(constant) and (count >= ENOUGH or task not in masked)
        if loss is not None and (enough or not math.isfinite(loss)):
            values["relative_loss", task] = loss / constant
    if masked:
        values = {name: value for name, value in values.items() if value or name[0] not in _OF_GRADIENTS}
    return values | {("finite", flag): float(is_so) for flag, is_so in finite.items()}
