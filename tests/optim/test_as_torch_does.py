"""What the tests of torch's own optimizers, and of pytorch_optimizer's, ask of every optimizer.

Beside ``test_contract.py``: construction and what it refuses, schedulers of every kind, hooks and their order, what a
state dict shares, parameters of every layout and type, and that a loss goes down.
"""

import copy
import gc
import io
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from properties import all_of, over
from surefoot import (
    Adagrad,
    AdaptiveGradientClip,
    Clippy,
    ClippyAdagrad,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    TrustRatio,
    clip_updates,
)

LR = 0.1
Make = Callable[..., Adagrad]
MAKE: dict[str, Make] = {
    "kernel": lambda params, lr=LR, **options: ClippyAdagrad(params, lr, **options),
    "eager": lambda params, lr=LR, **options: ClippyAdagrad(params, lr, fused=False, **options),
    "no clip": lambda params, lr=LR, **options: Adagrad(params, lr, **options),
    "by unit": lambda params, lr=LR, **options: Adagrad(params, lr, rule=AdaptiveGradientClip(1.0), **options),
    "by model": lambda params, lr=LR, **options: Adagrad(params, lr, rule=GlobalGradientClip(), **options),
}


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)


def give(params: Iterable[Tensor], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    pairs = list(zip(found, expected, strict=True))
    assert pairs
    for x, y in pairs:
        assert torch.equal(x.detach(), y.detach())


def values(optimizer: Optimizer) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [x.detach().clone() for p in params for x in (p, *optimizer.state[p].values())]


# Construction

REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a tensor": (torch.ones(2), {}, TypeError, "params argument given to the optimizer should be an iterable"),
    "nothing": ([], {}, ValueError, "empty parameter list"),
    "numbers": ([1.0, 2.0], {}, TypeError, "optimizer can only optimize Tensors"),
    "what is no leaf": ([Parameter(torch.ones(2)) * 2], {}, ValueError, "can't optimize a non-leaf Tensor"),
    "a group without parameters": ([{"lr": 0.1}], {}, KeyError, "params"),
    "a set": ([{"params": {Parameter(torch.ones(1))}}], {}, TypeError, "set"),
    "complex numbers": ([Parameter(torch.ones(2, dtype=torch.complex64))], {}, ValueError, "real floating-point"),
    "a negative rate": ([Parameter(torch.ones(2))], {"lr": -0.1}, ValueError, "lr"),
    "a rate of NaN": ([Parameter(torch.ones(2))], {"lr": float("nan")}, ValueError, "lr"),
    "a rate in words": ([Parameter(torch.ones(2))], {"lr": "0.1"}, ValueError, "lr is '0.1'; expected a finite number"),
    "no rate": ([Parameter(torch.ones(2))], {"lr": None}, ValueError, "lr is None; expected a finite number"),
    "a rate without end": ([Parameter(torch.ones(2))], {"lr": 10**400}, ValueError, "expected a finite number"),
    "negative decay": ([Parameter(torch.ones(2))], {"weight_decay": -1.0}, ValueError, "weight_decay"),
    "negative eps": ([Parameter(torch.ones(2))], {"eps": -1.0}, ValueError, "eps"),
    "a negative start": ([Parameter(torch.ones(2))], {"initial_accumulator_value": -1.0}, ValueError, "initial_acc"),
    **{
        f"torch's {name}": ([Parameter(torch.ones(2))], {name: True}, TypeError, name)
        for name in ("foreach", "capturable", "differentiable", "lr_decay", "amsgrad")
    },
}


@all_of("case", REFUSED)
@all_of("make", MAKE)
def test_bad_input_is_refused(make: Make, case: tuple[Any, dict[str, Any], type[Exception], str]) -> None:
    params, options, error, words = case
    with pytest.raises(error, match=words):
        make(params, **options)


