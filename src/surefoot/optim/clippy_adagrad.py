"""Adagrad with Clippy: the paper's algorithm 1, and the semantics of TensorFlow Recommenders."""

from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor

from surefoot.optim.adagrad import Adagrad
from surefoot.optim.eager import Accumulate, Epsilon
from surefoot.optim.nonfinite import NonFinite
from surefoot.rules import Clippy


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
        initial_accumulator_value: float = 0.1,
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
            eps: ``epsilon`` there.
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
