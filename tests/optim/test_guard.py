"""Several optimizers skip together or not at all."""

import copy
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import surefoot
from properties import all_of, over
from surefoot.optim.nonfinite import not_finite

Make = Callable[[list[Parameter]], Optimizer]
KINDS: dict[str, Make] = {
    "native": lambda params: surefoot.ClippyAdagrad(params, lr=0.1),
    "native, no kernel": lambda params: surefoot.ClippyAdagrad(params, lr=0.1, fused=False),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "fused AdamW": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "fused SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
}


def pair(one: Make, other: Make) -> tuple[list[Parameter], list[Optimizer]]:
    params = [Parameter(torch.randn(3, 2)), Parameter(torch.randn(4))]
    return params, [one([params[0]]), other([params[1]])]


def train(params: list[Parameter], optimizers: list[Optimizer], grads: list[list[Tensor]]) -> None:
    for each in grads:
        for p, grad in zip(params, each, strict=True):
            p.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()


def state(optimizers: list[Optimizer]) -> list[Any]:
    return [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@all_of("bad", [math.nan, math.inf])
@all_of("where", [0, 1])
@all_of("first", {"first step": True, "later step": False})
@all_of("one", list(KINDS))
@over("other", list(KINDS))
def test_a_bad_gradient_leaves_both_as_if_the_step_had_not_been(
    one: str, other: str, first: bool, where: int, bad: float
):
    params, optimizers = pair(KINDS[one], KINDS[other])
    surefoot.guard(*optimizers)
    twins = copy.deepcopy(params)
    peers = [KINDS[one]([twins[0]]), KINDS[other]([twins[1]])]
    good = [[torch.randn_like(p) for p in params] for _ in range(4)]
    spoilt = [grad.clone() for grad in good[0]]
    spoilt[where].view(-1)[1] = bad
    at = 0 if first else 2
    train(params, optimizers, [*good[:at], spoilt])
    kept = params[where].grad
    assert kept is not None
    assert not kept.view(-1)[1].isfinite()
    train(params, optimizers, good[at:])
    train(twins, peers, good)
    for p, q in zip(params, twins, strict=True):
        assert p.equal(q)
    ours, theirs = ([saved["state"] for saved in state(several)] for several in (optimizers, peers))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_finite_gradients_are_not_touched():
    params, optimizers = pair(KINDS["native"], KINDS["Adagrad"])
    guard = surefoot.guard(*optimizers)
    before = copy.deepcopy(params)
    train(params, optimizers, [[torch.ones_like(p) for p in params]])
    assert all(not p.equal(q) for p, q in zip(params, before, strict=True))
    guard.remove()
    bad = [torch.full_like(params[0], math.nan), torch.ones_like(params[1])]
    held = params[1].detach().clone()
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        train(params, optimizers, [bad])
    assert not params[1].equal(held)  # without the guard it steps alone


def gradients_of(params: list[Parameter], bad: tuple[float, float] = (0.0, 0.0)) -> None:
    for p, value in zip(params, bad, strict=True):
        p.grad = torch.full_like(p, 0.5) + value


def moved(params: list[Parameter], step: Callable[[], object]) -> list[bool]:
    before = [p.detach().clone() for p in params]
    step()
    return [not p.equal(old) for p, old in zip(params, before, strict=True)]


ALONE = {"SGD": lambda params: torch.optim.SGD(params, lr=0.1), **KINDS}


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("one", ALONE)
def test_an_optimizer_that_grad_scaler_leaves_out_is_in_step_again_at_once(one: str, first: int):
    params, optimizers = pair(ALONE[one], KINDS["native"])
    surefoot.guard(*optimizers)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(bad: float) -> None:
        scaler.scale(params[0].sum() * bad + params[1].sum()).backward()
        for optimizer in (optimizers[first], optimizers[1 - first]):
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()

    together = [moved(params, lambda bad=bad: step(bad)) for bad in (math.inf, 1.0, math.nan, math.inf, 1.0, 1.0)]
    assert together == [[good, good] for good in (False, True, False, False, True, True)]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@all_of("one", list(ALONE))
@over("other", list(ALONE))
def test_optimizers_may_step_at_their_own_pace(one: str, other: str):
    params, (a, b) = pair(ALONE[one], ALONE[other])
    guard = surefoot.guard(a, b)
    for bad, called, expected in (
        ((0.0, 0.0), [a], [True, False]),
        ((0.0, 0.0), [a], [True, False]),
        ((0.0, math.nan), [a], [False, False]),
        ((0.0, 0.0), [b, a], [True, True]),
        ((math.nan, 0.0), [b], [False, False]),
        ((math.nan, 0.0), [b], [False, False]),
        ((0.0, 0.0), [a], [True, False]),
        ((0.0, 0.0), [b], [False, True]),
        ((math.nan, 0.0), [a], [False, False]),
        ((0.0, 0.0), [b, a], [True, True]),
    ):
        gradients_of(params, bad)
        assert moved(params, lambda called=called: [optimizer.step() for optimizer in called]) == expected
    assert guard.skipped_steps == 4


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
def test_one_that_steps_again_looks_at_the_others_gradients_again():
    params, (a, b) = pair(KINDS["SGD with momentum"], KINDS["native"])
    surefoot.guard(a, b)
    gradients_of(params)
    assert moved(params, a.step) == [True, False]
    params[1].grad = torch.full_like(params[1], math.nan)
    assert moved(params, a.step) == [False, False]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
def test_gradients_that_are_written_into_after_the_decision_are_looked_at_again():
    params, (a, b) = pair(KINDS["SGD with momentum"], KINDS["native"])
    guard = surefoot.guard(a, b)
    gradients_of(params)
    assert moved(params, a.step) == [True, False]
    assert params[1].grad is not None
    params[1].grad.fill_(math.inf)
    assert moved(params, b.step) == [False, False]
    assert guard.skipped_steps == 1


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_first_may_zero_its_gradients_before_the_other_steps(set_to_none: bool):
    params, (a, b) = pair(KINDS["SGD with momentum"], KINDS["native"])
    surefoot.guard(a, b)

    def step(bad: tuple[float, float]) -> None:
        torch.stack([(p * (1 + value)).sum() for p, value in zip(params, bad, strict=True)]).sum().backward()
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)

    bads = ((0.0, 0.0), (math.nan, 0.0), (0.0, 0.0), (0.0, math.inf), (math.nan, 0.0), (0.0, 0.0))
    assert [moved(params, lambda bad=bad: step(bad)) for bad in bads] == [[not any(bad)] * 2 for bad in bads]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@pytest.mark.parametrize("one", ALONE)
