"""The rules: closed forms, properties over input families, and the slow reference."""

import inspect
import pickle
from dataclasses import FrozenInstanceError, replace
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from properties import (
    EMPTY,
    FINITE,
    FINITE_PROPERTIES,
    INF,
    LOOKING_RULES,
    LR,
    NAN,
    RULES,
    STILL,
    Family,
    Inputs,
    Property,
    all_of,
    draw,
    draw_with,
    gives_nan,
    gives_one,
    gives_zero,
    over,
)
from surefoot import rules
from surefoot.rules import (
    ALL,
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
    broadcast,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-12, atol=0.0)


def test_all_lists_every_rule() -> None:
    defined = {kind for _, kind in inspect.getmembers(rules, inspect.isclass) if issubclass(kind, Rule)}
    assert set(ALL) == defined - {Rule}
    assert {type(rule) for rule in RULES} == set(ALL)


# Properties over families


@over("holds", {holds.__name__: holds for holds in FINITE_PROPERTIES})
@all_of("rule", RULES)
@all_of("make", FINITE)
def test_finite_inputs(holds: Property, rule: Rule, make: Family) -> None:
    holds(rule, make())


@all_of("rule", RULES)
@all_of("make", STILL | EMPTY)
def test_nothing_to_move_gives_one(rule: Rule, make: Family) -> None:
    gives_one(rule, make())


@all_of("rule", LOOKING_RULES)
@all_of("make", NAN)
def test_nan_gives_nan(rule: Rule, make: Family) -> None:
    gives_nan(rule, make())


@all_of("rule", [rule for rule in LOOKING_RULES if rule != Clippy(accumulator_relative=0.01)])  # it has its own below
@all_of("make", INF)
def test_an_infinite_norm_gives_zero(rule: Rule, make: Family) -> None:
    gives_zero(rule, make())


@all_of("make", NAN | INF)
def test_no_clip_does_not_look(make: Family) -> None:
    gives_one(NoClip(), make())


def test_an_infinite_gradient_gives_zero_with_an_accumulator_bound() -> None:
    gives_zero(Clippy(accumulator_relative=0.01), draw_with(inf, 4, 3))


@over("value", [nan, inf, -inf])
def test_trust_ratio_of_zero_weights_still_sees_a_broken_update(value: float) -> None:
    x = draw_with(value, 4, 3)
    x = x._replace(weight=torch.zeros_like(x.weight))
    (gives_nan if value != value else gives_zero)(TrustRatio(), x)


@over("rule", [Clippy(), Clippy(absolute=0.0), Clippy(accumulator_relative=0.01)])
def test_at_a_rate_of_zero_nothing_moves_and_clippy_does_not_clip(rule: Clippy) -> None:
    x = draw(4, 3)
    x.weight[0, 0] = 0.0
    assert rule(*x, lr=0.0) == 1.0


# Scale laws: exact, since K is a power of two

