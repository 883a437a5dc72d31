"""The rules on optimizers that know nothing of them: every one that torch ships, and some that it does not."""

import contextlib
import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import Embedding, Linear, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from properties import RULES, TOLERANCE, all_of, over
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_gradients import clip_gradients
from surefoot.optim.clip_updates import ClipHandle, clip_updates
from surefoot.optim.nonfinite import NonFinite
from surefoot.rules import (
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
    broadcast,
)

LR = 0.125
RAGGED = ((4, 3), (5,), (2, 3, 2), ())
FLAT = ((4, 3), (5, 2), (1, 6))
CLIPPY = Clippy(relative=1e-3, absolute=1e-5)
Make = Callable[[Any], Optimizer]
Grads = list[Tensor]


def kinds() -> list[type[Optimizer]]:
    """Return all optimizers of torch but LBFGS, which is refused."""
    found = [each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, Optimizer)]
    return sorted({*found} - {Optimizer, torch.optim.LBFGS}, key=lambda kind: kind.__name__)


def every_optimizer() -> dict[str, Make]:
    table: dict[str, Make] = {}
    for kind in kinds():
        make: Any = kind
        table[kind.__name__] = partial(make, lr=LR)
        options = inspect.signature(kind).parameters
        for way in ("foreach", "fused"):
            if way in options:
                table[f"{kind.__name__}, {way}"] = partial(make, lr=LR, **{way: True})
    for way in ("foreach", "fused"):
        table[f"SGD, momentum, {way}"] = partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True, **{way: True})
        table[f"Adam, amsgrad, {way}"] = partial(torch.optim.Adam, lr=LR, amsgrad=True, maximize=True, **{way: True})
        table[f"Adagrad, decays, {way}"] = partial(
            torch.optim.Adagrad, lr=LR, lr_decay=0.1, weight_decay=0.1, **{way: True}
        )
    table["AdamW, a rate in a tensor"] = lambda params: torch.optim.AdamW(params, torch.tensor(LR), fused=True)
    table["Sign, not torch's"] = partial(Sign, lr=LR)
    table["NestedSGD, not torch's"] = partial(NestedSGD, lr=LR, momentum=0.9)
    return table


class Sign(Optimizer):
    """A stranger: no state, no options, a list of tensors as parameters."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        param -= group["lr"] * param.grad.sign()
        return loss


class NestedSGD(torch.optim.SGD):
    """One whose step is its parent's, so that the hooks run twice."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


OPTIMIZERS = every_optimizer()
FUSED = {name: make for name, make in OPTIMIZERS.items() if "fused" in name}
CLIPPING = (Clippy(0.0, 1e-5), AdaptiveGradientClip(1e-3), GlobalGradientClip(1e-2), TrustRatio(1e-3))


def is_sparse(make: Make) -> bool:
    return getattr(make, "func", None) is torch.optim.SparseAdam


def parameters(make: Make) -> list[Parameter]:
    shapes = FLAT if is_sparse(make) or getattr(make, "func", None) is torch.optim.Muon else RAGGED
    return [Parameter(torch.randn(shape)) for shape in shapes]


