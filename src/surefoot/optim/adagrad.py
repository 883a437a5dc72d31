"""Adagrad in the form of eq. (5): a direction, a factor from any rule, a step."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from surefoot import checks
from surefoot.optim import eager, kernel, nonfinite, sharding, state_loading
from surefoot.optim.accumulator_start import SlowStart
from surefoot.optim.eager import Accumulate, Epsilon, Item, Options
from surefoot.optim.group_keys import refuse_ignored
from surefoot.optim.nonfinite import NonFinite
from surefoot.rules import Clippy, NoClip, Rule, Scope, checked

_ENUMS = {"epsilon": Epsilon, "accumulate": Accumulate}
_OPTIONS = tuple(Options.__dataclass_fields__)


class Adagrad(Optimizer):
    r"""Adagrad whose step is scaled by a rule.

    .. math::
        G \leftarrow G + g^2, \qquad r = g / (\sqrt{G} + \epsilon), \qquad w \leftarrow w - \eta\,\sigma\,r

    Args:
        params: parameters, or parameter groups; a group may set any option below, ``rule`` included, but not the last
            two. Parameters are real floating-point tensors. Duplicate rows of a sparse gradient are summed first, and
            rules measure only the touched rows: for Clippy and the gradient clips, this equals a dense gradient with
            zeros; AdaptiveGradientClip and TrustRatio use the weight norm of the touched rows.
        lr: the learning rate :math:`\eta`, a float or a 0-d tensor.
        rule: gives the factor :math:`\sigma`. A rule for the whole model (``GlobalGradientClip``) has one factor for
            all parameters whose groups have an equal rule.
        initial_accumulator_value: :math:`G_0`. Default 0.1, as in the paper: it keeps the first steps small where no
            rule bounds the size of a step. ``ClippyAdagrad`` starts lower.
        eps: :math:`\epsilon`; 0 in the paper. A coordinate whose gradient has always been 0 does not change.
        epsilon: whether eps stands inside or outside the root; like ``accumulate`` and ``nonfinite`` an enum or its
            value.
        accumulate: when the squared gradient is added to G.
        weight_decay: decoupled, :math:`w \leftarrow w - \eta \cdot weight\_decay \cdot w`, before the step and
            outside the rule's bound. With a sparse gradient only the touched rows decay.
        maximize: maximize the objective instead of minimizing it.
        nonfinite: what to do when a gradient is NaN or infinite; by default the whole step is skipped, and weights,
            state and step counters stay bit for bit the same.
        fused: True: use the C++ kernel, which steps dense float32 parameters on the CPU under Clippy or no rule in one
            pass over memory, and is compiled on first use; False: never use it; None: use it if it can be compiled.

    The state of a parameter is ``step``, a float32 scalar, and ``sum``, the accumulator :math:`G` in float32 or
    better. The names are those of ``torch.optim.Adagrad``, so its checkpoints load. ``GradScaler`` passes its scale and
    its ``found_inf`` to the step; ``unscale_`` is not needed.

    Raises:
        ValueError: if an option is out of range, naming it and the value.
        TypeError: if the rule is not a rule object, or parameters are split among processes (FSDP, DTensor, ZeRO).

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Adagrad([w], lr=0.1, rule=Clippy(relative=0.5, absolute=0.01))
    >>> w.grad = torch.tensor([0.3, -40.0])
    >>> optimizer.step()
    >>> w.data, optimizer.clip_factors()[w]
    (tensor([0.9312, 2.1000]), tensor(1.))

    Reference: J. Duchi et al., JMLR 2011; algorithm 1 and eq. (5) of J. Tang et al., arXiv:2302.09178.
    """

    _step_supports_amp_scaling = True  # tells GradScaler to set grad_scale and found_inf

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
        nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
        fused: bool | None = None,
    ) -> None:
        if fused and not kernel.available():
            raise ValueError("fused is True and no C++ compiler is found; expected None or False on this machine")
        sharding.refuse_within_zero(type(self).__name__)
        self._fused = fused is not False
        self._nonfinite = NonFinite(nonfinite)
        self._slow_start = SlowStart(type(self).__name__)
        self._reset()
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
        """Add a group, as ``torch.optim.Optimizer`` does, after checking its options.

        Keys of schedulers and keys of the user's own stay in the group. A key that asks for something but would have no
        effect is refused: an option of a rule or of another optimizer, or a misspelt option.
        """
        if isinstance(param_group, dict):
            refuse_ignored(param_group, ("params", "param_names", *self.defaults))
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()  # a refused group leaves the optimizer as it was
            raise

    def __getstate__(self) -> dict[str, Any]:
        own = {"_fused": self._fused, "_nonfinite": self._nonfinite, "_skipped": self.skipped_steps}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.skipped_steps if "_skips" in self.__dict__ else 0  # also called by load_state_dict
        super().__setstate__({key: value for key, value in state.items() if key != "_skipped"})
        self._slow_start = getattr(self, "_slow_start", None) or SlowStart(type(self).__name__)
        self._reset(state.get("_skipped", before))

    def _reset(self, skipped: int = 0) -> None:
        self._last: list[tuple[list[Tensor], Rule, Tensor]] = []  # parameters, rule, measure of the last step
        self._skips = nonfinite.Skips(type(self).__name__, skipped)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]: as in torch.optim, a compiled graph breaks here
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; return the closure's loss if a closure is given.

        Parameters without a gradient do not change, and neither does ``p.grad``.

        Raises:
            FloatingPointError: under ``NonFinite.RAISE``, before any weight changes.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        fast, slow = self._items()
        found_inf = self._handed("found_inf")
        skip = False if found_inf is None else _read(found_inf.squeeze() > 0)  # its sender counts the skip
        if self._nonfinite is NonFinite.SKIP_TENSOR:
            fast, slow = _without_bad_tensors(fast), _without_bad_tensors(slow)
        elif found_inf is None or (self._handed("grad_scale") is None and skip is False):
            self._skips.add(skip := self._skip(fast, slow))
        if isinstance(skip, Tensor):
            fast, slow = [], [item._replace(skip=skip) for item in fast + slow]
        elif skip:
            fast, slow = [], []
        self._update(fast, slow)
        self._skips.warn_once()
        self._slow_start.after_step(self)
        return loss

    def clip_factors(self) -> dict[Tensor, Tensor]:
        """Return sigma by parameter, 0-d or one number for each unit, of the last step not skipped; does not wait."""
        return _by_parameter((params, rule.factor(measure)) for params, rule, measure in self._last)

    def measures(self) -> dict[Tensor, Tensor]:
        """Return the rule's measure (``Rule.measure``) by parameter, of the same step; does not wait."""
        return _by_parameter((params, measure) for params, _, measure in self._last)

    @property
    def skipped_steps(self) -> int:
        """The number of steps skipped because of a non-finite gradient; reading it waits for the device."""
        return self._skips.total()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as ``torch.optim.Optimizer`` does; every option is a number, a string or a tensor.

        A rule is saved as its repr and an enum as its value, so that the file loads with ``weights_only=True``.
        """
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group["rule"] = repr(group["rule"])
            for name, kind in _ENUMS.items():
                group[name] = kind(group[name]).value
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of ``torch.optim.Adagrad``.

        Accumulators keep their saved type, for example float32 for bfloat16 weights. Options that the state lacks keep
        their constructed values. A saved rule is compared with the constructed one; no rule is built from the file.
        Hooks registered for loading get the state as it was saved, and may change it.

        Raises:
            ValueError: if the state belongs to another optimizer, lacks keys, has other groups or another rule, or was
                saved with coupled weight decay or a decaying learning rate, which this optimizer does not have.
        """
        state_loading.load(self, super().load_state_dict, state_dict)
        for group in self.param_groups:
            _check(group)

    def _items(self) -> tuple[list[Item], list[Item]]:
        """Return the parameters with a gradient: those for the kernel, and the others. Create missing states."""
        fast: list[Item] = []
        slow: list[Item] = []
        scale = self._handed("grad_scale")
        for group in self.param_groups:
            options = Options(**{field: group[field] for field in _OPTIONS})
            in_kernel = self._fused and scale is None and _kernel_supports(options)
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                state = self.state[param]
                if not state:
                    wide = torch.promote_types(param.dtype, torch.float32)
                    state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                    state["sum"] = torch.full_like(param, group["initial_accumulator_value"], dtype=wide)
                total = state["sum"]
                if total.shape != param.shape:
                    raise ValueError(
                        f"params has a parameter of shape {tuple(param.shape)} whose accumulator has the shape "
                        f"{tuple(total.shape)}; expected weights that keep their shape between steps"
                    )
                if grad.shape != param.shape:  # possible if the weights were replaced after the backward pass
                    raise ValueError(
                        f"params has a parameter of shape {tuple(param.shape)} whose gradient has the shape "
                        f"{tuple(grad.shape)}; expected a gradient of the weights as they are now"
                    )
                several = fast if in_kernel and kernel.takes(param, grad, total) else slow
                several.append(Item(param, grad, total, options, scale, None))
        return fast, slow

    def _skip(self, fast: Sequence[Item], slow: Sequence[Item]) -> bool | Tensor:
        """Return whether to skip the step, as a 0-d bool tensor if reading it would wait for the device."""
        if self._nonfinite is NonFinite.PROPAGATE:
            return False
        bad: bool | Tensor = bool(fast) and not kernel.all_finite([item.grad for item in fast])
        if slow and not bad:
            bad = _read(nonfinite.any_of(nonfinite.not_finite([item.grad for item in slow])))
        if self._nonfinite is NonFinite.RAISE:
            for item in [*fast, *slow] if bool(bad) else []:
                if bool(nonfinite.not_finite([item.grad])[0]):
                    raise FloatingPointError(
                        f"the gradient of a parameter of shape {tuple(item.param.shape)} is NaN or infinite; "
                        "no weight has changed"
                    )
        return bad

    def _handed(self, name: str) -> Tensor | None:
        """Return a tensor that GradScaler or a guard has set on this optimizer for the step."""
        return getattr(self, name, None)

    def _update(self, fast: Sequence[Item], slow: Sequence[Item]) -> None:
        """Update the weights: ``fast`` ones by the kernel, ``slow`` ones by torch's operations."""
        if fast or slow:
            self._last = []
        alike: dict[int, list[Item]] = {}
        for item in fast:
            alike.setdefault(id(item.options), []).append(item)
        for items in alike.values():
            self._last.append(([item.param for item in items], items[0].options.rule, _kernel_step(items)))
        steppers = eager.steppers(slow)
        measures = _combined_over_model(steppers, [stepper.measure() for stepper in steppers])
        for stepper, measure in zip(steppers, measures, strict=True):
            stepper.apply(stepper.options.rule.factor(measure))
            self._last.append((stepper.params, stepper.options.rule, measure))
        whole = [self.state[item.param]["step"] for item in (*fast, *slow) if item.skip is None]
        if whole:
            torch._foreach_add_(whole, 1)  # pyright: ignore[reportPrivateImportUsage]
        for item in slow:
            if item.skip is not None:
                self.state[item.param]["step"] += ~item.skip


