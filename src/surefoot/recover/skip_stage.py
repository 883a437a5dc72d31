"""The first stage: steps whose gradients are not finite are skipped, and counted without waiting for the device."""

from collections.abc import Sequence

from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from surefoot.optim.guard import Guard
from surefoot.optim.nonfinite import readable
from surefoot.recover.buffers import Buffers

_INTERVAL = 50  # steps between two looks at a count on an accelerator, since a look waits for it


class SkipStage:
    """Makes optimizers skip a step together when a gradient is not finite.

    It is a ``guard`` of its own, of one optimizer too: what else is attached, before or after, changes nothing.

    Args:
        optimizers: one or several.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._guard = Guard(optimizers)
        params = [param for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]]
        self._waits = not all(readable(param.data) for param in params)
        self._seen = self._calls = 0
        self._before = self._guard._skips.count()

    def new(self, *, now: bool = False) -> int:
        """Return how many steps were skipped since the last look.

        Args:
            now: look even if that waits for an accelerator; otherwise there only every fiftieth call does.
        """
        self._calls += 1
        if self._waits and not now and self._calls % _INTERVAL:
            return 0
        before, self._seen = self._seen, self._guard.skipped_steps
        return self._seen - before

    def last(self) -> bool | Tensor:
        """Return whether a step was skipped since this was last asked; no wait, a 0-d tensor where it takes one."""
        before, self._before = self._before, self._guard._skips.count()
        return self._before != before

    def remove(self) -> None:
        """Take the guard off."""
        self._guard.remove()


class UntakenSteps:
    """Steps that a model does not take: skipped, refused before the backward pass, or held back by somebody else.

    They are counted, and the model gets back the buffers of before their forward pass.

    Args:
        model: whose buffers.
        together: optimizers that skip a step all or none; nobody, one or several.
        apart: those that step within the backward pass, where nobody can decide for them: each skips by itself.
    """

    def __init__(self, model: nn.Module, together: Sequence[Optimizer], apart: Sequence[Optimizer]) -> None:
        self._buffers = Buffers(model)
        self._together = SkipStage(together) if together else None
        self._stages = [SkipStage([each]) for each in apart] + ([self._together] if self._together else [])
        self._refused = 0  # losses since the last step

    def refuses(self, loss: Tensor) -> bool:
        """Return whether a loss is not finite, on any rank. It waits for the device."""
        bad = on_any_rank(not bool(loss.detach().isfinite().all()))
        self._refused += bad
        return bad

    def settle_buffers(self, *, held: bool) -> None:
        """Give the model back the buffers of before its forward pass if no step followed."""
        skipped = self._skipped()
        self._buffers.settle(True if held or self._refused else skipped)

    def forget(self) -> None:
        """Begin with the state as it is now: another one has been loaded."""
        self._buffers.keep()
        self._skipped()

    def count(self, *, now: bool) -> int:
        """Return how many steps were skipped or refused since the last count.

        Args:
            now: count even if that waits for an accelerator, as in ``SkipStage.new``.
        """
        count = max([self._refused, *(stage.new(now=now) for stage in self._stages)])
        self._refused = 0
        return count

    def remove(self) -> None:
        """Take the guards off."""
        for stage in self._stages:
            stage.remove()

    def _skipped(self) -> bool | Tensor:
        return False if self._together is None else self._together.last()


def on_any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank of a distributed run, all of which must ask; elsewhere the flag."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    flags = [False] * distributed.get_world_size()
    distributed.all_gather_object(flags, flag)
    return any(flags)


def largest_of_ranks(numbers: list[float]) -> list[float]:
    """Return of each number the largest on any rank of a distributed run, all of which must ask; elsewhere itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return numbers
    theirs: list[list[float]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(theirs, numbers)
    return [max(each) for each in zip(*theirs, strict=True)]
