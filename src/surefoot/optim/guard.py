"""One decision for several optimizers: they skip a step together or not at all."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot.optim import nonfinite
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.attach import honours_found_inf
from surefoot.optim.wrappers import unwrapped


def guard(*optimizers: Optimizer) -> "Guard":
    """Make optimizers skip together when a gradient of any of them is NaN or infinite.

    Without it an optimizer whose gradients are finite steps while the other skips: embeddings, for example, learn
    from a batch that the dense layers refused. The decision is taken at the first optimizer's step, from the
    gradients of all, and holds until one of them steps again.

    Optimizers that take a ``found_inf`` (surefoot's, and torch's fused Adam, AdamW and Adagrad) skip without a wait
    for the device; from the others the gradients are hidden during the step, which takes one wait on an accelerator.
    ``p.grad`` is afterwards as it was.

    Args:
        optimizers: two or more, each stepped once a training step, in any order, without a closure.

    Returns:
        The guard; its ``remove()`` undoes this call.

    Raises:
        TypeError: if something given is not an optimizer.
        ValueError: if fewer than two are given, or one twice.

    >>> import torch, surefoot
    >>> dense, table = torch.nn.Linear(2, 1), torch.nn.Embedding(5, 2)
    >>> dense_optimizer = surefoot.ClippyAdagrad(dense.parameters(), lr=0.1)
    >>> embedding_optimizer = torch.optim.Adagrad(table.parameters(), lr=0.1)
    >>> guarded = guard(dense_optimizer, embedding_optimizer)
    """
    return Guard(optimizers)


class Guard:
    """Holds the hooks of one ``guard`` call."""

    def __init__(self, optimizers: tuple[Optimizer, ...]) -> None:
        optimizers = tuple(unwrapped(optimizers))
        if len(optimizers) < 2 or len(set(map(id, optimizers))) < len(optimizers):
            raise ValueError(f"optimizers has {len(optimizers)} entries; expected two or more, each once")
        self._optimizers = optimizers
        self._decision: Tensor | None = None
        self._served: set[int] = set()  # optimizers that have stepped under the present decision
        self._skips = nonfinite.Skips(f"guard of {', '.join(type(optimizer).__name__ for optimizer in optimizers)}")
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._found_inf: Tensor | None = None  # what was there before ours
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._pre),
                optimizer.register_step_post_hook(self._post),
            )
        ]

    @property
    def skipped_steps(self) -> int:
        """How many steps the optimizers skipped together; on an accelerator, asking waits for it."""
        return self._skips.total()

    def remove(self) -> None:
        """Let every optimizer decide for itself again."""
        for handle in self._handles:
            handle.remove()

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]: as Adagrad.step
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            raise ValueError("closure is given to an optimizer under a guard; expected none: backward comes first")
        if not self._served or id(optimizer) in self._served:
            self._decide()
        self._served.add(id(optimizer))
        if self._decision is None:
            return
        if _takes_found_inf(optimizer):
            self._found_inf = getattr(optimizer, "found_inf", None)
            ours = self._decision.float()
            both = ours if self._found_inf is None else ours.to(self._found_inf.device).maximum(self._found_inf)
            optimizer.found_inf = both  # pyright: ignore[reportAttributeAccessIssue]
        elif bool(self._decision):
            self._hidden = [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
            for p, _ in self._hidden:
                p.grad = None

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._decision is not None and _takes_found_inf(optimizer):
            if self._found_inf is None:
                del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
            else:
                optimizer.found_inf = self._found_inf  # pyright: ignore[reportAttributeAccessIssue]
        for p, grad in self._hidden:
            p.grad = grad
        self._hidden = []

    def _decide(self) -> None:
        grads = [p.grad for optimizer in self._optimizers for p in _parameters(optimizer) if p.grad is not None]
        self._decision = nonfinite.any_of(nonfinite.not_finite(grads)) if grads else None
        if self._decision is not None:
            self._skips.add(self._decision)
            self._skips.tell_once()
        self._served = set()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _takes_found_inf(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, Adagrad) or honours_found_inf(optimizer)
