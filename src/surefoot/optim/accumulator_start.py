"""Warns once if Adagrad's accumulator is still mostly its initial value, which makes weights change too slowly."""

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot.optim.nonfinite import readable

AFTER = 300
"""Steps before the check: by then a gradient that matters shows in the accumulator."""

_COPYING = 50  # more steps, in which the counts arrive from the device


class SlowStart:
    """Counts steps, and checks the accumulators once.

    The check counts the weights whose dense gradient is not 0 at that step. (The weights of a dead unit, or a table's
    rows that are not in the batch, do not change under any accumulator.) A weight is slow if its squared gradients have
    added less than the initial value: then the initial value, not the gradients, sets the size of its steps. The check
    never waits for the device.

    Args:
        where: the optimizer's name, for the warning.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = AFTER
        self._counts: dict[float, Tensor] = {}  # by initial value: (slow weights, weights), being copied to the host

    def after_step(self, optimizer: Optimizer) -> None:
        """Count a step of an optimizer whose state holds its accumulators as ``sum``."""
        if self._left <= 0:
            return
        self._left -= 1
        if self._left:
            return
        if not self._counts:
            self._counts = {start: _to_host(count) for start, count in _count_slow(optimizer).items()}
            if any(count.is_pinned() for count in self._counts.values()):
                self._left = _COPYING
                return
        self._warn()

    def _warn(self) -> None:
        slow, weights, start = max(
            ((*count.tolist(), start) for start, count in self._counts.items()), default=(0, 0, 0.0)
        )
        if 2 * slow > weights:
            warnings.warn(
                f"{self._where}: after {AFTER} steps the accumulator of {slow / weights:.0%} of {weights:,} weights "
                f"with a gradient is still mostly its initial value, {start:g}, which slows them down; expected a "
                "lower initial_accumulator_value (under Clippy 1e-6) or a higher lr",
                UserWarning,
                stacklevel=4,
            )


def _count_slow(optimizer: Optimizer) -> dict[float, Tensor]:
    """Return, by initial value, the number of slow weights and of weights with a gradient, (2,) int64."""
    found: dict[float, Tensor] = {}
    for group in optimizer.param_groups:
        start = group["initial_accumulator_value"]
        for param in group["params"]:
            grad, total = param.grad, optimizer.state.get(param, {}).get("sum")
            if not start or grad is None or grad.is_sparse or type(total) is not Tensor or type(grad) is not Tensor:
                continue
            alive = grad != 0
            count = torch.stack([(alive & (total < 2 * start)).sum(), alive.sum()])
            found[start] = found[start] + count.to(found[start].device) if start in found else count
    return found


def _to_host(count: Tensor) -> Tensor:
    """Return the count on the host: from CUDA zeros until the copy arrives, from other accelerators always zeros."""
    if readable(count):
        return count
    host = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=count.device.type == "cuda")
    return host.copy_(count, non_blocking=True) if count.device.type == "cuda" else host
