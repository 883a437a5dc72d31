"""A factor on every step of some optimizers, which no scheduler sees or overwrites."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_updates import handle_of
from surefoot.optim.hooks import Around, Part, around, closure_of, give_back, held, hide, with_closure
from surefoot.optim.unwrap import unwrapped
from surefoot.rules import Clippy, Rule


def slowed(rule: Rule, factor: float) -> Rule:
    """Return the rule under which a step at ``factor`` times the rate is ``factor`` times the step.

    Of a rule that looks at the rate, as Clippy does, the thresholds are scaled too: where it clips, the rate alone
    would change nothing, since the bound decides how far the weights move. Other rules stay: their factor
    multiplies the rate.

    >>> slowed(Clippy(relative=0.5, absolute=0.01), 0.5)
    Clippy(relative=0.25, absolute=0.005, accumulator_relative=0.0)
    """
    if not isinstance(rule, Clippy):
        return rule
    names = ("relative", "absolute", "accumulator_relative")
    return replace(rule, **{name: factor * getattr(rule, name) for name in names})


class LrScale(Part):
    r"""Multiplies the steps of optimizers by a factor, or holds them.

    .. math:: w \leftarrow w - m\,\eta\,\sigma\,r

    The factor is put on the rate, and on the thresholds of a rule that looks at the rate (``slowed``), when a step
    begins, and taken off when it ends: schedulers, checkpoints and logs never see it, and a rate that a scheduler sets
    is multiplied all the same. What a rule measures is told as by the configured rule at the lowered rate. A factor
    of 1 touches nothing. While ``held``, a step sees no gradients, so that neither weights nor state nor step counters
    change. ``on_end`` is called after each step of each optimizer, when everything is as between steps again: its other
    hooks have run, and what was lowered or hidden is back.

    Args:
        optimizers: surefoot's or torch's, with ``clip_updates`` on them or without, attached before or after.

    Raises:
        ValueError: if a parameter group has no rate.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([w], lr=1.0)
    >>> lr_scale = LrScale([optimizer])
    >>> lr_scale.factor, w.grad = 0.5, torch.ones(1)
    >>> optimizer.step()
    >>> w.data, optimizer.param_groups[0]["lr"]
    (tensor([-0.5000]), 1.0)
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        optimizers = unwrapped(optimizers)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if "lr" not in group:
                raise ValueError(f"optimizers has a group without 'lr', {sorted(group)}; expected a learning rate")
        self.factor = 1.0
        self.held = False
        self.on_end: Callable[[], object] = lambda: None
        self._undo: dict[int, list[Callable[[], None]]] = {}  # by optimizer, between the hooks
        self._measured: dict[Tensor, Tensor] = {}  # as told to whoever asks
        self._hooks = []
        self._last: dict[int, Callable[[], None]] = {}
        for optimizer in optimizers:
            first = optimizer.register_step_pre_hook(self._pre)
            last = optimizer.register_step_post_hook(self._post)
            _move_to_front(optimizer._optimizer_step_pre_hooks, first.id)  # clip_updates looks at the rate
            self._last[id(optimizer)] = partial(_move_to_end, optimizer._optimizer_step_post_hooks, last.id)
            self._hooks += [first, last]
            around(optimizer).add(self)
        self._optimizers = list(optimizers)

    def remove(self) -> None:
        """Take the hooks off: every step is whole again."""
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers:
            around(optimizer).discard(self)

    def raised(self, around: Around) -> None:
        """Take the factor off after a step that raised."""
        self._restore(around.optimizer)

    @property
    def in_step(self) -> bool:
        """Whether an optimizer is in the middle of a step: one of its hooks asks. A step that raised counts as well."""
        return bool(self._undo)

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]: as Adagrad.step
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._restore(optimizer)  # a step that raised has left without the post hook
        undo = self._undo[id(optimizer)] = []
        self._last[id(optimizer)]()  # after the hooks that were attached since
        if self.factor != 1.0:
            handle = handle_of(optimizer)
            default = None if handle is None else handle._rule
            for group in optimizer.param_groups:
                _put(group, "lr", self.factor * group["lr"], undo)
                rule = group.get("rule", default)
                if rule is not None and (lowered := slowed(rule, self.factor)) != rule:
                    _put(group, "rule", lowered, undo)
                    undo.insert(0, partial(self._measure_as_configured, optimizer, group, lowered, rule, self.factor))
        return self._hold(optimizer, args, kwargs, undo) if self.held else None

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._restore(optimizer)
        self.on_end()

    def _restore(self, optimizer: Optimizer) -> None:
        for undo in self._undo.pop(id(optimizer), []):
            undo()

    def _measure_as_configured(
        self, optimizer: Optimizer, group: dict[str, Any], lowered: Rule, rule: Rule, factor: float
    ) -> None:
        """Let what the lowered rule has measured be what the configured one measures at the lowered rate.

        Its bounds are 1 / factor times as wide; against its own bounds a step would look as large as before.
        """
        if isinstance(optimizer, Adagrad):
            optimizer._last = [
                (params, rule, measure / factor) if used == lowered else (params, used, measure)
                for params, used, measure in optimizer._last
            ]
        if (handle := handle_of(optimizer)) is not None:
            for param in group["params"]:
                measure = handle._measures.get(param)
                if measure is not None and measure is not self._measured.get(param):  # not of an earlier step
                    self._measured[param] = handle._measures[param] = measure / factor

    def _hold(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], undo: list[Any]) -> Any:
        """Hide the gradients from the step; those that a closure makes, once it has made them."""
        _forget_measures(optimizer)
        closure = closure_of(args, kwargs)
        if closure is None:
            _hide(optimizer, undo)
            return None

        def blind() -> Any:
            loss = closure()
            _hide(optimizer, undo)
            return loss

        return with_closure(args, kwargs, blind)


def _forget_measures(optimizer: Optimizer) -> None:
    """Let nobody take what a rule measured of the last step for what it measures of one that is held."""
    if isinstance(optimizer, Adagrad):
        optimizer._last = []
    if (handle := handle_of(optimizer)) is not None:
        handle._factors, handle._measures = {}, {}


def _move_to_front(hooks: dict[int, Any], key: int) -> None:
    others = {each: hook for each, hook in hooks.items() if each != key}
    for each in others:
        _move_to_end(hooks, each)


def _move_to_end(hooks: dict[int, Any], key: int) -> None:
    if key in hooks:
        hooks[key] = hooks.pop(key)


def _put(group: dict[str, Any], key: str, value: Any, undo: list[Callable[[], None]]) -> None:
    """Set a group's option for the duration of the step."""
    absent = key not in group
    before = group.get(key)

    def back() -> None:
        if group.get(key) is not value:  # somebody else has set it since
            return
        if absent:
            del group[key]
        else:
            group[key] = before

    group[key] = value
    undo.append(back)


def _hide(optimizer: Optimizer, undo: list[Callable[[], None]]) -> None:
    hidden = held(optimizer)
    hide(hidden)
    undo.append(partial(give_back, hidden))
