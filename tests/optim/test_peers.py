"""What others do and where it breaks: first their failure, in torch alone where it can be had, then ours."""

import copy
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Embedding, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from properties import over
from surefoot import (
    Adagrad,
    AdaptiveGradientClip,
    Clippy,
    ClippyAdagrad,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
)
from surefoot.optim.clip_gradients import clip_gradients
from surefoot.optim.clip_updates import clip_updates

LR = 0.125
RULE = Clippy(1e-3, 1e-5)
Make = Callable[[Any], Optimizer]
SKIPPED = "the step was skipped"


def clipped(make: Callable[..., Optimizer], **options: Any) -> Make:
    """Return a way to make an optimizer of torch's with updates clipped."""

    def made(params: Any) -> Optimizer:
        clip_updates(optimizer := make(params, lr=LR, **options), RULE)
        return optimizer

    return made


OURS: dict[str, Make] = {
    "native, kernel": partial(ClippyAdagrad, lr=LR),
    "native, eager": partial(ClippyAdagrad, lr=LR, fused=False),
    "SGD": clipped(torch.optim.SGD),
    "SGD, momentum": clipped(torch.optim.SGD, momentum=0.9),
    "SGD, momentum, fused": clipped(torch.optim.SGD, momentum=0.9, fused=True),
    "Adagrad": clipped(torch.optim.Adagrad),
    "AdamW": clipped(torch.optim.AdamW),
    "AdamW, fused": clipped(torch.optim.AdamW, fused=True),
}


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 3), (5,))]


def twins(params: Sequence[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()


def follow(optimizer: Optimizer, params: Sequence[Tensor], steps: Sequence[Sequence[Tensor | None]]) -> None:
    for grads in steps:
        give(params, grads)
        optimizer.step()


def gradients(params: Sequence[Tensor], steps: int) -> list[list[Tensor]]:
    return [[torch.randn(p.shape).to(p.dtype) for p in params] for _ in range(steps)]


def spoilt(grads: Sequence[Tensor], value: float = torch.nan) -> list[Tensor]:
    """Put one bad number into the first gradient."""
    bad = [grad.clone() for grad in grads]
    bad[0].view(-1)[0] = value
    return bad


def everything(optimizer: Optimizer) -> list[Tensor]:
    """Return copies of weights and states, in order."""
    found = []
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state[p]
        found += [
            p.detach().clone(),
            *(torch.as_tensor(state[k]).clone() for k in sorted(state) if state[k] is not None),
        ]
    return found


def same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), rtol=0.0, atol=0.0, equal_nan=True)


# Guards that fail on the very input they guard against


@over("make", OURS)
def test_olmo_core_skips_by_multiplying_with_zero(make: Make) -> None:
    w, moment, grad, keep = torch.ones(2), torch.zeros(2), torch.tensor([torch.nan, 1.0]), torch.tensor(0.0)
    moment.lerp_(grad, keep * 0.1)
    w.add_(keep * -LR * moment)
    assert w[0].isnan()
    assert moment[0].isnan()

    params = parameters()
    optimizer = make(params)
    steps = gradients(params, 2)
    follow(optimizer, params, steps[:1])
    before = everything(optimizer)
    with pytest.warns(RuntimeWarning, match=SKIPPED):
        follow(optimizer, params, [spoilt(steps[1])])
    same_bits(everything(optimizer), before)


def test_clip_grad_norm_with_one_inf() -> None:
    params = parameters()
    (grads,) = gradients(params, 1)
    give(params, bad := spoilt(grads, torch.inf))
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    assert params[0].grad is not None
    assert params[0].grad.view(-1)[0].isnan()
    assert params[1].grad is not None
    assert (params[1].grad == 0).all()

    give(params, bad)
    sigmas = clip_gradients(params, GlobalGradientClip(1.0))
    assert all(sigma == 0 for sigma in sigmas.values())  # told, and not applied
    same_bits([p.grad for p in params if p.grad is not None], bad)  # the optimizer's policy finds it
    old = twins(params)
    for optimizer in (
        Adagrad(params, LR, rule=GlobalGradientClip(1.0)),
        (attached := torch.optim.SGD(params, lr=LR)),
    ):
        if optimizer is attached:
            clip_updates(optimizer, GlobalGradientClip(1.0))
        with pytest.warns(RuntimeWarning, match=SKIPPED):
            optimizer.step()
        same_bits(params, old)


