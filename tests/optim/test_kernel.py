"""The compiled CPU kernel beside the eager path, and what happens where it cannot be compiled."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from properties import over
from surefoot import Adagrad, AdaptiveGradientClip, Clippy, GradientClip, NoClip, Rule, clip_updates
from surefoot.optim import kernel

LR = 0.1
CHUNK = 32768  # numbers, as in kernel.cpp
SHAPES = ((CHUNK + 1,), (3, 5), (), (0,), (2 * CHUNK,), (0, 4), (1,), (317, 331))
LOOSE = Clippy(0.5, 1.0)  # |r| is at most 1 where the accumulator leads, so that a rate of 0.1 never clips
TIGHT = Clippy(0.5, 1e-3)
Shapes = Sequence[tuple[int, ...]]

# In units in the last place: the most that roundings can add up to, by the argument in kernel.py; on every processor.
UNCLIPPED = 8.0
STEPPED_BACK = 6.0
CLIPPED = 16.0


@pytest.fixture
def compiled() -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def weights(shapes: Shapes = SHAPES, scale: float = 1.0) -> list[Parameter]:
    return [Parameter(scale * torch.randn(shape)) for shape in shapes]


def gradients(params: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
    return [(scale * torch.randn(p.shape)).to(p.dtype) for p in params]


def give(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def numbers(optimizer: Adagrad) -> list[Tensor]:
    """Return copies of weights, accumulators and step counters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [x.detach().clone() for p in params for x in (p, *optimizer.state[p].values())]


def assert_same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)


def units(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """Return the largest difference in units in the last place of ``scale``."""
    if not found.numel():
        return 0.0
    top = scale.abs().clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.nextafter(top, torch.tensor(torch.inf)).double() - top.double()
    return float(((found.double() - expected.double()).abs() / unit).max())


def drift(rule: Rule, shapes: Shapes = SHAPES, scale: float = 1.0, least: float = 0.0, **options: Any) -> float:
    """Take six steps by both paths, each from the kernel's state, and return how far they ever were apart.

    In units in the last place of the largest of the weight before, the weight after, the step and ``least``. The sums
    may be one unit apart: not every processor rounds a product and a sum together. Every large tensor must have
    clipped, or none.
    """
    params = weights(shapes, scale)
    eager = [Parameter(p.detach().clone()) for p in params]
    fast = Adagrad(params, LR, rule=rule, fused=True, **options)
    slow = Adagrad(eager, LR, rule=rule, fused=False, **options)
    worst = 0.0
    for size in (1.0, 30.0, 1e-3, 1.0, 100.0, 1.0):
        grads = gradients(params, size)
        old = [p.detach().clone() for p in params]
        for each, several in ((fast, params), (slow, eager)):
            give(several, grads)
            each.step()
        for p, q, w in zip(params, eager, old, strict=True):
            moved = q.detach() - w
            worst = max(
                worst, units(p.detach(), q.detach(), torch.stack([w, q.detach(), moved]).abs().amax(0).clamp(min=least))
            )
            sums = fast.state[p]["sum"], slow.state[q]["sum"]
            assert units(*sums, sums[1]) <= 1.0
            sums[1].copy_(sums[0])
            q.data.copy_(p.data)
        for p, q in zip(params, eager, strict=True):
            sigmas = fast.clip_factors()[p], slow.clip_factors()[q]
            torch.testing.assert_close(*sigmas, rtol=1e-6, atol=0.0)
            if p.numel() > CHUNK and size >= 1.0:
                assert (sigmas[0] < 1) == (rule not in (NoClip(), LOOSE))
    return worst


FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "eps": {"eps": 1e-3},
    "maximize": {"maximize": True},
    "weight decay": {"weight_decay": 0.1},
    "all three": {"eps": 1e-3, "maximize": True, "weight_decay": 0.1},
    "no start": {"initial_accumulator_value": 0.0},
    "a rate in a tensor": {"lr": torch.tensor(LR)},
}


