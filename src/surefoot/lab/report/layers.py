"""Labels of a ranker's layers in the figures."""

from collections.abc import Sequence
from typing import NamedTuple

PREFIX = "clip_factor/"


class Layer(NamedTuple):
    """A layer in a figure."""

    column: str  # of its clip factors
    label: str
    role: int  # position in the paper's fig. 6, for the colour


def labels(columns: Sequence[str]) -> dict[str, str]:
    """Return the layer's label for each column of clip factors of weights; biases are left out.

    >>> labels(["step", "clip_factor/bottom.layers.0.weight", "clip_factor/bottom.layers.2.weight"])
    {'clip_factor/bottom.layers.0.weight': 'bottom 1', 'clip_factor/bottom.layers.2.weight': 'bottom 2'}
    """
    weights = [c for c in columns if c.startswith(PREFIX) and c.endswith(".weight")]
    counted: dict[str, int] = {}
    found = {}
    for column in weights:
        name = column.removeprefix(PREFIX).removesuffix(".weight")
        if name.startswith("heads."):
            found[column] = f"head {name.removeprefix('heads.')}"
        elif name == "interaction.norm":
            found[column] = "layer norm"
        else:
            kind = _kind(name)
            if kind == name:  # a layer of the user's own model keeps its name
                found[column] = name
                continue
            counted[kind] = counted.get(kind, 0) + 1
            found[column] = f"{kind} {counted[kind]}"
    return found


def named(columns: Sequence[str], measure: str) -> dict[str, str]:
    """Return a label for each layer with a measure: of the weights, or of all parameters if none is called ``weight``.

    >>> named(["step", "clip_ratio/heads.click.weight", "clip_ratio/heads.click.bias", "loss/click"], "clip_ratio")
    {'heads.click.weight': 'head click'}
    >>> named(["clip_ratio/scale"], "clip_ratio")
    {'scale': 'scale'}
    """
    names = [column.removeprefix(f"{measure}/") for column in columns if column.startswith(f"{measure}/")]
    called = labels([PREFIX + name for name in names])
    return {name: called[PREFIX + name] for name in names if PREFIX + name in called} or {name: name for name in names}


def telling(columns: Sequence[str], tasks: Sequence[str]) -> list[Layer]:
    """Return the layers of the paper's fig. 6: first cross layer, first and last bottom layer, heads of the tasks."""
    called = labels(columns)
    cross = [c for c, label in called.items() if label.startswith("cross")]
    bottom = [c for c, label in called.items() if label.startswith(("bottom", "expert"))]
    heads = [[c for c, label in called.items() if label == f"head {task}"] for task in tasks]
    roles = [cross[:1], bottom[:1], bottom[1:][-1:], *heads]
    return [Layer(c, called[c], role) for role, found in enumerate(roles) for c in found]


def _kind(name: str) -> str:
    """Return the kind of a layer, from its name: ``bottom``, ``cross``, ``expert 2, layer``, ``gate``."""
    parts = name.split(".")
    if name.startswith("interaction.layers."):
        return "cross"
    if name.startswith("bottom.experts.") and parts[2].isdigit():
        return f"expert {int(parts[2]) + 1}, layer"
    if name.startswith("bottom.gates."):
        return "gate"
    return "bottom" if name.startswith("bottom.") else name
