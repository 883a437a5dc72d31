"""One decision for several optimizers: they skip a step together or not at all."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.weak import TensorWeakRef

from surefoot.optim import nonfinite
from surefoot.optim.hooks import Around, Flag, Part, around, but_not, either, held
from surefoot.optim.unwrap import unwrapped


def guard(*optimizers: Optimizer) -> "Guard":
    """Make optimizers skip a step together when a gradient of any of them is NaN or infinite.

    Without a guard, an optimizer with finite gradients steps while the other skips: for example, embeddings learn from
    a batch that the dense layers skip. The first optimizer to step decides, from the gradients of all. The decision
    holds for the others until there are new gradients: an optimizer may miss its step, as under GradScaler, or step
    less often. Other hooks do not change the decision, whatever the order of attaching them.

    Optimizers that read ``found_inf`` (surefoot's, and torch's fused Adam, AdamW and Adagrad) skip without waiting for
    the device. For the others, ``p.grad`` is None during a skipped step, and every step waits once for an accelerator.
    ``p.grad`` is restored afterwards, also if the step raises.

    With a closure, the decision uses the gradients that the closure computes. Call ``zero_grad`` only after the last
    optimizer has stepped: GradScaler does not call an optimizer whose gradients are infinite, and the others need to
    see these gradients. An optimizer's own ``nonfinite="raise"`` still raises.

    Args:
        optimizers: two or more, in any order.

    Returns:
        The guard; its ``remove()`` undoes this call.

    Raises:
        TypeError: if something given is not an optimizer, or is LBFGS, which steps many times in one step.
        ValueError: if fewer than two are given, or one twice.

    >>> import torch, surefoot
    >>> dense, table = torch.nn.Linear(2, 1), torch.nn.Embedding(5, 2)
    >>> dense_optimizer = surefoot.ClippyAdagrad(dense.parameters(), lr=0.1)
    >>> embedding_optimizer = torch.optim.Adagrad(table.parameters(), lr=0.1)
    >>> guarded = guard(dense_optimizer, embedding_optimizer)
    """
    several = unwrapped(optimizers)
    if len(several) < 2 or len(set(several)) < len(several):
        raise ValueError(f"optimizers has {len(several)} entries; expected two or more, each once")
    return Guard(several)


class Guard(Part):
    """The handle that ``guard`` returns: the number of steps skipped together, and ``remove()``."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        for optimizer in self._optimizers:
            if isinstance(optimizer, LBFGS):
                raise TypeError("optimizers has LBFGS, whose line search steps many times in one step; expected others")
        self._decision: Flag = False
        self._stepped: set[Optimizer] = set()  # those that have stepped under the present decision
        self._seen: dict[Optimizer, _KnownGradients] = {}  # the gradients that the decision was based on
        names = ", ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        self._skips = nonfinite.Skips(f"guard of {names}")
        for optimizer in self._optimizers:
            around(optimizer).add(self)

    @property
    def skipped_steps(self) -> int:
        """The number of steps that the optimizers skipped together; reading it waits for the device."""
        return self._skips.total()

    def remove(self) -> None:
        """Let every optimizer decide for itself again."""
        for optimizer in self._optimizers:
            around(optimizer).discard(self)

    def verdict(self, around: Around) -> Flag:
        """Return the decision for the optimizer's gradients; decide now if they are new."""
        optimizer, seen = around.optimizer, self._seen.get(around.optimizer)
        if seen is None or self._has_new_gradients(optimizer):
            self._decide(around)
        elif not seen.rewritten():
            around.flags[optimizer] = seen.bad
        else:  # the same gradients with other values: for example, they were unscaled or clipped since
            self._add(around, around.bad(optimizer))
        self._stepped.add(optimizer)
        return self._decision

    def end(self, around: Around) -> None:
        """Warn of the first skipped step."""
        self._skips.warn_once()

    def _has_new_gradients(self, optimizer: Optimizer) -> bool:
        """Return whether there was a backward pass since the decision.

        Counting steps is not enough: an optimizer may miss its step, because GradScaler leaves it out or because it
        steps less often, and the gradients of one that has stepped may be gone. There was a backward pass if the
        optimizer that steps now has stepped already, or has other gradient tensors than before; or if its gradients
        and those of an optimizer that has stepped have new values. (If only its own do, they were unscaled or clipped.)
        """
        seen = self._seen[optimizer]
        if optimizer in self._stepped or seen.replaced():
            return True
        return seen.rewritten() and any(self._seen[each].rewritten() for each in self._stepped)

    def _decide(self, around: Around) -> None:
        self._decision, self._stepped, self._seen = False, set(), {}
        for optimizer in self._optimizers:
            self._seen[optimizer] = _KnownGradients.of(optimizer, bad := around.bad(optimizer))
            self._add(around, bad)

    def _add(self, around: Around, bad: Flag) -> None:
        alone = len(self._optimizers) == 1  # then GradScaler's own skip is not counted here
        self._skips.add(but_not(bad, either(self._decision, around.scaler_skips() if alone else False)))
        self._decision = either(self._decision, bad)


class _KnownGradients(NamedTuple):
    """The gradients of an optimizer at one time, as weak references."""

    optimizer: Optimizer
    grads: dict[Tensor, tuple[TensorWeakRef, int]]
    bad: Flag

    @classmethod
    def of(cls, optimizer: Optimizer, bad: Flag) -> "_KnownGradients":
        return cls(optimizer, {p: (TensorWeakRef(grad), _version(grad)) for p, grad in held(optimizer)}, bad)

    def replaced(self) -> bool:
        """Return whether any gradient is another tensor now."""
        return any(p not in self.grads or self.grads[p][0]() is not grad for p, grad in held(self.optimizer))

    def rewritten(self) -> bool:
        """Return whether any gradient is another tensor now, or has been written to."""
        return self.replaced() or any(self.grads[p][1] != _version(grad) for p, grad in held(self.optimizer))


def _version(grad: Tensor) -> int:
    return 0 if grad.is_inference() else grad._version