@over("options", {name: options for name, options in FORMS.items() if "lr" not in options})
@over("rule", [NoClip(), LOOSE])
@pytest.mark.usefixtures("compiled")
def test_unclipped_it_is_the_eager_path_within_eight_units(rule: Rule, options: dict[str, Any]) -> None:
    """A root 2 units away makes 3 of r, twice as many of the step; that and the result are rounded by each path.

    How much of it there is the processor decides: torch takes roots by MKL, which is not exact on each, and rounds a
    product and a sum together, as in the accumulator, where there is an instruction for it.
    """
    assert drift(rule, **options) <= UNCLIPPED


@over("options", {name: options for name, options in FORMS.items() if "lr" not in options})
@pytest.mark.usefixtures("compiled")
def test_clipped_it_keeps_the_documented_bound(options: dict[str, Any]) -> None:
    """4 units of roundings here, 2.5 there; r may differ by 6 and sigma by 12, of a move of half the size at most."""
    assert drift(TIGHT, least=LR, **options) <= CLIPPED


def by_both_ways(
    weights: list[Tensor], grads: list[Tensor], sums: list[Tensor], **options: float
) -> tuple[float, Tensor]:
    """Return how far stepping back is from measuring first, in units of the larger of |w| and the rate; and sigma."""
    found, ratios = [], torch.empty(0)
    for optimistic in (True, False):
        stepped = [w.clone() for w in weights]
        more = {"eps": 0.0, "decay": 1.0, "maximize": False, "optimistic": optimistic}
        ratios = kernel.clippy_adagrad(stepped, grads, [s.clone() for s in sums], **options, **more)
        found.append(torch.stack(stepped))
    return units(found[0], found[1], torch.stack(weights).abs().clamp(min=options["lr"])), ratios


@pytest.mark.usefixtures("compiled")
def test_stepping_back_is_measuring_first_within_six_units() -> None:
    """Wide: rates over 2^10, weights over 2^6 around the rate, gradients over 10^2, bounds over 10^3."""
    worst = 0.0
    for relative in (0.0, 0.1, 0.5, 1.0):
        for _ in range(4):
            lr = 2.0 ** (10 * torch.rand(()).item() - 8)
            weights = [lr * torch.randn(64) * 2 ** (6 * torch.rand(64) - 3) for _ in range(500)]
            grads = [torch.randn(64) * 10 ** (2 * torch.rand(64) - 1) for _ in range(500)]
            sums = [torch.rand(64) ** 4 for _ in range(500)]
            absolute = lr * 10 ** (-3 * torch.rand(()).item())
            far, ratios = by_both_ways(weights, grads, sums, lr=lr, relative=relative, absolute=absolute)
            assert (ratios < 1).any()
            worst = max(worst, far)
    assert 2.0 < worst <= STEPPED_BACK  # above 2: the search goes where the roundings add up


@pytest.mark.usefixtures("compiled")
def test_a_step_back_that_is_three_units_away() -> None:
    w, g, total = (torch.tensor([x]) for x in (-0.29982683062553406, 0.2652425467967987, 0.1))
    far, ratios = by_both_ways([w], [g], [total], lr=0.41336149, relative=0.0, absolute=0.05)
    assert ratios < 1
    assert 2.0 < far <= STEPPED_BACK


