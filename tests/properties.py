"""What every rule must satisfy, by name, and the inputs to try it on, by name.

A test takes the product of the tables below. A property is a function of a rule and its inputs that asserts; an
input family is a function that draws fresh inputs.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from surefoot.rules import (
    ALL,
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
)
from surefoot.testing import (
    LR,
    TOLERANCE,
    Inputs,
    Property,
    is_blind_to_an_empty_piece,
    is_computed_in_float32_or_better,
    is_the_same_in_pieces,
    leaves_its_inputs_alone,
    never_waits_for_the_device,
    takes_the_rate_as_a_tensor,
)

RULES: tuple[Rule, ...] = (
    *(kind() for kind in ALL),
    AdaptiveGradientClip(unitwise=False),
    AdaptiveGradientClip(unit_dims=2),
    Clippy(absolute=0.0),
    Clippy(accumulator_relative=0.01),
)
LOOKING_RULES = tuple(rule for rule in RULES if not isinstance(rule, NoClip))


Family = Callable[[], Inputs]


def same_numbers() -> None:
    """Seed every generator, and let one thread sum in one order."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.set_num_threads(1)


def over(name: str, table: Mapping[str, Any] | Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over a table, which must not be empty: an empty one would pass in silence."""
    rows = _rows(name, table)
    return pytest.mark.parametrize(name, list(rows.values()), ids=list(rows))


def all_of(name: str, table: Mapping[str, Any] | Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try all rows of a table within one test: for products of hundreds of rows, which cost more to report than to try.

    Every row starts from the same seeds, all are tried, and the error has the names of those that failed. They share
    the test's fixtures, so this is for tests that leave nothing behind.
    """
    rows = _rows(name, table)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def every_row(*args: Any, **kwargs: Any) -> None:
            failures: list[Exception] = []
            for label, row in rows.items():
                same_numbers()
                try:
                    test(*args, **{name: row}, **kwargs)
                except (Exception, pytest.fail.Exception) as error:
                    for one in error.exceptions if isinstance(error, RowsFailedError) else [_as_exception(error)]:
                        one.add_note(f"{name}: {label}")
                        failures.append(one)
            if failures:
                raise RowsFailedError("; ".join(", ".join(one.__notes__) for one in failures), failures)

        signature = inspect.signature(test)
        others = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        assert len(others) == len(signature.parameters) - 1, f"{test.__name__} has no argument {name}"
        every_row.__signature__ = signature.replace(parameters=others)  # pyright: ignore[reportAttributeAccessIssue]
        return every_row

    return decorate


class RowsFailedError(ExceptionGroup[Exception]):
    """What the rows of a table raised, each with its names in its notes."""


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else AssertionError(str(error)).with_traceback(error.__traceback__)


def _rows(name: str, table: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    rows = dict(table) if isinstance(table, Mapping) else {_label(row): row for row in table}
    assert len(rows) == len(table) > 0, f"no rows, or rows twice, for {name}"
    return rows


def _label(row: Any) -> str:
    if isinstance(row, tuple) and not hasattr(row, "_fields"):
        return ", ".join(map(_label, row))
    return row.__name__ if isinstance(row, type) else repr(row)


# Inputs


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Inputs:
    """Draw a weight of size 1 with a gradient and an update of size ``scale``."""
    weight, grad, update = (torch.randn(shape) for _ in range(3))
    return Inputs(weight.to(dtype), (scale * grad).to(dtype), (scale * update).to(dtype))


def draw_master_gradients() -> Inputs:
    """Draw bfloat16 weights with a gradient and an update in float32, as optimizers pass them."""
    x = draw(4, 3)
    return x._replace(weight=x.weight.bfloat16())


def draw_zero_weights(*shape: int) -> Inputs:
    x = draw(*shape)
    return x._replace(weight=torch.zeros_like(x.weight))


def draw_still(*shape: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Draw weights that nothing moves."""
    x = draw(*shape, dtype=dtype)
    return Inputs(x.weight, torch.zeros_like(x.weight), torch.zeros_like(x.weight))


def zeros(*shape: int) -> Inputs:
    return Inputs(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape))


def draw_with(value: float, *shape: int) -> Inputs:
    """Draw inputs whose first coordinate of gradient and update is ``value``."""
    x = draw(*shape)
    x.grad.view(-1)[0] = x.update.view(-1)[0] = value
    return x


SCALES = (1e-15, 1e-8, 1e-3, 1.0, 1e3, 1e8, 1e15)
FINITE: dict[str, Family] = {
    **{f"scale {scale:g}": partial(draw, 4, 3, scale=scale) for scale in SCALES},
    "scalar": draw,
    "one element": partial(draw, 1),
    "bias": partial(draw, 5),
    "stacked experts": partial(draw, 2, 4, 3),
    "zero weights": partial(draw_zero_weights, 4, 3),
    "float64": partial(draw, 4, 3, dtype=torch.float64),
    "float16": partial(draw, 4, 3, dtype=torch.float16),
    "bfloat16": partial(draw, 4, 3, dtype=torch.bfloat16),
    "bfloat16 weights": draw_master_gradients,
}
EMPTY: dict[str, Family] = {
    "empty": partial(draw, 0),
    "no units": partial(draw, 0, 3),
    "empty units": partial(draw, 3, 0),
    "no experts": partial(draw, 0, 4, 3),
}
STILL: dict[str, Family] = {
    "all zero": partial(zeros, 4, 3),
    "zero scalar": zeros,
    "zero bias": partial(zeros, 5),
    "zero update": partial(draw_still, 4, 3),
    "zero update of experts": partial(draw_still, 2, 4, 3),
    "zero update in bfloat16": partial(draw_still, 4, 3, dtype=torch.bfloat16),
}
NAN: dict[str, Family] = {
    "one NaN": partial(draw_with, torch.nan, 4, 3),
    "NaN alone": partial(draw_with, torch.nan, 1),
    "NaN in a bias": partial(draw_with, torch.nan, 5),
    "NaN in an expert": partial(draw_with, torch.nan, 2, 4, 3),
}
INF: dict[str, Family] = {
    "one inf": partial(draw_with, torch.inf, 4, 3),
    "one -inf": partial(draw_with, -torch.inf, 4, 3),
    "inf alone": partial(draw_with, torch.inf, 1),
    "inf in an expert": partial(draw_with, torch.inf, 2, 4, 3),
}


# The rules by the slow reference


def sigma_by_reference(rule: Rule, inputs: Inputs, lr: float) -> Tensor:
    """Return sigma of one whole tensor from the float64 loops of reference.py."""
    w, g, r = (x.double().numpy() for x in inputs)
    return torch.from_numpy(np.asarray(reference_of(rule, [g])(w, g, r, lr), dtype=np.float64))


def reference_of(rule: Rule, gradients: list[reference.Array]) -> reference.Sigma:
    """Return the reference's sigma(w, g, r, lr) for ``rule``; ``gradients`` are those of the whole model."""
    match rule:
        case NoClip():
            return lambda w, g, r, lr: reference.naive()
        case GlobalGradientClip(threshold):  # before its parent, GradientClip
            return lambda w, g, r, lr: reference.global_gradient_clip(gradients, threshold=threshold)
        case GradientClip(threshold):
            return lambda w, g, r, lr: reference.gradient_clip(g, threshold=threshold)
        case AdaptiveGradientClip(threshold, floor, unitwise, unit_dims):
            if not unitwise:
                return lambda w, g, r, lr: reference.adaptive_gradient_clip(w, g, threshold=threshold, floor=floor)
            return lambda w, g, r, lr: reference.adaptive_gradient_clip_by_unit(
                w, g, threshold=threshold, floor=floor, unit_dims=unit_dims
            )
        case TrustRatio(scale):
            return lambda w, g, r, lr: reference.trust_ratio(w, r, scale=scale)
        case Clippy(relative, absolute, accumulator_relative):
            return lambda w, g, r, lr: reference.clippy(
                w, g, r, lr, relative=relative, absolute=absolute, accumulator_relative=accumulator_relative
            )
    raise AssertionError(f"reference.py has no {rule}")


# Properties of any rule on finite inputs


def agrees_with_the_reference(rule: Rule, inputs: Inputs) -> None:
    sigma = rule(*inputs, lr=LR)
    expected = sigma_by_reference(rule, inputs, LR)
    torch.testing.assert_close(sigma.double(), expected, rtol=TOLERANCE[sigma.dtype], atol=0.0)


def has_the_shape_of_its_scope(rule: Rule, inputs: Inputs) -> None:
    shape = inputs.weight.shape
    if isinstance(rule, AdaptiveGradientClip) and rule.unitwise and len(shape) > rule.unit_dims:
        units = shape[: rule.unit_dims]
    else:
        units = ()
    assert rule(*inputs, lr=LR).shape == units


def lies_in_its_range(rule: Rule, inputs: Inputs) -> None:
    sigma = rule(*inputs, lr=LR)
    assert sigma.isfinite().all()
    assert (sigma >= 0).all()
    assert (sigma <= 1).all() or isinstance(rule, TrustRatio)  # the one that enlarges


def is_blind_to_signs(rule: Rule, inputs: Inputs) -> None:
    sigma = rule(*inputs, lr=LR)
    for flipped in (Inputs(-inputs.weight, *inputs[1:]), Inputs(inputs.weight, -inputs.grad, -inputs.update)):
        assert torch.equal(rule(*flipped, lr=LR), sigma)


FINITE_PROPERTIES: tuple[Property, ...] = (
    agrees_with_the_reference,
    is_computed_in_float32_or_better,
    has_the_shape_of_its_scope,
    lies_in_its_range,
    leaves_its_inputs_alone,
    is_blind_to_signs,
    takes_the_rate_as_a_tensor,
    never_waits_for_the_device,
    is_the_same_in_pieces,
    is_blind_to_an_empty_piece,
)


# Properties at the edges


def gives_one(rule: Rule, inputs: Inputs) -> None:
    sigma = rule(*inputs, lr=LR)
    assert torch.equal(sigma, torch.ones_like(sigma))


def gives_nan(rule: Rule, inputs: Inputs) -> None:
    """In the scope of the first coordinate; the other units are as without it."""
    sigma = rule(*inputs, lr=LR).view(-1)
    assert sigma[0].isnan()
    assert sigma[1:].isfinite().all()


def gives_zero(rule: Rule, inputs: Inputs) -> None:
    """In the scope of the first coordinate; the other units are as without it."""
    sigma = rule(*inputs, lr=LR).view(-1)
    assert sigma[0] == 0
    assert (sigma[1:] > 0).all()