def twins(params: Sequence[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def gradients(make: Make, params: Sequence[Tensor], steps: int) -> list[Grads]:
    def draw(p: Tensor) -> Tensor:
        grad = torch.randn(p.shape)
        if not is_sparse(make):
            return grad
        rows = torch.randint(len(p), (2,))
        return torch.sparse_coo_tensor(rows[None], torch.randn(2, *p.shape[1:]), p.shape, check_invariants=False)

    return [[draw(p) for p in params] for _ in range(steps)]


def values(x: Tensor) -> Tensor:
    return x._values() if x.is_sparse else x


def spoil(grads: Grads, value: float = nan) -> Grads:
    """Put one bad number into the second gradient."""
    bad = [grad.clone() for grad in grads]
    values(bad[1]).view(-1)[0] = value
    return bad


def give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()


def follow(optimizer: Optimizer, params: Sequence[Tensor], steps: Sequence[Grads]) -> None:
    for grads in steps:
        give(params, grads)
        optimizer.step()


def tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield weights and state, in order."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield param.detach()
            state = optimizer.state[param]
            yield from (torch.as_tensor(state[key]) for key in sorted(state) if state[key] is not None)


def assert_same(optimizer: Optimizer, other: Optimizer) -> None:
    pairs = list(zip(tensors(optimizer), tensors(other), strict=True))
    assert pairs
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)


def skipping() -> Any:
    return pytest.warns(RuntimeWarning, match="a gradient was NaN or infinite")


def test_the_tables_hold_all_of_torch() -> None:
    assert {each.__name__ for each in kinds()} >= {"Adadelta", "AdamW", "Muon", "Rprop", "SparseAdam"}
    assert len(kinds()) >= 14
    assert len(OPTIMIZERS) > 30
    assert len(FUSED) >= 7


# Every optimizer


@over("rule", [NoClip(), Clippy(1e9, 1e9), GlobalGradientClip(1e9), AdaptiveGradientClip(1e9)])
@all_of("make", OPTIMIZERS)
def test_a_factor_of_1_changes_no_bit(make: Make, rule: Rule) -> None:
    params = parameters(make)
    optimizer, plain = make(params), make(twins(params))
    handle = clip_updates(optimizer, rule)
    for grads in gradients(make, params, 5):
        for each in (optimizer, plain):
            follow(each, each.param_groups[0]["params"], [grads])
    assert_same(optimizer, plain)
    assert [*handle.clip_factors()] == params
    assert not any(buffer.requires_grad for buffer in handle._buffers.values())
    assert all((factor == 1).all() for factor in handle.clip_factors().values())


@over("rule", CLIPPING)
@all_of("make", OPTIMIZERS)
def test_a_clipped_step_is_the_formula(make: Make, rule: Rule) -> None:
    params = parameters(make)
    optimizer, plain = make(params), make(others := twins(params))
    handle = clip_updates(optimizer, rule)
    for grads in gradients(make, params, 3):
        old = [p.detach().clone() for p in params]
        for other, w in zip(others, old, strict=True):
            other.data.copy_(w)
        follow(plain, others, [grads])
        follow(optimizer, params, [grads])
        rows: list[Any] = [g.coalesce().indices()[0] if g.is_sparse else slice(None) if g.ndim else () for g in grads]
        dense = [g.to_dense() for g in grads]
        seen = [(w[i], g[i], (w - v.detach())[i] / LR) for w, g, v, i in zip(old, dense, others, rows, strict=True)]
        measures = [rule.measure(*each, LR) for each in seen]
        if isinstance(rule, GlobalGradientClip):
            factors = [rule.factor(torch.stack(measures).sum(0))] * len(measures)
        else:
            factors = [rule.factor(measure) for measure in measures]
        assert any((factor != 1).all() for factor in factors)
        for p, w, (_, _, r), factor, measure, i in zip(params, old, seen, factors, measures, rows, strict=True):
            w[i] -= LR * broadcast(factor, r) * r
            torch.testing.assert_close(p.detach(), w, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(handle.clip_factors()[p], factor, rtol=1e-5, atol=0.0)
            torch.testing.assert_close(handle.measures()[p], measure, rtol=1e-5, atol=0.0)
    for state, other in zip(list(tensors(optimizer)), list(tensors(plain)), strict=True):
        assert state.shape == other.shape


@over("rule", [CLIPPY, AdaptiveGradientClip(1e-3)])
@over("bad_step", [0, 3])
@all_of("make", OPTIMIZERS)
def test_a_step_with_a_bad_gradient_never_was(make: Make, bad_step: int, rule: Rule) -> None:
    params = parameters(make)
    optimizer, never = make(params), make(others := twins(params))
    handle = clip_updates(optimizer, rule)
    clip_updates(never, rule)
    for i, grads in enumerate(gradients(make, params, 6)):
        if i == bad_step:
            give(params, spoil(grads, inf if i else nan))
            objects = [p.grad for p in params if p.grad is not None]
            copies = [values(grad.clone()) for grad in objects]
            with skipping():
                optimizer.step()
            for p, grad, copied in zip(params, objects, copies, strict=True):
                assert p.grad is grad
                torch.testing.assert_close(values(grad), copied, rtol=0.0, atol=0.0, equal_nan=True)
            assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
            if i:  # before the first step, some have no state yet
                assert_same(optimizer, never)
        follow(optimizer, params, [grads])
        follow(never, others, [grads])
    assert_same(optimizer, never)
    with warnings.catch_warnings(action="error"):  # told once
        follow(optimizer, params, [spoil(gradients(make, params, 1)[0])])
    assert handle.skipped_steps == 2
    assert not hasattr(optimizer, "found_inf")


@over("by_keyword", [False, True])
@all_of("make", OPTIMIZERS)
def test_a_closure_runs_once_and_its_gradients_are_clipped(make: Make, by_keyword: bool) -> None:
    params = parameters(make)
    optimizer, other = make(params), make(others := twins(params))
    handles = [clip_updates(each, CLIPPY) for each in (optimizer, other)]
    calls: list[Grads] = []

    def closure(grads: Grads) -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(grads)
        give(params, grads)
        return torch.tensor(7.0)

    steps = gradients(make, params, 3)
    steps.insert(1, spoil(steps[0]))
    with skipping():
        for grads in steps:
            optimizer.zero_grad()
            call: Any = partial(closure, grads)
            loss = optimizer.step(closure=call) if by_keyword else optimizer.step(call)
            assert loss == 7.0
    with skipping():
        follow(other, others, steps)
    assert len(calls) == len(steps)
    assert_same(optimizer, other)
    assert [handle.skipped_steps for handle in handles] == [1, 1]
    assert any(factor < 1 for factor in handles[0].clip_factors().values())


@all_of("make", OPTIMIZERS)
def test_a_resumed_run_goes_on_as_if_it_never_stopped(make: Make) -> None:
    params = parameters(make)
    groups = [{"params": params[:1], "rule": GradientClip(0.1)}, {"params": params[1:]}]
    optimizer = make(groups)
    clip_updates(optimizer, CLIPPY)
    follow(optimizer, params, gradients(make, params, 3))
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    others = twins(params)
    other = make([{"params": others[:1], "rule": GradientClip(0.1)}, {"params": others[1:]}])
    clip_updates(other, CLIPPY)
    other.load_state_dict(torch.load(file, weights_only=True))
    steps = gradients(make, params, 20)
    follow(optimizer, params, steps)
    follow(other, others, steps)
    assert_same(optimizer, other)
    assert other.param_groups[0]["rule"] == GradientClip(0.1)


@all_of("make", OPTIMIZERS)
def test_a_scheduler_is_obeyed(make: Make) -> None:
    rates = [1.0, 0.5, 0.0, 2.0]
    params = parameters(make)
    optimizer, other = make(params), make(others := twins(params))
    for each in (optimizer, other):
        clip_updates(each, CLIPPY)
    scheduler = LambdaLR(optimizer, lambda step: rates[min(step, 3)])
    steps = gradients(make, params, 4)
    for rate, grads in zip(rates, steps, strict=True):
        for group in other.param_groups:
            group["lr"] = LR * rate
        follow(optimizer, params, [grads])
        follow(other, others, [grads])
        scheduler.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=0.0)


@all_of("make", OPTIMIZERS)
def test_removed_it_is_as_if_never_attached(make: Make) -> None:
    params = parameters(make)
    optimizer, plain = make(params), make(twins(params))
    before = set(vars(optimizer))
    handle = clip_updates(optimizer, Clippy(0.0, 1e-6))
    handle.remove()
    handle.remove()
    for grads in gradients(make, params, 2):
        for each in (optimizer, plain):
            follow(each, each.param_groups[0]["params"], [grads])
    assert_same(optimizer, plain)
    assert set(vars(optimizer)) == before
    assert not any(len(hooks) for name, hooks in vars(optimizer).items() if name.endswith("_hooks"))
    assert handle.clip_factors() == {}
    clip_updates(optimizer, NoClip())  # and again


# Mixed precision


def scaled_run(make: Make, rule: Rule, unscale: bool) -> tuple[Optimizer, ClipHandle, torch.amp.GradScaler]:
    """Take five steps under a scaler, the first and the fourth with an infinite gradient."""
    torch.manual_seed(1)
    params = [Parameter(torch.randn(4, 3)), Parameter(torch.randn(5))]
    optimizer = make(params)
    handle = clip_updates(optimizer, rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for i in range(5):
        optimizer.zero_grad()
        loss = torch.stack([(p * torch.randn(p.shape)).sum() for p in params]).sum()
        scaler.scale(loss * (inf if i in (0, 3) else 1.0)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return optimizer, handle, scaler


@all_of("unscale", [False, True])
@all_of("rule", [*CLIPPING, GradientClip(0.1), CLIPPY])
@over(
    "make",
    {name: OPTIMIZERS[name] for name in ("SGD", "SGD, momentum, fused", "AdamW", "AdamW, fused", "Adagrad, fused")},
)
def test_a_scaler_changes_nothing_and_skips_by_itself(make: Make, rule: Rule, unscale: bool) -> None:
    optimizer, handle, scaler = scaled_run(make, rule, unscale)
    assert scaler.get_scale() == 2.0**8
    assert handle.skipped_steps == 0  # it was the scaler, and nobody warned
    assert not hasattr(optimizer, "found_inf")
    torch.manual_seed(1)
    params = [Parameter(torch.randn(4, 3)), Parameter(torch.randn(5))]
    plain = make(params)
    twin = clip_updates(plain, rule)
    for i in range(5):
        grads = [torch.randn(p.shape) for p in params]
        if i not in (0, 3):
            follow(plain, params, [grads])
    assert_same(optimizer, plain)
    for factor, same in zip(handle.clip_factors().values(), twin.clip_factors().values(), strict=True):
        torch.testing.assert_close(factor, same, rtol=1e-6, atol=0.0)
        assert (factor < 1).all()


@over("make", {name: FUSED[name] for name in ("Adam, fused", "AdamW, fused", "Adagrad, fused")})
def test_found_inf_is_combined_with_the_one_already_there(make: Make) -> None:
    params = parameters(make)
    optimizer = make(params)
    handle = clip_updates(optimizer, CLIPPY)
    grads = gradients(make, params, 1)[0]
    follow(optimizer, params, [grads])
    old = twins(params)
    for theirs, bad, counted in ((0.0, True, 1), (1.0, True, 1), (1.0, False, 1)):
        optimizer.found_inf = flag = torch.tensor(theirs)  # pyright: ignore[reportAttributeAccessIssue]
        with skipping() if not theirs else contextlib.nullcontext():
            follow(optimizer, params, [spoil(grads) if bad else grads])
        assert all(torch.equal(p, q) for p, q in zip(params, old, strict=True))
        assert optimizer.found_inf is flag  # pyright: ignore[reportAttributeAccessIssue]
        assert handle.skipped_steps == counted


@over("dtype", [torch.bfloat16, torch.float16])
@over("make", {name: OPTIMIZERS[name] for name in ("SGD", "AdamW", "AdamW, fused", "Adagrad, foreach")})
def test_narrow_weights_are_clipped_in_float32(make: Make, dtype: torch.dtype) -> None:
    params = [Parameter(torch.randn(4, 3).to(dtype))]
    plain = make(others := twins(params))
    optimizer = make(params)
    handle = clip_updates(optimizer, rule := Clippy(0.0, 1e-2))
    old = params[0].detach().float()
    for each, weights in ((optimizer, params), (plain, others)):
        follow(each, weights, [[torch.full((4, 3), 0.5, dtype=dtype)]])
    update = (old - others[0].detach().float()) / LR
    factor = rule(old, update, update, LR)
    assert handle.clip_factors()[params[0]].dtype is torch.float32
    torch.testing.assert_close(handle.clip_factors()[params[0]], factor, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(params[0].detach(), (old - LR * factor * update).to(dtype), rtol=0.0, atol=1e-3)
    assert params[0].dtype is dtype


# Sparse gradients


@over("rule", [Clippy(0.0, 1e-3), GradientClip(0.1), GlobalGradientClip(0.1)])
@over("with_closure", [False, True])
def test_sparse_adagrad_equals_dense(rule: Rule, with_closure: bool) -> None:
    table = Embedding(6, 3, sparse=True)
    dense = Parameter(table.weight.detach().clone())
    optimizers = [torch.optim.Adagrad([w], lr=LR) for w in (table.weight, dense)]
    handles = [clip_updates(each, rule) for each in optimizers]
    for ids in ([0, 2, 2], [5, 0, 0], [1]):

        def closure(ids: list[int] = ids) -> None:
            table.zero_grad()
            table(torch.tensor(ids)).square().sum().backward()

        if with_closure:
            optimizers[0].step(closure)
        else:
            closure()
            optimizers[0].step()
        assert table.weight.grad is not None
        follow(optimizers[1], [dense], [[table.weight.grad.to_dense()]])
        sigmas = [next(iter(handle.clip_factors().values())) for handle in handles]
        torch.testing.assert_close(sigmas[0], sigmas[1], rtol=1e-5, atol=0.0)
        assert sigmas[0] < 1
    torch.testing.assert_close(table.weight.detach(), dense.detach(), rtol=1e-6, atol=1e-7)


@over("make", {"Adagrad": torch.optim.Adagrad, "SparseAdam": torch.optim.SparseAdam, "SGD": torch.optim.SGD})
def test_units_of_a_sparse_gradient_are_its_touched_rows(make: Make) -> None:
    table = Embedding(6, 3, sparse=True)
    plain = make(others := twins([table.weight]))
    optimizer = make([table.weight])
    handle = clip_updates(optimizer, AdaptiveGradientClip(1e-3))
    (old,) = twins(others)
    table(torch.tensor([4, 1, 4])).sum().backward()
    assert table.weight.grad is not None
    follow(plain, others, [[table.weight.grad]])
    optimizer.step()
    factor = handle.clip_factors()[table.weight]
    expected = 1e-3 * old[[1, 4]].norm(dim=1) / torch.tensor([3.0, 12.0]).sqrt()
    torch.testing.assert_close(factor, expected, rtol=1e-5, atol=0.0)
    scale = torch.zeros(6, 1)
    scale[[1, 4], 0] = expected
    torch.testing.assert_close(table.weight - old, scale * (others[0] - old), rtol=1e-3, atol=2e-7)


@over("make", {name: OPTIMIZERS[name] for name in ("SGD", "AdamW, fused", "Muon")})
def test_units_whose_factor_is_1_keep_their_bits(make: Make) -> None:
    params = [Parameter(torch.randn(4, 300))]
    optimizer, plain = make(params), make(others := twins(params))
    handle = clip_updates(optimizer, AdaptiveGradientClip(1.0))
    grads = torch.randn(4, 300) * torch.tensor([[0.5], [1e4], [0.5], [1e4]])
    follow(optimizer, params, [[grads]])
    follow(plain, others, [[grads]])
    assert ((handle.clip_factors()[params[0]] == 1) == torch.tensor([True, False, True, False])).all()
    assert torch.equal(params[0][::2], others[0][::2])
    assert not (params[0] == others[0])[1::2].any()


def test_rows_that_momentum_moves_are_scaled_too() -> None:
    table = Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0, momentum=0.5)
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    clip_updates(optimizer, GradientClip(0.1 * 2**0.5))
    old = table.weight.detach().clone()
    table.zero_grad()
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    moved = torch.tensor([[-0.05] * 2, [-0.1] * 2, [0.0] * 2, [0.0] * 2])  # a tenth of 0.5, 1, 0, 0
    torch.testing.assert_close(table.weight.detach() - old, moved, rtol=1e-5, atol=1e-6)


def test_an_untouched_table_is_remembered_by_row_only() -> None:
    table = Embedding(1000, 2, sparse=True)
    optimizer = torch.optim.Adagrad(table.parameters(), lr=LR)
    handle = clip_updates(optimizer, CLIPPY)
    table(torch.tensor([3, 3])).sum().backward()
    optimizer.step()
    assert sum(buffer.numel() for buffer in handle._buffers.values()) == 0
    assert handle._before[table.weight].weight.shape == (1, 2)


# Parameters, groups, names


def named(**options: Any) -> tuple[Linear, Optimizer]:
    layer = Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.randn(2, 3), torch.randn(2)
    return layer, torch.optim.SGD(layer.named_parameters(), lr=LR, **options)


@over("pattern", ["bias", "b*", "?ias"])
def test_exclude_by_name(pattern: str) -> None:
    layer, optimizer = named()
    handle = clip_updates(optimizer, CLIPPY, exclude=[pattern])
    optimizer.step()
    assert list(handle.clip_factors()) == list(handle.measures()) == [layer.weight]
    late = Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("late.bias" if pattern == "b*" else "late", late)]})
    late.grad = torch.ones(2)
    optimizer.step()
    assert list(handle.clip_factors()) == [layer.weight, late]


