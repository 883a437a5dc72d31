"""Adagrad with Clippy on the CPU in one pass over memory: compiled on first use by the machine's own C++ compiler.

The kernel rounds once for the accumulator's product and sum (fma), and once for every other operation. In torch's
operations, the eager path, this depends on the processor: accumulators may differ by one unit in the last place (ulp),
and their roots by one more. From equal states, the unclipped weights of the two paths therefore differ by at most 8 ulp
of the largest of |w| before the step, |w| after it, and the step.

The kernel applies the whole update while it measures; if the layer turns out to clip, it takes back (1 - sigma) of the
update. The result differs from measuring first by at most 6 ulp of M, the larger of |w| and the learning rate: the
accumulator holds the squared gradient already, so |r| <= 1, and every intermediate value is below 2 M. The roundings
add up to at most 4 ulp of M (the step 1/2; w minus the step 1; sigma - 1, its product with r, and this times the rate
1/2 each; the result 1), those of measuring first to 2 (two products 1/2 each, the result 1). A search over 5 million
weights found at most 4. If Clippy's absolute bound is below a thousandth of the learning rate, the difference could
matter, and the kernel measures first.
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
_FUNCTIONS = ("surefoot_nonfinite", "surefoot_clippy_adagrad", "surefoot_clip_changes")


def takes(*tensors: Tensor) -> bool:
    """Return whether the kernel is available and these are plain contiguous float32 tensors on the CPU."""
    if not available():
        return False
    for x in tensors:  # a loop: this runs for every tensor of every step
        if type(x) is not Parameter and type(x) is not Tensor:
            return False
        if x.dtype is not torch.float32 or x.layout is not torch.strided or not x.is_cpu or not x.is_contiguous():
            return False
        if x.is_neg() or (not x.data_ptr() and x.numel()):  # negative bit set, or without memory
            return False
    return True


def available() -> bool:
    """Return whether the kernel works on this machine; the first call compiles it, in about a second."""
    return _library() is not None


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether all numbers are finite, in tensors that the kernel takes."""
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
        grads: of the same shapes; they are only read.
        sums: the accumulators, of the same shapes; they are updated in place.
        lr: the learning rate.
        relative: Clippy's.
        absolute: Clippy's; with inf nothing is clipped.
        eps: added to the root of the accumulator.
        decay: the factor of weight decay, applied to the weights first.
        maximize: maximize the objective instead of minimizing it.
        optimistic: apply the update while measuring, and take a part back in layers that clip; False measures first.
    """
    numbers = map(ctypes.c_float, (lr, relative, absolute, eps, decay, -1.0 if maximize else 1.0))
    ratios = floats(len(weights))
    more = [ctypes.c_void_p(ratios.data_ptr()), *numbers, int(optimistic)]
    _call("surefoot_clippy_adagrad", weights, grads, sums, more=more)
    return ratios


def clip_changes(weights: Sequence[Tensor], olds: Sequence[Tensor], *, relative: float, absolute: float) -> Tensor:
    """Scale the changes from ``olds`` to ``weights`` by Clippy's factors, in place.

    Returns Clippy's measure of each tensor, (tensors,) float32.

    Args:
        weights: tensors that the kernel takes, after a step; those with a factor of 1 do not change.
        olds: the same tensors before the step.
        relative: Clippy's.
        absolute: Clippy's.
    """
    ratios = floats(len(weights))
    more = [ctypes.c_void_p(ratios.data_ptr()), ctypes.c_float(relative), ctypes.c_float(absolute)]
    _call("surefoot_clip_changes", weights, olds, more=more)
    return ratios


def supports(rule: Rule) -> bool:
    """Return whether the kernel implements this rule."""
    return type(rule) is NoClip or (type(rule) is Clippy and not rule.accumulator_relative)


def floats(*shape: int) -> Tensor:
    """Return memory for the kernel to write into: float32 on the CPU, whatever torch's default type and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _call(function: str, *lists: Sequence[Tensor], more: Sequence[object] = ()) -> int:
    """Call a function of the kernel with the number of tensors, the addresses of each list, the sizes, and ``more``."""
    library = _library()
    assert library is not None
    columns = [array("Q", [x.data_ptr() for x in tensors]) for tensors in lists]
    columns.append(array("q", [x.numel() for x in lists[0]]))
    addresses = [ctypes.c_void_p(column.buffer_info()[0]) for column in columns]
    return getattr(library, function)(ctypes.c_int64(len(lists[0])), *addresses, *more, compiled.threads())


def _library() -> ctypes.CDLL | None:
    return compiled.library(_SOURCE, *_FUNCTIONS)
