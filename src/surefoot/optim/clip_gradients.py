"""The classical order: gradients are clipped before the optimizer sees them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from surefoot.optim.nonfinite import any_of, not_finite
from surefoot.optim.sharding import refuse_sharded
from surefoot.optim.sparse import at_its_places, by_row
from surefoot.optim.weight_deltas import WeightDelta, WeightSnapshot, delta_of, factors
from surefoot.rules import Rule, Scope, broadcast, checked


def clip_gradients(params: Iterable[Tensor], rule: Rule) -> dict[Tensor, Tensor]:
    r"""Scale the gradients by a rule, :math:`g \leftarrow \sigma\,g`, before the optimizer sees them.

    The classical order: the optimizer's moments take in the clipped gradient. ``p.grad`` is scaled in place; a
    sparse one is replaced by its coalesced form. Parameters without a gradient are left out.

    A gradient that is NaN or infinite stays as it is, for the optimizer's policy to find, and its sigma is told as
    the rule gives it; one such gradient leaves all of them as they are where the rule covers the whole model.

    Args:
        params: parameters.
        rule: one that needs no update: ``GradientClip``, ``GlobalGradientClip``, ``AdaptiveGradientClip``, ``NoClip``.

    Returns:
        sigma for each parameter: 0-d, or one number for each unit, of touched rows if the gradient is sparse. No
        wait for the device.

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
            f"rule is {rule!r}, which looks at the update; expected a rule of the gradient: use clip_updates"
        )
    several = [params] if isinstance(params, Tensor) else list(params)
    refuse_sharded("params", several)
    return _clip_gradients(several, rule)


@torch.no_grad()
def _clip_gradients(params: list[Tensor], rule: Rule) -> dict[Tensor, Tensor]:
    moves: list[WeightDelta] = []
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
        moves.append(delta_of(param, before, grad, rule, 1.0))
        grads.append(param.grad)
    bad = not_finite(grads)
    if rule.scope is Scope.MODEL and bad:
        bad = [any_of(bad).to(flag.device) for flag in bad]
    sigmas = factors(moves)
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
    return {move.param: sigma for move, sigma in zip(moves, sigmas, strict=True)}
