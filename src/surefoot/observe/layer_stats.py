r"""Looks at steps that have been taken: by a kernel in one pass over memory on the CPU, else in torch's operations.

What is looked at is the update that the optimizer asked for, before any factor: under Adagrad exactly, from the
gradient and the accumulator, without a copy of the weights; under any other optimizer what it did to the weights,
:math:`r = (w_{old} - w_{new}) / (\eta \sigma)`. Where :math:`\sigma` is 0 that cannot be known, and r counts as 0.
"""

import ctypes
from array import array
from collections.abc import Container, Mapping, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.observe import step_stats
from surefoot.observe.step_stats import Moments, Step
from surefoot.optim import compiled, kernel
from surefoot.optim.nonfinite import readable
from surefoot.rules import Clippy, Rule, broadcast, wide

_SOURCE = "observe/layer_stats.cpp"
_FUNCTIONS = ("surefoot_layer_sums", "surefoot_ratios")


class StepView(NamedTuple):
    """What there is to see of one layer's step.

    Args:
        weight: after the step.
        grad: dense, or of the rows that the others hold.
        beside: of Adagrad the accumulator, of any other optimizer the weight before the step.
        adagrad: which of the two.
        lr: the rate of the step.
        sigma: the factor that it was scaled by: 0-d, or one number for each index of leading dimensions.
        eps: Adagrad's, outside the root.
        sign: -1 if the optimizer goes up the gradient.
    """

    weight: Tensor
    grad: Tensor
    beside: Tensor
    adagrad: bool
    lr: float | Tensor
    sigma: Tensor
    eps: float = 0.0
    sign: float = 1.0


class LayerSums(NamedTuple):
    """What was seen of several layers.

    Args:
        moments: of each layer.
        measures: (layers,), what a Clippy rule measured of each.
        clippy: that rule.
    """

    moments: list[Moments]
    measures: Tensor
    clippy: Clippy


def step_of(look: StepView) -> Step:
    """Return the step as eq. (5) has it."""
    new = wide(look.weight)
    sigma = broadcast(look.sigma, new)
    if look.adagrad:
        tiny = torch.finfo(look.beside.dtype).tiny ** 0.5  # as in the step itself: 0 where no gradient has been
        update = look.sign * look.grad / (look.beside.sqrt() + look.eps).clamp(min=tiny)
        return Step(new + (look.lr * sigma) * update, look.grad, update, look.lr)
    update = (wide(look.beside) - new) * _inverse(look.lr * sigma)
    return Step(look.beside, look.grad, update, look.lr)


def layer_sums(looks: Sequence[StepView], clippy: Clippy = Clippy()) -> LayerSums:
    """Return the moments of the steps and what a Clippy rule measures of them."""
    if not looks:
        return LayerSums([], kernel.floats(0), clippy)
    moments: dict[int, Moments] = {}
    measures: dict[int, Tensor] = {}
    fast: dict[bool, list[int]] = {}
    for i, look in enumerate(looks):
        if not clippy.accumulator_relative and _takes(look):
            fast.setdefault(look.adagrad, []).append(i)
        else:
            step = step_of(look)
            moments[i], measures[i] = step_stats.moments(step), clippy.measure(*step)
    for indices in fast.values():
        found, least = _by_kernel([looks[i] for i in indices], clippy)
        moments |= zip(indices, found, strict=True)
        measures |= zip(indices, least.unbind(), strict=True)
    here = measures[0].device
    ordered = torch.stack([measures[i].float().to(here, non_blocking=True) for i in range(len(looks))])
    return LayerSums([moments[i] for i in range(len(looks))], ordered, clippy)


def least_ratios(looks: Sequence[StepView], clippy: Clippy = Clippy()) -> Tensor:
    """Return only what a Clippy rule measures of the steps, (layers,)."""
    one_sigma = all(not look.sigma.ndim for look in looks)
    if looks and one_sigma and not clippy.accumulator_relative and all(map(_takes, looks)):
        kinds = {look.adagrad for look in looks}
        if len(kinds) == 1:
            return _ratios_by_kernel(looks, clippy)
    return layer_sums(looks, clippy).measures


def full(
    looks: Mapping[str, StepView], rules: Sequence[Rule], *, tables: Container[str]
) -> dict[str, dict[str, Tensor]]:
    """Return all statistics of each layer and the factor that each rule would have given, each 0-d, by kind and layer.

    Rules are not asked about embedding tables. Of a rule with factors by unit, ``what_if`` is their mean and
    ``what_if_min`` the least.
    """
    names = list(looks)
    seen = layer_sums(list(looks.values()))
    found: dict[str, dict[str, Tensor]] = {}
    for name, moments in zip(names, seen.moments, strict=True):
        for kind, value in step_stats.statistics(moments, looks[name].lr).items():
            found.setdefault(kind, {})[name] = value
    asked = [i for i, name in enumerate(names) if name not in tables]
    for label, rule in zip(step_stats.labels_of(rules), rules, strict=True):
        several = _factors([looks[names[i]] for i in asked], seen, asked, rule) if asked else []
        for i, factor in zip(asked, several, strict=True):
            found.setdefault(f"what_if/{label}", {})[names[i]] = factor.float().mean()
            if factor.ndim:
                found.setdefault(f"what_if_min/{label}", {})[names[i]] = factor.float().amin()
    return found


