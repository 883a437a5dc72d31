"""Classical gradient clipping: a rule scales the gradients before the optimizer's step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from surefoot.optim.nonfinite import any_of, not_finite
from surefoot.optim.sharding import refuse_sharded
from surefoot.optim.sparse import at_its_places, by_row
from surefoot.optim.weight_deltas import WeightDelta, WeightSnapshot, delta_of, factors
from surefoot.rules import Rule, Scope, broadcast, checked


def clip_gradients(params: Iterable[Tensor], rule: Rule) -> dict[Tensor, Tensor]:
    r"""Scale the gradients by a rule, :math:`g \leftarrow \sigma\,g`, before the optimizer's step.

    The optimizer's moments are then those of the clipped gradient. ``p.grad`` is scaled in place; a sparse gradient is
    coalesced first. Parameters without a gradient are left out.

    A gradient that is NaN or infinite is not scaled, so that the optimizer can still detect it; the returned sigma is
    the rule's. If the rule covers the whole model, one such gradient leaves all gradients unscaled.

    Args:
        params: parameters.
        rule: one that needs no update: ``GradientClip``, ``GlobalGradientClip``, ``AdaptiveGradientClip``, ``NoClip``.

    Returns:
        sigma by parameter: 0-d, or one number for each unit (for each touched row of a sparse gradient). The call does
        not wait for the device.

    Raises:
        TypeError: if ``rule`` is not a rule object, or needs the update, or parameters are split among processes.

    >>> from surefoot.rules import GradientClip
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([w], GradientClip(threshold=1.0))[w], w.grad
    (tensor(0.2000), tensor([0.6000, 0.8000]))
    """
    if checked(rule, "rule").needs_update:
        raise TypeError(
            f"rule is {rule!r}, which needs the update; expected a rule for gradients, or use clip_updates instead"
        )
    several = [params] if isinstance(params, Tensor) else list(params)
    refuse_sharded("params", several)
    return _clip_gradients(several, rule)


@torch.no_grad()
def _clip_gradients(params: list[Tensor], rule: Rule) -> dict[Tensor, Tensor]:
    deltas: list[WeightDelta] = []
    grads: list[Tensor] = []
    for param in params:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()
        before, grad = WeightSnapshot(param), by_row(param.grad)
        if grad.is_sparse:
            rows = tuple(grad.indices())
            before = WeightSnapshot(param[rows], rows)
        deltas.append(delta_of(param, before, grad, rule, 1.0))
        grads.append(param.grad)
    bad = not_finite(grads)
    if rule.scope is Scope.MODEL and bad:
        bad = [any_of(bad).to(flag.device) for flag in bad]
    sigmas = factors(deltas)
    for grad, sigma, is_bad in zip(grads, sigmas, bad, strict=True):
        scale = torch.where(is_bad, 1.0, sigma)  # times 1 changes no number, not even NaN
        if not grad.is_sparse:
            grad.mul_(broadcast(scale, grad))
        elif not scale.ndim:
            grad.values().mul_(scale)
        else:
            shape = (len(scale), *grad.shape[1:])  # of the touched rows
            scale = scale.reshape(scale.shape + (1,) * (grad.ndim - scale.ndim)).expand(shape)
            grad.values().mul_(at_its_places(scale, grad))
    return {delta.param: sigma for delta, sigma in zip(deltas, sigmas, strict=True)}
