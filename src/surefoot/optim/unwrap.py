"""Takes the wrappers of other libraries off optimizers and models."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from surefoot.optim.sharding import refuse_sharded, refuse_zero

# the class name of each wrapper, which is not imported here, and its attribute with the optimizer that runs step hooks
_WITHIN = {
    "AcceleratedOptimizer": "optimizer",  # accelerate, hence Hugging Face's Trainer
    "LightningOptimizer": "_optimizer",  # Lightning's, under manual optimization
    "_FabricOptimizer": "_optimizer",
    "KeyedOptimizerWrapper": "_optimizer",  # TorchRec's
    "OptimizerWrapper": "_optimizer",  # of warm-up and gradient clipping
    "CombinedOptimizer": "_optims",  # several, each with its key
}

_MODEL_WITHIN = {
    "DistributedDataParallel": "module",  # accelerate's too
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile's
    "_FabricModule": "module",
}


def unwrapped(optimizers: Optimizer | Iterable[Optimizer], name: str = "optimizers") -> list[Optimizer]:
    """Return the optimizers that take the steps, without the wrappers of accelerate, Lightning and TorchRec.

    A wrapper passes a step on to an optimizer of torch. Step hooks run on that optimizer, not on the wrapper.

    Args:
        optimizers: one or several, wrapped or not.
        name: the name of the argument, for the messages.

    Raises:
        TypeError: if an object is not an optimizer; if its step runs no hooks, as in unknown libraries or where
            TorchRec or FBGEMM fuses it with the backward pass; or if parameters are split among processes.

    >>> import torch
    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    >>> unwrapped(optimizer) == unwrapped([optimizer]) == [optimizer]
    True
    """
    several = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    found = [each for optimizer in several for each in _within(optimizer, name)]
    for optimizer in found:
        for group in optimizer.param_groups:
            refuse_sharded(name, group["params"], group.get("param_names", ()))
    return found


def unwrapped_model(model: nn.Module) -> nn.Module:
    """Return the model within the wrappers of torch (``DistributedDataParallel``, ``compile``), and of Fabric.

    >>> inner = nn.Linear(1, 1)
    >>> unwrapped_model(nn.DataParallel(inner)) is inner
    True
    """
    while (place := _MODEL_WITHIN.get(type(model).__name__)) is not None:
        model = getattr(model, place)
    return model


def in_backward(model: nn.Module) -> list[Optimizer]:
    """Return the optimizers that step within the backward pass, one for each parameter that has one.

    ``torch.distributed.optim._apply_optimizer_in_backward``, and so TorchRec's ``apply_optimizer_in_backward``, store
    them as an attribute of the parameter.
    """
    return [each for param in model.parameters() for each in getattr(param, "_in_backward_optimizers", ())]


def with_in_backward(model: nn.Module, optimizers: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    """Return the optimizers, unwrapped, and after them those of the model that step within the backward pass."""
    own = unwrapped(optimizers)
    return own + [each for each in in_backward(model) if each not in own]


def load_in_place(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state into its present ``state`` and group objects.

    ``load_state_dict`` replaces these objects, and a wrapper that holds them would keep the old ones. Entries that
    belong to no parameter, such as the position of TorchRec's warm-up, do not change.
    """
    mine, groups = optimizer.state, optimizer.param_groups
    params = {param for group in groups for param in group["params"]}
    others = {key: value for key, value in mine.items() if key not in params}
    optimizer.load_state_dict(dict(state))
    loaded = {**optimizer.state, **others}
    mine.clear()
    mine.update(loaded)
    for group, new in zip(groups, optimizer.param_groups, strict=True):
        new = dict(new)
        group.clear()
        group.update(new)
    optimizer.state, optimizer.param_groups = mine, groups


def own_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return ``state_dict()`` without entries that belong to no parameter, on which torch would raise."""
    params = {param for group in optimizer.param_groups for param in group["params"]}
    others = {key: optimizer.state.pop(key) for key in list(optimizer.state) if key not in params}
    try:
        return optimizer.state_dict()
    finally:
        optimizer.state.update(others)


def _within(optimizer: object, name: str) -> list[Optimizer]:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name} has {optimizer!r}; expected torch.optim.Optimizer objects")
    refuse_zero(name, optimizer)
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    place = next((_WITHIN[kind] for kind in kinds if kind in _WITHIN), None)
    if place is not None:
        inner = getattr(optimizer, place)
        inner = [each for _, each in inner] if isinstance(inner, list) else [inner]
        return [found for each in inner for found in _within(each, name)]
    if not getattr(type(optimizer).step, "hooked", False):  # torch marks classes whose step runs hooks
        raise TypeError(
            f"{name} has a {kinds[0]}, whose step runs no hooks; expected an optimizer of torch, or one in a wrapper "
            "of accelerate, Lightning or TorchRec: give the optimizer that it wraps, or leave it out"
        )
    return [optimizer]