@over("value", [torch.nan, torch.inf])
def test_tfrs_clippy_poisons_the_whole_tensor(value: float) -> None:
    w, g = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([value, 0.1, 0.1])
    G = 0.1 + g.square()
    r = g * G.rsqrt()
    sigma = ((0.5 * w.abs() + 0.01) / (LR * r.abs())).min().clamp(max=1.0)
    assert (w - LR * sigma * r).isnan().all()

    start = [w, torch.ones(2)]
    policies = {"propagate": [True, False], "skip_step": [False, False], "skip_tensor": [False, False]}
    for policy, poisoned in policies.items():
        params = twins(start)
        optimizer = ClippyAdagrad(params, LR, nonfinite=policy)
        give(params, [g, torch.ones(2)])
        if policy == "skip_step":
            with pytest.warns(RuntimeWarning, match=SKIPPED):
                optimizer.step()
        else:
            optimizer.step()
        assert [bool(p.isnan().all()) for p in params] == poisoned
        assert torch.equal(params[0], w) == (policy != "propagate")
        assert torch.equal(params[1], start[1]) == (policy == "skip_step")  # the other tensor steps on
    params = twins(start)
    give(params, [g, torch.ones(2)])
    with pytest.raises(FloatingPointError, match=r"the gradient of a parameter of shape \(3,\) is NaN or infinite"):
        ClippyAdagrad(params, LR, nonfinite="raise").step()
    same_bits(params, start)


def test_composer_agc_without_a_floor_keeps_zero_weights_at_zero() -> None:
    w, g = torch.zeros(3, 2), torch.ones(3, 2)
    for _ in range(5):
        ratio = 0.01 * w.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)
        w -= LR * torch.where(ratio < 1, ratio, 1.0) * g
    assert (w == 0).all()

    for unitwise in (True, False):
        rule = AdaptiveGradientClip(0.01, unitwise=unitwise)
        native, attached = Parameter(torch.zeros(3, 2)), Parameter(torch.zeros(3, 2))
        clip_updates(sgd := torch.optim.SGD([attached], lr=LR), rule)
        follow(Adagrad([native], LR, rule=rule), [native], [[g]] * 5)
        follow(sgd, [attached], [[g]] * 5)
        assert (native != 0).all()
        assert (attached != 0).all()


@over("rule", [TrustRatio(), Clippy(0.5, 0.0)])
def test_zero_over_zero_in_lamb_and_in_clippy_without_an_absolute_bound(rule: Rule) -> None:
    zeros = torch.zeros(3)
    assert (zeros.norm() / zeros.norm()).isnan()
    assert ((0.5 * zeros.abs()) / (LR * zeros.abs())).min().isnan()

    for start in (zeros, torch.ones(3)):
        native, attached = Parameter(start.clone()), Parameter(start.clone())
        optimizer = Adagrad([native], LR, rule=rule)
        handle = clip_updates(sgd := torch.optim.SGD([attached], lr=LR), rule)
        follow(optimizer, [native], [[zeros]])
        follow(sgd, [attached], [[zeros]])
        assert optimizer.clip_factors()[native] == handle.clip_factors()[attached] == 1
        same_bits([native, attached], [start, start])


# Wrapping optimizers


class Wrapper:
    """What wrappers are: something with a step of its own around an optimizer."""

    def __init__(self, optimizer: Optimizer, rule: Rule) -> None:
        self.optimizer, self.rule = optimizer, rule
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.state = {p: optimizer.state[p] for p in self.params if p in optimizer.state}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        old = {p: p.detach().clone() for p in self.params if p.grad is not None}
        self.optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            for p, w in old.items():
                r = (w - p) / LR
                p.copy_(w - LR * self.rule(w, r, r, LR) * r)
        return loss


@over("make", OURS)
def test_schedulers_refuse_wrappers(make: Make) -> None:
    params = parameters()
    with pytest.raises(TypeError, match="is not an Optimizer"):
        ExponentialLR(Wrapper(torch.optim.SGD(params, lr=LR), RULE), 0.5)  # pyright: ignore[reportArgumentType]

    schedule = ExponentialLR(optimizer := make(params), 0.5)
    follow(optimizer, params, gradients(params, 1))
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == LR / 2