def test_exclude_by_parameter_leaves_its_step_alone() -> None:
    params = parameters(make := OPTIMIZERS["AdamW"])
    optimizer, plain = make(params), make(others := twins(params))
    handle = clip_updates(optimizer, CLIPPY, exclude=iter(params[1:]))
    grads = gradients(make, params, 1)
    follow(optimizer, params, grads)
    follow(plain, others, grads)
    assert list(handle.clip_factors()) == params[:1]
    assert [torch.equal(p, q) for p, q in zip(params, others, strict=True)] == [False, True, True, True]
    with skipping():  # and yet its gradient counts
        follow(optimizer, params, [spoil(grads[0])])
    assert handle.skipped_steps == 1


@over("names", [True, False])
def test_nothing_covered_is_still_guarded(names: bool) -> None:
    layer, optimizer = named()
    clip_updates(optimizer, CLIPPY, exclude=["*"] if names else list(layer.parameters()))
    layer.bias.grad = bad = torch.full((2,), nan)
    old = layer.weight.detach().clone()
    with skipping():
        optimizer.step()
    assert layer.bias.grad is bad
    assert torch.equal(layer.weight, old)


def test_groups_have_rules_and_later_groups_are_covered_from_their_first_step() -> None:
    params = [Parameter(torch.ones(2)) for _ in range(3)]
    give(params, [torch.full((2,), 8.0)] * 3)
    optimizer = torch.optim.SGD([{"params": params[:1], "rule": NoClip()}, {"params": params[1:2], "lr": 0.0}], lr=LR)
    handle = clip_updates(optimizer, rule := Clippy(0.0, 0.1))
    optimizer.step()
    optimizer.add_param_group({"params": params[2:], "rule": Clippy(0.0, 0.2)})
    optimizer.step()
    for param, expected in zip(params, (1 - 2 * LR * 8, 1.0, 0.8), strict=True):
        torch.testing.assert_close(param.detach(), torch.full((2,), expected))
    optimizer.param_groups[1]["rule"] = "clippy"
    with pytest.raises(TypeError, match="rule of a parameter group is 'clippy'"):
        optimizer.step()
    assert rule not in handle.measures().values()


