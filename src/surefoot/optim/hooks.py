"""Runs everything that surefoot does around an optimizer's step, in one order, whatever the order of attaching it.

torch calls the hooks of a step in the order of their registration, and calls none after a step that raised. So
``clip_updates``, ``guard`` and recovery register no hooks of their own: they are parts of one ``Around`` for each
optimizer, which runs last before the step and first after it. The order of a step:

1. ``begin``: weights are copied;
2. the closure, if there is one;
3. ``verdict``: every part decides from the gradients whether to skip the step; one yes is enough;
4. if the step is skipped, gradients are hidden from the optimizer, or its ``found_inf`` is set;
5. ``before_update``: parts measure what they need before the weights change;
6. the optimizer's own step;
7. ``end``: factors are applied; then gradients and ``found_inf`` are restored.

The optimizer's ``step`` is wrapped, as schedulers wrap it, so that gradients are restored after an exception too.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad as TorchAdagrad
from torch.optim import Adam, AdamW, Optimizer

from surefoot.optim import kernel
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.nonfinite import NonFinite, any_of, not_finite, readable

Flag = bool | Tensor
"""Yes or no: a bool, or a 0-d bool tensor if reading it would wait for the device."""

_READ_FOUND_INF = (Adam, AdamW, TorchAdagrad)  # if fused; not SGD, whose momentum a skipped first step corrupts


class Part:
    """What one part of surefoot does around the steps of one or several optimizers."""

    def begin(self, around: "Around", has_closure: bool) -> None:
        """Keep what is needed from before the step; with a closure there are no gradients yet."""

    def verdict(self, around: "Around") -> Flag:
        """Return whether the gradients require skipping the step."""
        return False

    def before_update(self, around: "Around") -> None:
        """Measure before the weights change; in a skipped step the gradients are hidden."""

    def end(self, around: "Around") -> None:
        """Act after the optimizer's own step."""

    def forget(self, around: "Around") -> None:
        """Drop what was kept for the step, at its end or after it raised."""

    def raised(self, around: "Around") -> None:
        """Undo any other temporary change after a step that raised."""


class Around:
    """The parts around one optimizer's step. Made by ``around``.

    Attributes:
        optimizer: the optimizer.
        parts: in the order in which they are called.
        scaler_found_inf: in ``verdict``, the ``found_inf`` that GradScaler has set, if any.
        flags: in ``verdict``, by optimizer, whether a gradient is NaN or infinite, as far as that is known.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parts: list[Part] = []
        self.scaler_found_inf: Tensor | None = None
        self.flags: dict[Optimizer, Flag] = {}
        self._open = False  # between the hooks
        self._within = False  # inside the wrapped step
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._found_inf: tuple[Tensor, Tensor | None] | None = None  # ours, and GradScaler's
        self._first = optimizer.register_step_pre_hook(self._pre)
        self._last = optimizer.register_step_post_hook(self._post)
        self._step_before = optimizer.__dict__.get("step")  # another wrapper, for example a scheduler's
        self._step = _wrapped(optimizer.step, self)
        optimizer.step = self._step  # pyright: ignore[reportAttributeAccessIssue]

    def add(self, part: Part, *, first: bool = False) -> None:
        """Add a part."""
        self.parts.insert(0 if first else len(self.parts), part)

    def discard(self, part: Part) -> None:
        """Remove a part; without parts the optimizer is as it was before. A second call does nothing."""
        if part in self.parts:
            self.parts.remove(part)
            part.forget(self)
        if not self.parts:
            self.forget()
            self._first.remove()
            self._last.remove()
            if self.optimizer.__dict__.get("step") is self._step:  # else another wrapper is around ours
                del self.optimizer.step
                if self._step_before is not None:
                    self.optimizer.step = self._step_before

    def bad(self, optimizer: Optimizer | None = None) -> Flag:
        """Return whether a gradient of this or another optimizer is NaN or infinite; checked once a step."""
        optimizer = optimizer or self.optimizer
        if optimizer not in self.flags:
            grads = [grad for _, grad in held(optimizer)]
            plain = bool(grads) and kernel.takes(*grads)
            self.flags[optimizer] = not kernel.all_finite(grads) if plain else _any_of(not_finite(grads))
        return self.flags[optimizer]

    def scaler_skips(self) -> Flag:
        """Return whether GradScaler has told the optimizer to skip this step."""
        return False if self.scaler_found_inf is None else read(self.scaler_found_inf.squeeze() > 0)

    def hide(self, held: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set the gradients of these parameters to None until the end of the step."""
        self._hidden += held
        hide(held)

    # Hooks

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]: as Adagrad.step
    @torch.no_grad()
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._within and self._open:  # a nested call of step: already handled
            return None
        self.forget()  # what is left of a step that raised and did not go through the wrapper
        closure = closure_of(args, kwargs)
        self._open = True
        for part in self.parts:
            part.begin(self, closure is not None)
        if closure is None:
            self._decide()
            return None

        def decided() -> Any:
            self._restore()  # the closure may be called several times
            loss = closure()
            with torch.no_grad():
                self._decide()
            return loss

        return with_closure(args, kwargs, decided)

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    @torch.no_grad()
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._open:  # a nested call of step: already ended
            return
        try:
            for part in reversed(self.parts):
                part.end(self)
        finally:
            self.forget()

    def _decide(self) -> None:
        """Ask all parts, and make the optimizer skip the step if any of them requires it."""
        self.scaler_found_inf, self.flags = getattr(self.optimizer, "found_inf", None), {}
        skip: Flag = False
        for part in self.parts:
            skip = either(skip, part.verdict(self))
        if _raises(self.optimizer, skip) and bool(self.bad()):
            skip = False  # the optimizer itself raises
        elif skip is not False:
            self._count_in_optimizer()
        self._skip(skip)
        for part in self.parts:
            part.before_update(self)

    def _skip(self, skip: Flag) -> None:
        scaler = self.scaler_found_inf
        if scaler is not None and not takes_found_inf(self.optimizer):
            skip = either(skip, self.scaler_skips())
        if isinstance(skip, Tensor) and takes_found_inf(self.optimizer):
            ours = skip.float() if scaler is None else scaler.maximum(skip.to(scaler.device).float())
            self._found_inf = ours, scaler
            self.optimizer.found_inf = ours  # pyright: ignore[reportAttributeAccessIssue]
        elif bool(skip):  # waits for the device
            self.hide(held(self.optimizer))

    def _count_in_optimizer(self) -> None:
        """Let surefoot's own optimizer count the skipped step as it does without these hooks."""
        if isinstance(self.optimizer, Adagrad) and self.optimizer._nonfinite is not NonFinite.PROPAGATE:
            self.optimizer._skips.add(but_not(self.bad(), self.scaler_skips()))

    def _restore(self) -> None:
        """Restore the gradients and ``found_inf``."""
        give_back(self._hidden)
        if self._found_inf is not None and getattr(self.optimizer, "found_inf", None) is self._found_inf[0]:
            if self._found_inf[1] is None:
                del self.optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
            else:
                self.optimizer.found_inf = self._found_inf[1]  # pyright: ignore[reportAttributeAccessIssue]
        self._hidden, self._found_inf = [], None

    def forget(self) -> None:
        """Restore what was hidden, and drop what was kept for the step."""
        self._restore()
        self.scaler_found_inf, self.flags, self._open = None, {}, False
        for part in self.parts:
            part.forget(self)

    def _enter(self) -> None:
        """Make our hooks the innermost ones: others get the real gradients, and may raise before any is hidden."""
        hooks = self.optimizer._optimizer_step_pre_hooks
        if next(reversed(hooks), None) != self._first.id and self._first.id in hooks:
            hooks[self._first.id] = hooks.pop(self._first.id)
        hooks = self.optimizer._optimizer_step_post_hooks
        if next(iter(hooks), None) != self._last.id and self._last.id in hooks:
            for key in [key for key in hooks if key != self._last.id]:
                hooks[key] = hooks.pop(key)
        self._within = True

    def _leave(self, *, raised: bool) -> None:
        self._within = False
        if raised:
            self.forget()
            for part in self.parts:
                part.raised(self)


