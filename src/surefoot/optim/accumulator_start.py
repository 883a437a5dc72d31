"""Tells once if Adagrad's accumulator is still mostly what it started from, so that weights move too slowly."""

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot.optim.nonfinite import readable

AFTER = 300
"""Steps: enough for a gradient that matters to be seen in the accumulator."""

_AGAIN = 50  # steps until what is on its way from a device is looked at


class SlowStart:
    """Counts steps, and looks at the accumulators once.

    Counted are the weights with a dense gradient other than 0 at that step: what is dead, or a table's row that the
    batch does not have, stands still whatever the accumulator. Slow is a weight whose gradients have all together added
    less than the start: the start, and not its gradients, sets the size of its steps. No wait for the device.

    Args:
        where: the optimizer's name, for the warning.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = AFTER
        self._asked: dict[float, Tensor] = {}  # by start: (slow weights, weights), on the host, perhaps not yet there

    def after_step(self, optimizer: Optimizer) -> None:
        """Count a step of an optimizer whose state holds its accumulators as ``sum``."""
        if self._left <= 0:
            return
        self._left -= 1
        if self._left:
            return
        if not self._asked:
            self._asked = {start: _to_host(count) for start, count in _counts(optimizer).items()}
            if any(count.is_pinned() for count in self._asked.values()):
                self._left = _AGAIN
                return
        self._tell()

    def _tell(self) -> None:
        slow, weights, start = max(
            ((*count.tolist(), start) for start, count in self._asked.items()), default=(0, 0, 0.0)
        )
        if 2 * slow > weights:
            warnings.warn(
                f"{self._where}: after {AFTER} steps the accumulator of {slow / weights:.0%} of {weights:,} weights "
                f"with a gradient is still mostly its initial value, {start:g}: they move more slowly than their "
                "gradients ask; expected a lower initial_accumulator_value (under Clippy 1e-6) or a higher lr",
                UserWarning,
                stacklevel=4,
            )


def _counts(optimizer: Optimizer) -> dict[float, Tensor]:
    """Return by the accumulator's start how many weights are slow, and how many there are, (2,) int64."""
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
    """Return a tensor on the host; from CUDA it is filled later, and holds zeros until then; from elsewhere never."""
    if readable(count):
        return count
    host = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=count.device.type == "cuda")
    return host.copy_(count, non_blocking=True) if count.device.type == "cuda" else host