def test_a_global_rule_covers_groups_with_an_equal_rule() -> None:
    params = [Parameter(torch.zeros(1)) for _ in range(4)]
    give(params, [torch.tensor([x]) for x in (3.0, 4.0, 100.0, 12.0)])
    groups = [{"params": params[:1]}, {"params": params[1:2], "rule": GlobalGradientClip(1.0)}]
    apart = [{"params": params[2:3], "rule": NoClip()}, {"params": params[3:], "rule": GlobalGradientClip(6.0)}]
    handle = clip_updates(torch.optim.SGD([*groups, *apart], lr=1.0), GlobalGradientClip(1.0))
    handle._optimizer.step()
    torch.testing.assert_close(torch.stack([*handle.clip_factors().values()]), torch.tensor([0.2, 0.2, 1.0, 0.5]))
    torch.testing.assert_close(torch.stack([*handle.measures().values()])[[0, 1, 3]], torch.tensor([9.0, 16.0, 144.0]))


def test_parameters_without_a_gradient_stay_out() -> None:
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    handle = clip_updates(optimizer := torch.optim.AdamW(params, lr=LR), CLIPPY)
    give(params, [torch.ones(2), None])
    optimizer.step()
    assert list(handle.clip_factors()) == params[:1]
    assert torch.equal(params[1], torch.ones(2))