def around(optimizer: Optimizer) -> Around:
    """Return the ``Around`` of an optimizer; create it if there is none."""
    return _present(optimizer) or Around(optimizer)


def parts_of(optimizer: Optimizer) -> Sequence[Part]:
    """Return the parts around an optimizer's step."""
    present = _present(optimizer)
    return () if present is None else present.parts


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Return whether an optimizer skips a step, its first one too, when ``found_inf`` is set on it."""
    if isinstance(optimizer, Adagrad):
        return True
    return isinstance(optimizer, _READ_FOUND_INF) and all(group.get("fused") for group in optimizer.param_groups)


def held(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters that have a gradient, as pairs (parameter, gradient)."""
    return [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def hide(held: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Take the gradients from their parameters."""
    for param, _ in held:
        param.grad = None


def give_back(held: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give parameters their hidden gradients back, unless they have new ones."""
    for param, grad in held:
        if param.grad is None:
            param.grad = grad


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """Return the closure of a step, from the arguments that its hooks are given; the first is the optimizer."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a step with another closure in the place of its own."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def either(one: Flag, other: Flag) -> Flag:
    """Return whether one of two flags is set, without waiting for the device."""
    if isinstance(one, bool):
        return other if not one else True
    if isinstance(other, bool):
        return one if not other else True
    return one | other.to(one.device)


def but_not(one: Flag, other: Flag) -> Flag:
    """Return whether the first of two flags is set and the second is not, without waiting for the device."""
    if isinstance(other, bool):
        return False if other else one
    return one and ~other if isinstance(one, bool) else one & ~other.to(one.device)


def read(flag: Tensor) -> Flag:
    """Return a flag as a bool if reading it does not wait for the device."""
    return bool(flag) if readable(flag) else flag


def _any_of(flags: Sequence[Tensor]) -> Flag:
    return read(any_of(flags)) if flags else False


def _present(optimizer: Optimizer) -> Around | None:
    owners = (getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Around)), None)


def _raises(optimizer: Optimizer, skip: Flag) -> bool:
    """Whether the optimizer raises, under ``NonFinite.RAISE``, instead of skipping a step that is to be skipped."""
    return skip is not False and isinstance(optimizer, Adagrad) and optimizer._nonfinite is NonFinite.RAISE


def _wrapped(inner: Callable[..., Any], around: Around) -> MethodType:
    """Wrap an optimizer's ``step`` so that everything is restored if it raises."""

    @torch._disable_dynamo(recursive=False)  # pyright: ignore[reportPrivateImportUsage]
    @functools.wraps(getattr(inner, "__func__", inner))
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if around._within or not around.parts:
            return inner(*args, **kwargs)
        raised = True
        around._enter()
        try:
            result = inner(*args, **kwargs)
            raised = False
        finally:
            around._leave(raised=raised)
        return result

    return MethodType(step, around.optimizer)
