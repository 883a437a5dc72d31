"""The multiplier on every step: exact, out of a scheduler's reach, gone between steps."""

from collections.abc import Callable

import pytest
import torch
from states import equal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer

import surefoot
from properties import over
from surefoot.capsule.snapshot import host_copy
from surefoot.optim.clip_updates import handle_of
from surefoot.recover.lr_scale import LrScale
from surefoot.recover.skip_stage import SkipStage

Params = list[nn.Parameter]


def clipped(optimizer: Optimizer, rule: surefoot.Rule) -> Optimizer:
    surefoot.clip_updates(optimizer, rule)
    return optimizer


DEVICE = "cuda" if torch.backends.cuda.is_built() else "cpu"  # some of torch's shape functions want a real build
TIGHT = surefoot.Clippy(relative=1e-3, absolute=1e-4)  # clips every step, so that the rate does not matter
OPTIMIZERS: dict[str, Callable[[Params], Optimizer]] = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1),
    "a tensor as rate": lambda p: torch.optim.Adam(p, torch.tensor(0.1)),
    "surefoot": lambda p: surefoot.Adagrad(p, 0.1),
    "surefoot, gradient clip": lambda p: surefoot.Adagrad(p, 0.1, rule=surefoot.GradientClip(1e-3)),
    "Clippy": lambda p: surefoot.ClippyAdagrad(p, 0.1),
    "Clippy, clipping": lambda p: surefoot.Adagrad(p, 0.1, rule=TIGHT),
    "Clippy, eager": lambda p: surefoot.Adagrad(p, 0.1, rule=TIGHT, fused=False),
    "Clippy, third term": lambda p: surefoot.ClippyAdagrad.tfrs(p, 0.1, accumulator_relative=1e-3),
    "a rule by group": lambda p: surefoot.Adagrad([{"params": p[:1], "rule": TIGHT}, {"params": p[1:]}], 0.1),
    "AdamW under Clippy": lambda p: clipped(torch.optim.AdamW(p, 0.1), TIGHT),
    "SGD under a trust ratio": lambda p: clipped(torch.optim.SGD(p, 0.1), surefoot.TrustRatio()),
}


def parameters() -> Params:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), nn.Parameter(torch.randn(3, dtype=torch.float64))]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def move(make: Callable[[Params], Optimizer], factor: float | None, *, last: bool = True) -> list[Tensor]:
    """Return how far one step moves each parameter after two whole ones."""
    params = parameters()
    if last:
        optimizer = make(params)
        lr_scale = LrScale([optimizer]) if factor else None
    else:
        optimizer = torch.optim.AdamW(params, 0.1)
        lr_scale = LrScale([optimizer]) if factor else None
        clipped(optimizer, TIGHT)
    for _ in range(2):
        optimizer.step()
    before = [param.detach().clone() for param in params]
    if lr_scale and factor:
        lr_scale.factor = factor
    optimizer.step()
    return [param.detach() - old for param, old in zip(params, before, strict=True)]


@over("make", OPTIMIZERS)
def test_a_step_is_multiplied_whatever_the_rule(make: Callable[[Params], Optimizer]):
    for whole, part in zip(move(make, None), move(make, 0.125), strict=True):
        assert whole.abs().min() > 0
        torch.testing.assert_close(part, 0.125 * whole, rtol=1e-9, atol=0)


def test_clip_updates_may_come_later():
    for whole, part in zip(
        move(OPTIMIZERS["AdamW"], None, last=False), move(OPTIMIZERS["AdamW"], 0.125, last=False), strict=True
    ):
        torch.testing.assert_close(part, 0.125 * whole, rtol=1e-9, atol=0)


@over("make", OPTIMIZERS)
def test_a_factor_of_one_and_the_time_between_steps_are_untouched(make: Callable[[Params], Optimizer]):
    plain, scaled = parameters(), parameters()
    optimizers = [make(plain), make(scaled)]
    lr_scale = LrScale(optimizers[1:])
    for optimizer in optimizers:
        optimizer.step()
    assert equal(plain, scaled)
    before = optimizers[1].state_dict()["param_groups"]
    lr_scale.factor = 0.5
    optimizers[1].step()
    assert optimizers[1].state_dict()["param_groups"] == before
    assert not equal(plain, scaled)


SCHEDULERS: dict[str, Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=20, cycle_momentum=False),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
}


@over("schedule", SCHEDULERS)
def test_no_scheduler_overwrites_it(schedule: Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]):
    rates: list[list[float]] = []
    moves: list[list[float]] = []
    for factor in (1.0, 0.25):
        param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        param.grad = torch.ones_like(param)
        optimizer = torch.optim.SGD([param], 0.1)
        scheduler, lr_scale = schedule(optimizer), LrScale([optimizer])
        lr_scale.factor = factor
        rates.append([])
        moves.append([])
        for _ in range(10):
            before = param.item()
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            moves[-1].append(before - param.item())
    assert rates[0] == rates[1]  # what the scheduler sets and sees
    assert moves[0] == pytest.approx(rates[0], abs=1e-12)
    assert moves[1] == pytest.approx([0.25 * rate for rate in rates[0]], abs=1e-12)
    assert len(set(rates[0])) > 2