@over("make", {name: make for name, make in OURS.items() if name != "Adagrad"})
def test_state_is_created_too_early(make: Make) -> None:
    """Before the model has found its type and device; torch.optim.Adagrad is one that does."""
    params = parameters()
    early = torch.optim.Adagrad(params, lr=LR)
    assert early.state[params[0]]["sum"].dtype is torch.float32

    optimizer = make(params)
    assert not optimizer.state
    for p in params:
        p.data = p.data.double()
    assert early.state[params[0]]["sum"].dtype is torch.float32  # left behind
    follow(optimizer, params, gradients(params, 2))
    for p in params:
        kept = {x.dtype for x in optimizer.state[p].values() if isinstance(x, Tensor) and x.ndim}
        assert kept <= {torch.float64}


@over("make", OURS)
def test_state_is_not_taken_again_after_load(make: Make) -> None:
    params = parameters()
    inner = torch.optim.Adagrad(params, lr=LR)
    wrapper = Wrapper(inner, RULE)
    inner.load_state_dict(copy.deepcopy(inner.state_dict()))
    assert wrapper.state[params[0]] is not inner.state[params[0]]  # the wrapper's is nobody's

    params = parameters()
    optimizer = make(params)
    steps = gradients(params, 6)
    follow(optimizer, params, steps[:2])
    saved, weights = copy.deepcopy(optimizer.state_dict()), twins(params)
    follow(optimizer, params, steps[2:])
    (other := make(others := twins(params))).load_state_dict(copy.deepcopy(saved))
    optimizer.load_state_dict(copy.deepcopy(saved))  # and back, in place
    for several in (params, others):
        for p, w in zip(several, weights, strict=True):
            p.data.copy_(w)
    follow(optimizer, params, steps[2:])
    follow(other, others, steps[2:])
    same_bits(everything(optimizer), everything(other))


@over("make", OURS)
def test_closures_run_twice_or_unclipped(make: Make) -> None:
    def closure(params: Sequence[Parameter], calls: list[float]) -> float:
        give(params, [torch.full_like(p, 2.0) for p in params])
        calls.append(0.0)
        return 0.0

    params, calls = parameters(), []
    old = twins(params)
    Wrapper(torch.optim.SGD(params, lr=LR), NoClip()).step(partial(closure, params, calls))
    assert len(calls) == 2
    unclipped = torch.optim.SGD(params := twins(old), lr=LR)  # remembers what has a gradient before the step: nothing
    remembered = {p: p.detach().clone() for p in params if p.grad is not None}
    unclipped.step(partial(closure, params, calls))
    assert not remembered

    ours, calls = twins(old), []
    optimizer = make(ours)
    assert optimizer.step(partial(closure, ours, calls)) == 0.0
    assert len(calls) == 1
    follow(make(expected := twins(old)), expected, [[torch.full_like(p, 2.0) for p in old]])
    same_bits(ours, expected)
    if not isinstance(optimizer, Adagrad):  # a bound of 0.001 |w| + 0.00001
        for p, w in zip(ours, old, strict=True):
            assert ((p - w).abs() <= 1.01 * (RULE.relative * w.abs() + RULE.absolute)).all()