def test_a_closure_may_do_nothing_or_make_the_gradients(one: str):
    params, (a, b) = pair(ALONE[one], KINDS["native"])
    surefoot.guard(a, b)

    def makes(bad: float) -> float:
        gradients_of(params, (bad, 0.0))
        return 3.0

    for bad in (0.0, math.nan, 0.0):
        gradients_of(params, (bad, 0.0))
        both = moved(params, lambda: [optimizer.step(closure=lambda: None) for optimizer in (a, b)])  # type: ignore[arg-type]
        assert both == [not bad] * 2
        losses: list[Any] = []
        for optimizer in (b, a):
            before = [p.detach().clone() for p in params]
            losses.append(optimizer.step(lambda bad=bad: makes(bad)))
            assert [p.equal(old) for p, old in zip(params, before, strict=True)].count(False) == (not bad)
        assert losses == [3.0, 3.0]


@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
@pytest.mark.parametrize("kind", ["native", "native, no kernel"])
def test_a_policy_that_raises_raises_under_a_guard(kind: str):
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    one = surefoot.ClippyAdagrad(params[:1], lr=0.1, nonfinite="raise", fused=None if kind == "native" else False)
    other = torch.optim.SGD(params[1:], lr=0.1)
    surefoot.guard(one, other)
    surefoot.clip_updates(other, surefoot.Clippy(), nonfinite="raise")
    for bad, raises, quiet in (((math.nan, 0.0), one, other), ((0.0, math.nan), other, one)):
        gradients_of(params, bad)
        with pytest.raises(FloatingPointError, match="is NaN or infinite"):
            raises.step()
        assert moved(params, quiet.step) == [False, False]


@over("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_number_is_seen_in_a_gradient_of_any_kind(bad: float):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        good, spoilt = torch.ones(3, 2, dtype=dtype), torch.ones(3, 2, dtype=dtype)
        spoilt[1, 1] = bad
        several = [good, spoilt, good[:0], spoilt.to_sparse(1)]
        assert [bool(flag) for flag in not_finite(several)] == [False, True, False, True]


def test_the_gradients_are_not_kept():
    params, (a, b) = pair(KINDS["native"], KINDS["Adagrad"])
    surefoot.guard(a, b)
    gradients_of(params)
    grad = weakref.ref(params[1].grad)
    a.step()
    for p in params:
        p.grad = None
    assert grad() is None


def test_what_is_no_guard():
    _, (one, _) = pair(KINDS["native"], KINDS["Adagrad"])
    with pytest.raises(ValueError, match="expected two or more, each once"):
        surefoot.guard(one)
    with pytest.raises(ValueError, match="expected two or more, each once"):
        surefoot.guard(one, one)
    with pytest.raises(TypeError, match="optimizers has 'adam'; expected torch.optim.Optimizer objects"):
        surefoot.guard(one, "adam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizers has LBFGS, whose line search steps many times in one step"):
        surefoot.guard(one, torch.optim.LBFGS([Parameter(torch.ones(2))]))
    assert not one._optimizer_step_pre_hooks