def _combined_over_model(steppers: Sequence[eager.Stepper], measures: list[Tensor]) -> list[Tensor]:
    """Return the measures; under equal rules for the whole model, all get their combined measure."""
    parts: dict[Rule, list[Tensor]] = {}
    for stepper, measure in zip(steppers, measures, strict=True):
        rule = stepper.options.rule
        if rule.scope is Scope.MODEL:
            parts.setdefault(rule, []).append(rule.combine(measure) if len(stepper.params) > 1 else measure)
    totals = {
        rule: rule.combine(torch.stack([p.to(several[0].device) for p in several], -1))
        for rule, several in parts.items()
    }
    return [
        totals[stepper.options.rule].to(stepper.params[0].device) if stepper.options.rule in totals else measure
        for stepper, measure in zip(steppers, measures, strict=True)
    ]


def _by_parameter(several: Iterable[tuple[list[Tensor], Tensor]]) -> dict[Tensor, Tensor]:
    """Return a dictionary by parameter; each value is for all parameters of its list, or has one entry for each."""
    found: dict[Tensor, Tensor] = {}
    for params, value in several:
        each = value.unbind(-1) if len(params) > 1 and value.ndim else [value] * len(params)
        found |= zip(params, each, strict=True)
    return found


def _without_bad_tensors(items: Sequence[Item]) -> list[Item]:
    """Drop items with a non-finite gradient; on an accelerator, set their skip flag instead of waiting for it."""
    kept = []
    for item, flag in zip(items, nonfinite.not_finite([item.grad for item in items]), strict=True):
        if not nonfinite.readable(flag):
            kept.append(item._replace(skip=flag))
        elif not bool(flag):
            kept.append(item)
    return kept