@all_of("make", MAKE)
def test_a_parameter_is_in_one_group_once(make: Make) -> None:
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [p]}, {"params": [p, q]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        make([{"params": [p, p]}])
    optimizer = make([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([q])  # pyright: ignore[reportArgumentType]
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": q})
    assert optimizer.param_groups[1]["params"] == [q]
    assert optimizer.param_groups[1]["lr"] == LR


SOURCES: dict[str, Callable[[nn.Module], Any]] = {
    "a generator": lambda net: net.parameters(),
    "dict values": lambda net: dict(net.named_parameters()).values(),
    "names": lambda net: net.named_parameters(),
    "a ParameterList": lambda net: nn.ParameterList(net.parameters()),
    "groups from a generator": lambda net: ({"params": [p]} for p in net.parameters()),
    "groups with generators": lambda net: [{"params": net.parameters()}],
    "groups with names": lambda net: [{"params": list(net.named_parameters()), "lr": LR}],
}


@all_of("source", SOURCES)
@all_of("make", MAKE)
def test_parameters_come_in_any_iterable(make: Make, source: Callable[[nn.Module], Any]) -> None:
    nets = [model()]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = make(source(nets[0])), make(list(nets[1].parameters()))
    for net, optimizer in zip(nets, optimizers, strict=True):
        give(net.parameters())
        optimizer.step()
    same(nets[0].parameters(), nets[1].parameters())
    names = [name for group in optimizers[0].param_groups for name in group.get("param_names", ())]
    assert names in ([], [name for name, _ in nets[0].named_parameters()])


@all_of("make", MAKE)
def test_it_prints_its_groups(make: Make) -> None:
    optimizer = make([{"params": [Parameter(torch.ones(2))]}, {"params": [Parameter(torch.ones(2))], "lr": 0.25}])
    text = repr(optimizer)
    assert text.startswith(type(optimizer).__name__)
    assert "Parameter Group 1" in text
    assert "lr: 0.25" in text
    assert "rule: " in text


@all_of("make", MAKE)
def test_it_can_be_collected(make: Make) -> None:
    """No cycle keeps the weights in memory when the optimizer is gone."""
    p = Parameter(torch.ones(2))
    optimizer = make([p])
    give([p])
    optimizer.step()
    gone = weakref.ref(p)
    del p, optimizer
    gc.collect()
    assert gone() is None


# Steps


def fit(make_optimizer: Callable[[nn.Module], Optimizer], steps: int = 60) -> tuple[float, float]:
    """Return the loss of a small regression before and after."""
    torch.manual_seed(3)
    net, x = model(), torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    optimizer, losses = make_optimizer(net), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@all_of("make", MAKE)
def test_a_loss_goes_down(make: Make) -> None:
    first, last = fit(lambda net: make(net.parameters()))
    assert last < 0.7 * first


@all_of("make", MAKE)
def test_maximize_goes_up(make: Make) -> None:
    p = Parameter(torch.ones(3))
    optimizer = make([p], maximize=True)
    for _ in range(5):
        optimizer.zero_grad()
        (p.sum()).backward()
        optimizer.step()
    assert (p > 1).all()


@all_of("make", MAKE)
def test_weight_decay_pulls_to_zero_and_only_where_there_is_a_gradient(make: Make) -> None:
    p, q = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    make([p, q], weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - LR * 0.5))
    assert torch.equal(q, torch.ones(3))


def layouts() -> dict[str, Callable[[], Tensor]]:
    return {
        "contiguous": lambda: torch.randn(6, 4),
        "transposed": lambda: torch.randn(4, 6).mT,
        "every other": lambda: torch.randn(12, 8)[::2, ::2],
        "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "a view with an offset": lambda: torch.randn(25)[1:].view(6, 4),
        "0-d": lambda: torch.randn(()),
        "empty": lambda: torch.randn(0),
        "empty rows": lambda: torch.randn(3, 0, 2),
    }


@all_of("gradient", layouts())
@all_of("weight", layouts())
@all_of("make", MAKE)
def test_any_layout_steps_as_the_contiguous_one(
    make: Make, weight: Callable[[], Tensor], gradient: Callable[[], Tensor]
) -> None:
    w, g = weight(), gradient()
    if w.shape != g.shape:
        g = torch.randn(w.shape)
    p, q = Parameter(w), Parameter(w.clone(memory_format=torch.contiguous_format))
    strides = p.stride()
    for each in (p, q):
        each.grad = g if each is p else g.contiguous()
        optimizer = make([each], weight_decay=0.1)
        for _ in range(2):
            optimizer.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)
    assert p.stride() == strides


@all_of("make", MAKE)
def test_types_and_shapes_mix_in_a_group(make: Make) -> None:
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    params = [Parameter(torch.ones(shape, dtype=dtype)) for dtype in types for shape in ((3,), (), (2, 2), (0,))]
    params += [Parameter(torch.ones(2)) for _ in range(12)]
    alone = [Parameter(p.detach().clone()) for p in params]
    give(params)
    give(alone)
    optimizer = make(params)
    optimizer.step()
    if not isinstance(optimizer.param_groups[0]["rule"], GlobalGradientClip):
        for p, q in zip(params, alone, strict=True):
            make([q]).step()
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)
    for p in params:
        assert p.isfinite().all()
        assert optimizer.state[p]["sum"].dtype is torch.promote_types(p.dtype, torch.float32)


