"""Adagrad with Clippy: with our defaults, for a whole ranking model, as in the paper, as in TensorFlow Recommenders."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, Self

from torch import Tensor, nn

from surefoot.optim.adagrad import Adagrad
from surefoot.optim.eager import Accumulate, Epsilon
from surefoot.optim.groups import NamePattern, parameter_groups
from surefoot.optim.nonfinite import NonFinite
from surefoot.rules import Clippy, NoClip

START = 1e-6
"""The accumulator's initial value. From 0, the first step of a coordinate would have the size of the learning rate
however small its gradient, even for rounding noise, and a gradient whose square underflows would be divided by 0."""


class ClippyAdagrad(Adagrad):
    """Adagrad with Clippy, algorithm 1 of the paper, with an initial accumulator value near 0.

    The thresholds are the paper's; the initial accumulator value is not. The paper's 0.1 keeps Adagrad's first steps
    small, but slows every weight whose gradients are small. Clippy makes it unnecessary (``benchmarks/two_lines.py``
    has the figures). ``ClippyAdagrad.paper`` has all of the paper's values, ``ClippyAdagrad.tfrs`` those of TensorFlow
    Recommenders.

    A ranking model's embedding tables train better unclipped and with their own learning rate: use ``for_model``, or
    give the tables a group of their own: ``{"params": tables, "rule": NoClip(), "lr": 0.1}``.

    Args:
        params: parameters or parameter groups, as for ``Adagrad``; a group may also set ``relative`` and ``absolute``.
        lr: the learning rate.
        relative: Clippy's bound on a weight's change relative to itself.
        absolute: Clippy's bound in units of the weight.
        initial_accumulator_value: the accumulator's initial value. It is above 0, so that a first gradient that is only
            rounding noise does not change its weight by the whole learning rate.
        eps: added to the root of the accumulator; 0 in the paper.
        weight_decay: decoupled, outside the bound.
        maximize: maximize the objective instead of minimizing it.
        nonfinite: what to do when a gradient is NaN or infinite; by default the step is skipped.
        fused: whether to use the C++ kernel; see ``Adagrad``.

    Raises:
        ValueError: if an option is out of range, naming it and the value.

    >>> import torch
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
        initial_accumulator_value: float = START,
        eps: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            rule=Clippy(relative=relative, absolute=absolute),
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            nonfinite=nonfinite,
            fused=fused,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``relative``, ``absolute`` and ``accumulator_relative`` set a Clippy for this group.

        Raises:
            ValueError: if it has a rule as well, or an option is out of range.
        """
        names = [each.name for each in fields(Clippy)]
        bounds = {key: param_group[key] for key in names if key in param_group} if isinstance(param_group, dict) else {}
        if bounds:
            if "rule" in param_group:
                raise ValueError(f"params has a group with a rule and {', '.join(bounds)}; expected one of the two")
            rest = {key: value for key, value in param_group.items() if key not in bounds}
            param_group = {**rest, "rule": replace(self.defaults["rule"], **bounds)}
        super().add_param_group(param_group)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor,
        *,
        embedding_lr: float | Tensor = 0.1,
        tables: Sequence[NamePattern] = (),
        relative: float = 0.5,
        absolute: float = 1e-2,
        initial_accumulator_value: float = START,
        weight_decay: float = 0.0,
        nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
    ) -> Self:
        """Return an optimizer for a whole ranking model, with the embedding tables in a group of their own.

        As in the paper, tables are not clipped and have their own learning rate, and all other layers are clipped. Both
        have the same initial accumulator value. One optimizer holds both: one step, one state dict, and a non-finite
        gradient anywhere skips the step for both. Sparse and dense gradients can be mixed.

        Args:
            model: the model, after any call that replaces its parameters (``to_empty``).
            lr: the learning rate of all parameters but the embedding tables.
            embedding_lr: the learning rate of the embedding tables; no rule bounds their steps.
            tables: name patterns of further embedding tables, which their module's class does not show, as in
                ``parameter_groups``: ``("*.lookup",)``.
            relative: Clippy's bound on a weight's change relative to itself.
            absolute: Clippy's bound in units of the weight.
            initial_accumulator_value: the accumulator's initial value.
            weight_decay: of all parameters but the tables; decoupled, outside the bound.
            nonfinite: what to do when a gradient is NaN or infinite; by default the step is skipped.

        Raises:
            TypeError: if ``model`` is not a module, or a pattern is neither a glob nor a compiled regular expression.
            ValueError: if a number is out of range, or a pattern matches no parameter, naming the closest name.

        >>> model = nn.Sequential(nn.EmbeddingBag(100, 4, sparse=True), nn.Linear(4, 1))
        >>> optimizer = ClippyAdagrad.for_model(model, lr=0.1)
        >>> [(group["param_names"], type(group["rule"]).__name__, group["lr"]) for group in optimizer.param_groups]
        [(['1.weight', '1.bias'], 'Clippy', 0.1), (['0.weight'], 'NoClip', 0.1)]
        """
        groups = parameter_groups(
            model,
            lr=lr,
            embedding_lr=embedding_lr,
            embedding_rule=NoClip(),
            weight_decay=weight_decay,
            tables=tables,
        )
        return cls(
            groups.all,
            lr,
            relative=relative,
            absolute=absolute,
            initial_accumulator_value=initial_accumulator_value,
            nonfinite=nonfinite,
        )

    @classmethod
    def paper(
        cls,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        relative: float = 0.5,
        absolute: float = 1e-2,
        initial_accumulator_value: float = 0.1,
        nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
    ) -> Self:
        """Return an optimizer with all of the paper's values, the initial accumulator value of 0.1 included.

        Args:
            params: parameters or parameter groups.
            lr: the learning rate.
            relative: Clippy's bound on a weight's change relative to itself.
            absolute: Clippy's bound in units of the weight.
            initial_accumulator_value: the accumulator's initial value.
            nonfinite: what to do when a gradient is NaN or infinite; by default the step is skipped.

        Raises:
            ValueError: if an option is out of range, naming it and the value.

        Reference: algorithm 1 and section 5 of J. Tang et al., arXiv:2302.09178.
        """
        return cls(
            params,
            lr,
            relative=relative,
            absolute=absolute,
            initial_accumulator_value=initial_accumulator_value,
            nonfinite=nonfinite,
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
        nonfinite: NonFinite | str = NonFinite.SKIP_STEP,
    ) -> Self:
        """Return an optimizer that follows TensorFlow Recommenders (TFRS) step for step, with its defaults.

        TFRS differs from the paper: the accumulator is updated after the step, epsilon is inside the root, and the
        default bounds are so tight that a wide layer hardly changes (a factor near 1e-5 for a 512 x 512 layer).

        Args:
            params: parameters or parameter groups.
            lr: the learning rate; TFRS holds it in float32.
            relative: ``variable_relative_threshold`` in TFRS.
            absolute: ``absolute_threshold`` in TFRS.
            accumulator_relative: ``accumulator_relative_threshold`` in TFRS.
            initial_accumulator_value: the accumulator's initial value.
            eps: ``epsilon`` in TFRS, held in float32 too: pass ``float(numpy.float32(1e-7))`` for equal results to the
                last digit with float64 weights.
            accumulate: ``"before"`` is ``use_standard_accumulator_update=True`` in TFRS, ``"after_clipped"`` is
                ``clip_accumulator_update=True``.
            weight_decay: decoupled, outside the bound.
            nonfinite: TFRS behaves as ``"propagate"``.

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
            nonfinite=nonfinite,
        )
        return optimizer