def _read(flag: Tensor) -> bool | Tensor:
    return bool(flag) if nonfinite.readable(flag) else flag


def _kernel_supports(options: Options) -> bool:
    """Whether the kernel implements these options."""
    return (
        kernel.supports(options.rule)
        and options.accumulate is Accumulate.BEFORE
        and (options.epsilon is Epsilon.OUTSIDE or not options.eps)
        and (not isinstance(options.lr, Tensor) or nonfinite.readable(options.lr))
    )


def _kernel_step(items: Sequence[Item]) -> Tensor:
    """Step tensors with equal options; return Clippy's measures, 0-d for one tensor, (tensors,) for several."""
    options = items[0].options
    rule, lr = options.rule, float(options.lr)
    ratios = kernel.clippy_adagrad(
        [item.param for item in items],
        [item.grad for item in items],
        [item.total for item in items],
        lr=lr,
        relative=rule.relative if isinstance(rule, Clippy) else 0.0,  # inf times a zero weight would be NaN
        absolute=rule.absolute if isinstance(rule, Clippy) else torch.inf,
        eps=options.eps,
        decay=1 - lr * options.weight_decay,
        maximize=options.maximize,
        optimistic=not isinstance(rule, Clippy) or rule.absolute >= 1e-3 * lr,
    )
    return ratios if len(items) > 1 else ratios[0]


