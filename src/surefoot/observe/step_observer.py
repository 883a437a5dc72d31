"""One optimizer's steps, seen from outside: rates, factors, clip ratios, and what each layer did."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.observe import layer_stats
from surefoot.observe.layer_stats import StepView
from surefoot.observe.step_stats import touched
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_updates import ClipHandle, handle_of
from surefoot.optim.eager import Accumulate, Epsilon
from surefoot.optim.hooks import closure_of
from surefoot.rules import Clippy

Group = dict[str, Any]


class StepObserver:
    """Hooks on one optimizer that remember what cannot be had after the step.

    That is the rate, GradScaler's scale and, where the update does not follow from the optimizer's state, the weights
    before the step: those of the layers in every step, unless Clippy measures it anyway, those of embedding tables
    only when the step is to be surveyed.

    Args:
        optimizer: surefoot's, torch's, with or without ``clip_updates``.
        layers: its parameters to look at in every step, by name.
        tables: its embedding tables, by name, looked at in a survey.
        surveyed: says whether the step to come will be surveyed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, nn.Parameter],
        tables: Mapping[str, nn.Parameter],
        surveyed: Callable[[], bool],
    ) -> None:
        self._optimizer, self._surveyed = optimizer, surveyed
        self._layers, self._tables = dict(layers), dict(tables)
        self._names = {p: name for name, p in (*layers.items(), *tables.items())}
        self._rates: list[tuple[Group, float | Tensor]] = []  # of the groups, some of which may be added later
        self._scale: Tensor | None = None  # what the gradients were multiplied by
        self._before: dict[Tensor, Tensor] = {}  # weights; under a sparse gradient the rows that it touches
        self._buffers: dict[Tensor, Tensor] = {}
        self._stepped = False
        self._hooks = [optimizer.register_step_pre_hook(self._pre), optimizer.register_step_post_hook(self._post)]

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._before, self._buffers = {}, {}

    def look_at(self, layers: Mapping[str, nn.Parameter], tables: Mapping[str, nn.Parameter]) -> None:
        """Observe these parameters from now on, as after ``add_param_group``."""
        self._layers, self._tables = dict(layers), dict(tables)
        self._names = {p: name for name, p in (*layers.items(), *tables.items())}

    def forget(self) -> None:
        """Forget the step, now that it has been looked at."""
        self._before, self._scale, self._stepped = {}, None, False

    def norms(self) -> dict[str, Tensor]:
        """Return the L2 norm of each layer's gradient, 0-d, where there is a dense one."""
        grads = {name: p.grad for name, p in self._layers.items() if p.grad is not None and not p.grad.is_sparse}
        return dict(zip(grads, layer_stats.l2_norms([self._unscaled(g) for g in grads.values()]), strict=True))

    def factors(self) -> dict[str, Tensor]:
        """Return each layer's factor in this step, 0-d, the mean over units; nothing where there is no rule."""
        by_param = self._of_rule("clip_factors")
        found = {name: by_param[p] for name, p in self._layers.items() if p in by_param}
        return {name: sigma.float().mean() if sigma.ndim else sigma for name, sigma in found.items()}

    def measures(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what Clippy measures of each layer in this step, 0-d: the optimizer's own, and with the defaults.

        The factor of a layer that is in the first of them is its measure, 1 at most.
        """
        measured = self._of_rule("measures")
        own: dict[str, Tensor] = {}
        looks: dict[str, StepView] = {}
        for name, p, group, rate in self._moved(self._layers):
            if p in measured and type(self._rule(group)) is Clippy:
                own[name] = measured[p]
            elif (look := self._look(p, group, rate)) is not None:
                looks[name] = look
        return own, dict(zip(looks, layer_stats.least_ratios(list(looks.values())).unbind(), strict=True))

    def looks(self) -> dict[str, StepView]:
        """Return what there is to see of each layer's and each table's step, where it can be had."""
        several = {
            name: self._look(p, group, rate) for name, p, group, rate in self._moved(self._layers | self._tables)
        }
        return {name: look for name, look in several.items() if look is not None}

    # Around the step

    @torch.no_grad()
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        self._scale = None if scale is None else scale.clone()  # the scaler writes into it
        self._rates = [(group, _kept(group["lr"])) for group in optimizer.param_groups]
        self._remember(closure_of(args, kwargs) is not None)

    @torch.no_grad()
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a rate that is lowered for the time of the step shows to one of the two hooks only
        self._rates = [(group, _lower(rate, _kept(group["lr"]))) for group, rate in self._rates]
        self._stepped = True

    def _remember(self, has_closure: bool) -> None:
        """Copy the weights that will be missed."""
        surveyed, measured = self._surveyed(), self._of_rule("measures", last=True)
        dense: list[Tensor] = []
        self._before = {}
        for group in self._optimizer.param_groups:
            if _adagrad_terms(self._optimizer, group) is not None:
                continue
            is_clippy = type(self._rule(group)) is Clippy
            for p in group["params"]:
                name = self._names.get(p)
                free = name in self._tables or (is_clippy and p in measured)
                if name is None or (free and not surveyed):
                    continue
                if p.grad is not None and p.grad.is_sparse:
                    if not has_closure:  # which would make another gradient
                        self._before[p] = touched(p, p.grad)[0]
                elif free:
                    self._before[p] = p.detach().clone()
                else:
                    dense.append(p)
        for p in dense:
            buffer = self._buffers.get(p)
            if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (p.shape, p.dtype, p.device):
                self._buffers[p] = torch.empty_like(p, requires_grad=False)
            self._before[p] = self._buffers[p]
        if dense:
            torch._foreach_copy_([self._buffers[p] for p in dense], dense)  # pyright: ignore[reportPrivateImportUsage]

    # After it

    def _moved(self, params: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor, Group, float | Tensor]]:
        """Yield those of the parameters that have a gradient, if a step was taken, each with its group and rate."""
        for group, rate in self._rates if self._stepped else ():
            for p in group["params"]:
                name = self._names.get(p, "")
                if p.grad is not None and name in params:
                    yield name, p, group, rate

    def _look(self, p: Tensor, group: Group, rate: float | Tensor) -> StepView | None:
        grad = p.grad
        assert grad is not None
        terms = _adagrad_terms(self._optimizer, group)
        sigma = self._of_rule("clip_factors").get(p, torch.ones((), dtype=torch.float32, device=p.device))
        if terms is not None:
            if "sum" not in self._optimizer.state[p]:
                return None
            weight, grad, total = touched(p.detach(), grad, self._optimizer.state[p]["sum"])
            return StepView(weight, self._unscaled(grad), total, True, rate, sigma, *terms)
        if p not in self._before:
            return None
        weight, grad = touched(p.detach(), grad)
        return StepView(weight, self._unscaled(grad), self._before[p], False, rate, sigma)

    def _unscaled(self, grad: Tensor) -> Tensor:
        return grad if self._scale is None else grad / self._scale.to(grad.device, non_blocking=True)

    def _rule(self, group: Group) -> object:
        return group.get("rule") or getattr(self._handle(), "_rule", None)

    def _handle(self) -> ClipHandle | None:
        """Return what ``clip_updates`` has attached, which may come and go."""
        return handle_of(self._optimizer)

    def _of_rule(self, what: str, *, last: bool = False) -> dict[Tensor, Tensor]:
        """Return clip_factors() or measures() of this step, or of the last one that was taken."""
        source = self._optimizer if isinstance(self._optimizer, Adagrad) else self._handle()
        return getattr(source, what)() if source is not None and (self._stepped or last) else {}


def _adagrad_terms(optimizer: Optimizer, group: Group) -> tuple[float, float] | None:
    """Return epsilon and sign if the step is g / (sqrt(G) + epsilon) with the G that the state holds, else None."""
    sign = -1.0 if group.get("maximize") else 1.0
    if isinstance(optimizer, Adagrad):
        plain = group["accumulate"] is Accumulate.BEFORE and (group["epsilon"] is Epsilon.OUTSIDE or not group["eps"])
        return (group["eps"], sign) if plain else None
    if type(optimizer) is torch.optim.Adagrad and not group["lr_decay"] and not group["weight_decay"]:
        return group["eps"], sign
    return None


def _kept(rate: float | Tensor) -> float | Tensor:
    return rate.detach().clone().reshape(()) if isinstance(rate, Tensor) else rate


def _lower(a: float | Tensor, b: float | Tensor) -> float | Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return b if isinstance(a, Tensor) or isinstance(b, Tensor) else min(a, b)