@over("scale", [1.0, 1e-6, 1e-12, 1e-20])
@pytest.mark.usefixtures("compiled")
def test_without_an_absolute_bound_tiny_weights_keep_their_digits(scale: float) -> None:
    """It measures first: stepping whole and back would lose weights far below the rate."""
    assert drift(Clippy(0.1, 0.0), scale=scale) <= 4.0
    params = weights(((CHUNK + 7,),), scale)
    optimizer = Adagrad(params, LR, rule=Clippy(0.1, 0.0), fused=True)
    (p,), (g,) = params, gradients(params)
    w, p.grad = p.detach().double(), g.clone()
    optimizer.step()
    r = g.double() / (g.double().square() + 0.1).sqrt()
    sigma = (0.1 * w.abs() / (LR * r.abs())).min().clamp(max=1.0)
    assert sigma < 1
    torch.testing.assert_close(p.detach().double(), w - LR * sigma * r, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(optimizer.clip_factors()[p].double(), sigma, rtol=1e-6, atol=0.0)


@over("options", FORMS)
@over("scale", [1.0, 0.0])
@pytest.mark.usefixtures("compiled")
def test_a_factor_of_one_is_no_clip_bit_for_bit(scale: float, options: dict[str, Any]) -> None:
    ours = weights(scale=scale)
    naive = [Parameter(p.detach().clone()) for p in ours]
    options = {"lr": LR} | options
    optimizers = [
        Adagrad(several, rule=rule, fused=True, **options) for several, rule in ((ours, LOOSE), (naive, NoClip()))
    ]
    for _ in range(5):
        grads = gradients(ours)
        for each, several in zip(optimizers, (ours, naive), strict=True):
            give(several, grads)
            each.step()
            assert all(torch.equal(factor, torch.tensor(1.0)) for factor in each.clip_factors().values())
    assert all(p.isfinite().all() for p in naive)
    assert_same_bits(*map(numbers, optimizers))


@over("rule", [NoClip(), LOOSE, TIGHT, Clippy(0.1, 0.0)])
@pytest.mark.usefixtures("compiled")
def test_zero_weights_step_as_in_the_eager_path(rule: Rule) -> None:
    ours, theirs = (weights(((3, 4), (CHUNK + 5,)), scale=0.0) for _ in range(2))
    grads = gradients(ours)
    optimizers = [Adagrad(ours, LR, rule=rule, fused=True), Adagrad(theirs, LR, rule=rule, fused=False)]
    for each, several in zip(optimizers, (ours, theirs), strict=True):
        give(several, grads)
        each.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0.0, atol=4 * LR * torch.finfo(torch.float32).eps)


@over("value", [torch.nan, torch.inf, -torch.inf])
@over("where", [(0, 0), (0, CHUNK), (3, 0), (4, 0), (4, 317 * 331 - 1)])
@over("steps", [0, 2])
@pytest.mark.usefixtures("compiled")
def test_one_bad_number_in_one_tensor_skips_them_all(steps: int, where: tuple[int, int], value: float) -> None:
    params = weights(((CHUNK + 1,), (3, 5), (0,), (), (317, 331)))
    optimizer = Adagrad(params, LR, rule=TIGHT, fused=True)
    never = copy.deepcopy(optimizer)
    twins = never.param_groups[0]["params"]
    for _ in range(steps):
        grads = gradients(params)
        for each, several in ((optimizer, params), (never, twins)):
            give(several, grads)
            each.step()
    bad = gradients(params)
    bad[where[0]].view(-1)[where[1]] = value
    give(params, bad)
    kept = [grad.clone() for grad in bad]
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        optimizer.step()
    assert_same_bits(bad, kept)
    assert optimizer.skipped_steps == 1
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
        if steps:
            assert_same_bits([*optimizer.state[p].values()], [*never.state[q].values()])
        else:
            assert torch.equal(optimizer.state[p]["sum"], torch.full_like(p, 0.1))
            assert optimizer.state[p]["step"] == 0
    grads = gradients(params)
    for each, several in ((optimizer, params), (never, twins)):
        give(several, grads)
        each.step()
    assert_same_bits(numbers(optimizer), numbers(never))


@pytest.mark.usefixtures("compiled")
def test_an_infinite_gradient_that_propagates_poisons_as_in_the_eager_path() -> None:
    for value in (torch.nan, torch.inf):
        params = weights(((5,), (3,)))
        twins = copy.deepcopy(params)
        grads = gradients(params)
        grads[0][2] = value
        for several, fused in ((params, True), (twins, False)):
            give(several, grads)
            Adagrad(several, LR, rule=TIGHT, nonfinite="propagate", fused=fused).step()
        assert params[0].isnan().all()
        assert params[1].isfinite().all()
        assert_same_bits([p.isnan() for p in params], [q.isnan() for q in twins])


@pytest.mark.usefixtures("compiled")
def test_many_tensors_are_each_stepped_as_if_alone() -> None:
    params = weights([(i % 7, 1 + i % 5) for i in range(600)])
    alone = [Parameter(p.detach().clone()) for p in params]
    grads = gradients(params)
    give(params, grads)
    give(alone, grads)
    optimizer = Adagrad(params, LR, rule=TIGHT, fused=True)
    optimizer.step()
    assert len(optimizer.clip_factors()) == 600
    for p, q in zip(params, alone, strict=True):
        (own := Adagrad([q], LR, rule=TIGHT, fused=True)).step()
        assert torch.equal(p, q)
        assert torch.equal(optimizer.clip_factors()[p], own.clip_factors()[q])


