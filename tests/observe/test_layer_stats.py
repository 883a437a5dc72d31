"""What an optimizer asked for, seen from outside: against twins, the kernel against torch's operations, what-if."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from properties import over
from surefoot.observe import layer_stats
from surefoot.observe.layer_stats import StepView
from surefoot.observe.step_observer import StepObserver
from surefoot.optim import kernel
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_updates import clip_updates
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.rules import ALL, AdaptiveGradientClip, Clippy, GradientClip, NoClip, Rule

LR = 0.125
SHAPES = ((4, 3), (5,), (2, 3, 2), (), (3, 0), (6, 1))
Make = Callable[[list[Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {  # without a rule
    "Adagrad, kernel": lambda params: Adagrad(params, LR),
    "Adagrad, eager": lambda params: Adagrad(params, LR, fused=False),
    "Adagrad, eps": lambda params: Adagrad(params, LR, eps=1e-2, maximize=True),
    "Adagrad, decay": lambda params: Adagrad(params, LR, weight_decay=0.1),
    "Adagrad, after": lambda params: Adagrad(params, LR, accumulate="after"),
    "torch Adagrad": lambda params: torch.optim.Adagrad(params, LR, initial_accumulator_value=0.1, eps=1e-2),
    "torch Adagrad, decaying": lambda params: torch.optim.Adagrad(
        params, LR, lr_decay=0.5, initial_accumulator_value=0.1
    ),
    "SGD": lambda params: torch.optim.SGD(params, LR, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, LR, weight_decay=0.1),
    "AdamW, tensor rate": lambda params: torch.optim.AdamW(params, torch.tensor(LR), foreach=False),
}
RULED: dict[str, Callable[[list[Parameter], Rule], Optimizer]] = {
    "native": lambda params, rule: Adagrad(params, LR, rule=rule),
    "native, eager": lambda params, rule: Adagrad(params, LR, rule=rule, fused=False),
    "attached to Adagrad": lambda params, rule: attached(
        torch.optim.Adagrad(params, LR, initial_accumulator_value=0.1), rule
    ),
    "attached to AdamW": lambda params, rule: attached(torch.optim.AdamW(params, LR), rule),
}
ASKED = [kind() for kind in ALL] + [GradientClip(1e-3), Clippy(1e-2, 1e-4), Clippy(accumulator_relative=0.01)]
CLIPPING = (GradientClip(1e-2), Clippy(1e-2, 1e-3), AdaptiveGradientClip(1e-2))


def attached(optimizer: Optimizer, rule: Rule) -> Optimizer:
    clip_updates(optimizer, rule)
    return optimizer


def draw(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Parameter]:
    torch.manual_seed(0)
    return [Parameter(torch.randn(shape)) for shape in shapes]


def watched(params: list[Parameter], optimizer: Optimizer) -> StepObserver:
    return StepObserver(optimizer, {str(i): p for i, p in enumerate(params)}, {}, lambda: True)


def take_steps(params: list[Parameter], optimizer: Optimizer, count: int = 3) -> list[Tensor]:
    """Step, and return the weights before the last step."""
    torch.manual_seed(1)
    before = []
    for _ in range(count):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return before


@over("make", OPTIMIZERS)
def test_the_step_of_an_optimizer_without_a_rule_is_what_it_did(make: Make) -> None:
    params = draw()
    optimizer = make(params)
    watch = watched(params, optimizer)
    before = take_steps(params, optimizer)
    looks = watch.looks()
    assert len(looks) == len(params)
    decay = 1 - LR * optimizer.param_groups[0]["weight_decay"] if isinstance(optimizer, Adagrad) else 1
    for p, old, look in zip(params, before, looks.values(), strict=True):
        seen = layer_stats.step_of(look)
        torch.testing.assert_close(seen.weight, old * (decay if look.adagrad else 1))
        torch.testing.assert_close(seen.lr * seen.update, seen.weight - p, atol=1e-6, rtol=1e-4)


@over("rule", CLIPPING)
@over("make", RULED)
def test_the_step_under_a_rule_is_the_one_that_was_asked_for(make: Any, rule: Rule) -> None:
    """A twin without the rule takes the step from the same weights and state."""
    params = draw(((4, 3), (5,)))
    optimizer = make(params, rule)
    watch = watched(params, optimizer)
    before = take_steps(params, optimizer, 1)
    for p, old, look in zip(params, before, watch.looks().values(), strict=True):
        twin = Parameter(old.clone())
        twin.grad = p.grad
        free: Optimizer = make([twin], NoClip())
        free.step()
        seen = layer_stats.step_of(look)
        torch.testing.assert_close(seen.weight, old)
        torch.testing.assert_close(LR * seen.update, old - twin.detach(), rtol=1e-3, atol=1e-6)


@over("rule", ASKED)
@over("make", RULED)
def test_what_if_says_of_the_optimizers_own_rule_what_it_did(make: Any, rule: Rule) -> None:
    params = draw()
    optimizer = make(params, rule)
    watch = watched(params, optimizer)
    take_steps(params, optimizer)
    factors = {name: f for name, f in watch.factors().items() if params[int(name)].numel()}
    assert factors
    found = layer_stats.full(watch.looks(), [rule], tables=())[f"what_if/{type(rule).__name__}"]
    for name, factor in factors.items():
        torch.testing.assert_close(found[name], factor.float(), rtol=1e-3, atol=1e-6)


def test_of_a_rule_by_unit_there_are_the_mean_and_the_least() -> None:
    (param,) = draw(((4, 3),))
    optimizer = Adagrad([param], LR)
    watch = watched([param], optimizer)
    take_steps([param], optimizer)
    rule = AdaptiveGradientClip(1e-2)
    factor = rule(*layer_stats.step_of(watch.looks()["0"]))
    found = layer_stats.full(watch.looks(), [rule, AdaptiveGradientClip(0.1)], tables=())
    torch.testing.assert_close(found[f"what_if/{rule}"]["0"], factor.mean())
    torch.testing.assert_close(found[f"what_if_min/{rule}"]["0"], factor.min())


def looks_of(adagrad: bool, sigma: Tensor, dtype: torch.dtype) -> list[StepView]:
    generator = torch.Generator().manual_seed(0)
    several = []
    for shape in (*SHAPES, (300, 400), (70000,), (4, 4, 64)):
        weight, grad, beside = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
        beside = beside.square() + 0.1 if adagrad else weight + 1e-2 * beside
        some = sigma if not sigma.ndim or len(shape) < 2 else sigma.expand(shape[0])
        some = sigma.flatten()[0] if sigma.ndim and len(shape) < 2 else some
        w, g, b = (x.float().to(dtype) for x in (weight, grad, beside))
        several.append(StepView(w, g, b, adagrad, 0.1, some, eps=1e-3, sign=-1.0))
    return several


@over("adagrad", {"from the accumulator": True, "from the weights": False})
@over("sigma", {"0-d": torch.tensor(0.5), "by unit": torch.tensor([0.25]), "zero": torch.tensor(0.0)})
def test_the_kernel_agrees_with_torchs_operations(adagrad: bool, sigma: Tensor) -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")
    fast, slow = looks_of(adagrad, sigma, torch.float32), looks_of(adagrad, sigma, torch.float64)
    assert all(layer_stats._takes(look) for look in fast)
    assert not any(layer_stats._takes(look) for look in slow)
    a, b = layer_stats.layer_sums(fast), layer_stats.layer_sums(slow)
    torch.testing.assert_close(a.measures, b.measures, rtol=1e-3, atol=0)
    torch.testing.assert_close(layer_stats.least_ratios(fast), b.measures, rtol=1e-3, atol=0)
    for x, y in zip(a.moments, b.moments, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x.squares.double(), y.squares, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(x.largest.double(), y.largest, rtol=1e-3, atol=1e-6)


@over("where", {"weight": 0, "grad": 1, "beside": 2})
@over("adagrad", {"from the accumulator": True, "from the weights": False})
def test_the_kernel_sees_nan_where_torch_does(adagrad: bool, where: int) -> None:
    fast, slow = (looks_of(adagrad, torch.tensor(1.0), dtype) for dtype in (torch.float32, torch.float64))
    for looks in (fast, slow):
        looks[6][:3][where].view(-1)[1234] = torch.nan
    a, b = layer_stats.layer_sums(fast), layer_stats.layer_sums(slow)
    assert torch.equal(a.measures.isnan(), b.measures.isnan())
    assert torch.equal(layer_stats.least_ratios(fast).isnan(), b.measures.isnan())
    for x, y in zip(a.moments, b.moments, strict=True):
        assert torch.equal(x.squares.isnan(), y.squares.isnan())
        assert torch.equal(x.largest.isnan(), y.largest.isnan())


def test_where_the_factor_was_0_the_update_counts_as_0() -> None:
    weight = torch.ones(2, 2)
    seen = layer_stats.step_of(StepView(weight, weight, weight, False, 0.1, torch.tensor(0.0)))
    assert torch.equal(seen.update, torch.zeros(2, 2))


def test_an_all_zero_accumulator_without_epsilon_gives_no_nan() -> None:
    nothing = torch.zeros(3, 3)
    for dtype in (torch.float32, torch.float64):
        look = StepView(
            torch.ones(3, 3, dtype=dtype), nothing.to(dtype), nothing.to(dtype), True, 0.1, torch.tensor(1.0)
        )
        found = layer_stats.layer_sums([look])
        assert torch.isinf(found.measures).all()
        assert not found.moments[0].squares[1:].any()


def test_nothing_to_survey() -> None:
    assert layer_stats.layer_sums([]).moments == []
    assert layer_stats.least_ratios([]).shape == (0,)
    assert layer_stats.full({}, ASKED, tables=()) == {}
    assert layer_stats.l2_norms([]) == []


@over("make", {"exactly": lambda p: ClippyAdagrad(p, LR), "from the weights": lambda p: torch.optim.SparseAdam(p, LR)})
def test_of_an_embedding_table_the_touched_rows_are_seen(make: Make) -> None:
    table = Parameter(torch.ones(5, 2))
    optimizer = make([table])
    watch = StepObserver(optimizer, {}, {"table": table}, lambda: True)
    rows, values = torch.tensor([[3, 1, 3]]), torch.tensor([[1.0, 0.0], [2.0, 2.0], [1.0, 5.0]])
    table.grad = torch.sparse_coo_tensor(rows, values, (5, 2), check_invariants=True)
    optimizer.step()
    assert watch.norms() == {}
    assert watch.measures() == ({}, {})
    seen = layer_stats.step_of(watch.looks()["table"])
    torch.testing.assert_close(seen.weight, torch.ones(2, 2))
    assert torch.equal(seen.grad, torch.tensor([[2.0, 2.0], [2.0, 5.0]]))
    if not isinstance(optimizer, ClippyAdagrad):
        torch.testing.assert_close(LR * seen.update, 1 - table.detach()[[1, 3]])
    found = layer_stats.full(watch.looks(), ASKED, tables={"table"})
    assert float(found["l2_norm/grad"]["table"]) == pytest.approx(37**0.5)
    assert not any(kind.startswith("what_if") for kind in found)


def test_a_sparse_gradient_of_what_is_no_table_has_no_norm_in_every_step() -> None:
    param = Parameter(torch.ones(5, 2))
    optimizer = torch.optim.SGD([param], LR)
    watch = StepObserver(optimizer, {"row": param}, {}, lambda: False)
    param.grad = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1, 2), (5, 2), check_invariants=True)
    optimizer.step()
    assert watch.norms() == {}
    torch.testing.assert_close(watch.measures()[1]["row"], torch.tensor(0.51 / LR))


def test_weights_are_copied_only_where_the_step_cannot_be_had_otherwise() -> None:
    free = {"ClippyAdagrad": ClippyAdagrad, "torch Adagrad": torch.optim.Adagrad}
    for make in free.values():
        params = draw()
        optimizer = make(params, lr=LR)
        watch = watched(params, optimizer)
        take_steps(params, optimizer)
        assert not watch._before
    params = draw()
    optimizer = attached(torch.optim.AdamW(params, LR), Clippy())
    surveyed = [True, False, False]
    watch = StepObserver(optimizer, {str(i): p for i, p in enumerate(params)}, {}, lambda: surveyed.pop(0))
    held = []
    for _ in range(3):
        take_steps(params, optimizer, 1)
        held.append(len(watch._before))
        watch.forget()
    assert held == [len(params), 0, 0]