def test_large_weights_are_measured_piece_by_piece() -> None:
    for rule in (CLIPPY, GradientClip(), AdaptiveGradientClip(), AdaptiveGradientClip(unit_dims=2), TrustRatio()):
        params = [
            Parameter(torch.randn(shape).mT) if len(shape) == 2 else Parameter(torch.randn(shape))
            for shape in ((90, 1000), (70_001,), (30, 50, 70))
        ]
        plain = torch.optim.SGD(others := twins(params), lr=LR)
        handle = clip_updates(optimizer := torch.optim.SGD(params, lr=LR), rule)
        grads = gradients(OPTIMIZERS["SGD"], params, 1)
        old = twins(params)
        follow(optimizer, params, grads)
        follow(plain, others, grads)
        for p, q, w, g in zip(params, others, old, grads[0], strict=True):
            r = (w - q).detach() / LR
            factor = rule(w.detach(), g, r, LR)
            torch.testing.assert_close(handle.clip_factors()[p], factor, rtol=1e-4, atol=0.0)
            torch.testing.assert_close(p.detach(), (w - LR * broadcast(factor, r) * r).detach(), rtol=1e-5, atol=1e-6)


# Policies


def test_skip_tensor_leaves_out_the_tensors_concerned() -> None:
    for make in (OPTIMIZERS["AdamW, fused"], OPTIMIZERS["SGD"], OPTIMIZERS["Adagrad"]):
        params = parameters(make)
        optimizer, other = make(params), make(others := twins(params))
        handle = clip_updates(optimizer, GlobalGradientClip(0.1), nonfinite=NonFinite.SKIP_TENSOR)
        twin = clip_updates(other, GlobalGradientClip(0.1))
        grads = gradients(make, params, 1)[0]
        with skipping():
            follow(optimizer, params, [spoil(grads)])
        give(others, [g if i != 1 else None for i, g in enumerate(grads)])
        other.step()
        assert_same(optimizer, other)
        assert params[1].grad is not None
        assert params[1] not in handle.clip_factors()
        assert [*handle.clip_factors().values()] == [*twin.clip_factors().values()]
        assert handle.skipped_steps == 1