def _factors(looks: Sequence[StepView], seen: LayerSums, asked: Sequence[int], rule: Rule) -> list[Tensor]:
    """Return the factor that a rule would have given at each of the layers ``looks``, numbers ``asked`` in ``seen``."""
    if rule == seen.clippy:
        measures = [seen.measures[i] for i in asked]
    elif type(rule) is Clippy:
        measures = list(least_ratios(looks, rule).unbind())
    else:
        measures = [
            step_stats.measure(rule, seen.moments[i], partial(step_of, look), look.lr)
            for i, look in zip(asked, looks, strict=True)
        ]
    return step_stats.factors(rule, measures)


def l2_norms(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each dense gradient, 0-d, in float32 or better."""
    return list(torch._foreach_norm([wide(g) for g in grads])) if grads else []  # pyright: ignore[reportPrivateImportUsage]


def _inverse(scale: Tensor) -> Tensor:
    """Return 1 / scale, 0 where it is 0."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def _takes(look: StepView) -> bool:
    plain = not isinstance(look.lr, Tensor) or readable(look.lr)
    alike = look.weight.shape == look.grad.shape == look.beside.shape
    if not (plain and alike and readable(look.sigma) and kernel.takes(look.weight, look.grad, look.beside)):
        return False
    return compiled.library(_SOURCE, *_FUNCTIONS) is not None


def _by_kernel(looks: Sequence[StepView], clippy: Clippy) -> tuple[list[Moments], Tensor]:
    """Return the moments and Clippy's measures; all looks under Adagrad, or none."""
    shapes = [look.weight.shape for look in looks]
    rows = [prod(shape[:-1]) if len(shape) > 1 else shape.numel() for shape in shapes]
    widths = [shape[-1] if len(shape) > 1 else 1 for shape in shapes]
    backs = torch.cat([_back(look).reshape(-1) for look in looks])
    found = kernel.floats(7, sum(rows))
    sizes = [array("q", rows), array("q", widths)]
    _call("surefoot_layer_sums", looks, clippy, sizes, [backs, found], ctypes.c_int64(found.shape[1]))
    least = torch.segment_reduce(
        found[6], "min", lengths=torch.tensor(rows, dtype=torch.int64, device="cpu"), unsafe=True
    )
    pieces = found.split(rows, dim=1)
    return [Moments(shape, p[:3], p[3:6]) for shape, p in zip(shapes, pieces, strict=True)], least


def _ratios_by_kernel(looks: Sequence[StepView], clippy: Clippy) -> Tensor:
    """Return Clippy's measures, (layers,); all looks under Adagrad, or none; one factor for each."""
    rates = torch.tensor([float(look.lr) for look in looks], dtype=torch.float32, device="cpu")
    scales = torch.stack([look.sigma for look in looks]).float() * rates
    backs, ratios = scales if looks[0].adagrad else _inverse(scales), kernel.floats(len(looks))
    _call("surefoot_ratios", looks, clippy, [array("q", [look.weight.numel() for look in looks])], [backs, ratios])
    return ratios


def _call(
    function: str,
    looks: Sequence[StepView],
    clippy: Clippy,
    sizes: "list[array[int]]",
    tensors: list[Tensor],
    *more: object,
) -> None:
    """Call the kernel on looks: addresses, ``sizes``, options, ``tensors``, the rest."""
    library = compiled.library(_SOURCE, *_FUNCTIONS)
    assert library is not None
    options = array("f", [x for look in looks for x in (float(look.lr), look.eps, look.sign)])
    columns = [array("Q", [x.data_ptr() for x in column]) for column in zip(*(look[:3] for look in looks), strict=True)]
    addresses = [each.buffer_info()[0] for each in (*columns, *sizes, options)] + [x.data_ptr() for x in tensors]
    bounds = [ctypes.c_float(bound) for bound in (clippy.relative, clippy.absolute)]
    getattr(library, function)(
        ctypes.c_int64(len(looks)),
        *map(ctypes.c_void_p, addresses),
        *more,
        int(looks[0].adagrad),
        *bounds,
        compiled.threads(),
    )


def _back(look: StepView) -> Tensor:
    """Return what the kernel needs to go back, a float32 for each row."""
    shape = look.weight.shape
    scale = float(look.lr) * look.sigma.float()
    scale = scale if look.adagrad else _inverse(scale)
    rows = shape[:-1] if len(shape) > 1 else shape
    return scale.reshape(scale.shape + (1,) * (len(rows) - scale.ndim)).expand(rows)
