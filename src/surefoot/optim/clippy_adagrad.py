"""Adagrad with Clippy: for a whole ranking model, as the paper has it, and as TensorFlow Recommenders has it."""

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
"""Of the accumulator. Not 0: the first step of a coordinate would then have the size of the rate however small its
gradient, rounding noise included, and a squared gradient that underflows would be divided by 0."""


class ClippyAdagrad(Adagrad):
    """Adagrad with Clippy, algorithm 1 of the paper, from an accumulator that is almost empty.

    The thresholds are the paper's. The accumulator's start is not: the paper's 0.1, there to keep Adagrad's first steps
    small, slows every weight whose gradients are small, and with Clippy it is not needed (``benchmarks/two_lines.py``
    has the figures). ``ClippyAdagrad.paper`` has the paper's, ``ClippyAdagrad.tfrs`` those of TensorFlow Recommenders.

    A ranking model's embedding tables are better left unclipped, with a rate of their own: ``for_model`` does that.
    A group may also say so itself: ``{"params": tables, "rule": NoClip(), "lr": 0.1}`` beside clipped groups.

    Args:
        params: parameters or parameter groups, as for ``Adagrad``; a group may also set ``relative`` and ``absolute``.
        lr: the learning rate.
        relative: Clippy's bound on a weight's change relative to itself.
        absolute: Clippy's bound in units of the weight.
        initial_accumulator_value: the accumulator's start. Above 0, so that a first gradient that is mere rounding
            noise does not move its weight by the whole rate.
        eps: added to the root of the accumulator; 0 in the paper.
        weight_decay: decoupled, outside the bound.
        maximize: go up the gradient instead of down.
        nonfinite: what happens when a gradient is NaN or infinite; by default the step is skipped.
        fused: True, False, or None: where it can be had; see ``Adagrad``.

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
        """Add a group; its ``relative``, ``absolute`` and ``accumulator_relative`` are of its own Clippy.

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
        """Return one for a whole ranking model: embedding tables apart, in a group of their own.

        As in the paper, tables are not clipped and have their own rate, and all other layers are clipped. Both start
        from the same almost empty accumulator, in one optimizer: one step, one state dict, one decision on gradients
        that are not finite. Sparse and dense gradients may stand side by side.

        Args:
            model: the model, after whatever replaces its parameters.
            lr: the rate of all that is no embedding table.
            embedding_lr: the rate of the embedding tables. Unlike ``lr`` it is not bounded by a rule.
            tables: name patterns of embedding tables beside those that are told by their module's class, as for
                ``parameter_groups``: ``("*.lookup",)``.
            relative: Clippy's bound on a weight's change relative to itself.
            absolute: Clippy's bound in units of the weight.
            initial_accumulator_value: the accumulator's start.
            weight_decay: of all that is no table; decoupled, outside the bound.
            nonfinite: what happens when a gradient is NaN or infinite; by default the step is skipped.

        Raises:
            TypeError: if the model is none, or a pattern is neither a glob nor a compiled regular expression.
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
        """Return one with all of the paper's values, its accumulator's start of 0.1 included.

        Args:
            params: parameters or parameter groups.
            lr: the learning rate.
            relative: Clippy's bound on a weight's change relative to itself.
            absolute: Clippy's bound in units of the weight.
            initial_accumulator_value: the accumulator's start.
            nonfinite: what happens when a gradient is NaN or infinite; by default the step is skipped.

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
            eps: ``epsilon`` there, likewise held in float32: give ``float(numpy.float32(1e-7))`` to follow it to the
                last digit with float64 weights.
            accumulate: ``"before"`` is ``use_standard_accumulator_update=True`` there, ``"after_clipped"`` is
                ``clip_accumulator_update=True``.
            weight_decay: decoupled, outside the bound.
            nonfinite: ``"propagate"`` is what happens there.

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
