"""Checks of a rule of your own: the properties that optimizers, the monitor and sharded weights rely on.

Call ``check_rule`` in a test of yours. The rules of this package have the same properties.
"""

import pickle
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.optim.adagrad import Adagrad
from surefoot.rules import Reduce, Rule

LR = 0.1
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Inputs(NamedTuple):
    """A rule's inputs without the learning rate: three tensors of one shape."""

    weight: Tensor
    grad: Tensor
    update: Tensor


Property = Callable[[Rule, Inputs], None]


def is_a_value(rule: Rule, inputs: Inputs) -> None:
    """Rules with the same thresholds are equal and hash alike, also after pickling: optimizers compare them."""
    assert is_dataclass(rule), "expected a frozen dataclass"
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert hash(again) == hash(rule)


def is_computed_in_float32_or_better(rule: Rule, inputs: Inputs) -> None:
    """In half precision, sigma is that of the same numbers in float32."""
    wide = Inputs(*(x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs))
    sigma = rule(*inputs, lr=LR)
    assert sigma.dtype == rule.measure(*inputs, LR).dtype == wide.update.dtype
    assert torch.equal(sigma, rule(*wide, lr=LR))


def has_a_factor_for_each_unit(rule: Rule, inputs: Inputs) -> None:
    """The factor is 0-d, or has one number for each unit, as ``unit_dims_of`` says."""
    assert rule(*inputs, lr=LR).shape == inputs.weight.shape[: rule.unit_dims_of(inputs.weight.shape)]


def is_finite_and_not_negative(rule: Rule, inputs: Inputs) -> None:
    """Finite inputs of any size give a finite factor that does not reverse the update."""
    sigma = rule(*inputs, lr=LR)
    assert sigma.isfinite().all()
    assert (sigma >= 0).all()


def leaves_its_inputs_alone(rule: Rule, inputs: Inputs) -> None:
    """The rule does not write into weight, gradient or update."""
    before = Inputs(*(x.clone() for x in inputs))
    rule(*inputs, lr=LR)
    assert all(torch.equal(x, old) for x, old in zip(inputs, before, strict=True))


def takes_the_rate_as_a_tensor(rule: Rule, inputs: Inputs) -> None:
    """The learning rate may be a 0-d tensor, as under ``torch.compile``."""
    assert torch.equal(
        rule(*inputs, lr=torch.tensor(0.125, dtype=torch.float32, device="cpu")), rule(*inputs, lr=0.125)
    )


def never_waits_for_the_device(rule: Rule, inputs: Inputs) -> None:
    """Tensors on ``meta`` have no values: reading one raises."""
    sigma = rule(*(x.to("meta") for x in inputs), lr=LR)
    assert sigma.is_meta
    assert sigma.shape == rule(*inputs, lr=LR).shape


def is_the_same_in_pieces(rule: Rule, inputs: Inputs) -> None:
    """The measures of two pieces combine to sigma of the whole weight; the cut is along the last dimension."""
    if inputs.weight.ndim == 0:
        return
    cut = inputs.weight.shape[-1] // 3  # uneven; a dimension below 3 leaves an empty piece
    parts = [Inputs(*(x[..., piece] for x in inputs)) for piece in (slice(cut), slice(cut, None))]
    sigma = rule.factor(_combined(rule, [rule.measure(*part, LR) for part in parts]))
    torch.testing.assert_close(sigma, rule(*inputs, lr=LR), rtol=TOLERANCE[sigma.dtype], atol=0.0)


def is_blind_to_an_empty_piece(rule: Rule, inputs: Inputs) -> None:
    """An empty piece of a weight does not change the measure."""
    if inputs.weight.ndim == 0:
        return
    whole = rule.measure(*inputs, LR)
    nothing = rule.measure(*Inputs(*(x[..., :0] for x in inputs)), LR)
    assert (nothing == rule.reduce.value).all()
    assert torch.equal(_combined(rule, [whole, nothing]), whole)


def gives_one_for_an_update_of_zeros(rule: Rule, inputs: Inputs) -> None:
    """An all-zero update gives a factor of 1, and so does a weight without elements."""
    for still in (
        inputs._replace(grad=torch.zeros_like(inputs.grad), update=torch.zeros_like(inputs.update)),
        Inputs(*(x.new_empty(0) for x in inputs)),
    ):
        sigma = rule(*still, lr=LR)
        assert torch.equal(sigma, torch.ones_like(sigma))


def steps_an_optimizer(rule: Rule, inputs: Inputs) -> None:
    """``surefoot.Adagrad`` steps under the rule and returns its factor."""
    weight = torch.nn.Parameter(inputs.weight.clone())
    weight.grad = inputs.grad.to(weight.dtype)
    optimizer = Adagrad([weight], LR, rule=rule)
    optimizer.step()
    assert optimizer.clip_factors()[weight].isfinite().all()
    assert weight.isfinite().all()


PROPERTIES: tuple[Property, ...] = (
    is_a_value,
    is_computed_in_float32_or_better,
    has_a_factor_for_each_unit,
    is_finite_and_not_negative,
    leaves_its_inputs_alone,
    takes_the_rate_as_a_tensor,
    never_waits_for_the_device,
    is_the_same_in_pieces,
    is_blind_to_an_empty_piece,
    gives_one_for_an_update_of_zeros,
    steps_an_optimizer,
)
SHAPES = ((), (1,), (5,), (4, 3), (2, 4, 3))
SCALES = (1e-8, 1.0, 1e8)  # of gradient and update; weights are about 1


def check_rule(rule: Rule) -> None:
    """Check all properties of a rule, on weights of several shapes and types and gradients of several scales.

    Args:
        rule: an object of your class; call ``check_rule`` for several thresholds.

    Raises:
        TypeError: if ``rule`` is not a rule.
        AssertionError: naming the property that does not hold, the shape, the type and the gradient's scale.

    >>> import surefoot
    >>> check_rule(surefoot.Clippy(relative=0.3))
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule is {rule!r}; expected an object of a class derived from surefoot.rules.Rule")
    draw = torch.Generator("cpu").manual_seed(0)
    for holds in PROPERTIES:
        for shape in SHAPES:
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                for scale in SCALES:
                    drawn = torch.randn((3, *shape), generator=draw, dtype=torch.float32, device="cpu").to(dtype)
                    weight, grad, update = drawn.unbind()
                    try:
                        holds(rule, Inputs(weight, scale * grad, scale * update))
                    except Exception as error:  # a user's rule may raise anything
                        case = f"a weight of shape {shape}, {dtype}, with a gradient of scale {scale:g}"
                        raise AssertionError(f"{rule!r}: {holds.__name__} does not hold for {case}: {error}") from error


def _combined(rule: Rule, measures: list[Tensor]) -> Tensor:
    stacked = torch.stack(measures)
    return stacked.sum(0) if rule.reduce is Reduce.SUM else stacked.amin(0)