@over("bad", [torch.nan, torch.inf])
def test_fused_sgd_with_momentum_keeps_garbage_of_a_first_step_that_was_skipped(bad: float) -> None:
    params = parameters()
    (grads,) = gradients(params, 1)
    theirs = torch.optim.SGD(params, lr=LR, momentum=0.9, fused=True)
    theirs.found_inf = torch.tensor(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    follow(theirs, params, [grads])
    buffer = theirs.state[params[0]]["momentum_buffer"]
    assert buffer is not None  # uninitialised memory, which the next step multiplies by 0.9
    assert not torch.equal(buffer, grads[0])

    make = OURS["SGD, momentum, fused"]
    others = twins(params)
    optimizer, never = make(params), make(others)
    with pytest.warns(RuntimeWarning, match=SKIPPED):
        follow(optimizer, params, [spoilt(grads, bad)])
    assert not any(state for state in optimizer.state.values())
    steps = gradients(params, 3)
    follow(optimizer, params, steps)
    follow(never, others, steps)
    same_bits(everything(optimizer), everything(never))


@over("theirs", [0.0, 1.0])
@over("name", ["AdamW, fused", "native, kernel", "native, eager"])
def test_a_found_inf_overwrites_the_one_already_there(name: str, theirs: float) -> None:
    """Whoever sets it must not drop another's: theirs says to skip, or the gradient does."""
    params = parameters()
    optimizer: Any = OURS[name](params)
    old = twins(params)
    (grads,) = gradients(params, 1)
    optimizer.found_inf = flag = torch.tensor(1.0)
    follow(optimizer, params, [grads])
    same_bits(params, old)
    optimizer.found_inf = flag = torch.tensor(theirs)
    if theirs:
        follow(optimizer, params, [spoilt(grads)])
    else:
        with pytest.warns(RuntimeWarning, match=SKIPPED):
            follow(optimizer, params, [spoilt(grads)])
    same_bits(params, old)
    assert optimizer.found_inf is flag
    del optimizer.found_inf
    follow(optimizer, params, [grads])
    assert not any(torch.equal(p, w) for p, w in zip(params, old, strict=True))


def test_optimizers_that_are_not_fused_fail_on_a_found_inf() -> None:
    params = parameters()
    (grads,) = gradients(params, 1)
    theirs = torch.optim.AdamW(params, lr=LR)
    theirs.found_inf = torch.tensor(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    give(params, grads)
    with pytest.raises(AssertionError, match="Expected grad_scale and found_inf to be None"):
        theirs.step()

    params = twins(params)
    optimizer = OURS["AdamW"](params)
    give(params, bad := spoilt(grads))
    objects = [p.grad for p in params]
    with pytest.warns(RuntimeWarning, match=SKIPPED):
        optimizer.step()
    assert all(p.grad is each for p, each in zip(params, objects, strict=True))
    same_bits([p.grad for p in params if p.grad is not None], bad)
    assert not hasattr(optimizer, "found_inf")


@over("name", ["AdamW, fused", "native"])
def test_under_a_scaler_a_hook_sees_gradients_still_scaled(name: str) -> None:
    rule = GradientClip(0.1)
    norm = (2 * torch.ones(3)).norm()
    seen: list[Tensor] = []
    p = Parameter(torch.ones(3))
    optimizer: Any = Adagrad([p], LR, rule=rule) if name == "native" else torch.optim.AdamW([p], lr=LR, fused=True)
    clipper = optimizer if name == "native" else clip_updates(optimizer, rule)
    optimizer.register_step_pre_hook(lambda *_: seen.append(p.grad.norm()))  # pyright: ignore[reportOptionalMemberAccess]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(p.square().sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(seen, [1024 * norm])

    torch.testing.assert_close(clipper.clip_factors()[p], 0.1 / norm)


def test_load_state_dict_casts_the_accumulator_to_the_weights_type() -> None:
    params = parameters(torch.bfloat16)
    steps = gradients(params, 5)
    follow(optimizer := ClippyAdagrad(params, LR), params, steps)
    sums = [optimizer.state[p]["sum"].clone() for p in params]
    assert not torch.equal(sums[0], sums[0].bfloat16().float())  # it has digits to lose
    theirs = torch.optim.Adagrad(params, lr=LR, foreach=False)
    saved = theirs.state_dict()
    saved["state"] = copy.deepcopy(optimizer.state_dict()["state"])
    theirs.load_state_dict(saved)
    assert theirs.state[params[0]]["sum"].dtype is torch.bfloat16

    (ours := ClippyAdagrad(twins(params), LR)).load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded = [ours.state[p]["sum"] for p in ours.param_groups[0]["params"]]
    assert {x.dtype for x in loaded} == {torch.float32}
    same_bits(loaded, sums)


def test_load_state_dict_drops_group_keys_that_the_checkpoint_lacks() -> None:
    params = parameters()
    theirs = torch.optim.SGD([{"params": params, "rule": GradientClip(0.1)}], lr=LR)
    saved = copy.deepcopy(torch.optim.SGD(params, lr=LR).state_dict())
    theirs.load_state_dict(saved)
    assert "rule" not in theirs.param_groups[0]

    attached = torch.optim.SGD([{"params": params, "rule": GradientClip(0.1)}], lr=LR)
    clip_updates(attached, RULE)
    attached.load_state_dict(saved)
    assert attached.param_groups[0]["rule"] == GradientClip(0.1)
    peer = torch.optim.Adagrad(params, lr=LR, initial_accumulator_value=0.1, eps=1e-10)
    native = Adagrad(params, 2 * LR, rule=GradientClip(0.1), accumulate="after", eps=1e-3)
    options = dict(native.param_groups[0])
    native.load_state_dict(copy.deepcopy(peer.state_dict()))
    changed = {name for name, value in native.param_groups[0].items() if name != "params" and value != options[name]}
    assert changed == {"lr", "eps"}  # what the checkpoint has; the rest is as constructed
    follow(native, params, gradients(params, 1))


@over("make", OURS)
def test_a_parameter_without_a_gradient_before_the_closure_is_remembered(make: Make) -> None:
    """Hooks that remember only what has a gradient now miss what a closure makes later."""
    params = parameters()
    old = twins(params)
    (grads,) = gradients(params, 1)
    assert all(p.grad is None for p in params)
    optimizer = make(params)

    def closure() -> float:
        give(params, [100 * grad for grad in grads])
        return 0.0

    optimizer.step(closure)
    others = twins(old)
    follow(make(others), others, [[100 * grad for grad in grads]])
    same_bits(params, others)
    assert not any(torch.equal(p, w) for p, w in zip(params, old, strict=True))


# What users ask for


@over("norm_type", [torch.inf, 2.0])
def test_clip_grad_norm_fails_on_sparse_gradients_pytorch_4829(norm_type: float) -> None:
    table = Embedding(5, 2, sparse=True)
    ids = torch.tensor([3, 3, 0])
    table(ids).sum().backward()
    with pytest.raises(NotImplementedError, match="Sparse"):
        torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0, norm_type=norm_type)

    true_norm = torch.tensor([1.0, 1.0, 2.0, 2.0]).norm()  # of the rows summed, not of the three values
    sigmas = clip_gradients(table.parameters(), GradientClip(1.0))
    torch.testing.assert_close(sigmas[table.weight], 1 / true_norm)
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad.to_dense().norm(), torch.tensor(1.0))
    table.weight.grad = None
    table(ids).sum().backward()
    for clip in (GradientClip(1.0), GlobalGradientClip(1.0)):
        native = Adagrad([table.weight], LR, rule=clip)
        native.step()
        torch.testing.assert_close(native.clip_factors()[table.weight], 1 / true_norm)
        sgd = torch.optim.SGD([table.weight], lr=LR)
        handle = clip_updates(sgd, clip)
        sgd.step()
        torch.testing.assert_close(handle.clip_factors()[table.weight], 1 / true_norm)


