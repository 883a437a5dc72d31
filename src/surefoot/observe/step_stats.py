r"""What a layer's step looks like in numbers: norms, dead units, ratios, and what any rule would have said of it.

A step is seen as eq. (5) has it: the weight :math:`w` before it, the gradient :math:`g`, the optimizer's own update
:math:`r`, without the rate and before any factor, and the rate :math:`\eta`. Everything is taken from moments by
row, so that one pass over memory serves all statistics and rules. Nothing here waits for the device; a NaN or an
infinite number shows in whatever looked at it; the L-infinity norm of a tensor with a NaN is NaN.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.optim.sparse import by_row
from surefoot.rules import (
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    Scope,
    TrustRatio,
    wide,
)

_OF_SQUARES = (NoClip, GradientClip, GlobalGradientClip, AdaptiveGradientClip, TrustRatio)
"""Rules that add up squares, or nothing: of the norms of rows they make what they make of the coordinates."""


class Step(NamedTuple):
    """One layer's step; of a sparse gradient, the rows that it touches.

    Args:
        weight: before the step, any shape.
        grad: of the same shape.
        update: :math:`r`, of the same shape.
        lr: :math:`\\eta`.
    """

    weight: Tensor
    grad: Tensor
    update: Tensor
    lr: float | Tensor


class Moments(NamedTuple):
    """Sums of squares and largest sizes by row, in float32 or better.

    A row is all of the last dimension; of a tensor with one dimension or none, each number is a row.

    Args:
        shape: of the layer.
        squares: (3, rows), the sums of squares of weight, gradient and update.
        largest: (3, rows), the largest sizes of the three.
    """

    shape: torch.Size
    squares: Tensor
    largest: Tensor


def moments(step: Step) -> Moments:
    """Return the moments of a step, in torch's own operations."""
    rows = [wide(x).flatten(0, -2) if x.ndim > 1 else wide(x).reshape(-1, 1) for x in step[:3]]
    squares = torch.stack([x.square().sum(1) for x in rows])
    largest = torch.stack([x.abs().amax(1) for x in rows]) if rows[0].shape[1] else torch.zeros_like(squares)
    return Moments(step.weight.shape, squares, largest)


def touched(weight: Tensor, grad: Tensor, *beside: Tensor) -> tuple[Tensor, ...]:
    """Return a weight, its gradient and what stands beside them, only the rows that a sparse gradient touches.

    Duplicates in the gradient are summed. Dense gradients leave everything as it is.
    """
    grad = by_row(grad)
    if not grad.is_sparse:
        return weight, grad, *beside
    rows = tuple(grad.indices())
    return weight[rows], grad.values(), *(x[rows] for x in beside)


class Norms(NamedTuple):
    """The size of a tensor, each 0-d: root of the sum of squares, largest number, root of the mean square."""

    l2: Tensor
    linf: Tensor
    rms: Tensor


def norms(squares: Tensor, largest: Tensor, count: int) -> Norms:
    """Return the norms of a tensor from its sums of squares and largest sizes, each (rows,); of an empty one 0.

    >>> norms(torch.tensor([9.0, 16.0]), torch.tensor([3.0, 4.0]), count=4)
    Norms(l2=tensor(5.), linf=tensor(4.), rms=tensor(2.5000))
    """
    total = squares.sum().sqrt()
    linf = largest.amax() if len(largest) else torch.zeros_like(total)
    return Norms(total, linf, total / max(1, count) ** 0.5)


def dead_units(largest: Tensor, shape: torch.Size) -> Tensor:
    """Return the share of output units, the indices of dimension 0, whose gradient is exactly 0; of none, 0.

    Args:
        largest: (rows,) of the gradient, as in ``Moments``.
        shape: of the layer.
    """
    if not len(largest):
        return largest.new_zeros(())
    return (largest.reshape(shape[0] if shape else 1, -1) == 0).all(1).float().mean()


def update_ratio(update: Tensor, weight: Tensor, lr: float | Tensor) -> Tensor:
    r"""Return :math:`\eta \|r\|_2 / \|w\|_2`, 0-d, from the two norms; of weights that are all 0, inf or NaN."""
    return lr * update / weight


def clip_ratio(step: Step, rule: Clippy = Clippy()) -> Tensor:
    r"""Return :math:`\max_i \eta |r_i| / (\lambda_{rel} |w_i| + \lambda_{abs})`, 0-d: Clippy clips where it exceeds 1.

    >>> w, r = torch.tensor([4.0, 1.0]), torch.tensor([2.0, 0.0])
    >>> clip_ratio(Step(w, r, r, lr=1.01))  # 1.01 * 2 / (0.5 * 4 + 0.01)
    tensor(1.0050)
    """
    return rule.measure(*step).reciprocal()


def statistics(seen: Moments, lr: float | Tensor) -> dict[str, Tensor]:
    """Return all statistics of a layer, each 0-d, by the prefix of its name.

    ``update`` is the change of the weight that the optimizer asks for, lr * r, before any factor.
    """
    found: dict[str, Tensor] = {}
    count = seen.shape.numel()
    each = [norms(squares, largest, count) for squares, largest in zip(seen.squares, seen.largest, strict=True)]
    for name, sizes, scale in zip(("weight", "grad", "update"), each, (1.0, 1.0, lr), strict=True):
        for kind, size in sizes._asdict().items():
            norm = kind if kind == "rms" else f"{kind}_norm"
            found[f"{norm}/{name}"] = size * scale if name == "update" else size
    found["dead_units"] = dead_units(seen.largest[1], seen.shape)
    found["update_ratio"] = update_ratio(each[2].l2, each[0].l2, lr)
    return found


def measure(rule: Rule, seen: Moments, step: Callable[[], Step], lr: float | Tensor) -> Tensor:
    """Return what a rule measures of a layer: of the moments where they suffice, else of the whole step.

    Args:
        rule: any rule.
        seen: the layer's moments.
        step: makes the whole step, which may take memory; called only where needed.
        lr: the learning rate.
    """
    if type(rule) not in _OF_SQUARES:
        return rule.measure(*step())
    shape = seen.shape[:-1] if len(seen.shape) > 1 else seen.shape
    weight, grad, update = (row.sqrt().reshape(*shape, 1) for row in seen.squares)
    return rule.partial(weight, grad, update, lr, rule.unit_dims_of(seen.shape))


def factors(rule: Rule, measures: Sequence[Tensor]) -> list[Tensor]:
    """Return the factor that a rule would have given at each layer; one that covers the model gives all the same.

    Args:
        rule: any rule.
        measures: of the layers, as the rule gives them.
    """
    if rule.scope is Scope.MODEL and measures:
        here = measures[0].device
        whole = rule.combine(torch.stack([m.to(here, non_blocking=True) for m in measures], -1))
        return [rule.factor(whole)] * len(measures)
    return [rule.factor(m) for m in measures]


def labels_of(rules: Sequence[Rule]) -> list[str]:
    """Return a name for each rule: its class, or all of it where a class comes more than once.

    >>> labels_of([Clippy(), GradientClip(0.1), GradientClip(1.0)])
    ['Clippy', 'GradientClip(threshold=0.1)', 'GradientClip(threshold=1.0)']
    """
    kinds = [type(rule) for rule in rules]
    return [repr(r) if kinds.count(type(r)) > 1 else type(r).__name__ for r in rules]
