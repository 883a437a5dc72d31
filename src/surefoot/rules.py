r"""The rules: each gives the factor by which an optimizer's update is scaled.

Every rule is one choice of the factor :math:`\sigma` in eq. (5) of Tang et al.,

.. math:: w \leftarrow w - \eta\,\sigma\,r

The optimizer gives the direction :math:`r` and the learning rate :math:`\eta`. A rule depends on the weight, the
gradient, the update :math:`r` and the learning rate, and on nothing else. A rule works in three steps, so that it also
runs on pieces of a tensor: ``terms`` returns each coordinate's contributions, ``reduce`` combines them (by a sum or a
minimum) into the measure, and ``factor`` computes :math:`\sigma` from the measure.

What holds for every rule:

* :math:`\sigma` is computed in float32 or better, whatever the weights' type, without waiting for the device.
* An all-zero update, and an empty tensor, give :math:`\sigma = 1`.
* A NaN in a tensor that the rule uses gives :math:`\sigma` = NaN; an infinite norm gives 0. The optimizer decides what
  to do about non-finite gradients.

Reference: J. Tang et al., "Improving Training Stability for Multitask Ranking Models in Recommender Systems",
KDD 2023, arXiv:2302.09178, section 4.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from surefoot import checks


class Scope(Enum):
    """What one factor covers."""

    TENSOR = "tensor"  # one factor for each parameter tensor: the paper's "layer"
    UNIT = "unit"  # one for each output unit
    MODEL = "model"  # one for all parameters together


class Reduce(Enum):
    """How the measures of several pieces combine; the value is the measure of an empty piece."""

    SUM = 0.0
    MIN = float("inf")


class Rule(ABC):
    """A rule for the factor of eq. (5). A subclass is a frozen dataclass whose fields are its thresholds."""

    reduce: ClassVar[Reduce]
    needs_update: ClassVar[bool] = True  # False: uses weight and gradient only, so sigma is known before the step

    @property
    def scope(self) -> Scope:
        """What one factor covers: by default one tensor."""
        return Scope.TENSOR

    @abstractmethod
    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        """Return each coordinate's k contributions to the measure, as k tensors of the weight's shape.

        Args:
            weight: the parameter before the step, or a piece of it; any shape, float32 or better.
            grad: its gradient, the weight's shape.
            update: the optimizer's update r of eq. (5), the weight's shape, without the learning rate.
            lr: the learning rate of this step.
        """

    @abstractmethod
    def factor(self, measure: Tensor) -> Tensor:
        """Return sigma, 0-d or (units,), from the combined measure of one scope."""

    def unit_dims_of(self, shape: torch.Size) -> int:
        """Return how many leading dimensions of a weight index its units; 0 if one factor covers the whole tensor."""
        return 0

    def measure(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> Tensor:
        """Return the combined terms of a tensor, or of a piece that holds whole units.

        Args:
            weight: the parameter before the step, any shape and floating-point type.
            grad: its gradient, the weight's shape.
            update: the optimizer's update r of eq. (5), the weight's shape, without the learning rate.
            lr: the learning rate of this step.

        Returns:
            A tensor of float32 or better: 0-d, or (units,) if the rule has one factor for each unit; with k > 1
            terms (k,) or (k, units).
        """
        return self.partial(weight, grad, update, lr, self.unit_dims_of(weight.shape))

    def partial(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor, units: int) -> Tensor:
        """Return the combined terms of a piece whose leading ``units`` dimensions index units."""
        terms = self.terms(wide(weight), wide(grad), wide(update), lr)
        combined = [self.combine(term.flatten(units) if term.ndim > units else term[..., None]) for term in terms]
        return combined[0] if len(combined) == 1 else torch.stack(combined)

    def combine(self, parts: Tensor) -> Tensor:
        """Combine terms, or the measures of several pieces, over the last dimension."""
        if self.reduce is Reduce.SUM:
            return parts.sum(-1)
        if parts.shape[-1] == 0:
            return parts.new_full(parts.shape[:-1], self.reduce.value)
        return parts.amin(-1)

    def __call__(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> Tensor:
        """Return sigma for one whole tensor."""
        return self.factor(self.measure(weight, grad, update, lr))


def checked(rule: object, name: str) -> Rule:
    """Return ``rule`` if it is a rule object.

    Raises:
        TypeError: naming the argument, the value, and the object to pass.
    """
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"{name} is the class {rule.__name__}; expected an object, such as surefoot.{rule.__name__}()")
    if not isinstance(rule, Rule):
        raise TypeError(f"{name} is {rule!r}; expected a rule object, such as surefoot.Clippy()")
    try:
        hash(rule)
    except TypeError:
        raise TypeError(
            f"{name} is {rule!r}, which has no hash; expected a rule that cannot change: make "
            f"{type(rule).__name__} a @dataclass(frozen=True) with hashable fields"
        ) from None
    return rule


def broadcast(factor: Tensor, weight: Tensor) -> Tensor:
    """Return ``factor`` (0-d, or one number for each index of the leading dimensions) shaped to multiply ``weight``."""
    return factor.reshape(factor.shape + (1,) * (weight.ndim - factor.ndim))


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True)
class NoClip(Rule):
    r"""Leave the update alone: :math:`\sigma = 1`, the paper's "naive".

    >>> NoClip()(torch.ones(2), torch.ones(2), torch.ones(2), lr=0.1)
    tensor(1.)
    """

    reduce = Reduce.MIN
    needs_update = False

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return (torch.full_like(update, self.reduce.value),)

    def factor(self, measure: Tensor) -> Tensor:
        return torch.ones_like(measure)


@dataclass(frozen=True)
class GradientClip(Rule):
    r"""Bound the gradient's L2 norm, tensor by tensor: :math:`\sigma = \min(1, \lambda / \|g\|_2)`.

    Args:
        threshold: :math:`\lambda`, the largest norm that is not clipped, in units of the gradient.

    Raises:
        ValueError: if the threshold is not a finite number above 0.

    >>> GradientClip(threshold=1.0)(torch.ones(2), torch.tensor([3.0, 4.0]), torch.ones(2), lr=0.1)
    tensor(0.2000)

    Reference: R. Pascanu et al., arXiv:1211.5063; eq. (2) of arXiv:2302.09178.
    """

    threshold: float = 0.1

    reduce = Reduce.SUM
    needs_update = False

    def __post_init__(self) -> None:
        checks.positive("threshold", self.threshold)

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return (grad.square(),)

    def factor(self, measure: Tensor) -> Tensor:
        return (self.threshold / measure.sqrt()).clamp(max=1.0)


@dataclass(frozen=True)
class GlobalGradientClip(GradientClip):
    r"""Bound the L2 norm of all gradients as one vector: :math:`\sigma = \min(1, \tau / \|g\|_2)`, the same for all.

    Args:
        threshold: :math:`\tau`, the largest norm that is not clipped, in units of the gradient.

    Raises:
        ValueError: if the threshold is not a finite number above 0.

    >>> rule = GlobalGradientClip(threshold=1.0)
    >>> w, g, r = torch.ones(2), torch.tensor([3.0, 4.0]), torch.ones(2)
    >>> rule.factor(rule.measure(w, g, r, lr=0.1) + rule.measure(w, 2 * g, r, lr=0.1))  # norms 5 and 10
    tensor(0.0894)

    Reference: R. Pascanu et al., arXiv:1211.5063.
    """

    threshold: float = 1.0

    @property
    def scope(self) -> Scope:
        return Scope.MODEL


@dataclass(frozen=True)
class AdaptiveGradientClip(Rule):
    r"""Bound the gradient's L2 norm by a share of the weight's.

    .. math:: \sigma = \min(1, \lambda \max(\|w\|_2, \epsilon) / \|g\|_2)

    Args:
        threshold: :math:`\lambda`, the largest ratio of the norms that is not clipped.
        floor: :math:`\epsilon`, the least weight norm, in units of the weight; without it zero weights cannot change.
        unitwise: one factor for each output unit, as in the authors' code; if False one for each tensor.
            A tensor whose dimensions all index units (a bias, a scalar) has one factor.
        unit_dims: how many leading dimensions index units: 1 for a weight (out, in), 2 for experts stacked as
            (expert, out, in).

    Raises:
        ValueError: if the threshold or the floor is not a finite number above 0, or unit_dims is below 1.

    >>> w, g = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    >>> AdaptiveGradientClip(threshold=0.5)(w, g, g, lr=0.1)
    tensor([0.5000, 0.0050])

    Reference: A. Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization",
    arXiv:2102.06171, eq. (3); eq. (3) of arXiv:2302.09178 is the form for each tensor, without the floor.
    """

    threshold: float = 1e-2
    floor: float = 1e-3
    unitwise: bool = True
    unit_dims: int = 1

    reduce = Reduce.SUM
    needs_update = False

    def __post_init__(self) -> None:
        checks.positive("threshold", self.threshold)
        checks.positive("floor", self.floor)
        if not (isinstance(self.unit_dims, int) and self.unit_dims >= 1):
            raise ValueError(f"unit_dims is {self.unit_dims!r}; expected a whole number, 1 or above")

    @property
    def scope(self) -> Scope:
        return Scope.UNIT if self.unitwise else Scope.TENSOR

    def unit_dims_of(self, shape: torch.Size) -> int:
        return self.unit_dims if self.unitwise and len(shape) > self.unit_dims else 0

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return weight.square(), grad.square()

    def factor(self, measure: Tensor) -> Tensor:
        weight_norm, grad_norm = measure.sqrt()
        return (self.threshold * weight_norm.clamp(min=self.floor) / grad_norm).clamp(max=1.0)


@dataclass(frozen=True)
class TrustRatio(Rule):
    r"""Give the update the size of the weight, as LAMB does: :math:`\sigma = \mu \|w\|_2 / \|r\|_2`.

    Unlike the clipping rules, this rule can also enlarge an update: :math:`\sigma` may exceed 1. An all-zero weight,
    which would otherwise never change, and an all-zero update give :math:`\sigma = 1`.

    Args:
        scale: :math:`\mu`, the norm of a step relative to the weight's norm, at a learning rate of 1.

    Raises:
        ValueError: if the scale is not a finite number above 0.

    >>> TrustRatio(scale=0.1)(torch.tensor([3.0, 4.0]), torch.ones(2), torch.tensor([0.0, 10.0]), lr=0.1)
    tensor(0.0500)

    Reference: Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arXiv:1904.00962, with phi(x) = x; adapted to Adagrad in section 5.1.3 of arXiv:2302.09178.
    """

    scale: float = 1e-2

    reduce = Reduce.SUM

    def __post_init__(self) -> None:
        checks.positive("scale", self.scale)

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        return weight.square(), update.square()

    def factor(self, measure: Tensor) -> Tensor:
        weight_norm, update_norm = measure.sqrt()
        undefined = ((weight_norm == 0) & update_norm.isfinite()) | (update_norm == 0)
        return torch.where(undefined, 1.0, self.scale * weight_norm / update_norm)


@dataclass(frozen=True)
class Clippy(Rule):
    r"""Clippy: bound the change of each coordinate by a share of its size plus a constant.

    .. math:: \sigma = \min\Bigl(1,\ \min_i \frac{\lambda_{rel} |w_i| + \lambda_{abs}}{\eta\,|r_i|}\Bigr)

    A coordinate whose update is 0 never limits :math:`\sigma`. A coordinate whose bound is 0 (``absolute=0`` and a zero
    weight) but whose update is not gives :math:`\sigma = 0`.

    Args:
        relative: :math:`\lambda_{rel}`, the largest change of a weight relative to itself.
        absolute: :math:`\lambda_{abs}`, the change allowed in addition, in units of the weight.
        accumulator_relative: the factor of a third term of the bound, :math:`|r_i / g_i|`, which is
            :math:`1/\sqrt{G_i}` under Adagrad; 0 in the paper, an option in TensorFlow Recommenders.

    Raises:
        ValueError: if an argument is negative or not finite.

    >>> w, r = torch.tensor([4.0, 1.0]), torch.tensor([2.0, 0.0])
    >>> Clippy(relative=0.1, absolute=0.02)(w, r, r, lr=1.0)  # (0.1 * 4 + 0.02) / 2
    tensor(0.2100)

    Reference: algorithm 1 of J. Tang et al., arXiv:2302.09178; the third term is that of ``ClippyAdagrad`` in
    TensorFlow Recommenders.
    """

    relative: float = 0.5
    absolute: float = 1e-2
    accumulator_relative: float = 0.0

    reduce = Reduce.MIN

    def __post_init__(self) -> None:
        for name in ("relative", "absolute", "accumulator_relative"):
            checks.non_negative(name, getattr(self, name))

    def terms(self, weight: Tensor, grad: Tensor, update: Tensor, lr: float | Tensor) -> tuple[Tensor, ...]:
        step = update * lr
        bound = weight.abs()
        torch.add(weight.new_full((), self.absolute), bound, alpha=self.relative, out=bound)
        ratio = bound.div_(step).abs_()  # the step may be negative
        if self.accumulator_relative:
            ratio += self.accumulator_relative / (lr * grad).abs()  # |r / g| / |lr r|
        if self.absolute:
            return (ratio,)  # bound / 0 is inf: without an update no limit
        return (torch.where(step == 0, self.reduce.value, ratio),)  # 0 / 0 is NaN

    def factor(self, measure: Tensor) -> Tensor:
        return measure.clamp(max=1.0)


ALL: tuple[type[Rule], ...] = (
    NoClip,
    GradientClip,
    GlobalGradientClip,
    AdaptiveGradientClip,
    TrustRatio,
    Clippy,
)
"""Every rule, in the order in which tables show them."""