@over("rule", [TIGHT, LOOSE, Clippy(0.1, 0.0)])
@pytest.mark.usefixtures("compiled", "two_threads")
def test_threads_change_no_bit(rule: Rule) -> None:
    found = []
    for threads in (1, 2):
        torch.manual_seed(1)
        torch.set_num_threads(threads)
        params = weights()
        optimizer = Adagrad(params, LR, rule=rule, fused=True)
        for _ in range(3):
            give(params, gradients(params))
            optimizer.step()
        found.append([*numbers(optimizer), *optimizer.clip_factors().values()])
    assert_same_bits(*found)


@pytest.mark.usefixtures("compiled")
def test_groups_have_their_own_rates_rules_and_epsilons() -> None:
    params = weights(((4, 3), (CHUNK + 3,), (5,)))
    alone = [Parameter(p.detach().clone()) for p in params]
    own: list[dict[str, Any]] = [{"lr": 0.5, "rule": TIGHT}, {"lr": 0.01, "eps": 1e-3}, {"weight_decay": 0.1}]
    groups = [{"params": [p]} | each for p, each in zip(params, own, strict=True)]
    optimizer = Adagrad(groups, LR, rule=Clippy(), fused=True)
    singles = [
        Adagrad([p], **{"lr": LR, "rule": Clippy()} | each, fused=True) for p, each in zip(alone, own, strict=True)
    ]
    for _ in range(3):
        grads = gradients(params)
        give(params, grads)
        give(alone, grads)
        optimizer.step()
        for each in singles:
            each.step()
    assert_same_bits([p.detach() for p in params], [p.detach() for p in alone])


@pytest.mark.usefixtures("compiled")
def test_a_weight_that_is_nan_gives_a_factor_that_is_nan() -> None:
    for fused in (True, False):
        params = weights(((4,), (2 * CHUNK + 3,), (3,)))
        params[1].data[CHUNK + 1] = torch.nan
        give(params, gradients(params))
        optimizer = Adagrad(params, LR, rule=TIGHT, fused=fused)
        optimizer.step()
        factors = optimizer.clip_factors()
        assert [factors[p].isnan().item() for p in params] == [False, True, False]
        assert params[1].isnan().all()
        assert params[0].isfinite().all()
        assert params[2].isfinite().all()


# What the kernel does not take goes the eager way


def transposed() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4).mT, torch.randn(4, 6)


def strided_gradient() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.randn(6, 4).mT


def both_transposed() -> tuple[Tensor, Tensor]:
    return torch.randn(300, 400).mT, torch.randn(300, 400).mT


def expanded_gradient() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.randn(4, 1).expand(4, 6)


def every_other_gradient() -> tuple[Tensor, Tensor]:
    return torch.randn(7), torch.randn(14)[::2]


def of_type(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype)


NOT_TAKEN = {
    "a transposed weight": transposed,
    "a transposed gradient": strided_gradient,
    "both": both_transposed,
    "an expanded gradient": expanded_gradient,
    "every other number": every_other_gradient,
    "float64": lambda: of_type(torch.float64),
    "bfloat16": lambda: of_type(torch.bfloat16),
    "float16": lambda: of_type(torch.float16),
}


@over("make", NOT_TAKEN)
@pytest.mark.usefixtures("compiled")
def test_what_the_kernel_does_not_take_goes_the_eager_way(make: Any) -> None:
    w, g = make()
    assert not kernel.takes(w, g)
    found = []
    for weight, grad, fused in ((w, g, True), (w.clone(memory_format=torch.contiguous_format), g.contiguous(), False)):
        p, beside = Parameter(weight.detach().clone(memory_format=torch.preserve_format)), Parameter(torch.ones(3))
        strides = p.stride()
        optimizer = Adagrad([p, beside], LR, rule=TIGHT, fused=fused)
        for _ in range(2):
            p.grad, beside.grad = grad, torch.full((3,), 2.0)
            assert p.grad is grad
            optimizer.step()
        assert p.stride() == strides
        assert p.dtype is w.dtype
        assert optimizer.state[p]["sum"].dtype is torch.promote_types(w.dtype, torch.float32)
        found.append([p.detach().contiguous(), optimizer.state[p]["sum"].contiguous(), optimizer.clip_factors()[p]])
        assert not torch.equal(p, weight)
    assert_same_bits(*found)


