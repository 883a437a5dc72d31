"""One step of eq. (5) with Adagrad's direction, by torch's operations: any rule, any device, no wait for the device.

A step has two halves. ``measure`` computes the direction and the rule's measure; when every factor is known, ``apply``
updates the weights. Large tensors on the CPU go through both halves tile by tile, so that intermediate results stay in
the cache; the second half computes the update again instead of keeping it. Small tensors are gathered into one vector,
so that hundreds of them need a dozen operations, not a dozen each.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from surefoot.optim.sparse import by_row
from surefoot.rules import Reduce, Rule, Scope, wide

_TILE = 1 << 21  # elements: the fastest of 2^14 to 2^24 on two cores; in smaller tiles waking threads costs too much
_KEPT = 1 << 20  # elements: for tensors up to this size the update is kept between the halves
_SMALL = 1 << 14  # elements: tensors up to this size are gathered
_MIN_GATHERED = 8  # tensors: gathering fewer small ones does not pay


class Accumulate(Enum):
    """When a squared gradient is added to the accumulator."""

    BEFORE = "before"  # before the direction is computed: the paper's algorithm 1, and torch.optim.Adagrad
    AFTER = "after"  # after the step: the default of TensorFlow Recommenders
    AFTER_CLIPPED = "after_clipped"  # after the step, of the clipped gradient sigma * g


class Epsilon(Enum):
    """Where epsilon stands in the direction's denominator."""

    OUTSIDE = "outside"  # sqrt(G) + eps, as in torch.optim.Adagrad
    INSIDE = "inside"  # sqrt(G + eps), as in TensorFlow Recommenders


@dataclass(frozen=True)
class Options:
    """The options of a parameter group."""

    lr: float | Tensor
    rule: Rule
    eps: float
    epsilon: Epsilon
    accumulate: Accumulate
    weight_decay: float
    maximize: bool
    initial_accumulator_value: float


class Item(NamedTuple):
    """One parameter that has a gradient."""

    param: Tensor
    grad: Tensor
    total: Tensor  # the accumulator, float32 or better
    options: Options
    scale: Tensor | None  # GradScaler's, by which the gradient was multiplied, 0-d
    skip: Tensor | None  # 0-d bool: whether the step leaves this parameter unchanged


class _Piece(NamedTuple):
    """A part of one parameter, as views; or several parameters, gathered into one vector."""

    weight: Tensor
    grad: Tensor
    total: Tensor


class Stepper(ABC):
    """The step of one or several parameters, in two halves."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.options = items[0].options
        self.params = [item.param for item in items]

    @abstractmethod
    def measure(self) -> Tensor:
        """Compute the direction; return the rule's measure, with the parameters in the last dimension if several."""

    @abstractmethod
    def apply(self, factor: Tensor) -> None:
        """Update the weights by the rule's factor for the measure."""


def steppers(items: Sequence[Item]) -> list[Stepper]:
    """Return the steppers of all items; small tensors with equal options share one."""
    found: list[Stepper] = []
    small: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        item = item._replace(grad=by_row(item.grad))
        if item.grad.is_sparse:
            found.append(_Rows(item))
        elif _can_be_gathered(item):
            key = (item.options, item.param.dtype, item.grad.dtype, item.param.device, id(item.skip))
            small.setdefault(key, []).append(item)
        else:
            found.append(_Whole(item))
    for alike in small.values():
        found += [_Gathered(alike)] if len(alike) >= _MIN_GATHERED else [_Whole(item) for item in alike]
    return found


def _can_be_gathered(item: Item) -> bool:
    """Whether a dense parameter can be gathered; torch's foreach copy cannot write to tensors with the negative bit."""
    return item.options.rule.scope is not Scope.UNIT and item.param.numel() <= _SMALL and not item.param.is_neg()