@all_of("make", MAKE)
def test_weights_that_change_their_type_step_on(make: Make) -> None:
    net = model()
    optimizer = make(net.parameters())
    give(net.parameters())
    optimizer.step()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        net.to(dtype)
        before = [p.detach().clone() for p in net.parameters()]
        give(net.parameters())
        optimizer.step()
        assert all(p.dtype is dtype for p in net.parameters())
        assert not any(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@all_of("make", MAKE)
def test_no_gradient_no_state(make: Make) -> None:
    """Neither without any gradient, nor for parameters that require none; zero_grad is of both kinds."""
    p, frozen = Parameter(torch.ones(3)), Parameter(torch.ones(3), requires_grad=False)
    optimizer = make([p, frozen])
    optimizer.step()
    assert not optimizer.state
    give([p])
    optimizer.step()
    assert set(optimizer.state) == {p}
    assert torch.equal(frozen, torch.ones(3))
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None
    assert not p.grad.any()
    old = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, old)
    optimizer.zero_grad()
    assert p.grad is None


@all_of("make", MAKE)
def test_a_closure_may_return_anything_and_runs_with_gradients_on(make: Make) -> None:
    p = Parameter(torch.ones(3))
    optimizer = make([p])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss: Any = optimizer.step(closure)
    assert loss.item() == 3.0
    assert (p < 1).all()
    assert optimizer.step(closure=closure) is not None


@over("rate", {"a number": 0.1, "a tensor": torch.tensor(0.1), "a tensor in float64": torch.tensor(0.1).double()})
@all_of("make", MAKE)
def test_a_rate_that_is_changed_is_obeyed(make: Make, rate: float | Tensor) -> None:
    p, q = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer, other = make([p], rate.clone() if isinstance(rate, Tensor) else rate), make([q], 0.1)
    for lr in (0.1, 0.025):
        group = optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        other.param_groups[0]["lr"] = lr
        give([p])
        give([q])
        optimizer.step()
        other.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)


def sparse(rows: list[int], shape: tuple[int, int]) -> Tensor:
    values = torch.randn(len(rows), shape[1])
    indices = torch.tensor([rows], dtype=torch.int64)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


@over("fill", {"no row": [], "a row": [2], "a row twice": [1, 4, 1], "every row": [0, 1, 2, 3, 4, 5]})
@all_of("make", MAKE)
def test_sparse_gradients_step_beside_dense_ones(make: Make, fill: list[int]) -> None:
    table, dense = Parameter(torch.ones(6, 2)), Parameter(torch.ones(3))
    optimizer = make([table, dense])
    for _ in range(2):
        table.grad, dense.grad = sparse(fill, (6, 2)), torch.ones(3)
        optimizer.step()
    moved = (table != 1).any(dim=1)
    assert moved.tolist() == [row in fill for row in range(6)]
    assert (dense < 1).all()
    assert all(factor.isfinite().all() for factor in optimizer.clip_factors().values())


def test_a_gradient_of_another_type_than_its_weight_steps() -> None:
    """Where torch allows it: a type of its own for p.grad."""
    p = Parameter(torch.ones(4))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    p.grad_dtype = torch.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
    p.grad = torch.full((4,), 0.5, dtype=torch.bfloat16)
    ClippyAdagrad([p], LR, initial_accumulator_value=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 1 - LR * 0.5 / 0.35**0.5))