@over("names", [True, False])
@over("fused", [True, False])
def test_raise_names_the_parameter_and_moves_nothing(names: bool, fused: bool) -> None:
    layer = Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.named_parameters() if names else layer.parameters(), lr=LR, fused=fused)
    handle = clip_updates(optimizer, CLIPPY, nonfinite="raise")
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.tensor([1.0, inf])
    old = twins([*layer.parameters()])
    called = "'bias'" if names else "parameter 1 of group 0"
    with pytest.raises(FloatingPointError, match=f"the gradient of {called}, of shape .2,., is NaN or infinite"):
        optimizer.step()
    for p, q in zip(layer.parameters(), old, strict=True):
        assert torch.equal(p, q)
        assert p.grad is not None
    assert not optimizer.state
    layer.bias.grad = torch.ones(2)
    optimizer.step()
    assert len(handle.clip_factors()) == 2


def test_propagate_looks_at_nothing() -> None:
    for make in FUSED.values():
        params = parameters(make)
        handle = clip_updates(optimizer := make(params), CLIPPY, nonfinite=NonFinite.PROPAGATE)
        follow(optimizer, params, [spoil(gradients(make, params, 1)[0])])
        assert params[1].isnan().any() == (make is not None)
        assert handle.skipped_steps == 0
        assert params[0].isfinite().all()


def test_a_step_that_raised_leaves_nothing_behind() -> None:
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(3, 2))]
    handle = clip_updates(optimizer := torch.optim.AdamW(params, lr=LR, fused=True), CLIPPY)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)  # pyright: ignore[reportArgumentType]
    give(params, [torch.ones(2), torch.ones(3, 2).to_sparse(1)])
    with pytest.raises(RuntimeError, match="does not support sparse"):
        optimizer.step()
    follow(optimizer, params, [[torch.ones(2), torch.ones(3, 2)]])
    assert (params[0] != 1).all()
    assert handle.skipped_steps == 0
    assert not hasattr(optimizer, "found_inf")


READ_THEMSELVES = ("ASGD, foreach", "Adafactor, foreach", "Rprop, foreach")
FAST = {name: make for name, make in OPTIMIZERS.items() if "foreach" in name or "fused" in name}


