"""The first rung: steps whose gradients are not finite are skipped, and counted without waiting for the device."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, distributed
from torch.optim import Optimizer

from surefoot.optim.adagrad import Adagrad
from surefoot.optim.attach import ClipHandle, clip_updates
from surefoot.optim.guard import Guard, guard
from surefoot.optim.nonfinite import Skips, readable
from surefoot.rules import NoClip

_INTERVAL = 50  # steps between two looks at a count on an accelerator, since a look waits for it


class _Counter(Protocol):
    _skips: Skips

    @property
    def skipped_steps(self) -> int: ...


class SkipRung:
    """Makes optimizers skip a step together when a gradient is not finite, unless something already does.

    Args:
        optimizers: one or several; several under a ``guard`` already, or one with a policy, stay as they are.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._added: Guard | ClipHandle | None = None
        self._counter = _present(optimizers)
        if self._counter is None:
            several = len(optimizers) > 1
            self._counter = self._added = guard(*optimizers) if several else clip_updates(optimizers[0], NoClip())
        params = [param for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]]
        self._waits = not all(readable(param.data) for param in params)
        self._seen = self._calls = 0
        self._before = self._counter._skips.count()

    def new(self, *, now: bool = False) -> int:
        """Return how many steps were skipped since the last look.

        Args:
            now: look even if that waits for an accelerator; otherwise there only every fiftieth call does.
        """
        self._calls += 1
        if self._waits and not now and self._calls % _INTERVAL:
            return 0
        assert self._counter is not None
        total = self._counter.skipped_steps
        before, self._seen = (self._seen if total >= self._seen else 0), total  # loading a state starts a count anew
        return total - before

    def last(self) -> bool | Tensor:
        """Return whether a step was skipped since this was last asked; no wait, a 0-d tensor where it takes one."""
        assert self._counter is not None
        before, self._before = self._before, self._counter._skips.count()
        return self._before != before  # loading a state may start a count anew

    def remove(self) -> None:
        """Take off what was put on."""
        if self._added is not None:
            self._added.remove()


def on_any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank of a distributed run, all of which must ask; elsewhere the flag."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    flags = [False] * distributed.get_world_size()
    distributed.all_gather_object(flags, flag)
    return any(flags)


def _present(optimizers: Sequence[Optimizer]) -> _Counter | None:
    """Return what already makes the optimizers skip together, if anything does."""
    for hook in optimizers[0]._optimizer_step_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Guard) and set(optimizers) <= set(owner._optimizers):
            return owner
        if isinstance(owner, ClipHandle) and len(optimizers) == 1:
            return owner
    return optimizers[0] if len(optimizers) == 1 and isinstance(optimizers[0], Adagrad) else None
