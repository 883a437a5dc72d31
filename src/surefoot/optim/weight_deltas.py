"""A step that has been taken, seen as eq. (5): what it moved, what a rule makes of it, and how far it is taken back."""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.optim.nonfinite import readable
from surefoot.optim.sparse import by_row
from surefoot.rules import Rule, Scope, broadcast, wide

Rows = tuple[Tensor, ...]
"""Indices of the leading dimensions, as ``indices()`` of a gradient ``by_row`` has them."""

_PIECE = 1 << 16  # elements; a piece stays in a core's cache between the passes over it


class WeightSnapshot(NamedTuple):
    """What is remembered of a weight: all of it, or the rows named."""

    weight: Tensor
    rows: Rows | None = None


class WeightDelta(NamedTuple):
    """What one parameter did in a step."""

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
    r"""Return the move from ``before`` to ``param``, whose update is :math:`r = (w_{old} - w_{new}) / \eta`.

    A rate of 0 counts as 1: r is 0 then, but for optimizers that do not heed their rate. Under a sparse gradient,
    the rule measures the rows that it touches. ``grad_scale`` is what the gradient was multiplied by. A rule that
    needs no update may be asked before the step.
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
    for w, g, moved in _pieces(old, grad, new):
        g = g if grad_scale is None else wide(g) / grad_scale.to(g.device)
        update = (wide(w) - wide(moved)).div_(lr) if rule.needs_update else g
        parts.append(rule.measure(w, g, update, lr))
    units = rule.unit_dims_of(old.shape)
    if len(parts) == 1:
        measure = parts[0]
    elif units:  # the last dimensions of a measure; each piece has units of its own
        measure = torch.cat(parts, dim=-units)
    else:
        measure = rule.combine(torch.stack(parts, dim=-1))
    return WeightDelta(param, before, touched, rule, measure)


def factors(moves: list[WeightDelta]) -> list[Tensor]:
    """Return sigma for each move; moves whose equal rules cover the whole model share one."""
    parts: dict[Rule, list[Tensor]] = {}
    for move in moves:
        if move.rule.scope is Scope.MODEL:
            parts.setdefault(move.rule, []).append(move.measure.to(moves[0].measure.device))
    shared = {rule: rule.factor(rule.combine(torch.stack(measures, dim=-1))) for rule, measures in parts.items()}
    return [
        shared[move.rule].to(move.param.device) if move.rule in shared else move.rule.factor(move.measure)
        for move in moves
    ]


def apply(move: WeightDelta, factor: Tensor) -> None:
    r"""Set :math:`w_{old} + \sigma\,(w_{new} - w_{old})` where sigma is not 1, in float32 or better."""
    param, (old, rows), touched = move.param, move.before, move.touched
    if readable(factor) and bool((factor == 1).all()):
        return
    if rows is not None:
        new = param[rows]
        param[rows] = _selected(broadcast(factor, new), old, new)
        return
    if touched is not None and factor.ndim:  # one for each touched row
        factor = factor.new_ones(param.shape[: factor.ndim]).index_put_(touched, factor)
    for scale, old_piece, piece in _pieces(broadcast(factor, param) if factor.ndim else factor, old, param):
        piece.copy_(_selected(scale, old_piece, piece))


def _selected(scale: Tensor, old: Tensor, new: Tensor) -> Tensor:
    start = wide(old)
    moved = (wide(new) - start).mul_(scale).add_(start)
    if readable(scale) and not scale.ndim:  # not 1, or there would be nothing to do
        return moved.to(new.dtype)
    return torch.where(scale == 1, new, moved.to(new.dtype))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views along dimension 0 that fit the cache; on an accelerator, everything at once.

    A 0-d tensor is given whole to every piece.
    """
    whole = tensors[-1]
    if whole.numel() <= _PIECE or whole.device.type != "cpu":
        yield tensors
        return
    rows = max(1, _PIECE * whole.shape[0] // whole.numel())
    yield from zip(*(x.split(rows) if x.ndim else repeat(x) for x in tensors), strict=False)
