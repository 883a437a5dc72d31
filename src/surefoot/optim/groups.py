"""Parameter groups by name: learning rate, weight decay and rule of each layer; tables in groups of their own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from surefoot import checks
from surefoot.optim.embedding_tables import embedding_tables
from surefoot.optim.sharding import refuse_sharded
from surefoot.rules import Rule, checked

NamePattern = str | re.Pattern[str]
"""A glob, in which ``*`` crosses dots too, or a compiled regular expression; both must match the whole name."""


class NamedParameter(NamedTuple):
    """A parameter and its names; a tied parameter has more than one."""

    param: nn.Parameter
    names: tuple[str, ...]


@dataclass(frozen=True)
class GroupSpec:
    """Options for the parameters that match a name pattern, in place of the defaults.

    Args:
        pattern: a glob such as ``"bottom.*.weight"``, or a compiled regular expression, matched against the whole
            name of the parameter; ``*`` crosses dots too.
        lr_multiplier: multiplies the parameter's learning rate, after the depth decay.
        weight_decay: replaces the default; None keeps it.
        rule: replaces the default; None keeps it.

    Raises:
        TypeError: if the pattern is neither a string nor a compiled regular expression, or ``rule`` is not a rule.
        ValueError: if the multiplier or the weight decay is negative or not finite.

    >>> GroupSpec("heads.*", lr_multiplier=0.1)
    GroupSpec(pattern='heads.*', lr_multiplier=0.1, weight_decay=None, rule=None)
    """

    pattern: NamePattern
    lr_multiplier: float = 1.0
    weight_decay: float | None = None
    rule: Rule | None = None

    def __post_init__(self) -> None:
        _check_pattern("pattern", self.pattern)
        _check_number("lr_multiplier", self.lr_multiplier)
        if self.weight_decay is not None:
            _check_number("weight_decay", self.weight_decay)
        if self.rule is not None:
            checked(self.rule, "rule")


@dataclass(frozen=True)
class Assignment:
    """The options of one parameter, and the patterns that match it."""

    name: str
    param: nn.Parameter = field(repr=False, compare=False)
    embedding: bool
    options: dict[str, Any]  # lr and, where set, weight_decay, rule and initial_accumulator_value
    layers_above: int  # the power of the depth decay
    patterns: tuple[NamePattern, ...]  # that match the name; the first one applies


@dataclass(frozen=True)
class ParameterGroups:
    """A model's trainable parameters in groups. ``print`` shows them as a table.

    ``dense``, ``embedding`` and ``all`` return new dicts each time, since an optimizer writes its defaults into them.

    Args:
        assignments: one for each trainable parameter, in the model's order.
        frozen: names of the parameters that require no gradient; they are in no group.
    """

    assignments: tuple[Assignment, ...]
    frozen: tuple[str, ...]

    @property
    def dense(self) -> list[dict[str, Any]]:
        """Groups of all parameters but the embedding tables, for any torch optimizer."""
        return self._groups(embedding=False)

    @property
    def embedding(self) -> list[dict[str, Any]]:
        """Groups of the embedding tables, for an optimizer of their own; empty if there are none."""
        return self._groups(embedding=True)

    @property
    def all(self) -> list[dict[str, Any]]:
        """All groups, the dense ones first, for one optimizer that reads a group's ``rule``: ``surefoot.Adagrad``."""
        return self.dense + self.embedding

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Names that no pattern matches: these parameters have the default options."""
        return tuple(a.name for a in self.assignments if not a.patterns)

    @property
    def doubly_matched(self) -> dict[str, tuple[NamePattern, ...]]:
        """Names that several patterns match, with these patterns; the first one applies."""
        return {a.name: a.patterns for a in self.assignments if len(a.patterns) > 1}

    def _groups(self, *, embedding: bool) -> list[dict[str, Any]]:
        parts: dict[object, list[Assignment]] = {}
        for each in self.assignments:
            if each.embedding is embedding:
                parts.setdefault((each.patterns[:1], each.layers_above), []).append(each)
        return [_group(part) for part in parts.values()]

    def __str__(self) -> str:
        rows = [("parameter", "kind", "lr", "weight_decay", "rule", "pattern", "also matched by")]
        for a in self.assignments:
            decay, rule = (str(a.options.get(option, "-")) for option in ("weight_decay", "rule"))
            pattern, *also = map(_show, a.patterns) if a.patterns else ("-",)
            kind = "embedding" if a.embedding else "dense"
            rows.append((a.name, kind, f"{float(a.options['lr']):g}", decay, rule, pattern, ", ".join(also)))
        rows += [(name, "frozen", "-", "-", "-", "-", "") for name in self.frozen]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float | Tensor,
    embedding_lr: float | Tensor | None = None,
    embedding_rule: Rule | None = None,
    embedding_initial_accumulator_value: float | None = None,
    tables: Sequence[NamePattern] = (),
    weight_decay: float | None = None,
    rule: Rule | None = None,
    overrides: Sequence[GroupSpec] = (),
    depth_decay: float | None = None,
    layers: Sequence[NamePattern] | None = None,
) -> ParameterGroups:
    r"""Sort a model's parameters into groups by name, with the embedding tables in groups of their own.

    The learning rate of a parameter in layer k of n, counted from the bottom, is

    .. math:: lr \cdot depth\_decay^{\,n-1-k} \cdot lr\_multiplier

    The groups work in ``surefoot.Adagrad``, ``surefoot.ClippyAdagrad`` and every torch optimizer. The learning rate of
    a group overrides the optimizer's. An option that is None is not set in the groups, and the optimizer's default
    applies. Group dicts hold ``params``, ``param_names``, ``lr`` and, if set, ``weight_decay``, ``rule`` and
    ``initial_accumulator_value``; torch's own optimizers ignore the last two (``torch.optim.Adagrad`` takes the initial
    value as an argument, for all groups).

    Embedding tables (``nn.Embedding``, ``nn.EmbeddingBag``, TorchRec's ``EmbeddingBagCollection`` and
    ``EmbeddingCollection``, with sparse or dense gradients, also as members of a ``ModuleDict``) are recognised by
    their module's class, others by ``tables``. They get groups of their own: for a separate optimizer or, with an
    ``embedding_rule``, for the same one. Only an override sets a ``weight_decay`` or another rule for tables, and
    ``depth_decay`` applies to them only if ``layers`` names them. Tables that FBGEMM or TorchRec updates inside the
    backward pass have no gradient, so an optimizer with these groups does not change them.

    A tied parameter appears once, under the first of its names; a pattern may match any of them. It is an embedding
    table if any of its modules is one. Parameters that require no gradient are left out and listed as frozen.
    Names are those of ``model.named_parameters()``: wrappers such as DDP put a prefix before them.

    Args:
        model: the model, after any call that replaces its parameters (``to_empty``).
        lr: the learning rate of the top layer, a float or a tensor of one element; each group gets a 0-d copy.
        embedding_lr: the learning rate of the embedding tables; None is ``lr``.
        embedding_rule: of the embedding tables: ``NoClip()`` leaves them unclipped in an optimizer that clips.
        embedding_initial_accumulator_value: the initial accumulator value of the embedding tables.
        tables: name patterns of further embedding tables, such as plain parameters that are used for lookups.
        weight_decay: of the dense parameters.
        rule: of the dense parameters, for optimizers that read it.
        overrides: options by name pattern; the first pattern that matches applies, ``print`` lists the others.
        depth_decay: each layer's learning rate divided by that of the layer above; above 0 and at most 1.
        layers: name patterns, one for each layer, the bottom first; the first match applies, and parameters without a
            match keep the full rate. With None, every module that owns dense parameters, frozen or not, is a layer,
            in the order of registration, a parent before its children. Parallel branches, such as experts and heads,
            have no depth order of their own: give ``layers`` for such models.

    Returns:
        The groups, with the options and the patterns of each parameter.

    Raises:
        TypeError: if an argument is of the wrong kind; for a rule it says which object to pass; if parameters are
            split among processes.
        ValueError: if a number is out of range; if a pattern matches no parameter, naming the closest name; if a
            pattern never wins because of those before it; if nothing in the model is trainable.

    >>> model = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> groups = parameter_groups(model, lr=0.1, depth_decay=0.5, overrides=[GroupSpec("*.bias", lr_multiplier=2.0)])
    >>> print(groups)
    parameter  kind       lr    weight_decay  rule  pattern  also matched by
    0.weight   embedding  0.1   -             -     -
    1.weight   dense      0.05  -             -     -
    1.bias     dense      0.1   -             -     *.bias
    3.weight   dense      0.1   -             -     -
    3.bias     dense      0.2   -             -     *.bias
    >>> import torch
    >>> optimizer = torch.optim.AdamW(groups.dense)
    >>> tables = torch.optim.Adagrad(groups.embedding)

    Reference for rates that decay with depth: J. Howard and S. Ruder, "Universal Language Model Fine-tuning for Text
    Classification", arXiv:1801.06146, section 3.2.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}; expected a torch.nn.Module")
    _check_rate("lr", lr)
    _check_rate("embedding_lr", lr if embedding_lr is None else embedding_lr)
    for spec in overrides:
        if not isinstance(spec, GroupSpec):
            raise TypeError(f"overrides has {spec!r}; expected objects such as surefoot.GroupSpec('heads.*')")
    if embedding_rule is not None:
        checked(embedding_rule, "embedding_rule")
    if embedding_initial_accumulator_value is not None:
        _check_number("embedding_initial_accumulator_value", embedding_initial_accumulator_value)
    _check_depth(depth_decay, layers)
    params = named_parameters(model)
    refuse_sharded("model", [param for param, _ in params], [names[0] for _, names in params])
    found_tables = embedding_tables(model) | _named_tables(tables, params)
    if not any(param.requires_grad for param, _ in params):
        raise ValueError("model has no parameter that requires a gradient; expected at least one")
    matched = match_names("overrides", [spec.pattern for spec in overrides], params)
    above = {} if depth_decay is None else _layers_above(params, found_tables, layers)
    dense = GroupSpec("*", weight_decay=weight_decay, rule=rule), lr
    table = GroupSpec("*", rule=embedding_rule), lr if embedding_lr is None else embedding_lr
    assignments: list[Assignment] = []
    for (param, names), found in zip(params, matched, strict=True):
        is_table = param in found_tables
        default, rate = table if is_table else dense
        spec, height = overrides[found[0]] if found else default, above.get(param, 0)
        options = {
            "lr": rate * ((depth_decay or 1.0) ** height * spec.lr_multiplier),
            "weight_decay": default.weight_decay if spec.weight_decay is None else spec.weight_decay,
            "rule": default.rule if spec.rule is None else spec.rule,
            "initial_accumulator_value": embedding_initial_accumulator_value if is_table else None,
        }
        options = {name: value for name, value in options.items() if value is not None}
        patterns = tuple(overrides[i].pattern for i in found)
        assignments.append(Assignment(names[0], param, is_table, options, height, patterns))
    frozen = tuple(a.name for a in assignments if not a.param.requires_grad)
    return ParameterGroups(tuple(a for a in assignments if a.param.requires_grad), frozen)