def fake_steps(make: Make, rule: Rule | None) -> None:
    """Take steps on fake tensors, which have no values: whatever reads one on the host raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = parameters(make)
        optimizer = make(params)
        if rule is not None:
            skips = isinstance(optimizer, (torch.optim.Adam, torch.optim.Adagrad)) and optimizer.defaults["fused"]
            clip_updates(optimizer, rule, nonfinite=NonFinite.SKIP_STEP if skips else NonFinite.PROPAGATE)
        follow(optimizer, params, gradients(make, params, 2))


NO_WAIT = {name: make for name, make in FAST.items() if name not in READ_THEMSELVES}


@over("rule", [Clippy(), AdaptiveGradientClip(), GlobalGradientClip()])  # of a tensor, of a unit, of the model
@all_of("make", NO_WAIT)
def test_no_number_is_read_on_the_host_by_any_optimizer(make: Make, rule: Rule) -> None:
    fake_steps(make, rule)


@all_of("rule", RULES)
@over("name", ["AdamW, fused", "SGD, momentum, foreach", "Adagrad, foreach"])
def test_no_number_is_read_on_the_host_by_any_rule(name: str, rule: Rule) -> None:
    fake_steps(NO_WAIT[name], rule)


@over("make", {name: FAST[name] for name in READ_THEMSELVES})
def test_three_of_torch_read_numbers_themselves(make: Make) -> None:
    with pytest.raises(DataDependentOutputException):
        fake_steps(make, None)


@over("name", ["SGD, foreach", "AdamW", "SGD, fused"])
def test_optimizers_without_found_inf_are_read_by_the_guard(name: str) -> None:
    make = OPTIMIZERS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = parameters(make)
        clip_updates(optimizer := make(params), NoClip())
        with pytest.raises(DataDependentOutputException):
            follow(optimizer, params, gradients(make, params, 1))


# Copies


@over("copied", {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))})
def test_copies_come_without_hooks_and_can_be_attached_again(copied: Callable[[Any], Any]) -> None:
    _, optimizer = named(momentum=0.9)
    clip_updates(optimizer, CLIPPY)
    optimizer.step()
    again = copied(optimizer)
    assert not again._optimizer_step_pre_hooks
    clip_updates(again, CLIPPY)
    for each in (optimizer, again):
        follow(each, each.param_groups[0]["params"], [[torch.ones(2, 3), torch.ones(2)]])
    assert_same(optimizer, again)


# Bad input


def sgd(**options: Any) -> Optimizer:
    return torch.optim.SGD([Parameter(torch.ones(2))], lr=LR, **options)


def second_handle() -> None:
    optimizer = sgd()
    clip_updates(optimizer, CLIPPY)
    clip_updates(optimizer, CLIPPY)


def without_rate() -> None:
    optimizer = sgd()
    del optimizer.param_groups[0]["lr"]
    clip_updates(optimizer, CLIPPY)


def changed_shape() -> None:
    optimizer = sgd()
    clip_updates(optimizer, CLIPPY)
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.step()
    param.data = torch.ones(3)
    optimizer.step()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a string": (
        lambda: clip_updates(sgd(), "clippy"),  # pyright: ignore[reportArgumentType]
        TypeError,
        "rule is 'clippy'; expected a rule object, such as surefoot.Clippy()",
    ),
    "a class": (
        lambda: clip_updates(sgd(), GradientClip),  # pyright: ignore[reportArgumentType]
        TypeError,
        "rule is the class GradientClip; expected an object, such as surefoot.GradientClip()",
    ),
    "LBFGS": (
        lambda: clip_updates(torch.optim.LBFGS([Parameter(torch.ones(2))]), CLIPPY),
        TypeError,
        "optimizer is LBFGS",
    ),
    "a model": (lambda: clip_updates(Linear(1, 1), CLIPPY), TypeError, "optimizer is a Linear"),  # pyright: ignore[reportArgumentType]
    "ours": (
        lambda: clip_updates(Adagrad([Parameter(torch.ones(2))], lr=LR), CLIPPY),
        TypeError,
        "takes a rule itself",
    ),
    "twice": (second_handle, ValueError, "optimizer is SGD, clipped already"),
    "no rate": (without_rate, ValueError, "a parameter group without 'lr'"),
    "a shape": (changed_shape, ValueError, r"a weight of shape \(2,\) has the shape \(3,\) now"),
    "a policy": (lambda: clip_updates(sgd(), CLIPPY, nonfinite="skip"), ValueError, "'skip' is not a valid NonFinite"),
    "complex": (
        lambda: clip_updates(torch.optim.SGD([torch.ones(2, dtype=torch.complex64)], lr=LR), CLIPPY),
        ValueError,
        "complex64",
    ),
    "a name too many": (
        lambda: clip_updates(named()[1], CLIPPY, exclude=["bias", "gain"]),
        ValueError,
        "'gain', which matches none of",
    ),
    "a name without names": (
        lambda: clip_updates(sgd(), CLIPPY, exclude=["bias"]),
        ValueError,
        "the optimizer has no names",
    ),
    "a stranger": (
        lambda: clip_updates(sgd(), CLIPPY, exclude=[torch.ones(7)]),
        ValueError,
        r"a tensor of shape \(7,\)",
    ),
    "one name": (lambda: clip_updates(named()[1], CLIPPY, exclude="bias"), TypeError, "exclude is a single str"),
    "one parameter": (
        lambda: clip_updates(sgd(), CLIPPY, exclude=torch.ones(2)),
        TypeError,
        "exclude is a single Tensor",
    ),
    "gradients by Clippy": (lambda: clip_gradients([], CLIPPY), TypeError, "needs the update.*use clip_updates"),
    "gradients by LAMB": (lambda: clip_gradients([], TrustRatio()), TypeError, "needs the update.*use clip_updates"),
    "gradients by a string": (lambda: clip_gradients([], "gc"), TypeError, "rule is 'gc'"),  # pyright: ignore[reportArgumentType]
}


@over("case", REFUSED)
def test_bad_input_is_named(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


def test_a_refused_call_leaves_no_hook() -> None:
    optimizer = sgd()
    optimizer.param_groups[0]["rule"] = "clippy"
    with pytest.raises(TypeError, match="rule of a parameter group"):
        clip_updates(optimizer, CLIPPY)
    assert not optimizer._optimizer_step_pre_hooks


# Before the step


GRADIENT_RULES = [rule for rule in RULES if isinstance(rule, (NoClip, GradientClip, AdaptiveGradientClip))]


@over("dtype", [torch.float32, torch.bfloat16])
@over("rule", [*GRADIENT_RULES, GlobalGradientClip(0.1), GradientClip(1e9)])
def test_clip_gradients_scales_in_place(rule: Rule, dtype: torch.dtype) -> None:
    params = [Parameter(p.detach().to(dtype)) for p in parameters(OPTIMIZERS["SGD"])]
    params.insert(2, Parameter(torch.ones(3)))  # without a gradient
    give(params, olds := [None if i == 2 else torch.randn(p.shape).to(dtype) for i, p in enumerate(params)])
    objects = [p.grad for p in params]
    sigmas = clip_gradients(iter(params), rule)
    moved = [(p, g) for p, g in zip(params, olds, strict=True) if g is not None]
    measures = [rule.measure(p.detach(), g, g, 1.0) for p, g in moved]
    assert list(sigmas) == [p for p, _ in moved]
    for (p, g), measure in zip(moved, measures, strict=True):
        shared = isinstance(rule, GlobalGradientClip)
        sigma = rule.factor(torch.stack(measures).sum(0) if shared else measure)
        torch.testing.assert_close(sigmas[p], sigma, rtol=1e-5, atol=0.0)
        expected = (broadcast(sigma, g) * g.float()).to(dtype)
        torch.testing.assert_close(p.grad, expected, rtol=1e-5 if dtype is torch.float32 else 0.0, atol=0.0)
        if (sigma == 1).all():
            assert torch.equal(expected, g)
            torch.testing.assert_close(p.grad, g, rtol=0.0, atol=0.0)
    assert all(p.grad is each for p, each in zip(params, objects, strict=True))
    assert clip_gradients([], rule) == {}


def test_clip_gradients_of_a_sparse_gradient() -> None:
    table = Embedding(5, 2, sparse=True)
    table(torch.tensor([3, 3, 0])).sum().backward()
    sigmas = clip_gradients(table.parameters(), GradientClip(1.0))
    assert table.weight.grad is not None
    assert table.weight.grad.is_coalesced()
    expected = torch.tensor([[1.0, 1.0], [0, 0], [0, 0], [2, 2], [0, 0]]) / 10**0.5
    torch.testing.assert_close(table.weight.grad.to_dense(), expected, rtol=TOLERANCE[torch.float32], atol=0.0)
    torch.testing.assert_close(sigmas[table.weight], torch.tensor(10**-0.5))


@over("value", [nan, inf, -inf])
@over("rule", [GradientClip(0.1), GlobalGradientClip(0.1), AdaptiveGradientClip(1e-3)])
def test_clip_gradients_leaves_bad_ones_untouched(rule: Rule, value: float) -> None:
    """torch's clip_grad_norm_ makes that tensor NaN and all others 0."""
    params = parameters(OPTIMIZERS["SGD"])
    grads = spoil(gradients(OPTIMIZERS["SGD"], params, 1)[0], value)
    give(params, grads)
    sigmas = clip_gradients(params, rule)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        assert param.grad is not None
        same = torch.equal(param.grad.nan_to_num(7.0), grad.nan_to_num(7.0))
        assert same == (i == 1 or isinstance(rule, GlobalGradientClip) or bool((sigmas[param] == 1).all()))
    assert not (sigmas[params[1]] > 0).any()  # NaN or 0