K = 2.0**10
Change = tuple[float, float, float, float]  # what weight, gradient, update and rate are multiplied by
LAWS: dict[str, tuple[Rule, Change, float]] = {
    "NoClip sees nothing": (NoClip(), (K, K, K, K), 1.0),
    "GC sees the gradient only": (GradientClip(), (K, 1, K, K), 1.0),
    "GC undoes the gradient's size": (GradientClip(), (1, K, 1, 1), 1 / K),
    "global GC sees the gradient only": (GlobalGradientClip(), (K, 1, K, K), 1.0),
    "global GC undoes the gradient's size": (GlobalGradientClip(), (1, K, 1, 1), 1 / K),
    "AGC sees no update and no rate": (AdaptiveGradientClip(), (1, 1, K, K), 1.0),
    "AGC sees the ratio of the norms": (AdaptiveGradientClip(), (K, K, 1, 1), 1.0),
    "AGC grows with the weight": (AdaptiveGradientClip(), (K, 1, 1, 1), K),
    "AGC by tensor sees the ratio": (AdaptiveGradientClip(unitwise=False), (K, K, 1, 1), 1.0),
    "trust ratio sees no gradient and no rate": (TrustRatio(), (1, K, 1, K), 1.0),
    "trust ratio sees the ratio of the norms": (TrustRatio(), (K, 1, K, 1), 1.0),
    "trust ratio undoes the update's size": (TrustRatio(), (1, 1, K, 1), 1 / K),
    "Clippy sees no gradient": (Clippy(), (1, K, 1, 1), 1.0),
    "Clippy sees rate times update": (Clippy(), (1, 1, K, 1 / K), 1.0),
    "Clippy undoes the rate": (Clippy(), (1, 1, 1, K), 1 / K),
    "Clippy sees relative change": (Clippy(absolute=0.0), (K, 1, K, 1), 1.0),
    "Clippy's third term scales with the update": (Clippy(0.0, 0.0, 0.01), (K, 1, K, 1), 1.0),
    "Clippy's third term undoes the gradient's size": (Clippy(0.0, 0.0, 0.01), (K, K, K, 1), 1 / K),
}


@over("law", LAWS)
def test_scale_laws(law: tuple[Rule, Change, float]) -> None:
    rule, (weight, grad, update, lr), expected = law
    x = draw(4, 3, scale=1e6)  # so large that every rule clips before and after
    changed = rule(weight * x.weight, grad * x.grad, update * x.update, lr=lr * LR)
    sigma = rule(*x, lr=LR)
    assert (sigma < 1).all() or rule == NoClip()
    assert torch.equal(changed, expected * sigma)


# What each rule promises


def test_gradient_clip_bounds_the_norm() -> None:
    x = draw(4, 3, scale=100.0)
    norms = [(rule(*x, lr=LR) * x.grad).norm().item() for rule in (GradientClip(0.1), GlobalGradientClip(0.1))]
    assert norms == pytest.approx([0.1, 0.1])


def test_global_gradient_clip_bounds_the_norm_of_all() -> None:
    rule, several = GlobalGradientClip(threshold=2.0), [draw(4, 3), draw(5), draw(2, 3, 2)]
    measures = torch.stack([rule.measure(*x, LR) for x in several])
    sigma = rule.factor(measures.sum(0))
    assert torch.cat([(sigma * x.grad).flatten() for x in several]).norm().item() == pytest.approx(2.0)


def test_adaptive_gradient_clip_bounds_each_unit() -> None:
    x = draw(4, 3, scale=100.0)
    clipped = broadcast(AdaptiveGradientClip(threshold=0.5)(*x, lr=LR), x.weight) * x.grad
    torch.testing.assert_close(clipped.norm(dim=1), 0.5 * x.weight.norm(dim=1))


def test_trust_ratio_gives_the_update_the_size_of_the_weight() -> None:
    for scale in (1e-3, 1e3):
        x = draw(4, 3, scale=scale)
        assert (TrustRatio(0.1)(*x, lr=LR) * x.update).norm().item() == pytest.approx(0.1 * x.weight.norm().item())


@over("rule", [Clippy(), Clippy(absolute=0.0), Clippy(relative=0.0), Clippy(accumulator_relative=0.1)])
def test_clippy_bounds_each_coordinate_and_reaches_the_bound(rule: Clippy) -> None:
    x = draw(4, 3, scale=100.0)
    moved = (LR * rule(*x, lr=LR) * x.update).abs()
    bound = rule.relative * x.weight.abs() + rule.absolute + rule.accumulator_relative * (x.update / x.grad).abs()
    assert (moved / bound).max().item() == pytest.approx(1.0)


# Closed forms

