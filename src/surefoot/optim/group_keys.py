"""Keys of a parameter group that would be ignored although they were meant: refused when the group is given.

A group is a plain dict, and schedulers, trainers and users keep notes of their own in it: ``initial_lr``, ``max_lr``,
``swa_lr``, ``name``, ``lr_scale`` and any other. So a key that is not known stays, but not one that asks for something
which then does not happen: an option of a rule, an option for the optimizer as a whole, one that only other optimizers
have, or a name that is nearly that of an option.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from surefoot.rules import ALL

_OF_RULES = {rule.__name__: tuple(getattr(rule, "__dataclass_fields__", ())) for rule in ALL}  # their options
_OF_THE_WHOLE = ("nonfinite", "fused")
_OF_OTHERS = (  # options of torch's optimizers that change what a step is
    *("momentum", "dampening", "nesterov", "betas", "amsgrad", "momentum_decay", "lr_decay", "rho", "alpha"),
    *("centered", "etas", "step_sizes", "lambd", "t0", "decoupled_weight_decay", "ns_steps", "ns_coefficients"),
)
_ALSO_CALLED = {"learning_rate": "lr", "wd": "weight_decay", "clipping": "rule", "clip": "rule"}


def refuse_ignored(group: Mapping[str, Any], options: Collection[str]) -> None:
    """Refuse a group that has a key which asks for something and would be ignored.

    Args:
        group: as it is given.
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
        if key in _OF_THE_WHOLE and value is not None and value is not False:
            raise ValueError(f"{seen}; expected it as an argument of the optimizer: it is for all groups")
        if key in _OF_OTHERS and value:
            raise ValueError(f"{seen}; expected an option of this optimizer, {', '.join(sorted(options))}")
        near = [_ALSO_CALLED[key]] if key in _ALSO_CALLED else get_close_matches(key, options, n=1, cutoff=0.8)
        if near:
            raise ValueError(f"{seen}; expected {near[0]!r}?")
