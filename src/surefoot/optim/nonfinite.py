"""What happens when a gradient is NaN or infinite."""

import warnings
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class NonFinite(Enum):
    """What to do in a step in which a gradient is NaN or infinite."""

    SKIP_STEP = "skip_step"  # weights, state and step counters stay bit for bit the same
    SKIP_TENSOR = "skip_tensor"  # only the tensors with such a gradient are skipped
    RAISE = "raise"  # FloatingPointError before any weight changes; waits for the device
    PROPAGATE = "propagate"  # no check: NaN spreads into weights and state


def values(grad: Tensor) -> Tensor:
    """Return the numbers that a gradient stores: itself if dense, its values if sparse."""
    return grad._values() if grad.is_sparse else grad


def not_finite(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return for each gradient a 0-d bool on its device: whether any of its numbers is NaN or infinite.

    Does not wait for the device. An empty gradient is finite. Sparse gradients are checked as they are stored,
    coalesced or not.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}  # checked together: a model has hundreds of tensors
    extremes: list[Sequence[Tensor]] = []  # minimum and maximum; NaN if a number is
    for i, grad in enumerate(map(values, grads)):
        extremes.append(grad.aminmax() if grad.numel() else [grad.new_zeros(())] * 2)
        alike.setdefault((grad.device, grad.dtype), []).append(i)
    flags: dict[int, Tensor] = {}
    for several in alike.values():
        both = torch.stack([extreme for i in several for extreme in extremes[i]]).view(-1, 2)
        flags |= zip(several, (~both.isfinite().all(dim=1)).unbind(), strict=True)
    return [flags[i] for i in range(len(extremes))]


def any_of(flags: Sequence[Tensor]) -> Tensor:
    """Return whether any flag is set, as a 0-d bool on the first one's device, without waiting for it."""
    return torch.stack([flag.to(flags[0].device) for flag in flags]).any()


def readable(flag: Tensor) -> bool:
    """Return whether the host can read it without waiting: it is on the CPU, and not fake, traced or distributed."""
    return type(flag) is Tensor and flag.device.type == "cpu"


class Skips:
    """Counts skipped steps on the gradients' device; warns of the first one some steps later, so that no step waits."""

    def __init__(self, where: str, known: int = 0) -> None:
        self._where, self._warned, self._known = where, known > 0, known
        self._flagged: Tensor | None = None  # the count on the device
        self._seen: Tensor | None = None  # its copy on the host, some steps late

    def total(self) -> int:
        """Return the number of skipped steps; waits for the device."""
        return self._known + (0 if self._flagged is None else int(self._flagged))

    def count(self) -> int | Tensor:
        """Return the same number, as a tensor if reading it would wait for the device."""
        if self._flagged is None or readable(self._flagged):
            return self.total()
        return self._known + self._flagged

    def add(self, skipped: Tensor | bool) -> None:
        """Count a step if ``skipped``."""
        if isinstance(skipped, bool):
            self._known += skipped
            return
        if self._flagged is None:
            self._flagged = torch.zeros_like(skipped, dtype=torch.int64)
            if self._flagged.device.type == "cuda":
                self._seen = torch.zeros((), dtype=torch.int64, device="cpu", pin_memory=True)
            elif self._flagged.device.type == "cpu":
                self._seen = self._flagged
        self._flagged += skipped.to(self._flagged.device)
        if self._seen is not None and self._seen is not self._flagged:
            self._seen.copy_(self._flagged, non_blocking=True)

    def warn_once(self) -> None:
        """Warn of the first skipped step, as soon as the host knows of it."""
        flagged = self._seen is not None and readable(self._seen) and bool(self._seen)
        if not self._warned and (self._known or flagged):
            self._warned = True
            warnings.warn(
                f"{self._where}: a gradient was NaN or infinite, and the step was skipped; skipped_steps counts "
                "further ones, without a warning",
                RuntimeWarning,
                stacklevel=3,
            )
