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
    """Make optimizers skip together when a gradient of any of them is NaN or infinite.

    Without it an optimizer whose gradients are finite steps while the other skips: embeddings, for example, learn
    from a batch that the dense layers refused. The decision is taken at the first optimizer's step, from the
    gradients of all, and holds for each of the others until there are new gradients: one of them may miss its step,
    as under GradScaler, or step less often. Nothing else that is attached, before or after, changes the decision.

    Optimizers that take a ``found_inf`` (surefoot's, and torch's fused Adam, AdamW and Adagrad) skip without a wait
    for the device; from the others the gradients are hidden during the step, which takes one wait on an accelerator.
    ``p.grad`` is afterwards as it was, also after a step that raised.

    With a closure the decision is taken from the gradients that the closure leaves. Zero gradients after the last
    optimizer has stepped: GradScaler does not call an optimizer whose gradients are infinite, and the others can only
    see this while those gradients are there. A policy of an optimizer's own stays in force: ``"raise"`` raises.

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
    """What ``guard`` returns: the count of the steps skipped together, and the way back."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        for optimizer in self._optimizers:
            if isinstance(optimizer, LBFGS):
                raise TypeError("optimizers has LBFGS, whose line search steps many times in one step; expected others")
        self._decision: Flag = False
        self._served: set[Optimizer] = set()  # those that have stepped under the present decision
        self._seen: dict[Optimizer, _KnownGradients] = {}  # what the decision was taken from
        names = ", ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        self._skips = nonfinite.Skips(f"guard of {names}")
        for optimizer in self._optimizers:
            around(optimizer).add(self)

    @property
    def skipped_steps(self) -> int:
        """How many steps the optimizers skipped together; on an accelerator, asking waits for it."""
        return self._skips.total()

    def remove(self) -> None:
        """Let every optimizer decide for itself again."""
        for optimizer in self._optimizers:
            around(optimizer).discard(self)

    def verdict(self, around: Around) -> Flag:
        """Return the decision that the optimizer's gradients belong to; take it if they are new."""
        optimizer, seen = around.optimizer, self._seen.get(around.optimizer)
        if seen is None or self._has_new_gradients(optimizer):
            self._decide(around)
        elif not seen.rewritten():
            around.flags[optimizer] = seen.bad
        else:  # unscaled or clipped since, say: the same gradients still, with other numbers
            self._add(around, around.bad(optimizer))
        self._served.add(optimizer)
        return self._decision

    def end(self, around: Around) -> None:
        """Tell of the first step that was skipped."""
        self._skips.tell_once()

    def _has_new_gradients(self, optimizer: Optimizer) -> bool:
        """Return whether there was a backward pass since the decision.

        An optimizer that misses its step, because GradScaler leaves it out or because it steps less often, does not
        count the steps for us; nor need the gradients of one that has stepped still be there. So: the optimizer that
        steps now has stepped already, or has other gradient tensors than before; or other numbers are in them, and
        in those of one that has stepped too (in its own alone when they are unscaled or clipped between two steps).
        """
        seen = self._seen[optimizer]
        if optimizer in self._served or seen.replaced():
            return True
        return seen.rewritten() and any(self._seen[each].rewritten() for each in self._served)

    def _decide(self, around: Around) -> None:
        self._decision, self._served, self._seen = False, set(), {}
        for optimizer in self._optimizers:
            self._seen[optimizer] = _KnownGradients.of(optimizer, bad := around.bad(optimizer))
            self._add(around, bad)

    def _add(self, around: Around, bad: Flag) -> None:
        alone = len(self._optimizers) == 1  # then a step that GradScaler skips is its own
        self._skips.add(but_not(bad, either(self._decision, around.scaler_skips() if alone else False)))
        self._decision = either(self._decision, bad)


class _KnownGradients(NamedTuple):
    """The gradients that an optimizer had at one time, without keeping them."""

    optimizer: Optimizer
    grads: dict[Tensor, tuple[TensorWeakRef, int]]
    bad: Flag

    @classmethod
    def of(cls, optimizer: Optimizer, bad: Flag) -> "_KnownGradients":
        return cls(optimizer, {p: (TensorWeakRef(grad), _version(grad)) for p, grad in held(optimizer)}, bad)

    def replaced(self) -> bool:
        """Return whether a parameter has a gradient now that is another tensor."""
        return any(p not in self.grads or self.grads[p][0]() is not grad for p, grad in held(self.optimizer))

    def rewritten(self) -> bool:
        """Return whether a parameter has a gradient now that is another tensor, or one written into since."""
        return self.replaced() or any(self.grads[p][1] != _version(grad) for p, grad in held(self.optimizer))


def _version(grad: Tensor) -> int:
    return 0 if grad.is_inference() else grad._version
