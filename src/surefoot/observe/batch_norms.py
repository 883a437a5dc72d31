r"""How far a batch's mean lies from a batch norm's running mean: training does not show it, and scores suffer.

In training a batch norm divides by the batch's own deviation: a feature that arrives a thousand times too large changes
no loss and no gradient. Its running averages take it in all the same, and a model in evaluation mode uses those.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surefoot.observe.streaming_metrics import ABSENT


class BatchNorms:
    r"""Watches the running averages of a model's batch norms from step to step, without making the host wait.

    :math:`\max_j |\Delta m_j| / (\alpha \sqrt{v_j + \epsilon})` of each one, where m and v are its running mean and
    variance before the step and :math:`\alpha` its momentum: by how many running deviations the batch's mean differs
    from the running mean, in the feature where it differs most. After more than one forward pass in a step it is up to
    as many times as large.

    Args:
        model: whose batch norms; those without running averages are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._before: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.forget()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._norms)

    @property
    def names(self) -> list[str]:
        """Of the modules."""
        return list(self._norms)

    @torch.no_grad()
    def forget(self) -> None:
        """Begin with the averages as they are now."""
        self._before = {name: _averages(norm) for name, norm in self._norms.items()}

    @torch.no_grad()
    def shifts(self) -> dict[str, Tensor]:
        """Return how far each has moved since the last call, 0-d; ABSENT if it has seen no batch since then.

        Averages that were put back, as after a step that recovery has left out, have seen none.
        """
        found: dict[str, Tensor] = {}
        for name, norm in self._norms.items():
            mean, variance, count = self._before[name]
            now = self._before[name] = _averages(norm)
            if now[0].shape != mean.shape or now[0].device != mean.device:  # moved, or made anew
                continue
            momentum = 1 / now[2].clamp(min=1) if norm.momentum is None else norm.momentum
            shift = ((now[0] - mean).abs() / (momentum * (variance + norm.eps).sqrt())).amax()
            found[name] = torch.where(now[2] > count, shift, ABSENT)
        return found


def _averages(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return copies of running mean and variance, in float32 or better, and the number of batches."""
    mean, variance, count = (getattr(norm, name) for name in ("running_mean", "running_var", "num_batches_tracked"))
    wide = torch.promote_types(mean.dtype, torch.float32)
    return mean.detach().to(wide, copy=True), variance.detach().to(wide, copy=True), count.detach().clone()