@over("rule", [GradientClip(), AdaptiveGradientClip(), Clippy(0.5, 1e-2, 0.1)])
@pytest.mark.usefixtures("compiled")
def test_other_rules_go_the_eager_way(rule: Rule) -> None:
    params = weights(((4, 3), (5,)))
    twins = copy.deepcopy(params)
    grads = gradients(params)
    for several, fused in ((params, True), (twins, False)):
        give(several, grads)
        Adagrad(several, LR, rule=rule, fused=fused).step()
    assert_same_bits([p.detach() for p in params], [q.detach() for q in twins])


def test_what_the_kernel_takes() -> None:
    x = torch.ones(4, 3)
    assert kernel.takes(x, Parameter(x), x[:2], torch.ones(()), torch.ones(0)) == kernel.available()
    for other in (x.mT, x.double(), x.bfloat16(), x.to_sparse(), x.to("meta"), x[:, 1], x.to(torch.complex64)):
        assert not kernel.takes(x, other)


def negative(shape: tuple[int, ...]) -> Tensor:
    """Draw numbers of which the memory holds the negative, as the gradient of a conjugate's imaginary part does."""
    found = torch._neg_view(torch.randn(shape))  # pyright: ignore[reportPrivateImportUsage]
    assert found.is_neg()
    assert found.is_contiguous()
    return found


STEPPED: dict[str, Any] = {
    "kernel": lambda params: Adagrad(params, LR, rule=TIGHT),
    "eager": lambda params: Adagrad(params, LR, rule=TIGHT, fused=False),
    "by unit": lambda params: Adagrad(params, LR, rule=AdaptiveGradientClip(1e-3)),
    "attached": lambda params: attached(torch.optim.SGD(params, LR), TIGHT),
    "attached, by unit": lambda params: attached(torch.optim.SGD(params, LR), AdaptiveGradientClip(1e-3)),
}


def attached(optimizer: Optimizer, rule: Rule) -> Optimizer:
    clip_updates(optimizer, rule)
    return optimizer


@over("count", [1, 12])
@over("which", {"gradients": (False, True), "weights": (True, False), "both": (True, True)})
@over("make", STEPPED)
def test_numbers_whose_memory_is_their_negative_step_as_what_they_are(
    make: Any, which: tuple[bool, bool], count: int
) -> None:
    params = [Parameter(negative((3, 2)) if which[0] else torch.randn(3, 2)) for _ in range(count)]
    twins = [Parameter(p.detach().resolve_neg().clone()) for p in params]
    optimizers = make(params), make(twins)
    for _ in range(2):
        for p, q in zip(params, twins, strict=True):
            p.grad = negative((3, 2)) if which[1] else torch.randn(3, 2)
            q.grad = p.grad.resolve_neg().clone()
        for each in optimizers:
            each.step()
    for p, q in zip(params, twins, strict=True):
        assert not torch.equal(q, torch.zeros_like(q))
        torch.testing.assert_close(p.detach().resolve_neg(), q.detach(), rtol=1e-6, atol=1e-7)


def test_the_gradient_of_a_conjugate_goes_downhill() -> None:
    x = Parameter(torch.ones(1))
    y = torch.complex(torch.zeros(1), x)
    (y.conj() * (2 + 3j)).real.sum().backward()
    Adagrad([x], LR, rule=Clippy()).step()
    torch.testing.assert_close(x.detach(), torch.tensor([1 - LR * 3 / (9 + 0.1) ** 0.5]))


def test_a_gradient_without_memory_is_a_gradient() -> None:
    p = Parameter(torch.ones(3))
    p.grad = torch._efficientzerotensor(3)  # pyright: ignore[reportPrivateImportUsage]
    assert not kernel.takes(p, p.grad)
    Adagrad([p], LR, rule=Clippy(), weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - LR * 0.5))


@over("fused", [None, False])
def test_a_gradient_of_weights_that_have_been_replaced_is_refused(fused: bool | None) -> None:
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    p.data = torch.ones(100_000)
    with pytest.raises(ValueError, match=r"shape \(100000,\) whose gradient has the shape \(3,\); expected a gradient"):
        Adagrad([p], LR, fused=fused).step()