SHRINK: list[tuple[list[float], list[list[float]], list[float], float, list[float], float]] = [
    # update, references, relative thresholds, absolute threshold -> clipped update, sigma
    ([2], [[4]], [0.1], 0.02, [0.42], 0.21),
    ([2], [[-4]], [0.1], 0.02, [0.42], 0.21),
    ([-2], [[4]], [0.1], 0.02, [-0.42], 0.21),
    ([-2], [[4]], [0.1], 0.0, [-0.4], 0.2),
    ([-2], [[0]], [0.1], 0.0, [0], 0.0),
    ([2], [[20]], [0.1], 0.1, [2], 1.0),
    ([-2], [[20]], [0.1], 0.1, [-2], 1.0),
    ([0], [[1]], [0.1], 0.0, [0], 1.0),
    ([0], [[0]], [0.0], 0.0, [0], 1.0),
    ([2], [[4], [-5]], [0.1, 0.2], 0.02, [1.42], 0.71),
    ([2], [], [], 0.02, [0.02], 0.01),
    ([1, 1], [[1, 0.1]], [0.1], 0.01, [0.02, 0.02], 0.02),
    ([1, 1, 0, 0], [[1, 0.1, 1, 0]], [0.1], 0.0, [0.01, 0.01, 0, 0], 0.01),
    ([1, 1, 0, 0], [[1, 0, 1, 0]], [0.1], 0.0, [0, 0, 0, 0], 0.0),
]
"""The unit tests of the authors' ``shrink_by_references``; the first reference is the weight, the second |r / g|."""


@over("case", SHRINK)
def test_clippy_shrinks_as_the_authors_code(case: tuple[Any, ...]) -> None:
    update, references, relative, absolute, clipped, sigma = case
    update = vector(*update)
    weight = vector(*references[0]) if references else torch.ones_like(update)
    grad = update / vector(*references[1]) if len(references) > 1 else update
    of_weight, of_accumulator = [*relative, 0.0, 0.0][:2]
    found = Clippy(of_weight, absolute, of_accumulator)(weight, grad, update, lr=1.0)
    close(found, sigma)
    close(found * update, vector(*clipped))


W, G, R = vector(3, -4), vector(-0.6, 0.8), vector(0, 20)  # norms 5, 1 and 20
ZERO = vector(0, 0)
CLOSED_FORMS: dict[str, tuple[Rule, Inputs, float]] = {
    "naive": (NoClip(), Inputs(W, G, R), 1.0),
    "GC": (GradientClip(0.25), Inputs(W, G, R), 0.25),
    "GC, below the threshold": (GradientClip(1.5), Inputs(W, G, R), 1.0),
    "global GC": (GlobalGradientClip(0.25), Inputs(W, G, R), 0.25),
    "AGC": (AdaptiveGradientClip(0.05), Inputs(W, G, R), 0.25),
    "AGC, below the threshold": (AdaptiveGradientClip(0.3), Inputs(W, G, R), 1.0),
    "AGC, zero weights": (AdaptiveGradientClip(0.05, floor=0.1), Inputs(ZERO, G, R), 0.005),
    "AGC, weights below the floor": (AdaptiveGradientClip(0.05, floor=10.0), Inputs(W, G, R), 0.5),
    "trust ratio": (TrustRatio(0.1), Inputs(W, G, R), 0.025),
    "trust ratio enlarges": (TrustRatio(100.0), Inputs(W, G, R), 25.0),
    "trust ratio, zero weights": (TrustRatio(0.1), Inputs(ZERO, G, R), 1.0),
    "trust ratio, zero update": (TrustRatio(0.1), Inputs(W, G, ZERO), 1.0),
    "Clippy": (Clippy(0.1, 0.2), Inputs(W, G, R), (0.1 * 4 + 0.2) / (LR * 20)),
    "Clippy, within the bound": (Clippy(0.5, 0.2), Inputs(W, G, R), 1.0),
    "Clippy, absolute 0 on zero weights": (Clippy(0.5, 0.0), Inputs(ZERO, G, R), 0.0),
    "Clippy, absolute 0, nothing moves": (Clippy(0.5, 0.0), Inputs(ZERO, ZERO, ZERO), 1.0),
    "Clippy, bound 0": (Clippy(0.0, 0.0), Inputs(W, G, R), 0.0),
    "Clippy, third term": (Clippy(0.1, 0.2, 0.01), Inputs(W, G, R), (0.1 * 4 + 0.2 + 0.01 * 20 / 0.8) / (LR * 20)),
    # the paper's Fig. 4, step-b: ||g|| = 0.3, ||g|| / ||w|| = 1.4e-2, max |r / w| = 200
    "Fig. 4, GC": (GradientClip(0.1), Inputs(W, 0.3 * G, R), 0.1 / 0.3),
    "Fig. 4, AGC": (AdaptiveGradientClip(1e-3), Inputs(W, 0.07 * G, R), 1e-3 / 1.4e-2),
    "Fig. 4, Clippy": (Clippy(0.1, 0.0), Inputs(W, G, vector(3, 800) / LR), 5e-4),
}