def test_a_rate_that_is_set_during_the_step_stays():
    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=1.0)
    LrScale([optimizer]).factor = 0.5

    def closure() -> float:
        optimizer.param_groups[0]["lr"] = 0.25
        w.grad = torch.ones(1)
        return 0.0

    optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_step_that_raises_leaves_the_rate_as_it_was():
    params = parameters()
    optimizer = surefoot.Adagrad(params, 0.1, rule=TIGHT, nonfinite="raise")
    lr_scale = LrScale([optimizer])
    lr_scale.factor = 0.5
    params[0].grad = torch.full_like(params[0], torch.nan)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rule"]) == (0.1, TIGHT)


@over("make", OPTIMIZERS)
def test_while_held_nothing_moves(make: Callable[[Params], Optimizer]):
    params = parameters()
    optimizer = make(params)
    lr_scale = LrScale([optimizer])
    optimizer.step()
    before = host_copy([[*params], optimizer.state_dict()], "before")
    grads = [param.grad for param in params]
    lr_scale.held = True
    optimizer.step()
    assert equal(host_copy([[*params], optimizer.state_dict()], "after"), before)
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    lr_scale.held = False
    optimizer.step()
    assert not equal(host_copy([*params], "after"), before[0])


@over("make", {name: OPTIMIZERS[name] for name in ("AdamW", "Clippy", "AdamW under Clippy")})
def test_while_held_a_closure_is_called_and_moves_nothing(make: Callable[[Params], Optimizer]):
    params = parameters()
    optimizer = make(params)
    LrScale([optimizer]).held = True
    before, losses = host_copy([*params], "before"), []

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params]).sum()
        loss.backward()
        losses.append(loss.item())
        return losses[-1]

    for arguments in ((closure,), ()):
        assert optimizer.step(*arguments, **({} if arguments else {"closure": closure})) == losses[0]
    assert (len(losses), equal(host_copy([*params], "after"), before)) == (2, True)


CLIPPY: dict[str, Callable[[Params], Optimizer]] = {
    "surefoot": lambda p: surefoot.Adagrad(p, 0.1, rule=TIGHT),
    "eager": lambda p: surefoot.Adagrad(p, 0.1, rule=TIGHT, fused=False),
    "AdamW": lambda p: clipped(torch.optim.AdamW(p, 0.1), TIGHT),
}


def measured_by(optimizer: Optimizer) -> list[float]:
    source = optimizer if isinstance(optimizer, surefoot.Adagrad) else handle_of(optimizer)
    assert source is not None
    return [float(measure) for measure in source.measures().values()]


@over("make", CLIPPY)
def test_what_a_rule_measures_is_that_of_the_lowered_rate(make: Callable[[Params], Optimizer]):
    """A monitor asks how far the step goes beyond the configured bounds; one at an eighth goes an eighth as far."""
    found: list[list[float]] = []
    for factor in (1.0, 0.125):
        optimizer = make(parameters())
        optimizer.step()
        lr_scale = LrScale([optimizer])
        lr_scale.factor = factor
        optimizer.step()
        found.append(measured_by(optimizer))
        for param in optimizer.param_groups[0]["params"]:
            param.grad = None
        optimizer.step()  # measures nothing
        assert measured_by(optimizer) == found[-1]
    assert len(found[0]) == 2
    assert found[1] == pytest.approx([8 * measure for measure in found[0]], rel=1e-4)


def test_removed_it_is_gone():
    params = parameters()
    optimizer = torch.optim.SGD(params, 0.1)
    lr_scale = LrScale([optimizer])
    lr_scale.held = True
    lr_scale.remove()
    before = host_copy([*params], "before")
    optimizer.step()
    assert not equal(host_copy([*params], "after"), before)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_group_without_a_rate_is_refused():
    optimizer = torch.optim.SGD(parameters(), 0.1)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match=r"optimizers has a group without 'lr', \['dampening'"):
        LrScale([optimizer])


def test_other_hooks_see_the_step_as_it_is_taken():
    optimizer = torch.optim.SGD(parameters(), 0.1)
    rates: list[float] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    LrScale([optimizer]).factor = 0.5
    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    optimizer.step()
    assert rates == [0.05] * 4


ON_A_DEVICE: dict[str, Callable[[Params], Optimizer]] = {
    "Clippy": lambda p: surefoot.ClippyAdagrad(p, 0.1),
    "fused AdamW under Clippy": lambda p: clipped(torch.optim.AdamW(p, 0.1, fused=True), surefoot.Clippy()),
}


@over("make", ON_A_DEVICE)
def test_no_number_is_read_on_the_host(make: Callable[[Params], Optimizer]):
    """Fake tensors have no values: whatever reads one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = [nn.Parameter(torch.empty(4, 3, device=DEVICE)), nn.Parameter(torch.empty(5, device=DEVICE))]
        optimizer = make(params)
        lr_scale, skips = LrScale([optimizer]), SkipStage([optimizer])
        for factor, held in ((1.0, False), (0.5, False), (0.5, True), (1.0, False)):
            lr_scale.factor, lr_scale.held = factor, held
            for param in params:
                param.grad = torch.empty_like(param)
            optimizer.step()
            assert skips.new() == 0
        with pytest.raises(DataDependentOutputException):
            skips.new(now=True)
