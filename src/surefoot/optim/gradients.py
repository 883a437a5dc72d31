"""The user's own functions on the gradients of named layers, between the backward pass and the step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.optim.groups import NamePattern, match_names, named_parameters
from surefoot.optim.hooks import closure_of, with_closure
from surefoot.optim.unwrap import unwrapped

GradientFunction = Callable[[Tensor], Tensor]
Probe = Callable[[str, Tensor, Tensor], object]


class _Operation(NamedTuple):
    name: str
    param: nn.Parameter
    pattern: NamePattern
    function: GradientFunction


class GradientOperations:
    """The handle that ``gradient_operations`` returns."""

    def __init__(self, optimizer: Optimizer, operations: Sequence[_Operation], probe: Probe | None) -> None:
        self._operations = tuple(operations)
        self._probe = probe
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    @property
    def patterns(self) -> dict[str, NamePattern]:
        """The pattern that applies to each parameter, by the parameter's name."""
        return {operation.name: operation.pattern for operation in self._operations}

    def remove(self) -> None:
        """Detach the operations; a second call does nothing."""
        self._hook.remove()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = closure_of(args, kwargs)
        if not callable(closure):
            self._apply(optimizer)
            return None

        def with_operations() -> Any:
            loss = closure()  # the closure computes the gradient, inside the step
            self._apply(optimizer)
            return loss

        return with_closure(args, kwargs, with_operations)

    @torch.no_grad()
    def _apply(self, optimizer: Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer under GradScaler unscales by itself
        for operation in self._operations:
            grad = operation.param.grad
            if grad is None:
                continue
            scale = scale.to(grad.device) if isinstance(scale, Tensor) else scale
            seen = grad if scale is None else grad / scale
            before = None if self._probe is None else seen.detach().clone()
            result = operation.function(seen)
            _check_result(operation.name, grad, result)
            if self._probe is not None and before is not None:
                self._probe(operation.name, before, result.detach())
            _write(operation.param, grad, result if scale is None else result * scale)


def gradient_operations(
    optimizer: Optimizer,
    operations: Mapping[NamePattern, GradientFunction],
    *,
    model: nn.Module,
    probe: Probe | None = None,
) -> GradientOperations:
    r"""Before each step, replace the gradient of named layers: :math:`g \leftarrow f(g)`.

    The functions run when ``optimizer.step`` is called, not in the backward pass, hence

    * once for each step, on the gradient that the optimizer is about to use: with gradient accumulation on the sum,
      under DDP on the gradient reduced over all processes;
    * under ``torch.amp.GradScaler`` on the unscaled gradient, also with optimizers that unscale by themselves. If the
      scaler skips a step, no function is called; if the optimizer itself skips it, the functions are called, with
      gradients that are not finite;
    * with a closure after each of its evaluations.

    ``p.grad`` holds the result afterwards, as after ``clip_grad_norm_``; a second step without a new backward pass
    applies the function to the result again. Parameters without a gradient are left out. A sparse gradient is passed
    uncoalesced, with duplicate rows; the result may be dense. ``clip_updates`` and ``guard`` use the result, in any
    order of attaching; other step hooks do if they are registered later.

    Args:
        optimizer: any torch optimizer. Of several optimizers, attach to each the operations on its own parameters.
        operations: a function from a gradient to one of the same shape and type, by name pattern as in
            ``parameter_groups``: a glob or a compiled regular expression on the whole name. Where several match, the
            first one wins. The function runs without autograd and may write into its argument.
        model: gives the parameters their names.
        probe: called as ``probe(name, before, after)`` each time, with the gradient before and after, detached.
            ``before`` is a copy; ``after`` is a view that must not be written into, and is overwritten later.

    Returns:
        A handle; ``handle.remove()`` detaches the operations. Copies and pickles of the optimizer carry none.

    Raises:
        TypeError: if an argument is of the wrong kind or, at the step, a function returns no tensor.
        ValueError: if a pattern matches no parameter, naming the closest name; if it never wins because of those
            before it; if the optimizer holds none of the matching parameters; at the step, if a result differs from
            the gradient in shape, type or device, naming the layer.

    >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> operations = {
    ...     "0.weight": lambda g: 0.5 * g,  # scale
    ...     "0.bias": lambda g: g.clamp(-1.0, 1.0),  # clip by value
    ...     "1.weight": lambda g: g + 0.01 * torch.randn_like(g),  # noise
    ...     "1.bias": torch.zeros_like,  # zero
    ... }
    >>> handle = gradient_operations(optimizer, operations, model=model)
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> optimizer.step()
    >>> model[1].bias.grad
    tensor([0.])
    >>> handle.remove()
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}; expected a torch.optim.Optimizer")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}; expected a torch.nn.Module")
    for pattern, function in operations.items():
        if not callable(function):
            raise TypeError(f"operations has {function!r} for {pattern!r}; expected a function from tensor to tensor")
    optimizer, *more = unwrapped(optimizer, "optimizer")
    if more:
        raise TypeError(f"optimizer combines {1 + len(more)} optimizers; expected one: attach to each of them")
    return GradientOperations(optimizer, _resolve(optimizer, operations, model), probe)


def _resolve(
    optimizer: Optimizer, operations: Mapping[NamePattern, GradientFunction], model: nn.Module
) -> list[_Operation]:
    """Return the operations in the order of the model's parameters."""
    params, patterns = named_parameters(model), list(operations)
    held = {param for group in optimizer.param_groups for param in group["params"]}
    resolved = [
        _Operation(names[0], param, patterns[found[0]], operations[patterns[found[0]]])
        for (param, names), found in zip(params, match_names("operations", patterns, params), strict=True)
        if found
    ]
    for pattern in patterns:
        mine = [operation for operation in resolved if operation.pattern == pattern]
        if not any(operation.param in held for operation in mine):
            raise ValueError(
                f"operations has the pattern {pattern!r}, but the optimizer does not hold {mine[0].name!r}; "
                "expected the optimizer that updates it"
            )
    return [operation for operation in resolved if operation.param in held]


def _check_result(name: str, grad: Tensor, result: object) -> None:
    if not isinstance(result, Tensor):
        raise TypeError(f"the operation on {name!r} returned {result!r}; expected a tensor")
    for what in ("shape", "dtype", "device"):
        got, expected = getattr(result, what), getattr(grad, what)
        if got != expected:
            raise ValueError(f"the operation on {name!r} returned a gradient of {what} {got}; expected {expected}")


def _write(param: nn.Parameter, grad: Tensor, result: Tensor) -> None:
    if result is grad:
        return
    if grad.layout == result.layout == torch.strided:
        grad.copy_(result)  # in place: DDP's buckets and captured graphs keep their memory
    else:
        param.grad = result
