"""Rules for any ``torch.optim.Optimizer``: hooks around its step scale the change of the weights by sigma."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adagrad, Optimizer, SparseAdam

from surefoot.optim import kernel
from surefoot.optim.hooks import Around, Flag, Part, around, but_not, held, parts_of
from surefoot.optim.nonfinite import NonFinite, Skips, not_finite
from surefoot.optim.sparse import by_row
from surefoot.optim.unwrap import unwrapped
from surefoot.optim.weight_deltas import WeightDelta, WeightSnapshot, apply, delta_of, factors
from surefoot.rules import Clippy, Rule, checked

_CHANGE_TOUCHED_ROWS = (Adagrad, SparseAdam)  # and no other rows of a sparse gradient; SGD's momentum changes others


def clip_updates(
    optimizer: Optimizer,
    rule: Rule,
    *,
    exclude: Iterable[Tensor | str] = (),
    nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
) -> "ClipHandle":
    r"""Scale every step of ``optimizer`` by a rule, from now on.

    The update is the whole change of the weight, momentum and weight decay included:

    .. math:: r = (w_{old} - w_{new}) / \eta, \qquad w \leftarrow w_{old} + \sigma\,(w_{new} - w_{old})

    Where :math:`\sigma = 1`, the optimizer's own result stays, bit for bit. A learning rate of 0 is treated as 1; r is
    0 then. The cost in memory is one copy of the covered weights (of the touched rows only, for sparse gradients under
    Adagrad and SparseAdam without a closure). Rules use the gradient without GradScaler's scale. Clippy's third term
    uses ``p.grad`` as it is after the step.

    * A parameter group may have its own rule under the key ``"rule"``. The rule is not in ``state_dict()``, and
      ``load_state_dict`` keeps it. A rule for the whole model covers all groups with an equal rule.
    * Sparse gradients: duplicate rows are summed, and rules measure the touched rows; a rule for units has one factor
      for each touched row. Rows that only SGD's old momentum changes are not measured; a factor for the whole tensor
      scales them too, factors for units do not.
    * ``nonfinite`` applies to all gradients, those of excluded parameters too; ``PROPAGATE`` switches the check off.
      Fused Adam, AdamW and Adagrad skip a step without waiting for the device. For all others, and for ``SKIP_TENSOR``,
      ``p.grad`` is None during a skipped step, and every step waits once for an accelerator. Steps that GradScaler
      skips are neither counted nor warned of.
    * The optimizer's state stays unclipped: averages of weights in it (ASGD) are of the unclipped weights.
    * As in torch, copies and pickles of an optimizer have no hooks: call ``clip_updates`` on them again.

    Args:
        optimizer: any optimizer but LBFGS, whose line search steps many times in one step.
        rule: gives :math:`\sigma`.
        exclude: parameters that are not clipped; or patterns of their names (``*`` and ``?`` as in file names), if the
            optimizer was made from ``named_parameters()``. Groups added later are covered unless a pattern matches.
        nonfinite: what to do when a gradient is NaN or infinite; an enum or its value.

    Returns:
        The handle with the factors; its ``remove()`` undoes this call.

    Raises:
        TypeError: if ``rule`` is not a rule object, or the optimizer is LBFGS, has a rule of its own or is not a
            ``torch.optim.Optimizer``.
        ValueError: if an exclusion matches nothing, a parameter is complex, a group has no rate, or the optimizer
            is clipped already; in a step, if a weight has changed its shape.
        FloatingPointError: in a step, under ``NonFinite.RAISE``, naming the parameter, before any weight changes.

    >>> from surefoot.rules import Clippy
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = torch.optim.AdamW([w], lr=0.1, weight_decay=0.0)
    >>> handle = clip_updates(optimizer, Clippy(relative=0.03, absolute=0.02))
    >>> w.grad = torch.tensor([0.3, -40.0])
    >>> optimizer.step()  # AdamW alone would change each by 0.1; w[0] may change by 0.03 * 1 + 0.02
    >>> w.data, handle.clip_factors()[w]
    (tensor([0.9500, 2.0500]), tensor(0.5000))
    """
    return ClipHandle(optimizer, rule, exclude, NonFinite(nonfinite))


class ClipHandle(Part):
    """The handle that ``clip_updates`` returns: the factors of the last step, and ``remove()``."""

    def __init__(self, optimizer: Optimizer, rule: Rule, exclude: Iterable[Tensor | str], nonfinite: NonFinite) -> None:
        optimizer = _checked_optimizer(optimizer)
        self._optimizer, self._rule, self._nonfinite = optimizer, checked(rule, "rule"), nonfinite
        self._excluded, self._patterns = _exclusions(optimizer, exclude)
        self._factors: dict[Tensor, Tensor] = {}
        self._measures: dict[Tensor, Tensor] = {}
        self._buffers: dict[Tensor, Tensor] = {}
        self._before: dict[Tensor, WeightSnapshot] = {}
        self._deltas: dict[Tensor, WeightDelta] = {}
        self._bad: Flag = False  # whether this step is to be counted as skipped
        self._skips = Skips(f"clip_updates on {type(optimizer).__name__}")
        for param, group in self._covered():  # before any hook is registered
            self._check(param, group)
        self._hooks = [
            optimizer.register_state_dict_post_hook(_without_rules),
            optimizer.register_load_state_dict_pre_hook(_with_rules),
        ]
        around(optimizer).add(self, first=True)  # RAISE must raise before other parts count the step

    def clip_factors(self) -> dict[Tensor, Tensor]:
        """Return sigma by parameter, of its last step: 0-d, or one number for each unit; no wait for the device."""
        return dict(self._factors)

    def measures(self) -> dict[Tensor, Tensor]:
        """Return the rule's measure (``Rule.measure``) by parameter, of its last step; no wait for the device.

        Under a rule for the whole model, the measure is that of the parameter alone.
        """
        return dict(self._measures)

    @property
    def skipped_steps(self) -> int:
        """The number of steps skipped, wholly or (``SKIP_TENSOR``) partly; reading it waits for the device."""
        return self._skips.total()

    def remove(self) -> None:
        """Remove the hooks; the optimizer is then as it was before. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        around(self._optimizer).discard(self)
        self._before, self._buffers = {}, {}

    # Parts of a step

    def begin(self, around: Around, has_closure: bool) -> None:
        """Copy the covered weights."""
        self._remember(has_closure)

    def verdict(self, around: Around) -> Flag:
        """Return whether to skip the step; under ``SKIP_TENSOR`` hide the non-finite gradients instead."""
        if self._nonfinite is NonFinite.PROPAGATE:
            return False
        if self._nonfinite is NonFinite.SKIP_STEP:
            self._bad = but_not(around.bad(), around.scaler_skips())
            return around.bad()
        if bool(around.scaler_skips()) or not bool(around.bad()):  # waits for the device
            return False
        pairs = held(self._optimizer)
        flags = not_finite([grad for _, grad in pairs])
        pairs = [pair for pair, flag in zip(pairs, flags, strict=True) if bool(flag)]
        if self._nonfinite is NonFinite.RAISE:
            raise FloatingPointError(f"the gradient of {self._described(pairs[0][0])} is NaN or infinite")
        self._bad = True
        around.hide(pairs)
        return False

    def before_update(self, around: Around) -> None:
        """Measure now what needs no update: some steps change p.grad, as foreach SGD with Nesterov momentum does."""
        scale: Tensor | None = getattr(self._optimizer, "grad_scale", None)
        self._deltas = {delta.param: delta for delta in self._measured(lambda rule: not rule.needs_update, scale)}

    def end(self, around: Around) -> None:
        """Clip the step that was taken."""
        self._clip(getattr(self._optimizer, "found_inf", None))
        self._skips.add(self._bad)
        self._skips.warn_once()

    def forget(self, around: Around) -> None:
        """Drop what was kept for the step."""
        self._bad, self._deltas = False, {}

    def _measured(self, applies: Callable[[Rule], bool], grad_scale: Tensor | None = None) -> Iterator[WeightDelta]:
        for param, group in self._covered():
            rule = group.get("rule", self._rule)
            if param.grad is not None and param in self._before and applies(rule):
                yield delta_of(param, self._before[param], param.grad, rule, group["lr"], grad_scale)

    def _clip(self, found_inf: Tensor | None) -> None:
        self._clip_by_kernel()
        self._deltas |= {delta.param: delta for delta in self._measured(lambda rule: rule.needs_update)}
        deltas = list(self._deltas.values())
        for delta, factor in zip(deltas, factors(deltas), strict=True):
            if found_inf is not None:  # in a skipped step the factor may be NaN, and NaN times a change of 0 is NaN
                factor = torch.where(found_inf.to(factor.device) > 0, 1.0, factor)
            self._measures[delta.param], self._factors[delta.param] = delta.measure, factor
            apply(delta, factor)

    def _clip_by_kernel(self) -> None:
        """Clip the parameters that the kernel supports, and drop their snapshots."""
        alike: dict[Clippy, list[Tensor]] = {}
        for param, group in self._covered():
            rule, before = group.get("rule", self._rule), self._before.get(param)
            if before is None or before.rows or param.grad is None or param.grad.is_sparse:
                continue
            if isinstance(rule, Clippy) and kernel.supports(rule) and kernel.takes(param, before.weight):
                alike.setdefault(rule, []).append(param)
        for rule, params in alike.items():
            olds = [self._before.pop(param).weight for param in params]
            ratios = kernel.clip_changes(params, olds, relative=rule.relative, absolute=rule.absolute)
            self._measures |= zip(params, ratios.unbind(), strict=True)
            self._factors |= zip(params, rule.factor(ratios).unbind(), strict=True)

    def _covered(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self._optimizer.param_groups:
            names = group.get("param_names") or [""] * len(group["params"])
            for param, name in zip(group["params"], names, strict=True):
                if param not in self._excluded and not any(fnmatchcase(name, each) for each in self._patterns):
                    yield param, group

    def _check(self, param: Tensor, group: dict[str, Any]) -> None:
        if "lr" not in group:
            raise ValueError(f"optimizer has a parameter group without 'lr', {sorted(group)}; expected a learning rate")
        if param.is_complex():
            raise ValueError(f"optimizer has a parameter of type {param.dtype}; expected real parameters")
        checked(group.get("rule", self._rule), "rule of a parameter group")

    def _remember(self, has_closure: bool) -> None:
        """Copy the covered weights, also without a gradient: a closure may compute one later."""
        targets: list[Tensor] = []
        rows_alone = not has_closure and isinstance(self._optimizer, _CHANGE_TOUCHED_ROWS)
        for param, group in self._covered():
            self._check(param, group)
            grad = by_row(param.grad) if rows_alone and param.grad is not None else None
            if grad is not None and grad.is_sparse:
                rows = tuple(grad.indices())
                self._before[param] = WeightSnapshot(param[rows], rows)
                continue
            buffer = self._buffers.get(param)
            if buffer is not None and buffer.shape != param.shape:
                raise ValueError(
                    f"a weight of shape {tuple(buffer.shape)} has the shape {tuple(param.shape)} now; "
                    "expected the same shape: construct the optimizer again after changing a model"
                )
            if buffer is None or (buffer.dtype, buffer.device) != (param.dtype, param.device):
                buffer = self._buffers[param] = torch.empty_like(param, requires_grad=False)
            self._before[param] = WeightSnapshot(buffer)
            targets.append(param)
        if targets:
            torch._foreach_copy_([self._buffers[p] for p in targets], targets)  # pyright: ignore[reportPrivateImportUsage]

    def _described(self, param: Tensor) -> str:
        for i, group in enumerate(self._optimizer.param_groups):
            for j, each in enumerate(group["params"]):
                if each is param:
                    name = repr(group["param_names"][j]) if "param_names" in group else f"parameter {j} of group {i}"
                    return f"{name}, of shape {tuple(param.shape)},"
        raise AssertionError("a gradient of a parameter that the optimizer does not have")


def _checked_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer that takes the steps, if it can be clipped."""
    called = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {called}; expected a torch.optim.Optimizer")
    optimizer, *more = unwrapped(optimizer, "optimizer")
    if more:
        raise TypeError(f"optimizer is a {called} of {1 + len(more)} optimizers; expected one: clip each of them")
    called = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise TypeError(f"optimizer is {called}, whose line search steps many times in one step; expected any other")
    if "rule" in optimizer.defaults:
        raise TypeError(f"optimizer is {called}, which takes a rule itself; expected one without: pass it rule=...")
    if handle_of(optimizer) is not None:
        raise ValueError(f"optimizer is {called}, clipped already; expected a call of remove() before the next rule")
    return optimizer


def handle_of(optimizer: Optimizer) -> ClipHandle | None:
    """Return the handle of ``clip_updates`` on an optimizer, if there is one."""
    return next((part for part in parts_of(optimizer) if isinstance(part, ClipHandle)), None)


def _exclusions(optimizer: Optimizer, exclude: Iterable[Tensor | str]) -> tuple[set[Tensor], list[str]]:
    """Return the parameters and the name patterns of ``exclude``, each of which must match."""
    if isinstance(exclude, (str, Tensor)):
        raise TypeError(f"exclude is a single {type(exclude).__name__}; expected a list of parameters or names")
    params = {param for group in optimizer.param_groups for param in group["params"]}
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    excluded, patterns = set[Tensor](), list[str]()
    for each in exclude:
        if isinstance(each, Tensor):
            if each not in params:
                raise ValueError(f"exclude has a tensor of shape {tuple(each.shape)}; expected the optimizer's own")
            excluded.add(each)
        elif not names:
            raise ValueError(f"exclude has {each!r}, and the optimizer has no names; make it from named_parameters()")
        elif not any(fnmatchcase(name, each) for name in names):
            raise ValueError(f"exclude has {each!r}, which matches none of {names}")
        else:
            patterns.append(each)
    return excluded, patterns


def _without_rules(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Remove the rules from a state dict: with them it would not load with ``weights_only=True``."""
    groups = [{key: value for key, value in group.items() if key != "rule"} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _with_rules(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Keep the groups' present rules, which a state dict does not have."""
    rules = [{"rule": group["rule"]} if "rule" in group else {} for group in optimizer.param_groups]
    rules += [{}] * len(state_dict["param_groups"])  # torch raises if the numbers of groups differ
    groups = [{**rule, **group} for rule, group in zip(rules, state_dict["param_groups"], strict=False)]
    return {**state_dict, "param_groups": groups}
