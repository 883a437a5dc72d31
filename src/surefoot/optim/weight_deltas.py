"""A finished step as eq. (5): the change of each weight, a rule's measure of it, and its scaling by sigma."""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.optim.nonfinite import readable
from surefoot.optim.sparse import by_row
from surefoot.rules import Rule, Scope, broadcast, wide

Rows = tuple[Tensor, ...]
"""Indices of touched rows, as in ``by_row(grad).indices()``."""

_PIECE = 1 << 16  # elements; a piece stays in a core's cache between the passes over it


class WeightSnapshot(NamedTuple):
    """A weight before the step: all of it, or some rows."""

    weight: Tensor
    rows: Rows | None = None


class WeightDelta(NamedTuple):
    """The change of one parameter in a step."""

    param: Tensor
    before: WeightSnapshot
    touched: Rows | None  # the rows that a sparse gradient holds
    rule: Rule
    measure: Tensor


def delta_of(
    param: Tensor,
    before: WeightSnapshot,
    grad: Tensor,
    rule: Rule,
    lr: float | Tensor,
    grad_scale: Tensor | None = None,
) -> WeightDelta:
    r"""Return the change from ``before`` to ``param``; its update is :math:`r = (w_{old} - w_{new}) / \eta`.

    A learning rate of 0 is treated as 1: r is 0 then, except for optimizers that ignore their learning rate. With a
    sparse gradient, the rule measures the touched rows. ``grad_scale`` is GradScaler's scale of the gradient. If the
    rule needs no update, the call may come before the step.
    """
    if isinstance(lr, Tensor):
        lr = lr.reshape(()) if lr.device.type == "cpu" else lr.reshape(()).to(param.device, non_blocking=True)
        lr = torch.where(lr == 0, 1.0, lr)
    else:
        lr = lr or 1.0
    old, new, touched = before.weight, param, None
    grad = by_row(grad)
    if grad.is_sparse:
        touched = before.rows or tuple(grad.indices())
        old, new, grad = old if before.rows else old[touched], new[touched], grad.values()
    parts = []
    for w, g, after in _pieces(old, grad, new):
        g = g if grad_scale is None else wide(g) / grad_scale.to(g.device)
        update = (wide(w) - wide(after)).div_(lr) if rule.needs_update else g
        parts.append(rule.measure(w, g, update, lr))
    units = rule.unit_dims_of(old.shape)
    if len(parts) == 1:
        measure = parts[0]
    elif units:  # the last dimensions of a measure; each piece has units of its own
        measure = torch.cat(parts, dim=-units)
    else:
        measure = rule.combine(torch.stack(parts, dim=-1))
    return WeightDelta(param, before, touched, rule, measure)


def factors(deltas: list[WeightDelta]) -> list[Tensor]:
    """Return sigma for each delta; deltas with equal rules for the whole model share one."""
    parts: dict[Rule, list[Tensor]] = {}
    for delta in deltas:
        if delta.rule.scope is Scope.MODEL:
            parts.setdefault(delta.rule, []).append(delta.measure.to(deltas[0].measure.device))
    shared = {rule: rule.factor(rule.combine(torch.stack(measures, dim=-1))) for rule, measures in parts.items()}
    return [
        shared[delta.rule].to(delta.param.device) if delta.rule in shared else delta.rule.factor(delta.measure)
        for delta in deltas
    ]


def apply(delta: WeightDelta, factor: Tensor) -> None:
    r"""Set the weight to :math:`w_{old} + \sigma\,(w_{new} - w_{old})` where sigma is not 1, in float32 or better."""
    param, (old, rows), touched = delta.param, delta.before, delta.touched
    if readable(factor) and bool((factor == 1).all()):
        return
    if rows is not None:
        new = param[rows]
        param[rows] = _scaled(broadcast(factor, new), old, new)
        return
    if touched is not None and factor.ndim:  # one for each touched row
        factor = factor.new_ones(param.shape[: factor.ndim]).index_put_(touched, factor)
    for sigma, old_piece, piece in _pieces(broadcast(factor, param) if factor.ndim else factor, old, param):
        piece.copy_(_scaled(sigma, old_piece, piece))


def _scaled(sigma: Tensor, old: Tensor, new: Tensor) -> Tensor:
    start = wide(old)
    result = (wide(new) - start).mul_(sigma).add_(start).to(new.dtype)
    if readable(sigma) and not sigma.ndim:  # then sigma is not 1: apply has returned otherwise
        return result
    return torch.where(sigma == 1, new, result)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views along dimension 0 that fit the cache; on an accelerator, everything at once.

    Every piece gets a 0-d tensor as it is.
    """
    whole = tensors[-1]
    if whole.numel() <= _PIECE or whole.device.type != "cpu":
        yield tensors
        return
    rows = max(1, _PIECE * whole.shape[0] // whole.numel())
    yield from zip(*(x.split(rows) if x.ndim else repeat(x) for x in tensors), strict=False)