class _Whole(Stepper):
    """One dense parameter, in tiles if it is large and on the CPU."""

    def __init__(self, item: Item) -> None:
        super().__init__([item])
        self.units = item.options.rule.unit_dims_of(item.param.shape)
        self.whole = _Piece(item.param.contiguous(), item.grad.contiguous(), item.total.contiguous())
        self.pieces = list(_tiles(self.whole, self.units))

    def measure(self) -> Tensor:
        rule, (item,) = self.options.rule, self.items
        units = 1 if self.units else 0  # within a tile, units have been flattened into one dimension
        parts, self.updates = [], []
        kept = item.param.numel() <= _KEPT
        scratch = None if kept else self._scratch()
        for piece in self.pieces:
            measure, update = _measure(piece, item, units, scratch)
            parts.append(measure)
            self.updates.append(update if kept else None)
        if len(parts) == 1:
            combined = parts[0]
        elif units:
            combined = torch.cat(parts, dim=-1)
        else:
            combined = rule.combine(torch.stack(parts, dim=-1))
        return combined.unflatten(-1, item.param.shape[: self.units]) if units else combined

    def apply(self, factor: Tensor) -> None:
        (item,) = self.items
        flat = factor.flatten()
        scratch = self._scratch() if None in self.updates else None
        start = 0
        for piece, update in zip(self.pieces, self.updates, strict=True):
            sigma = factor
            if self.units:
                sigma = flat[start : start + len(piece.weight), None]
                start += len(piece.weight)
            if update is None:
                update = _direction(_prepare(piece, item), piece.total, item.options, scratch)
            _apply(piece, item, update, sigma)
        for kept, changed in ((item.param, self.whole.weight), (item.total, self.whole.total)):
            if kept is not changed:  # the tensor was not contiguous
                kept.copy_(changed)

    def _scratch(self) -> Tensor:
        """Return memory for one tile's update: new memory for each tile would cost more than the arithmetic."""
        return torch.empty_like(self.pieces[0].total)


class _Rows(Stepper):
    """The touched rows of one parameter; its gradient comes from ``by_row``."""

    def __init__(self, item: Item) -> None:
        grad = item.grad
        self.rows = grad.indices()[0]
        self.weight, self.total = item.param.index_select(0, self.rows), item.total.index_select(0, self.rows)
        super().__init__([item._replace(grad=grad.values())])

    def measure(self) -> Tensor:
        (item,) = self.items
        self.piece = _Piece(self.weight, item.grad, self.total)
        measure, self.update = _measure(self.piece, item, item.options.rule.unit_dims_of(item.param.shape))
        return measure

    def apply(self, factor: Tensor) -> None:
        (item,) = self.items
        sigma = factor.reshape(factor.shape + (1,) * (self.weight.ndim - factor.ndim))
        _apply(self.piece, item, self.update, sigma)
        item.param.index_copy_(0, self.rows, self.weight)
        item.total.index_copy_(0, self.rows, self.total)


class _Gathered(Stepper):
    """Many small dense parameters with equal options, as one vector."""

    def measure(self) -> Tensor:
        first = self.items[0]
        rule = self.options.rule
        sizes = [item.param.numel() for item in self.items]
        self.lengths = torch.tensor(sizes, dtype=torch.int64, device=first.param.device)
        self.piece = _Piece(*map(_flatten_dense_tensors, list(zip(*self.items, strict=True))[:3]))
        grad = _prepare(self.piece, first)
        if self.options.accumulate is Accumulate.BEFORE:
            self.piece.total.addcmul_(grad, grad)
        self.update = _direction(grad, self.piece.total, self.options)
        weight = _decayed(self.piece.weight, first)
        kind = "sum" if rule.reduce is Reduce.SUM else "min"
        measures = [
            torch.segment_reduce(term, kind, lengths=self.lengths, unsafe=True)
            for term in rule.terms(weight, grad, self.update, self.options.lr)
        ]
        return measures[0] if len(measures) == 1 else torch.stack(measures)

    def apply(self, factor: Tensor) -> None:
        sigma = factor
        if factor.ndim:
            sigma = torch.repeat_interleave(factor, self.lengths, output_size=self.piece.weight.numel())
        _apply(self.piece, self.items[0], self.update, sigma)
        for kept, changed in (
            (self.params, self.piece.weight),
            ([item.total for item in self.items], self.piece.total),
        ):
            torch._foreach_copy_(kept, _unflatten_dense_tensors(changed, kept))  # pyright: ignore[reportPrivateImportUsage]