@over("case", CLOSED_FORMS)
def test_closed_forms(case: tuple[Rule, Inputs, float]) -> None:
    rule, inputs, sigma = case
    close(rule(*inputs, lr=LR), sigma)


def test_adaptive_gradient_clip_by_unit() -> None:
    w = vector(1, 2, 4)[:, None].expand(3, 2)
    g = vector(0.1, 8, 0)[:, None].expand(3, 2)
    close(AdaptiveGradientClip(0.5)(w, g, g, lr=LR), vector(1.0, 0.125, 1.0))
    w, g = w.expand(4, 3, 2), torch.stack([g, 2 * g, 4 * g, 8 * g])
    expected = torch.stack([vector(1, 0.125 / 2**n, 1) for n in range(4)])
    expected[3, 0] = 0.5 / 0.8
    close(AdaptiveGradientClip(0.5, unit_dims=2)(w, g, g, lr=LR), expected)


def test_adaptive_gradient_clip_lets_zero_weights_move() -> None:
    x = draw(4, 3)
    sigma = AdaptiveGradientClip()(torch.zeros_like(x.weight), x.grad, x.update, lr=LR)
    assert (sigma > 0).all()


def test_broadcast_reaches_every_coordinate_of_a_unit() -> None:
    weight = torch.ones(2, 3, 4)
    assert broadcast(torch.tensor(0.5), weight).shape == (1, 1, 1)
    assert broadcast(torch.ones(2), weight).shape == (2, 1, 1)
    assert broadcast(torch.ones(2, 3), weight).shape == (2, 3, 1)


# Rules are values


@over("rule", RULES)
def test_rules_are_values(rule: Rule) -> None:
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    assert hash(copy) == hash(rule)
    with pytest.raises((FrozenInstanceError, TypeError)):
        rule.threshold = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_rules_of_different_kind_or_threshold_differ() -> None:
    assert len(set(RULES)) == len(RULES)
    assert GradientClip(0.1) != GlobalGradientClip(0.1)
    assert replace(Clippy(), relative=0.25) == Clippy(relative=0.25)


REFUSED: list[tuple[type[Rule], str, float]] = [
    *((kind, "threshold", x) for kind in (GradientClip, GlobalGradientClip) for x in (0.0, -1.0, nan, inf)),
    *((AdaptiveGradientClip, name, x) for name in ("threshold", "floor") for x in (0.0, -1.0, nan, inf)),
    *((AdaptiveGradientClip, "unit_dims", x) for x in (0, -1)),
    *((TrustRatio, "scale", x) for x in (0.0, -1.0, nan, inf)),
    *((Clippy, name, x) for name in ("relative", "absolute", "accumulator_relative") for x in (-0.5, nan, inf)),
]


@over("case", REFUSED)
def test_bad_thresholds_are_refused_by_name(case: tuple[type[Rule], str, float]) -> None:
    kind, name, value = case
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; expected "):
        kind(**{name: value})


@over("value", [0.5, 1.5])
def test_unit_dims_must_be_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=f"^unit_dims is {value!r}; expected "):
        AdaptiveGradientClip(unit_dims=value)