# Schedulers

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=6, cycle_momentum=False),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, LR, step_size_up=2, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@over("schedule", SCHEDULERS)
@over("rate", {"a number": lambda: LR, "a tensor": lambda: torch.tensor(LR)})
def test_every_scheduler_drives_it_as_it_drives_torchs(schedule: Callable[[Optimizer], Any], rate: Any) -> None:
    params = [[Parameter(torch.ones(2)), Parameter(torch.ones(2))] for _ in range(2)]
    ours = ClippyAdagrad([{"params": params[0][:1]}, {"params": params[0][1:], "lr": 0.5}], rate())
    theirs = torch.optim.Adagrad([{"params": params[1][:1]}, {"params": params[1][1:], "lr": 0.5}], rate())
    schedules = schedule(ours), schedule(theirs)
    seen = []
    for step in range(6):
        for optimizer, each, several in zip((ours, theirs), schedules, params, strict=True):
            give(several)
            optimizer.step()
            each.step(*([1.0] if isinstance(each, lr_scheduler.ReduceLROnPlateau) else []))
        rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in (ours, theirs)]
        assert rates[0] == rates[1], step
        seen.append(tuple(rates[0]))
    assert len(set(seen)) > 1
    assert all(p.isfinite().all() for p in params[0])


# Hooks


@all_of("make", MAKE)
def test_step_hooks_run_around_the_step_in_their_order(make: Make) -> None:
    p = Parameter(torch.ones(2))
    optimizer, told = make([p]), []
    give([p])
    handles = [
        register_optimizer_step_pre_hook(lambda *_: told.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: told.append("global post")),
    ]
    try:
        optimizer.register_step_pre_hook(lambda o, args, kwargs: told.append(("pre", p[0].item())))
        optimizer.register_step_post_hook(lambda o, args, kwargs: told.append(("post", p[0].item() < 1)))
        p.grad = torch.ones(2)
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert told == ["global pre", ("pre", 1.0), ("post", True), "global post"]


@all_of("make", MAKE)
def test_state_dict_hooks_run_in_their_order_and_what_they_return_counts(make: Make) -> None:
    p = Parameter(torch.ones(2))
    optimizer, told = make([p]), []
    give([p])
    optimizer.step()

    def mark(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        told.append("post")
        return {**state, "mark": 7}

    optimizer.register_state_dict_pre_hook(lambda o: told.append("pre"))
    optimizer.register_state_dict_post_hook(mark)
    optimizer.register_state_dict_pre_hook(lambda o: told.append("first"), prepend=True)
    saved = optimizer.state_dict()
    assert told == ["first", "pre", "post"]
    assert saved["mark"] == 7
    assert isinstance(saved["param_groups"][0]["rule"], str)


@all_of("make", MAKE)
def test_load_hooks_see_the_state_first_and_last(make: Make) -> None:
    p = Parameter(torch.ones(2))
    optimizer, told = make([p]), []
    give([p])
    optimizer.step()
    saved = optimizer.state_dict()

    def renamed(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        told.append("pre")
        groups = [{**group, "lr": 0.5} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(renamed)
    optimizer.register_load_state_dict_post_hook(lambda o: told.append(("post", o.param_groups[0]["lr"])))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: told.append("first"), prepend=True)
    optimizer.load_state_dict(saved)
    assert told == ["first", "pre", ("post", 0.5)]
    assert saved["param_groups"][0]["lr"] == LR


@all_of("make", MAKE)
def test_the_profiler_sees_the_step_and_zero_grad_by_name(make: Make) -> None:
    p = Parameter(torch.ones(2))
    optimizer = make([p])
    give([p])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.name for event in profile.events() or ()}
    kind = type(optimizer).__name__
    assert {f"Optimizer.step#{kind}.step", f"Optimizer.zero_grad#{kind}.zero_grad"} <= names


# States


@all_of("make", MAKE)
def test_a_loaded_state_is_a_copy(make: Make) -> None:
    """Neither the state dict that is loaded changes, nor does the optimizer it came from when the other one steps."""
    net = model()
    optimizer = make(net.parameters())
    give(net.parameters())
    optimizer.step()
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other_net = copy.deepcopy(net)
    other = make(other_net.parameters())
    other.load_state_dict(saved)
    before = values(optimizer)
    for _ in range(2):
        give(other_net.parameters())
        other.step()
    same(values(optimizer), before)
    assert repr(saved) == repr(kept)
    assert saved["param_groups"] == kept["param_groups"]


@all_of("make", MAKE)
def test_a_state_dict_is_the_same_whenever_it_is_asked_for(make: Make) -> None:
    net = model()
    optimizer = make(list(net.named_parameters()))
    give(net.parameters())
    optimizer.step()
    first, second = optimizer.state_dict(), optimizer.state_dict()
    assert repr(first) == repr(second)
    assert list(first) == ["state", "param_groups"]
    assert first["param_groups"][0]["param_names"] == [name for name, _ in net.named_parameters()]
    assert {key for state in first["state"].values() for key in state} == {"step", "sum"}


@all_of("make", MAKE)
def test_an_older_state_without_some_options_and_with_a_step_that_is_a_number_loads(make: Make) -> None:
    net = model()
    optimizer = make(net.parameters())
    give(net.parameters())
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["maximize"], group["accumulate"], group["weight_decay"]
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    other_net = copy.deepcopy(net)
    other = make(other_net.parameters())
    other.load_state_dict(saved)
    for each, several in ((optimizer, net), (other, other_net)):
        give(several.parameters(), seed=2)
        each.step()
    same(values(other), values(optimizer))
    assert isinstance(other.state[next(other_net.parameters())]["step"], Tensor)


@all_of("make", MAKE)
def test_what_does_not_fit_is_refused_and_leaves_the_state(make: Make) -> None:
    net = model()
    optimizer = make(net.parameters())
    give(net.parameters())
    optimizer.step()
    adam = torch.optim.Adam(net.parameters())
    adam.step()
    before = values(optimizer)
    small = make([Parameter(torch.ones(1))])
    for saved in ({}, {"state": {}}, adam.state_dict(), small.state_dict()):
        with pytest.raises(ValueError, match="state_dict"):
            optimizer.load_state_dict(saved)
    same(values(optimizer), before)


DUPLICATES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


def saved_and_loaded(optimizer: Optimizer) -> Optimizer:
    torch.save(optimizer, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@over("duplicate", {**DUPLICATES, "torch.save": saved_and_loaded})
@all_of("make", MAKE)
def test_a_copy_has_all_that_is_public(make: Make, duplicate: Callable[[Any], Any]) -> None:
    p = Parameter(torch.ones(2))
    optimizer = make([{"params": [p], "lr": 0.5}])
    give([p])
    optimizer.step()
    other = duplicate(optimizer)
    assert {name for name in vars(optimizer) if not name.startswith("_")} <= set(vars(other))
    assert repr(other) == repr(optimizer)
    assert {name: other.defaults[name] for name in optimizer.defaults} == optimizer.defaults
    same(values(other), values(optimizer))


# Any optimizer of torch under a rule: what clip_updates must not take away

RULES = (NoClip(), Clippy(), GradientClip(1.0), TrustRatio(0.5))
TORCHS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, LR, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, LR),
    "RMSprop": lambda params: torch.optim.RMSprop(params, LR),
}