def _check(group: dict[str, Any]) -> None:
    """Refuse invalid options; replace values of enums by the enums."""
    if isinstance(group["lr"], Tensor):
        if group["lr"].ndim:
            raise ValueError(f"lr is a tensor of shape {tuple(group['lr'].shape)}; expected a 0-d tensor")
        if nonfinite.readable(group["lr"]):
            checks.non_negative("lr", float(group["lr"]))
    else:
        checks.non_negative("lr", group["lr"])
    checked(group["rule"], "rule")
    for name in ("initial_accumulator_value", "eps", "weight_decay"):
        checks.non_negative(name, group[name])
    for name, kind in _ENUMS.items():
        group[name] = kind(group[name])
    starts_at_zero = group["initial_accumulator_value"] == 0 and group["eps"] == 0
    if starts_at_zero and group["accumulate"] is not Accumulate.BEFORE:
        raise ValueError(
            "initial_accumulator_value and eps are both 0; expected one of them above 0, "
            f"since accumulate={group['accumulate'].value!r} divides by the initial value"
        )
    sharding.refuse_sharded("params", group["params"], group.get("param_names", ()))
    for param in group["params"]:
        if not param.is_floating_point():
            raise ValueError(f"params has a parameter of type {param.dtype}; expected real floating-point parameters")
