"""Statistics of a layer's step: closed forms, every rule from moments, what is not finite, sparse gradients."""

import math

import pytest
import torch
from torch import Tensor

from properties import RULES, over
from surefoot.observe import step_stats
from surefoot.observe.step_stats import Step
from surefoot.rules import Clippy, GlobalGradientClip, GradientClip

SHAPES = {str(shape): shape for shape in ((4, 3), (5,), (), (2, 3, 4), (1, 7), (6, 1))}
EMPTY = {str(shape): shape for shape in ((0, 3), (3, 0), (0,))}


def step(shape: tuple[int, ...]) -> Step:
    generator = torch.Generator().manual_seed(0)
    weight, grad, update = (torch.randn(shape, generator=generator) for _ in range(3))
    return Step(weight, grad, update, 0.1)


@over("shape", SHAPES)
def test_the_statistics_are_those_of_the_tensors(shape: tuple[int, ...]) -> None:
    seen = step(shape)
    found = step_stats.statistics(step_stats.moments(seen), seen.lr)
    for name, x in {"weight": seen.weight, "grad": seen.grad, "update": 0.1 * seen.update}.items():
        torch.testing.assert_close(found[f"l2_norm/{name}"], x.norm())
        torch.testing.assert_close(found[f"linf_norm/{name}"], x.abs().max())
        torch.testing.assert_close(found[f"rms/{name}"], x.square().mean().sqrt())
    torch.testing.assert_close(found["update_ratio"], 0.1 * seen.update.norm() / seen.weight.norm())
    assert found["dead_units"] == 0


@over("shape", EMPTY)
def test_nothing_is_not_a_problem(shape: tuple[int, ...]) -> None:
    found = step_stats.statistics(step_stats.moments(step(shape)), 0.1)
    assert all(found[name] == 0 for name in found if name not in ("update_ratio", "dead_units"))


def test_the_names() -> None:
    found = step_stats.statistics(step_stats.moments(step((4, 3))), 0.1)
    norms = {f"{kind}/{of}" for kind in ("l2_norm", "linf_norm", "rms") for of in ("grad", "update", "weight")}
    assert set(found) == norms | {"dead_units", "update_ratio"}


def test_a_unit_is_dead_when_its_gradient_is_exactly_0() -> None:
    grad = torch.tensor([[0.0, 0.0], [0.0, 1e-30], [1.0, 0.0], [0.0, -0.0]])
    seen = step_stats.moments(Step(torch.ones(4, 2), grad, grad, 0.1))
    assert step_stats.dead_units(seen.largest[1], seen.shape) == 0.5
    bias = step_stats.moments(Step(torch.ones(4), grad[:, 0], grad[:, 0], 0.1))
    assert step_stats.dead_units(bias.largest[1], bias.shape) == 0.75
    experts = grad.expand(2, 4, 2).clone()
    experts[0] = 0
    stacked = step_stats.moments(Step(torch.ones(2, 4, 2), experts, experts, 0.1))
    assert step_stats.dead_units(stacked.largest[1], stacked.shape) == 0.5


@over("shape", SHAPES)
@over("rule", RULES)
def test_a_rule_measures_of_moments_what_it_measures_of_the_step(rule: step_stats.Rule, shape: tuple[int, ...]) -> None:
    seen = step(shape)
    expected = rule.factor(rule.measure(*seen))
    measure = step_stats.measure(rule, step_stats.moments(seen), lambda: seen, seen.lr)
    torch.testing.assert_close(rule.factor(measure), expected)


def test_rules_that_add_squares_do_not_ask_for_the_step() -> None:
    def never() -> Step:
        raise AssertionError

    seen = step((4, 3))
    assert len(step_stats._OF_SQUARES) == 5
    for kind in step_stats._OF_SQUARES:
        step_stats.measure(kind(), step_stats.moments(seen), never, seen.lr)


def test_a_rule_over_the_model_gives_all_layers_one_factor() -> None:
    measures = [torch.tensor(9.0), torch.tensor(16.0)]
    assert [float(f) for f in step_stats.factors(GlobalGradientClip(1.0), measures)] == pytest.approx([0.2, 0.2])
    assert [float(f) for f in step_stats.factors(GradientClip(1.0), measures)] == pytest.approx([1 / 3, 0.25])
    assert step_stats.factors(GlobalGradientClip(1.0), []) == []


@over("bad", {"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
def test_what_is_not_finite_shows(bad: float) -> None:
    seen = step((4, 3))
    seen.grad[2, 1] = bad
    found = step_stats.statistics(step_stats.moments(seen), seen.lr)
    assert {name for name, value in found.items() if not value.isfinite()} == {
        "l2_norm/grad",
        "linf_norm/grad",
        "rms/grad",
    }


def test_sparse_gradients_are_their_touched_rows() -> None:
    indices, values = torch.tensor([[3, 1, 3]]), torch.tensor([[1.0, 0.0], [2.0, 2.0], [1.0, 5.0]])
    weight, beside = torch.arange(8.0).reshape(4, 2), torch.ones(4, 2)
    grad = torch.sparse_coo_tensor(indices, values, (4, 2), check_invariants=True)
    rows = step_stats.touched(weight, grad, beside)
    expected = (weight[[1, 3]], torch.tensor([[2.0, 2.0], [2.0, 5.0]]), beside[[1, 3]])
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))
    assert step_stats.touched(weight, beside)[0] is weight


def test_the_clip_ratio_is_the_inverse_of_what_clippy_measures() -> None:
    weight, update = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.5])
    seen = Step(weight, update, update, 0.1)
    assert float(step_stats.clip_ratio(seen)) == pytest.approx(5.0)  # 0.1 * 0.5 / 0.01
    assert float(step_stats.clip_ratio(seen, Clippy(0.1, 0.1))) == pytest.approx(0.5)
    assert step_stats.clip_ratio(seen._replace(update=torch.zeros(2))) == 0


def test_bfloat16_is_summed_in_float32() -> None:
    x: Tensor = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    assert float(step_stats.moments(Step(x, x, x, 0.1)).squares[0, 0]) == pytest.approx(float(x.float().square().sum()))
