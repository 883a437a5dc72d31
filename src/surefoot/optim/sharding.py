"""Refuses parameters and optimizer states that are split among processes.

A rule's factor needs the whole layer, and the decision to skip a step needs all gradients. With only a part of them, a
process would compute wrong factors without any error. Under ``DistributedDataParallel`` every rank has the whole model
and computes the same factors and decisions.
"""

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_INSTEAD = "surefoot works on whole parameters, alike on every rank; use DistributedDataParallel"
_ZERO = "ZeroRedundancyOptimizer"


def refuse_sharded(where: str, params: Iterable[Tensor], names: Iterable[str] = ()) -> None:
    """Refuse parameters of which a process has only a part.

    Args:
        where: the argument that holds them, for the message.
        params: the parameters.
        names: the parameters' names, if known.

    Raises:
        TypeError: naming the first of them.
    """
    named = list(names)
    for i, param in enumerate(params):
        how = _how_sharded(param)
        if how:
            called = repr(named[i]) if i < len(named) else f"a parameter of shape {tuple(param.shape)}"
            raise TypeError(f"{where} has {called}, which {how} splits among processes; {_INSTEAD}")


def refuse_zero(where: str, optimizer: Optimizer) -> None:
    """Refuse ``ZeroRedundancyOptimizer``, under which each process steps only some of the parameters.

    Raises:
        TypeError: saying what to use.
    """
    if any(kind.__name__ == _ZERO for kind in type(optimizer).__mro__):
        raise TypeError(f"{where} has a {_ZERO}, which splits the parameters among processes; {_INSTEAD}")


def refuse_within_zero(called: str) -> None:
    """Refuse to be constructed within the constructor of a ``ZeroRedundancyOptimizer``.

    Raises:
        TypeError: saying what to use.
    """
    zero = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame: Any = sys._getframe(1) if zero is not None else None
    while frame is not None:
        if frame.f_code.co_filename == getattr(zero, "__file__", None):
            raise TypeError(f"optimizer_class is {called} in a {_ZERO}, which splits the parameters; {_INSTEAD}")
        frame = frame.f_back


def _how_sharded(param: Tensor) -> str:
    if hasattr(param, "device_mesh"):
        return f"{type(param).__name__} (FSDP2 or tensor parallelism)"
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        return "FullyShardedDataParallel"
    return "TorchRec" if type(param).__name__ == "ShardedTensor" else ""
