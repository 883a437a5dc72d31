"""Gradient operations: exactly the step that the changed gradient would give, once for each step."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from properties import over
from surefoot import Adagrad, Clippy
from surefoot.optim.gradients import GradientFunction, gradient_operations

LR = 0.125
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=LR),
    "SGD, foreach": partial(torch.optim.SGD, lr=LR, foreach=True),
    "AdamW, fused": partial(torch.optim.AdamW, lr=LR, fused=True),
    "Adagrad": partial(Adagrad, lr=LR, rule=Clippy(relative=0.1)),
}
NOISE = torch.randn(2, 3)


def in_place(g: Tensor) -> Tensor:
    return g.mul_(0.5)


OPERATIONS: dict[str, tuple[GradientFunction, Callable[[Tensor], Tensor]]] = {
    "scale": (lambda g: 0.5 * g, lambda g: 0.5 * g),
    "clip": (lambda g: g.clamp(-0.1, 0.1), lambda g: torch.minimum(g.abs(), torch.tensor(0.1)) * g.sign()),
    "noise": (lambda g: g + NOISE, lambda g: g + NOISE),
    "zero": (torch.zeros_like, lambda g: torch.zeros(g.shape)),
    "leave": (lambda g: g, lambda g: g),
    "in place": (in_place, lambda g: 0.5 * g),
    "in place, to zero": (lambda g: g.zero_(), lambda g: torch.zeros(g.shape)),
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def first_weight(model: nn.Module) -> nn.Parameter:
    return model.get_parameter("0.weight")


def grad_of(model: nn.Module) -> Tensor:
    grad = first_weight(model).grad
    assert grad is not None
    return grad


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@over("make", OPTIMIZERS)
@over("operation", OPERATIONS)
def test_the_step_is_that_of_the_changed_gradient(
    make: Callable[[Any], Optimizer], operation: tuple[GradientFunction, Callable[[Tensor], Tensor]]
) -> None:
    function, expected = operation
    model = net()
    twin = copy.deepcopy(model)
    optimizer, reference = make(model.parameters()), make(twin.parameters())
    gradient_operations(optimizer, {"0.weight": function}, model=model)
    for _ in range(3):
        x = torch.randn(4, 3)
        for each, optim in ((model, optimizer), (twin, reference)):
            optim.zero_grad()
            loss_of(each, x).backward()
        changed = first_weight(twin)
        assert changed.grad is not None
        changed.grad = expected(changed.grad)
        optimizer.step()
        reference.step()
        assert same_weights(model, twin)
        assert torch.equal(grad_of(model), changed.grad)  # as after clip_grad_norm_


def test_patterns_pick_layers_and_the_first_wins() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    handle = gradient_operations(
        optimizer,
        {"2.*": lambda g: 2 * g, re.compile(r".*\.bias"): lambda g: 3 * g},
        model=model,
    )
    assert list(handle.patterns) == ["0.bias", "2.weight", "2.bias"]
    assert handle.patterns["2.bias"] == "2.*"
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert {name: p.grad.mean().item() for name, p in model.named_parameters() if p.grad is not None} == {
        "0.weight": 1.0,
        "0.bias": 3.0,
        "2.weight": 2.0,
        "2.bias": 2.0,
    }


@over("function", {name: function for name, (function, _) in OPERATIONS.items()})
def test_a_probe_sees_before_and_after(function: GradientFunction) -> None:
    model, seen = net(), []

    def probe(name: str, before: Tensor, after: Tensor) -> None:
        assert not before.requires_grad
        assert not after.requires_grad
        seen.append((name, before, after.clone()))

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient_operations(optimizer, {"0.weight": function}, model=model, probe=probe)
    for step in range(2):
        optimizer.zero_grad()
        (grad,) = torch.autograd.grad(loss_of(model, torch.ones(4, 3)), [first_weight(model)])
        first_weight(model).grad = grad.clone()
        optimizer.step()
        assert len(seen) == step + 1
        assert seen[-1][0] == "0.weight"
        assert torch.equal(seen[-1][1], grad)
        assert torch.equal(seen[-1][2], function(grad.clone()))


@over("with_closure", [False, True])
def test_a_gradient_with_a_graph_is_operated_on_without_it(with_closure: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    seen: list[bool] = []

    def double(g: Tensor) -> Tensor:
        result = 2 * g
        seen.append(result.requires_grad)
        return result

    def probe(name: str, before: Tensor, after: Tensor) -> None:
        seen.extend([before.requires_grad, after.requires_grad])

    def closure() -> float:
        first_weight(model).grad = (2 * first_weight(model)).square()  # as create_graph=True leaves it
        return 0.0

    gradient_operations(optimizer, {"0.weight": double}, model=model, probe=probe)
    if with_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    assert seen == [False, False, False]


def test_accumulated_gradients_are_operated_on_once() -> None:
    model, calls = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def clip(g: Tensor) -> Tensor:
        calls.append(g.clone())
        return g.clamp(-1.0, 1.0)

    gradient_operations(optimizer, {"2.bias": clip}, model=model)
    bias = model.get_parameter("2.bias")
    before = bias.detach().clone()
    for _ in range(4):
        model(torch.zeros(3, 3)).sum().backward()  # a gradient of 3 each
    optimizer.step()
    assert [call.item() for call in calls] == [12.0]
    assert torch.equal(bias, before - LR)


@over("keyword", [False, True])
@over("make", {**OPTIMIZERS, "LBFGS": partial(torch.optim.LBFGS, lr=LR, max_iter=4)})
def test_with_a_closure_the_fresh_gradient_is_operated_on(make: Callable[[Any], Optimizer], keyword: bool) -> None:
    model = net()
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3)
    evaluations: list[int] = []
    seen: list[Tensor] = []

    def closure(each: nn.Sequential, optimizer: Optimizer, *, by_hand: bool) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(each, x)
        loss.backward()
        if by_hand:
            evaluations.append(1)
            grad_of(each).mul_(0.5)
        return loss

    optimizer, reference = make(model.parameters()), make(twin.parameters())
    gradient_operations(
        optimizer, {"0.weight": lambda g: 0.5 * g}, model=model, probe=lambda name, before, after: seen.append(after)
    )
    for _ in range(3):
        mine = partial(closure, model, optimizer, by_hand=False)
        loss = optimizer.step(closure=mine) if keyword else optimizer.step(mine)  # pyright: ignore
        assert loss == reference.step(partial(closure, twin, reference, by_hand=True))  # pyright: ignore
        assert same_weights(model, twin)
    assert len(seen) == len(evaluations) >= 3


@over("make", {"SGD, fused": partial(torch.optim.SGD, lr=LR, fused=True), **OPTIMIZERS})
def test_under_a_grad_scaler_the_function_gets_the_unscaled_gradient(make: Callable[[Any], Optimizer]) -> None:
    model = net()
    twin = copy.deepcopy(model)
    optimizer, reference = make(model.parameters()), make(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    probed: list[Tensor] = []
    gradient_operations(
        optimizer,
        {"*": lambda g: g.clamp(-0.1, 0.1)},
        model=model,
        probe=lambda name, before, after: probed.append(before),
    )
    for _ in range(3):
        x = torch.randn(4, 3)
        optimizer.zero_grad()
        reference.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        loss_of(twin, x).backward()
        raw = [p.grad.clone() for p in twin.parameters() if p.grad is not None]
        for p in twin.parameters():
            assert p.grad is not None
            p.grad.clamp_(-0.1, 0.1)
        scaler.step(optimizer)
        scaler.update()
        reference.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        for mine, expected in zip(probed, raw, strict=True):
            torch.testing.assert_close(mine, expected)
        probed.clear()


def test_a_step_that_the_scaler_skips_calls_nothing() -> None:
    model, calls = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    scaler = torch.amp.GradScaler("cpu")
    gradient_operations(
        optimizer, {"*": torch.zeros_like}, model=model, probe=lambda name, before, after: calls.append(name)
    )
    scaler.scale(loss_of(model, torch.full((4, 3), torch.inf))).backward()
    scaler.step(optimizer)
    assert calls == []


def test_removed_operations_are_gone() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    handle = gradient_operations(optimizer, {"*": torch.zeros_like}, model=model)
    before = copy.deepcopy(model)
    loss_of(model, torch.ones(4, 3)).backward()
    optimizer.step()
    assert same_weights(model, before)
    handle.remove()
    handle.remove()
    optimizer.zero_grad()
    loss_of(model, torch.ones(4, 3)).backward()
    optimizer.step()
    assert not same_weights(model, before)


def test_a_copy_of_the_optimizer_carries_no_operations() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient_operations(optimizer, {"*": torch.zeros_like}, model=model)
    twin = copy.deepcopy(optimizer)
    (weights,) = [group["params"] for group in twin.param_groups]
    before = [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.ones_like(p)
    twin.step()
    assert all(torch.equal(p, old - LR) for p, old in zip(weights, before, strict=True))


def test_parameters_without_a_gradient_are_left_out() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient_operations(optimizer, {"*": torch.zeros_like}, model=model)
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())


def test_a_result_is_written_in_place() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient_operations(optimizer, {"*": lambda g: 2 * g}, model=model)
    bucket = torch.ones(6)  # as DDP keeps gradients
    first_weight(model).grad = bucket.view(2, 3)
    optimizer.step()
    assert torch.equal(bucket, torch.full((6,), 2.0))


SPARSE: dict[str, tuple[GradientFunction, list[float]]] = {
    "scale": (lambda g: 0.5 * g, [1.0, 0.0, 0.5]),
    "scale in place": (lambda g: g.mul_(0.5), [1.0, 0.0, 0.5]),
    "zero": (torch.zeros_like, [0.0, 0.0, 0.0]),
    "zero in place": (lambda g: g.zero_(), [0.0, 0.0, 0.0]),
    "sum duplicates": (lambda g: g.coalesce(), [2.0, 0.0, 1.0]),
    "to dense": (lambda g: g.to_dense() + 1, [3.0, 1.0, 2.0]),
}


@over("case", SPARSE)
def test_sparse_gradients_arrive_as_they_are(case: tuple[GradientFunction, list[float]]) -> None:
    function, expected = case
    model, rows = nn.Embedding(3, 2, sparse=True), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def look(g: Tensor) -> Tensor:
        assert g.is_sparse
        rows.append(g._indices()[0].tolist())
        return function(g)

    before = model.weight.detach().clone()
    gradient_operations(optimizer, {"weight": look}, model=model, probe=lambda name, before, after: None)
    model(torch.tensor([0, 2, 0])).sum().backward()
    optimizer.step()
    assert rows == [[0, 2, 0]]
    torch.testing.assert_close(before - model.weight, torch.tensor(expected)[:, None].expand(3, 2))


WRONG: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "shape": (lambda g: g.sum(), ValueError, r"'0.weight' returned a gradient of shape torch.Size\(\[\]\); expected"),
    "shape, broadcastable": (lambda g: g[:1], ValueError, "'0.weight' returned a gradient of shape"),
    "type": (lambda g: g.double(), ValueError, "'0.weight' .* dtype torch.float64; expected torch.float32"),
    "device": (lambda g: g.to("meta"), ValueError, "'0.weight' returned a gradient of device meta; expected cpu"),
    "nothing": (lambda g: None, TypeError, "'0.weight' returned None; expected a tensor"),
    "a number": (lambda g: 1.0, TypeError, "'0.weight' returned 1.0; expected a tensor"),
}


@over("case", WRONG)
def test_a_wrong_result_is_refused_before_anything_moves(
    case: tuple[Callable[[Tensor], Any], type[Exception], str],
) -> None:
    function, error, message = case
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient_operations(optimizer, {"0.weight": function}, model=model)
    before = copy.deepcopy(model)
    loss_of(model, torch.ones(4, 3)).backward()
    with pytest.raises(error, match=message):
        optimizer.step()
    assert same_weights(model, before)


def attach(operations: Any, *, model: Any = None, optimizer: Any = None) -> object:
    own = net()
    optimizer = torch.optim.SGD(own[0].parameters(), lr=LR) if optimizer is None else optimizer
    return gradient_operations(optimizer, operations, model=own if model is None else model)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a pattern that matches nothing": (
        lambda: attach({"1.weight": torch.zeros_like}),
        ValueError,
        r"operations has the pattern '1.weight', which matches no parameter; the closest name is '[02].weight'",
    ),
    "a pattern that never wins": (
        lambda: attach({"0.*": torch.zeros_like, "0.bias": torch.ones_like}),
        ValueError,
        r"'0.bias', which never wins",
    ),
    "another optimizer's parameter": (
        lambda: attach({"0.*": torch.zeros_like, "2.*": torch.zeros_like}),
        ValueError,
        r"'2.\*', but the optimizer does not hold '2.weight'",
    ),
    "no function": (lambda: attach({"0.*": 0.5}), TypeError, r"operations has 0.5 for '0.\*'; expected a function"),
    "no pattern": (lambda: attach({3: torch.zeros_like}), TypeError, "a pattern in operations is 3"),
    "no optimizer": (lambda: attach({"*": torch.zeros_like}, optimizer=3), TypeError, "optimizer is 3"),
    "no model": (lambda: attach({"*": torch.zeros_like}, model=3), TypeError, "model is 3"),
    "a model of nothing": (lambda: attach({"*": torch.zeros_like}, model=nn.ReLU()), ValueError, "the model has none"),
}


@over("case", REFUSED)
def test_a_mistake_is_refused_by_name_and_value(case: tuple[Callable[[], object], type[Exception], str]) -> None:
    make, error, message = case
    with pytest.raises(error, match=message):
        make()


def test_of_a_pattern_the_optimizer_s_own_parameters_are_taken() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=LR)
    handle = gradient_operations(optimizer, {"*.weight": torch.zeros_like}, model=model)
    assert handle.patterns == {"0.weight": "*.weight"}