def _tiles(whole: _Piece, units: int) -> Iterator[_Piece]:
    """Yield a parameter tile by tile, as views, with units flattened into one dimension and their elements into one."""
    shape = whole.weight.shape
    flat = [x.view(prod(shape[:units]), prod(shape[units:])) if units else x.view(-1) for x in whole]
    rows = len(flat[0])
    if whole.weight.device.type == "cpu":
        rows = _TILE // max(1, prod(flat[0].shape[1:]))
    yield from map(_Piece, *(x.split(max(1, rows)) for x in flat))


def _measure(piece: _Piece, item: Item, units: int, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a piece's measure and its update, in ``scratch`` if given; under ``BEFORE`` accumulate first."""
    grad = _prepare(piece, item)
    if item.options.accumulate is Accumulate.BEFORE:
        piece.total.addcmul_(grad, grad)
    update = _direction(grad, piece.total, item.options, scratch)
    return item.options.rule.partial(_decayed(piece.weight, item), grad, update, item.options.lr, units), update


def _apply(piece: _Piece, item: Item, update: Tensor, sigma: Tensor) -> None:
    """Decay the weights and subtract lr * sigma * update; accumulate now unless that was done before."""
    if item.options.accumulate is Accumulate.AFTER:
        grad = _prepare(piece, item)
        piece.total.addcmul_(grad, grad)
    elif item.options.accumulate is Accumulate.AFTER_CLIPPED:
        piece.total.add_((sigma * _prepare(piece, item)).square_())
    weight = _decayed(piece.weight, item)
    moved = torch.addcmul(weight, update, sigma * item.options.lr, value=-1, out=weight)  # a copy, or in place
    if weight is not piece.weight:
        piece.weight.copy_(moved)


def _prepare(piece: _Piece, item: Item) -> Tensor:
    """Return the gradient in the accumulator's type, unscaled, negated to maximize, and 0 if the step is skipped."""
    grad = piece.grad.to(piece.total.dtype)
    if item.scale is not None:
        grad = grad / item.scale
    if item.options.maximize:
        grad = -grad
    if item.skip is not None:
        grad = torch.where(item.skip, 0.0, grad)
    return grad


def _direction(grad: Tensor, total: Tensor, options: Options, scratch: Tensor | None = None) -> Tensor:
    """Return r of eq. (5), in ``scratch`` or a new tensor; 0 where the gradient has always been 0."""
    room = torch.empty_like(total) if scratch is None else scratch[: len(total)]
    if options.epsilon is Epsilon.INSIDE:
        denominator = torch.add(total, options.eps, out=room).sqrt_()
    else:
        denominator = torch.sqrt(total, out=room)
        if options.eps:
            denominator.add_(options.eps)
    if not options.eps and not options.initial_accumulator_value:  # below the bound, a gradient's square is 0
        denominator.clamp_(min=torch.finfo(total.dtype).tiny ** 0.5)
    return torch.div(grad, denominator, out=denominator)


def _decayed(weight: Tensor, item: Item) -> Tensor:
    """Return the weights after decoupled decay, in float32 or better; the same tensor if nothing changes."""
    weight = wide(weight)
    if not item.options.weight_decay:
        return weight
    decay: float | Tensor = 1 - item.options.lr * item.options.weight_decay
    return weight * (decay if item.skip is None else torch.where(item.skip, 1.0, decay))
