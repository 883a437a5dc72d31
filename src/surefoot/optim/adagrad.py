"""Adagrad in the form of eq. (5): a direction, a factor from any rule, a step."""

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple, Self, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot import checks
from surefoot.rules import Clippy, NoClip, Rule, Scope, broadcast


class Accumulate(Enum):
    """When the accumulator takes in the squared gradient, and which."""

    BEFORE = "before"  # before the direction is taken: the paper's algorithm 1, and torch.optim.Adagrad
    AFTER = "after"  # after the step: the default of TensorFlow Recommenders
    AFTER_CLIPPED = "after_clipped"  # after the step, and the clipped gradient sigma * g


class Epsilon(Enum):
    """Where epsilon stands in the direction's denominator."""

    OUTSIDE = "outside"  # sqrt(G) + eps, as in torch.optim.Adagrad
    INSIDE = "inside"  # sqrt(G + eps), as in TensorFlow Recommenders


class _Move(NamedTuple):
    """What one parameter would do, before its factor is known."""

    param: Tensor
    grad: Tensor
    update: Tensor  # r of eq. (5)
    measure: Tensor
    group: dict[str, Any]


class Adagrad(Optimizer):
    r"""Adagrad whose step is scaled by a rule.

    .. math::
        G \leftarrow G + g^2, \qquad r = g / (\sqrt{G} + \epsilon), \qquad w \leftarrow w - \eta\,\sigma\,r

    Args:
        params: parameters, or parameter groups; a group may set any option below, its own ``rule`` included.
            Dense, real, floating-point parameters.
        lr: the learning rate :math:`\eta`, a float or a 0-d tensor.
        rule: gives the factor :math:`\sigma`. A rule over the whole model (``GlobalGradientClip``) covers all
            parameters whose groups have an equal rule.
        initial_accumulator_value: :math:`G_0`. Default 0.1, as in the paper.
        eps: :math:`\epsilon`; 0 in the paper. A coordinate whose gradient has always been 0 does not move.
        epsilon: where eps stands.
        accumulate: when G takes in the squared gradient. An enum here and in the previous argument, or its value.
        weight_decay: decoupled, :math:`w \leftarrow w - \eta \cdot weight\_decay \cdot w`, before the step and
            outside the rule's bound.
        maximize: go up the gradient instead of down.

    The state of a parameter is ``step``, a float32 scalar, and ``sum``, the accumulator :math:`G` in float32 or
    better, named as in ``torch.optim.Adagrad``.

    Raises:
        ValueError: if an option is out of range, naming it and the value.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Adagrad([w], lr=0.1, rule=Clippy(relative=0.5, absolute=0.01))
    >>> w.grad = torch.tensor([0.3, -40.0])
    >>> optimizer.step()
    >>> w.data, optimizer.clip_factors()[w]
    (tensor([0.9312, 2.1000]), tensor(1.))

    Reference: J. Duchi et al., JMLR 2011; algorithm 1 and eq. (5) of J. Tang et al., arXiv:2302.09178.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        rule: Rule = NoClip(),
        initial_accumulator_value: float = 0.1,
        eps: float = 0.0,
        epsilon: Epsilon | str = Epsilon.OUTSIDE,
        accumulate: Accumulate | str = Accumulate.BEFORE,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self._factors: dict[Tensor, Tensor] = {}
        defaults = {
            "lr": lr,
            "rule": rule,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "epsilon": Epsilon(epsilon),
            "accumulate": Accumulate(accumulate),
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim.Optimizer`` does, after checking its options."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()  # a refused group leaves the optimizer as it was
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._factors = {}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; return the closure's loss if a closure is given.

        Parameters without a gradient stay as they are. ``p.grad`` is left as it was found.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for param, grad, _ in ready:
            _refuse_sparse(param, grad)  # before anything has moved
        moves = [self._propose(*each) for each in ready]
        for move, factor in zip(moves, _factors(moves), strict=True):
            self._apply(move, factor)
            self._factors[move.param] = factor
        return loss

    def clip_factors(self) -> dict[Tensor, Tensor]:
        """Return sigma of each parameter's last step: 0-d, or one number for each unit; no wait for the device."""
        return dict(self._factors)

    def _propose(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> _Move:
        """Take the direction and the rule's measure; accumulate first if the group says so."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            wide = torch.promote_types(param.dtype, torch.float32)
            state["sum"] = torch.full_like(param, group["initial_accumulator_value"], dtype=wide)
        total = state["sum"]
        grad = grad.to(total.dtype)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        if group["accumulate"] is Accumulate.BEFORE:
            total.addcmul_(grad, grad)
        if group["epsilon"] is Epsilon.INSIDE:
            denominator = (total + group["eps"]).sqrt_()
        else:
            denominator = total.sqrt().add_(group["eps"])
        tiny = torch.finfo(denominator.dtype).tiny  # 0 / tiny = 0 where no gradient has ever been
        update = grad / denominator.clamp_(min=tiny)
        return _Move(param, grad, update, group["rule"].measure(param, grad, update, group["lr"]), group)

    def _apply(self, move: _Move, factor: Tensor) -> None:
        group, state = move.group, self.state[move.param]
        sigma = broadcast(factor, move.update)
        if group["accumulate"] is Accumulate.AFTER:
            state["sum"].addcmul_(move.grad, move.grad)
        elif group["accumulate"] is Accumulate.AFTER_CLIPPED:
            state["sum"].add_((sigma * move.grad).square_())
        state["step"] += 1
        move.param.sub_((group["lr"] * (sigma * move.update)).to(move.param.dtype))


def _refuse_sparse(param: Tensor, grad: Tensor) -> None:
    if grad.is_sparse:
        raise ValueError(
            f"params has a parameter of shape {tuple(param.shape)} with a sparse gradient; expected dense gradients: "
            "give such embeddings an optimizer of their own, torch.optim.Adagrad for example"
        )


def _factors(moves: list[_Move]) -> list[Tensor]:
    """Return sigma for each move; moves whose equal rules cover the whole model share one."""
    totals: dict[Rule, Tensor] = {}
    for move in moves:
        rule = move.group["rule"]
        if rule.scope is Scope.MODEL:
            measure = move.measure.to(moves[0].measure.device)
            totals[rule] = totals[rule] + measure if rule in totals else measure
    shared = {rule: rule.factor(total) for rule, total in totals.items()}
    return [
        shared[move.group["rule"]].to(move.param.device)
        if move.group["rule"] in shared
        else move.group["rule"].factor(move.measure)
        for move in moves
    ]


def _check(group: dict[str, Any]) -> None:
    """Refuse options that no step could use."""
    if isinstance(group["lr"], Tensor):
        if group["lr"].numel() != 1:
            raise ValueError(f"lr is a tensor of shape {tuple(group['lr'].shape)}; expected a single number")
    else:
        checks.non_negative("lr", group["lr"])
    if not isinstance(group["rule"], Rule):
        raise ValueError(f"rule is {group['rule']!r}; expected a rule such as surefoot.Clippy()")
    for name in ("initial_accumulator_value", "eps", "weight_decay"):
        checks.non_negative(name, group[name])
    group["epsilon"], group["accumulate"] = Epsilon(group["epsilon"]), Accumulate(group["accumulate"])
    starts_at_zero = group["initial_accumulator_value"] == 0 and group["eps"] == 0
    if starts_at_zero and group["accumulate"] is not Accumulate.BEFORE:
        raise ValueError(
            "initial_accumulator_value and eps are both 0; expected one of them above 0, "
            f"since accumulate={group['accumulate'].value!r} divides by the initial value"
        )
    for param in group["params"]:
        if not param.is_floating_point():
            raise ValueError(f"params has a parameter of type {param.dtype}; expected real floating-point parameters")


class ClippyAdagrad(Adagrad):
    """Adagrad with Clippy, algorithm 1 of the paper, with the paper's defaults.

    Args:
        params: parameters or parameter groups, as for ``Adagrad``.
        lr: the learning rate.
        relative: Clippy's bound on a weight's change relative to itself.
        absolute: Clippy's bound in units of the weight.
        initial_accumulator_value: the accumulator's start.
        eps: added to the root of the accumulator; 0 in the paper.
        weight_decay: decoupled, outside the bound.
        maximize: go up the gradient instead of down.

    Raises:
        ValueError: if an option is out of range, naming it and the value.

    >>> layer = torch.nn.Linear(4, 2)
    >>> optimizer = ClippyAdagrad(layer.parameters(), lr=0.1)
    >>> layer(torch.ones(3, 4)).square().sum().backward()
    >>> optimizer.step()

    Reference: algorithm 1 of J. Tang et al., arXiv:2302.09178.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        relative: float = 0.5,
        absolute: float = 1e-2,
        initial_accumulator_value: float = 0.1,
        eps: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            rule=Clippy(relative=relative, absolute=absolute),
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
        )

    @classmethod
    def tfrs(
        cls,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        relative: float = 0.1,
        absolute: float = 1e-7,
        accumulator_relative: float = 0.0,
        initial_accumulator_value: float = 0.1,
        eps: float = 1e-7,
        accumulate: Accumulate | str = Accumulate.AFTER,
        weight_decay: float = 0.0,
    ) -> Self:
        """Return one with the semantics and defaults of TensorFlow Recommenders, step for step.

        It differs from the paper: the accumulator follows the step, epsilon stands inside the root, and the
        default bounds are so tight that a wide layer hardly moves (a factor near 1e-5 for a 512 x 512 layer).

        Args:
            params: parameters or parameter groups.
            lr: the learning rate; the reference holds it in float32.
            relative: ``variable_relative_threshold`` there.
            absolute: ``absolute_threshold`` there.
            accumulator_relative: ``accumulator_relative_threshold`` there.
            initial_accumulator_value: the accumulator's start.
            eps: ``epsilon`` there.
            accumulate: ``"before"`` is ``use_standard_accumulator_update=True`` there, ``"after_clipped"`` is
                ``clip_accumulator_update=True``.
            weight_decay: decoupled, outside the bound.

        Raises:
            ValueError: if an option is out of range, naming it and the value.

        Reference: ``tensorflow_recommenders/experimental/optimizers/clippy_adagrad.py``.
        """
        optimizer = cls.__new__(cls)
        Adagrad.__init__(
            optimizer,
            params,
            lr,
            rule=Clippy(relative, absolute, accumulator_relative),
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            epsilon=Epsilon.INSIDE,
            accumulate=accumulate,
            weight_decay=weight_decay,
        )
        return optimizer
