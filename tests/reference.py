"""Eq. (5) and its factors once more, as slow float64 loops to be read beside the paper.

Nothing of the library is used here. Arguments are float64 arrays of finite numbers of any shape; the letters are
those of Tang et al., arXiv:2302.09178: weight w, gradient g, update r, accumulator G, factor sigma.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def norm(x: Array) -> float:
    """Return the L2 norm."""
    total = 0.0
    for value in x.flat:
        total += float(value) ** 2
    return math.sqrt(total)


def at_most_one(numerator: float, denominator: float) -> float:
    """Return min(1, numerator / denominator), and 1 where there is nothing to clip."""
    return 1.0 if denominator == 0.0 else min(1.0, numerator / denominator)


def naive() -> float:
    """sigma = 1."""
    return 1.0


def gradient_clip(g: Array, *, threshold: float) -> float:
    """sigma = min(1, lambda / ||g||), eq. (2)."""
    return at_most_one(threshold, norm(g))


def global_gradient_clip(gradients: Sequence[Array], *, threshold: float) -> float:
    """sigma = min(1, tau / ||g||) over the gradients of all parameters as one vector."""
    total = 0.0
    for g in gradients:
        total += norm(g) ** 2
    return at_most_one(threshold, math.sqrt(total))


def adaptive_gradient_clip(w: Array, g: Array, *, threshold: float, floor: float) -> float:
    """sigma = min(1, lambda max(||w||, floor) / ||g||), eq. (3) with the floor of the authors' code."""
    return at_most_one(threshold * max(norm(w), floor), norm(g))


def adaptive_gradient_clip_by_unit(w: Array, g: Array, *, threshold: float, floor: float, unit_dims: int) -> Array:
    """The same for each output unit: one sigma for each index of the leading ``unit_dims`` dimensions."""
    if w.ndim <= unit_dims:  # no dimension left within a unit
        return np.array(adaptive_gradient_clip(w, g, threshold=threshold, floor=floor))
    sigma = np.empty(w.shape[:unit_dims])
    for unit in np.ndindex(*sigma.shape):
        sigma[unit] = adaptive_gradient_clip(w[unit], g[unit], threshold=threshold, floor=floor)
    return sigma


def trust_ratio(w: Array, r: Array, *, scale: float) -> float:
    """sigma = mu ||w|| / ||r||; 1 where either is zero."""
    if norm(w) == 0.0 or norm(r) == 0.0:
        return 1.0
    return scale * norm(w) / norm(r)


def clippy(
    w: Array, g: Array, r: Array, lr: float, *, relative: float, absolute: float, accumulator_relative: float = 0.0
) -> float:
    """sigma = min(1, min_i (lambda_rel |w_i| + lambda_abs) / (lr |r_i|)), algorithm 1.

    The third term is that of TensorFlow Recommenders, times 1 / sqrt(G_i) = |r_i / g_i|.
    """
    sigma = 1.0
    for w_i, g_i, r_i in zip(w.flat, g.flat, r.flat, strict=True):
        if lr * abs(r_i) == 0.0:  # what does not move never constrains
            continue
        bound = relative * abs(w_i) + absolute
        if accumulator_relative:
            bound += accumulator_relative * abs(r_i / g_i)
        sigma = min(sigma, float(bound / (lr * abs(r_i))))
    return sigma


Sigma = Callable[[Array, Array, Array, float], float | Array]
"""sigma(w, g, r, lr), one number or one for each index of the leading dimensions."""


def adagrad_step(
    w: Array,
    g: Array,
    G: Array,
    *,
    lr: float,
    sigma: Sigma,
    eps: float = 0.0,
    eps_inside: bool = False,
    accumulate: str = "before",
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Take one step of eq. (5) and return (w, G, sigma).

    ``accumulate`` says when G takes in the squared gradient: "before" the step (the paper), "after" it, or
    "after_clipped", with sigma * g in place of g.
    """
    w, G, r = w.copy(), G.copy(), np.zeros_like(w)
    for i in np.ndindex(*w.shape):
        w[i] -= lr * weight_decay * w[i]  # decoupled: outside the bound
        if accumulate == "before":
            G[i] += g[i] ** 2
        denominator = math.sqrt(G[i] + eps) if eps_inside else math.sqrt(G[i]) + eps
        r[i] = 0.0 if g[i] == 0.0 else g[i] / denominator
    factor = np.asarray(sigma(w, g, r, lr))
    for i in np.ndindex(*w.shape):
        sigma_i = factor[i[: factor.ndim]]
        w[i] -= lr * sigma_i * r[i]
        if accumulate == "after":
            G[i] += g[i] ** 2
        elif accumulate == "after_clipped":
            G[i] += (sigma_i * g[i]) ** 2
    return w, G, factor
