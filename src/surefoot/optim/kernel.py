"""Adagrad with Clippy on the CPU in one pass over memory: compiled on first use by the machine's own C++ compiler.

The compiled library is kept in ``$XDG_CACHE_HOME/surefoot`` (``~/.cache/surefoot``), named by its source, the
compiler and the processor. Without a compiler nothing is lost but speed.

The kernel rounds as the eager path does, but for torch's vectorised square root, which may be one unit in the last
place away. A layer that clips is stepped whole and then stepped back by (1 - sigma) of its update; since |r| <= 1 when
the accumulator leads, that adds an error of at most two units in the last place of the larger of |w| and the rate.
Where Clippy's absolute bound is below a thousandth of the rate that could be seen, and the kernel measures first.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from array import array
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from surefoot.rules import Clippy, NoClip, Rule

_SOURCE = "optim/kernel.cpp"
# -ffp-contract=off: one rounding where the source says so and nowhere else. The other two flags only say that nobody
# reads errno or traps, without which roots and comparisons are not vectorised.
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)


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
    return compiled(_SOURCE) is not None


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
    library = compiled(_SOURCE)
    assert library is not None
    columns = [array("Q", [x.data_ptr() for x in tensors]) for tensors in lists]
    columns.append(array("q", [x.numel() for x in lists[0]]))
    addresses = [ctypes.c_void_p(column.buffer_info()[0]) for column in columns]
    return getattr(library, function)(ctypes.c_int64(len(lists[0])), *addresses, *more, torch.get_num_threads())


@cache
def compiled(file: str) -> ctypes.CDLL | None:
    """Return the compiled library of a source file of surefoot; None, having said so once, where that cannot be.

    Args:
        file: its path within the package.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    source = (files("surefoot") / file).read_bytes()
    digest = hashlib.sha256(b"\0".join([source, compiler.encode(), *map(str.encode, _FLAGS), _processor()])).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"
    library = folder / f"{Path(file).stem}-{digest[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(
            f"surefoot's C++ kernel is not to be had, the eager path serves: {why}", RuntimeWarning, stacklevel=2
        )
        return None


def _compile(compiler: str, source: bytes, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        text, built = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
        text.write_bytes(source)
        command = [compiler, *_FLAGS, str(text), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.rename(library)  # whole or not there, also when several processes compile at once


def _processor() -> bytes:
    """Return what -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor().encode()
    return "".join(sorted({line for line in text.splitlines() if line.startswith(("flags", "Features"))})).encode()