@over("make", OURS)
def test_a_skipped_step_must_not_advance_the_step_counter_olmo_core_317(make: Make) -> None:
    params = parameters()
    theirs = torch.optim.AdamW(params, lr=LR)
    steps = gradients(params, 3)
    follow(theirs, params, [steps[0], [torch.zeros_like(p) for p in params]])  # skipped by zeros
    assert theirs.state[params[0]]["step"] == 2

    others = twins(params)
    optimizer, never = make(params), make(others)
    follow(optimizer, params, steps[:1])
    for value in (torch.nan, torch.inf):
        if value == torch.inf:
            follow(optimizer, params, [spoilt(steps[1], value)])  # told once
        else:
            with pytest.warns(RuntimeWarning, match=SKIPPED):
                follow(optimizer, params, [spoilt(steps[1], value)])
    for p in params:
        assert optimizer.state[p].get("step", 1) == 1
    follow(optimizer, params, steps[1:])
    follow(never, others, steps)
    same_bits(everything(optimizer), everything(never))


def test_a_saved_state_with_a_rule_loads_without_unpickling() -> None:
    """A rule as an object in the groups would not load with ``weights_only=True``."""
    params = parameters()
    theirs = torch.optim.SGD([{"params": params, "rule": RULE}], lr=LR)
    torch.save(theirs.state_dict(), file := io.BytesIO())
    file.seek(0)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(file, weights_only=True)

    clip_updates(theirs, NoClip())
    for optimizer in (theirs, ClippyAdagrad(params, LR)):
        torch.save(optimizer.state_dict(), file := io.BytesIO())
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert theirs.param_groups[0]["rule"] == RULE
