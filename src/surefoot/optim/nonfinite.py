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
    flags = []
    for grad in map(values, grads):
        if grad.numel() == 0:
            flags.append(torch.zeros((), dtype=torch.bool, device=grad.device))
        else:
            flags.append(~torch.linalg.vector_norm(grad, ord=torch.inf).isfinite())
    return flags


def any_of(flags: Sequence[Tensor]) -> Tensor:
    """Return whether any flag is set, as a 0-d bool on the first one's device, without waiting for it."""
    return torch.stack([flag.to(flags[0].device) for flag in flags]).any()


def readable(flag: Tensor) -> bool:
    """Return whether reading a number costs no wait: it is on the CPU and no fake, traced or distributed tensor."""
    return type(flag) is Tensor and flag.device.type == "cpu"


def tell(where: str) -> None:
    """Warn that a step was skipped; each caller does so once in its life."""
    warnings.warn(
        f"{where}: a gradient was NaN or infinite, and the step was skipped; further ones are counted in "
        "skipped_steps and not told",
        RuntimeWarning,
        stacklevel=3,
    )
