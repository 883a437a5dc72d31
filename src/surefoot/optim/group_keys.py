"""Refuses keys of a parameter group that ask for something but would have no effect.

A group is a plain dict, in which schedulers, trainers and users keep entries of their own: ``initial_lr``, ``max_lr``,
``swa_lr``, ``name``, ``lr_scale`` and any other. So unknown keys are allowed, except an option of a rule, an option of
the whole optimizer, an option that only other optimizers have, or a name that is close to that of an option.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from surefoot.rules import ALL

_OF_RULES = {rule.__name__: tuple(getattr(rule, "__dataclass_fields__", ())) for rule in ALL}  # their options
_OF_OPTIMIZER = ("nonfinite", "fused")
_OF_OTHERS = (  # options of torch's optimizers that change a step
    *("momentum", "dampening", "nesterov", "betas", "amsgrad", "momentum_decay", "lr_decay", "rho", "alpha"),
    *("centered", "etas", "step_sizes", "lambd", "t0", "decoupled_weight_decay", "ns_steps", "ns_coefficients"),
)
_ALSO_CALLED = {"learning_rate": "lr", "wd": "weight_decay", "clipping": "rule", "clip": "rule"}


def refuse_ignored(group: Mapping[str, Any], options: Collection[str]) -> None:
    """Refuse a group with a key that asks for something but would have no effect.

    Args:
        group: the group as the user gives it.
        options: the keys that the optimizer reads.

    Raises:
        ValueError: naming the key, its value and what to write.

    >>> refuse_ignored({"params": [], "lr": 0.1, "initial_lr": 0.1, "name": "heads"}, ("params", "lr", "weight_decay"))
    >>> refuse_ignored({"params": [], "weight_dacay": 0.1}, ("params", "lr", "weight_decay"))
    Traceback (most recent call last):
    ValueError: params has a group with weight_dacay=0.1, which no step reads; expected 'weight_decay'?
    """
    for key, value in group.items():
        if key in options:
            continue
        seen = f"params has a group with {key}={value!r}, which no step reads"
        if rules := [f"surefoot.{rule}({key}={value!r})" for rule, keys in _OF_RULES.items() if key in keys]:
            raise ValueError(f"{seen}; expected it in the group's rule: 'rule': {' or '.join(rules)}")
        if key in _OF_OPTIMIZER and value is not None and value is not False:
            raise ValueError(f"{seen}; expected it as an argument of the optimizer, for all groups")
        if key in _OF_OTHERS and value:
            raise ValueError(f"{seen}; expected an option of this optimizer, {', '.join(sorted(options))}")
        near = [_ALSO_CALLED[key]] if key in _ALSO_CALLED else get_close_matches(key, options, n=1, cutoff=0.8)
        if near:
            raise ValueError(f"{seen}; expected {near[0]!r}?")
