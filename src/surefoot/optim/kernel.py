"""Adagrad with Clippy on the CPU in one pass over memory: compiled on first use by the machine's own C++ compiler.

The kernel rounds the accumulator's product and sum together, every other operation alone. torch's own operations, which
are the eager path, do so as the processor has it, so that accumulators may be one unit in the last place (ulp) apart,
and take square roots that may be one more away. From equal states, the two paths' unclipped weights therefore differ by
at most 8 ulp of the largest of |w| before, |w| after, and the step.

A layer that clips is stepped whole and then stepped back by (1 - sigma) of its update. Beside measuring first, that
differs by at most 6 ulp of M, the larger of |w| and the rate. Since |r| <= 1 when the accumulator leads, everything
between lies below 2 M, and the roundings are at most 4 ulp of M (the step 1/2, w less the step 1, sigma - 1, its
product with r and that with the rate 1/2 each, the result 1), and 2 of measuring first (the products 1/2 each, the
result 1). A search over 5 million weights has found 4. Where Clippy's absolute bound is below a thousandth of the rate
that could be seen, and the kernel measures first.
"""

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from surefoot.optim import compiled
from surefoot.rules import Clippy, NoClip, Rule

_SOURCE = "optim/kernel.cpp"
_FUNCTIONS = ("surefoot_nonfinite", "surefoot_clippy_adagrad", "surefoot_clip_moves")


def takes(*tensors: Tensor) -> bool:
    """Return whether the kernel can be had and these are plain contiguous float32 tensors in the CPU's memory."""
    if not available():
        return False
    for x in tensors:  # a loop: this runs for every tensor of every step
        if type(x) is not Parameter and type(x) is not Tensor:
            return False
        if x.dtype is not torch.float32 or x.layout is not torch.strided or not x.is_cpu or not x.is_contiguous():
            return False
        if x.is_neg() or (not x.data_ptr() and x.numel()):  # its memory is not its value, or is not there
            return False
    return True


def available() -> bool:
    """Return whether the kernel can be had on this machine; the first call compiles it, in about a second."""
    return _library() is not None


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no number of the tensors, which the kernel takes, is NaN or infinite."""
    return not _call("surefoot_nonfinite", tensors)


def clippy_adagrad(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    sums: Sequence[Tensor],
    *,
    lr: float,
    relative: float,
    absolute: float,
    eps: float,
    decay: float,
    maximize: bool,
    optimistic: bool,
) -> Tensor:
    """Take one step on all tensors, in place; return Clippy's measure of each, (tensors,) float32.

    Args:
        weights: tensors that the kernel takes.
        grads: of the same shapes, left as they are.
        sums: the accumulators, likewise.
        lr: the learning rate.
        relative: Clippy's.
        absolute: Clippy's; with inf nothing is clipped.
        eps: added to the root of the accumulator.
        decay: what the weights are multiplied by first.
        maximize: go up the gradient.
        optimistic: apply while measuring and step back where it clips, instead of measuring first.
    """
    numbers = map(ctypes.c_float, (lr, relative, absolute, eps, decay, -1.0 if maximize else 1.0))
    ratios = floats(len(weights))
    more = [ctypes.c_void_p(ratios.data_ptr()), *numbers, int(optimistic)]
    _call("surefoot_clippy_adagrad", weights, grads, sums, more=more)
    return ratios


def clip_moves(weights: Sequence[Tensor], olds: Sequence[Tensor], *, relative: float, absolute: float) -> Tensor:
    """Take the moves from ``olds`` to ``weights`` back, in place, as far as Clippy bounds them.

    Returns Clippy's measure of each tensor, (tensors,) float32.

    Args:
        weights: tensors that the kernel takes, after a step; those of factor 1 stay as they are, bit for bit.
        olds: the same before the step.
        relative: Clippy's.
        absolute: Clippy's.
    """
    ratios = floats(len(weights))
    more = [ctypes.c_void_p(ratios.data_ptr()), ctypes.c_float(relative), ctypes.c_float(absolute)]
    _call("surefoot_clip_moves", weights, olds, more=more)
    return ratios


def fits(rule: Rule) -> bool:
    """Return whether the kernel does what this rule says, and all of it."""
    return type(rule) is NoClip or (type(rule) is Clippy and not rule.accumulator_relative)


def floats(*shape: int) -> Tensor:
    """Return memory for the kernel to write into: float32 on the CPU, whatever torch's default type and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _call(function: str, *lists: Sequence[Tensor], more: Sequence[object] = ()) -> int:
    """Call the kernel on lists of tensors: their number, a list of addresses for each list, their sizes, the rest."""
    library = _library()
    assert library is not None
    columns = [array("Q", [x.data_ptr() for x in tensors]) for tensors in lists]
    columns.append(array("q", [x.numel() for x in lists[0]]))
    addresses = [ctypes.c_void_p(column.buffer_info()[0]) for column in columns]
    return getattr(library, function)(ctypes.c_int64(len(lists[0])), *addresses, *more, compiled.threads())


def _library() -> ctypes.CDLL | None:
    return compiled.library(_SOURCE, *_FUNCTIONS)