@over("make", TORCHS)
@over("rule", RULES)
def test_under_a_rule_a_loss_goes_down(rule: Any, make: Callable[[Any], Optimizer]) -> None:
    def made(net: nn.Module) -> Optimizer:
        optimizer = make(net.parameters())
        clip_updates(optimizer, rule)
        return optimizer

    first, last = fit(made)
    assert last < 0.8 * first


@over("schedule", SCHEDULERS)
def test_under_a_rule_every_scheduler_is_obeyed(schedule: Callable[[Optimizer], Any]) -> None:
    optimizers = [torch.optim.SGD([Parameter(torch.ones(2))], LR) for _ in range(2)]
    clip_updates(optimizers[0], Clippy(10.0, 10.0))  # clips nothing
    schedules = [schedule(each) for each in optimizers]
    for _ in range(6):
        for optimizer, each in zip(optimizers, schedules, strict=True):
            give(optimizer.param_groups[0]["params"])
            optimizer.step()
            each.step(*([1.0] if isinstance(each, lr_scheduler.ReduceLROnPlateau) else []))
        same(*(optimizer.param_groups[0]["params"] for optimizer in optimizers))


def hook_orders() -> Iterator[tuple[str, ...]]:
    return itertools.permutations(("clip", "scheduler", "hook"))


@over("order", list(hook_orders()))
def test_a_rule_keeps_to_the_step_whatever_was_attached_first(order: tuple[str, ...]) -> None:
    p = Parameter(torch.ones(2))
    optimizer, told = torch.optim.SGD([p], 10.0), []
    attach: dict[str, Callable[[], Any]] = {
        "clip": lambda: clip_updates(optimizer, Clippy(0.0, 0.5)),
        "scheduler": lambda: lr_scheduler.StepLR(optimizer, 1),
        "hook": lambda: optimizer.register_step_post_hook(lambda *_: told.append(1)),
    }
    kept = [attach[name]() for name in order]
    p.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.5))
    assert told == [1]
    assert len(kept) == 3
