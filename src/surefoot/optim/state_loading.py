"""Loads a saved state into ``surefoot.Adagrad``; refuses one that does not fit, with the reason."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FOREIGN = ("lr_decay", "foreach", "differentiable", "fused")  # options that only torch.optim.Adagrad has


def load(optimizer: Optimizer, load_state_dict: Callable[[dict[str, Any]], object], state_dict: dict[str, Any]) -> None:
    """Load a state by torch's ``load_state_dict``; its hooks may change the state first. Accumulators keep their type.

    Raises:
        ValueError: naming what does not fit after the hooks have changed the state.
    """
    if not isinstance(state_dict, dict):
        raise ValueError(f"state_dict is a {type(state_dict).__name__}; expected a dict, as state_dict() returns it")
    final: dict[str, Any] = {}

    def merge(_: Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
        groups = merged_groups(adapted, optimizer.param_groups)
        final.update(adapted)
        return {"state": adapted["state"], "param_groups": groups}

    hooks = [
        optimizer.register_load_state_dict_pre_hook(merge),  # after the user's hooks
        optimizer.register_load_state_dict_post_hook(lambda _: restore_types(optimizer, final), prepend=True),
    ]
    try:
        load_state_dict(state_dict)
    finally:
        for hook in hooks:
            hook.remove()


def merged_groups(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups to load: saved options replace constructed ones; rules stay as constructed.

    Args:
        state_dict: as saved by ``surefoot.Adagrad`` or ``torch.optim.Adagrad``.
        groups: the optimizer's present groups.

    Raises:
        ValueError: naming what does not fit.
    """
    if not (isinstance(state_dict, dict) and {"state", "param_groups"} <= state_dict.keys()):
        raise ValueError(f"state_dict has the keys {sorted(state_dict)}; expected 'state' and 'param_groups'")
    for state in state_dict["state"].values():
        if not state.keys() == {"step", "sum"}:
            raise ValueError(
                f"state_dict holds {', '.join(sorted(state)) or 'nothing'} for a parameter; expected step and sum: "
                "the state of surefoot.Adagrad or torch.optim.Adagrad"
            )
    saved = state_dict["param_groups"]
    sizes = [[len(group["params"]) for group in several] for several in (saved, groups)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"state_dict has groups of {sizes[0]} parameters; expected {sizes[1]}, as constructed")
    return [_merged(old, new, i) for i, (old, new) in enumerate(zip(saved, groups, strict=True))]


def _merged(saved: dict[str, Any], present: dict[str, Any], index: int) -> dict[str, Any]:
    if "rule" not in saved:  # saved by torch.optim.Adagrad
        for name in ("weight_decay", "lr_decay"):
            if saved.get(name):
                raise ValueError(
                    f"state_dict's group {index} has {name}={saved[name]}, which torch.optim.Adagrad "
                    f"{'adds to the gradient' if name == 'weight_decay' else 'applies to the rate'}; expected 0: "
                    "surefoot.Adagrad has decoupled weight decay and leaves the rate to a scheduler"
                )
        saved = {key: value for key, value in saved.items() if key not in _FOREIGN}
    elif saved["rule"] != repr(present["rule"]):
        raise ValueError(
            f"state_dict's group {index} was saved under {saved['rule']}; expected {present['rule']!r}, as constructed "
            "(to change the rule, set the group's 'rule' in the state_dict to the new one's repr)"
        )
    return present | saved | {"rule": present["rule"]}


def restore_types(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Restore the numbers and the type of every accumulator: torch has cast them to the weights' type."""
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, param in zip(saved, params, strict=True):
        if key in state_dict["state"]:
            state, old = optimizer.state[param], state_dict["state"][key]
            state["sum"] = _like(old["sum"], param).clone(memory_format=torch.preserve_format)
            step = (
                old["step"]
                if isinstance(old["step"], Tensor)
                else torch.tensor(float(old["step"]), dtype=torch.float32, device="cpu")
            )
            state["step"] = step.to(device=param.device, dtype=torch.float32).clone()


def _like(total: Tensor, param: Tensor) -> Tensor:
    wide = torch.promote_types(total.dtype, torch.float32)
    return total.to(device=param.device, dtype=wide)
