"""Several optimizers skip together or not at all."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import surefoot

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
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
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


def test_what_is_no_guard():
    _, (one, other) = pair(KINDS["native"], KINDS["Adagrad"])
    with pytest.raises(ValueError, match="expected two or more, each once"):
        surefoot.guard(one)
    with pytest.raises(ValueError, match="expected two or more, each once"):
        surefoot.guard(one, one)
    with pytest.raises(TypeError, match="optimizers has 'adam'; expected torch.optim.Optimizer objects"):
        surefoot.guard(one, "adam")  # type: ignore[arg-type]
    surefoot.guard(one, other)
    with pytest.raises(ValueError, match="closure is given to an optimizer under a guard"):
        one.step(lambda: 0.0)
