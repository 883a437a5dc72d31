"""What happens when a gradient is NaN or infinite."""

import warnings
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class NonFinite(Enum):
    """The policy on gradients that are not finite."""

    SKIP_STEP = "skip_step"  # nothing moves: weights, state and step counters stay bit-equal
    SKIP_TENSOR = "skip_tensor"  # the tensors concerned stay, the others step
    RAISE = "raise"  # FloatingPointError before anything has moved; waits for the device
    PROPAGATE = "propagate"  # no check: NaN spreads as the arithmetic has it


def values(grad: Tensor) -> Tensor:
    """Return the numbers that a gradient stores: itself if dense, its values if sparse."""
    return grad._values() if grad.is_sparse else grad


def not_finite(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return for each gradient a 0-d bool on its device: whether any of its numbers is NaN or infinite.

    No wait for the device. An empty gradient is finite. Sparse gradients are looked at row by row as they are
    stored; their duplicates need not have been summed.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}  # looked at together: hundreds of tensors are usual
    extremes: list[Sequence[Tensor]] = []  # the least and the greatest, NaN if a number is
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
    """Return whether reading a number costs no wait: it is on the CPU and no fake, traced or distributed tensor."""
    return type(flag) is Tensor and flag.device.type == "cpu"


class Skips:
    """Counts skipped steps on the gradients' device; warns of the first one some steps later, so that no step waits."""

    def __init__(self, where: str, known: int = 0) -> None:
        self._where, self._told, self._known = where, known > 0, known
        self._flagged: Tensor | None = None
        self._seen: Tensor | None = None  # what the host has heard of it

    def total(self) -> int:
        """Return how many there were; waits for the device."""
        return self._known + (0 if self._flagged is None else int(self._flagged))

    def count(self) -> int | Tensor:
        """Return the same without a wait: as a tensor where the device would have to be waited for."""
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

    def tell_once(self) -> None:
        """Warn if one is known of and none has been told."""
        flagged = self._seen is not None and readable(self._seen) and bool(self._seen)
        if not self._told and (self._known or flagged):
            self._told = True
            warnings.warn(
                f"{self._where}: a gradient was NaN or infinite, and the step was skipped; further ones are counted in "
                "skipped_steps and not told",
                RuntimeWarning,
                stacklevel=3,
            )