def named_parameters(model: nn.Module) -> list[NamedParameter]:
    """Return each parameter of the model once, in its order, with all its names.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> [names for _, names in named_parameters(model)]
    [('0.weight', '1.weight')]
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    return [NamedParameter(param, tuple(each)) for param, each in names.items()]


def match_names(
    argument: str, patterns: Sequence[NamePattern], params: Sequence[NamedParameter]
) -> list[tuple[int, ...]]:
    """Return, for each parameter, the indices of the patterns that match one of its names; the first one wins.

    Raises:
        TypeError: if a pattern is neither a string nor a compiled regular expression.
        ValueError: if a pattern matches no parameter, or earlier patterns match all of its parameters too.

    >>> match_names("overrides", ["a.*", "*.bias"], named_parameters(nn.ModuleDict({"a": nn.Linear(1, 1)})))
    Traceback (most recent call last):
    ValueError: overrides has the pattern '*.bias', which never wins: 'a.*' stands before it and also matches
    'a.bias'; expected the narrower pattern first
    """
    for pattern in patterns:
        _check_pattern(f"a pattern in {argument}", pattern)
    matched = [
        tuple(i for i, pattern in enumerate(patterns) if any(_matches(pattern, name) for name in named.names))
        for named in params
    ]
    for i, pattern in enumerate(patterns):
        among = [(named, found[0]) for named, found in zip(params, matched, strict=True) if i in found]
        if not among:
            names = [name for named in params for name in named.names]
            closest = get_close_matches(_show(pattern), names, n=1, cutoff=0.0)
            hint = f"the closest name is {closest[0]!r}" if closest else "the model has none"
            raise ValueError(f"{argument} has the pattern {_show(pattern)!r}, which matches no parameter; {hint}")
        if all(winner != i for _, winner in among):
            raise ValueError(
                f"{argument} has the pattern {_show(pattern)!r}, which never wins: {_show(patterns[among[0][1]])!r} "
                f"stands before it and also matches {among[0][0].names[0]!r}; expected the narrower pattern first"
            )
    return matched


def _named_tables(patterns: Sequence[NamePattern], params: Sequence[NamedParameter]) -> set[nn.Parameter]:
    if isinstance(patterns, str | re.Pattern):
        raise TypeError(f"tables is {patterns!r}; expected a sequence of patterns")
    matched = match_names("tables", patterns, params)
    return {named.param for named, found in zip(params, matched, strict=True) if found}


def _matches(pattern: NamePattern, name: str) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else pattern.fullmatch(name) is not None


def _show(pattern: NamePattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.pattern


def _layers_above(
    params: Sequence[NamedParameter], tables: set[nn.Parameter], layers: Sequence[NamePattern] | None
) -> dict[nn.Parameter, int]:
    """Return how many layers are above the layer of each parameter."""
    if layers is not None:
        matched = match_names("layers", layers, params)
        return {named.param: len(layers) - 1 - found[0] for named, found in zip(params, matched, strict=True) if found}
    owner = {param: names[0].rpartition(".")[0] for param, names in params if param not in tables}
    depth = {module: k for k, module in enumerate(dict.fromkeys(owner.values()))}
    return {param: len(depth) - 1 - depth[module] for param, module in owner.items()}


def _group(part: list[Assignment]) -> dict[str, Any]:
    # names in a list of their own: not every optimizer accepts (name, parameter) pairs
    group = {"params": [a.param for a in part], "param_names": [a.name for a in part], **part[0].options}
    if isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"].reshape(()).clone()  # a scheduler may write into it
    return group


def _check_depth(depth_decay: float | None, layers: Sequence[NamePattern] | None) -> None:
    if depth_decay is None:
        if layers is not None:
            raise ValueError(f"layers is {layers!r} without depth_decay; expected both or neither")
        return
    _check_number("depth_decay", depth_decay)
    if not 0 < depth_decay <= 1:
        raise ValueError(f"depth_decay is {depth_decay!r}; expected a number above 0, at most 1")
    if isinstance(layers, str | re.Pattern):
        raise TypeError(f"layers is {layers!r}; expected a sequence of patterns, the bottom first")


def _check_rate(argument: str, rate: object) -> None:
    if not isinstance(rate, Tensor):
        _check_number(argument, rate)
    elif rate.numel() != 1:
        raise ValueError(f"{argument} is a tensor of shape {tuple(rate.shape)}; expected a single number")


def _check_number(argument: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{argument} is {value!r}; expected a number")
    checks.non_negative(argument, value)


def _check_pattern(argument: str, pattern: object) -> None:
    if not isinstance(pattern, str | re.Pattern):
        raise TypeError(f"{argument} is {pattern!r}; expected a glob such as 'bottom.*' or a compiled expression")
