"""What every rule would have said of a step that was taken, whatever clipped it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot import rules
from surefoot.optim.clip_updates import handle_of
from surefoot.rules import Clippy, Rule, Scope, broadcast, wide

EVERY_RULE: dict[str, Rule] = {kind.__name__: kind() for kind in rules.ALL if kind is not rules.NoClip}


class Counterfactual(NamedTuple):
    """Of one step, by layer.

    Args:
        factors: by the rule's name, the factor it would have given, the least of its units'. NaN where the gradient
            was not finite, or the rule in force left nothing of the update to look at.
        clip_ratios: how far the unclipped step would have gone beyond Clippy's bound of the paper's thresholds,
            ``max_i lr |r_i| / (0.5 |w_i| + 0.01)``; above 1 Clippy clips.
    """

    factors: dict[str, dict[str, float]]
    clip_ratios: dict[str, float]


class _Taken(NamedTuple):
    """A step of one parameter in the words of eq. (5)."""

    weight: Tensor
    grad: Tensor
    update: Tensor
    lr: float | Tensor


class CounterfactualObserver:
    """Follow the steps of optimizers, by step hooks, until ``remove``.

    The update that a rule is asked about is the optimizer's own: what the rule in force took off is put back by
    dividing by its factor. Layers with sparse gradients are left out, as embeddings are in the paper.

    Args:
        optimizers: all of them.
        layers: by name, those to look at.
        what_if: the rules to ask, by name. A rule over the whole model sees these layers together.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], layers: Mapping[str, nn.Parameter], what_if: Mapping[str, Rule]
    ) -> None:
        self._names: dict[Tensor, str] = {param: name for name, param in layers.items()}
        self._what_if = dict(what_if)
        self._before: dict[Tensor, tuple[Tensor, Tensor | None, float | Tensor]] = {}
        self._taken: dict[str, _Taken] = {}
        self._hooks = [optimizer.register_step_pre_hook(self._pre) for optimizer in optimizers]
        self._hooks += [optimizer.register_step_post_hook(self._post) for optimizer in optimizers]

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def take(self) -> Counterfactual:
        """Return what there is to say of the steps since the last call, and forget them."""
        taken, self._taken = self._taken, {}
        factors = {name: _factors(rule, taken) for name, rule in self._what_if.items()}
        ratios = {name: 1.0 / float(Clippy().measure(*step)) for name, step in taken.items()}
        return Counterfactual(factors, ratios)

    @torch.no_grad()
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        for group, param in self._followed(optimizer):
            grad = param.grad  # copied: some optimizers write into it
            if grad is not None and not grad.is_sparse:
                grad = wide(grad).clone() if scale is None else wide(grad) / scale.to(grad.device)
            lr = group.get("lr", 1.0)
            self._before[param] = wide(param).clone(), grad, lr.clone() if isinstance(lr, Tensor) else lr

    @torch.no_grad()
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sigmas = _sigmas(optimizer)
        for _, param in self._followed(optimizer):
            weight, grad, lr = self._before.pop(param)
            grad = param.grad if grad is None else grad  # a closure has made it
            if grad is None or grad.is_sparse:
                continue
            moved = weight - wide(param)
            sigma = sigmas.get(param)
            if sigma is not None:
                moved = torch.where(broadcast(sigma == 1, moved), moved, moved / broadcast(sigma, moved))
            lr = lr if isinstance(lr, Tensor) else lr or 1.0
            self._taken[self._names[param]] = _Taken(weight, wide(grad), moved / lr, lr)

    def _followed(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in optimizer.param_groups:
            yield from ((group, param) for param in group["params"] if param in self._names)


def _sigmas(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Return the factors that were in force in the step."""
    if hasattr(optimizer, "clip_factors"):
        return optimizer.clip_factors()  # pyright: ignore[reportAttributeAccessIssue]
    handle = handle_of(optimizer)
    return {} if handle is None else handle.clip_factors()


def _factors(rule: Rule, taken: Mapping[str, _Taken]) -> dict[str, float]:
    """Return the factor for each layer, the least of its units'."""
    if not taken:
        return {}
    measures = [rule.measure(*step) for step in taken.values()]
    if rule.scope is Scope.MODEL:
        device = measures[0].device
        factors = [rule.factor(rule.combine(torch.stack([each.to(device) for each in measures], -1)))] * len(taken)
    else:
        factors = [rule.factor(measure) for measure in measures]
    return {
        name: float(factor.amin()) if bool(step.grad.isfinite().all()) else float("nan")
        for (name, step), factor in zip(taken.items(), factors, strict=True)
    }
