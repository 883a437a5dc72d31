"""Adagrad: the authors' trajectories, the slow reference, torch's own, and the contract of an optimizer."""

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

import reference
from properties import RULES, TOLERANCE, all_of, over, reference_of
from surefoot import (
    Accumulate,
    Adagrad,
    AdaptiveGradientClip,
    Clippy,
    ClippyAdagrad,
    Epsilon,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    TrustRatio,
)
from surefoot.optim import nonfinite

LR = 0.125  # a power of two: scaling by it rounds nothing
Gradients = list[list[Tensor]]  # by step, by parameter
Make = Callable[[Iterable[Any]], Adagrad]

OPTIMIZERS: dict[str, Make] = {
    **{repr(rule): partial(Adagrad, lr=LR, rule=rule) for rule in RULES},
    "the paper": partial(ClippyAdagrad, lr=LR),
    "TFRS": partial(ClippyAdagrad.tfrs, lr=LR),
    "TFRS, clipped accumulator": partial(ClippyAdagrad.tfrs, lr=LR, accumulate="after_clipped"),
    "eps": partial(Adagrad, lr=LR, eps=1e-3),
    "weight decay": partial(ClippyAdagrad, lr=LR, weight_decay=0.1),
    "maximize": partial(ClippyAdagrad, lr=LR, maximize=True),
    "a rate in a tensor": lambda params: ClippyAdagrad(params, torch.tensor(LR)),
}


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 3), (4,), (2, 3, 2), ())]


def gradients(params: Sequence[Tensor], steps: int) -> Gradients:
    """Draw gradients whose size jumps between 0.01 and 100, so that rules clip now and then."""
    sizes = 10.0 ** (4 * torch.rand(steps) - 2)
    return [[(size * torch.randn(p.shape)).to(p.dtype) for p in params] for size in sizes]


def step(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    optimizer.step()


def follow(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], steps: Gradients) -> None:
    for grads in steps:
        step(optimizer, params, grads)


def twins(params: Sequence[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def assert_equal(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    assert len(params) == len(others) > 0
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param.detach(), other.detach(), rtol=0.0, atol=0.0)


def sums(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> list[Tensor]:
    return [optimizer.state[p]["sum"] for p in params]


# The authors' own code

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "tfrs_clippy.json").read_text())["cases"]
TRAJECTORIES = {
    case["name"]: case
    for case in CASES
    if case["kind"] == "dense" and not any(word in json.dumps(case) for word in ('"nan"', '"inf"'))
}
NAMES = {
    "initial_accumulator_value": "initial_accumulator_value",
    "variable_relative_threshold": "relative",
    "absolute_threshold": "absolute",
    "accumulator_relative_threshold": "accumulator_relative",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
}
ORDERS = {"use_standard_accumulator_update": "before", "clip_accumulator_update": "after_clipped"}


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return the options of ``ClippyAdagrad.tfrs``, the rate apart; an argument without a name of ours is an error."""
    args = {name: value for name, value in case["args"].items() if name not in ("learning_rate", *ORDERS)}
    orders = [order for name, order in ORDERS.items() if case["args"].get(name)]
    assert len(orders) <= 1
    return {NAMES[name]: value for name, value in args.items()} | {"accumulate": (*orders, "after")[0]}


def rates_of(case: dict[str, Any]) -> list[float]:
    """Return the rate of each step as that code holds it, in float32."""
    rates = case["lrs"] or [case["args"].get("learning_rate", 1e-3)] * len(case["grads"])
    return [float(np.float32(rate)) for rate in rates]


def test_thirteen_trajectories_are_dense_and_finite() -> None:
    assert len(TRAJECTORIES) == 13
    assert all(len(case["grads"]) == len(case["trace"]) == len(rates_of(case)) > 0 for case in TRAJECTORIES.values())


@all_of("dtype", [torch.float64, torch.float32])
@over("case", TRAJECTORIES)
def test_trajectories_of_the_authors_code(case: dict[str, Any], dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype is torch.float64 and case["dtype"] == "float64" else 1e-5
    w = Parameter(torch.tensor(case["w0"], dtype=dtype))
    optimizer = ClippyAdagrad.tfrs([w], **options_of(case))
    for grad, rate, expected in zip(case["grads"], rates_of(case), case["trace"], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        step(optimizer, [w], [torch.tensor(grad, dtype=dtype)])
        found = {"w": w.detach(), "accum": optimizer.state[w]["sum"], "sigma": optimizer.clip_factors()[w]}
        for name, value in found.items():
            same = torch.tensor(expected[name], dtype=dtype)
            torch.testing.assert_close(value, same, rtol=tolerance, atol=tolerance, msg=f"{name}: {value}, not {same}")


@over("case", {name: case for name, case in TRAJECTORIES.items() if case["dtype"] == "float64"})
def test_trajectories_hold_the_reference(case: dict[str, Any]) -> None:
    options = {"relative": 0.1, "absolute": 1e-7, "initial_accumulator_value": 0.1, "eps": 1e-7} | options_of(case)
    sigma = reference_of(
        Clippy(options["relative"], options["absolute"], options.get("accumulator_relative", 0.0)), gradients=[]
    )
    w = np.array(case["w0"])
    G = np.full_like(w, options["initial_accumulator_value"])
    same: dict[str, Any] = {x: options[x] for x in ("eps", "accumulate", "weight_decay") if x in options}
    for grad, rate, expected in zip(case["grads"], rates_of(case), case["trace"], strict=True):
        w, G, factor = reference.adagrad_step(w, np.array(grad), G, lr=rate, sigma=sigma, eps_inside=True, **same)
        for found, name in ((w, "w"), (G, "accum"), (factor, "sigma")):
            np.testing.assert_allclose(found, expected[name], rtol=1e-9, atol=1e-12)


DELAYED = {"lr": 0.2, "initial_accumulator_value": 0.01, "relative": 0.4, "absolute": 0.1, "eps": 0.0}
THIRD_TERM = DELAYED | {"accumulator_relative": 0.01}
STANDARD = {"lr": 0.1, "initial_accumulator_value": 0.0, "accumulate": "before"}
OneStep = tuple[dict[str, Any], list[float], list[float], list[float], float]
ONE_STEP: dict[str, OneStep] = {  # options, gradient -> weights, accumulator, sigma; from [1, 2]
    "defaults": ({"lr": 0.1, "initial_accumulator_value": 0.01}, [0.1, 0.15], [0.9, 1.85], [0.02, 0.0325], 1.0),
    "third term": (THIRD_TERM, [10, 10], [0.4, 1.4], [100.01] * 2, 0.03),
    "clipped": (THIRD_TERM | {"accumulate": Accumulate.AFTER_CLIPPED}, [10, 10], [0.4, 1.4], [0.1] * 2, 0.03),
    "standard order": (STANDARD, [0.1, 0.15], [0.9, 1.9], [0.01, 0.0225], 1.0),
}


@over("case", ONE_STEP)
def test_one_step_of_the_authors_unit_tests(case: OneStep) -> None:
    options, grad, weights, accumulator, sigma = case
    w = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = ClippyAdagrad.tfrs([w], **options)
    step(optimizer, [w], [torch.tensor(grad, dtype=torch.float64)])
    for found, expected in ((w.detach(), weights), (optimizer.state[w]["sum"], accumulator)):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0.0)
    assert optimizer.clip_factors()[w].item() == pytest.approx(sigma)


def test_own_tfrs_and_paper_defaults() -> None:
    expected = {
        ClippyAdagrad: (Clippy(0.5, 1e-2), 1e-6, 0.0, Epsilon.OUTSIDE, Accumulate.BEFORE),
        ClippyAdagrad.paper: (Clippy(0.5, 1e-2), 0.1, 0.0, Epsilon.OUTSIDE, Accumulate.BEFORE),
        ClippyAdagrad.tfrs: (Clippy(0.1, 1e-7), 0.1, 1e-7, Epsilon.INSIDE, Accumulate.AFTER),
    }
    for make, values in expected.items():
        group = make(parameters(), lr=0.1).param_groups[0]
        names = ("rule", "initial_accumulator_value", "eps", "epsilon", "accumulate")
        assert tuple(group[name] for name in names) == values
    assert ClippyAdagrad.tfrs(parameters()).param_groups[0]["lr"] == 1e-3


# What is skipped, and where factors go


@all_of("rule", RULES)
def test_where_the_flag_is_not_read_a_skipped_step_moves_nothing(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: the step is taken, on gradients of 0."""
    monkeypatch.setattr(nonfinite, "readable", lambda flag: False)
    params = parameters() + parameters()  # enough to be gathered
    optimizer = Adagrad(params, LR, rule=rule, weight_decay=0.1, fused=False)
    good, bad = gradients(params, 2)
    bad[1][0] = nan
    step(optimizer, params, good)
    before, totals = twins(params), [total.clone() for total in sums(optimizer, params)]
    step(optimizer, params, bad)
    assert_equal(params, before)
    assert_equal(sums(optimizer, params), totals)
    assert {optimizer.state[p]["step"].item() for p in params} == {1.0}
    assert optimizer.skipped_steps == 1


def test_a_bad_gradient_that_the_kernel_does_not_take_stops_those_that_it_takes() -> None:
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.bfloat16))]
    optimizer = ClippyAdagrad(params, LR)
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        step(optimizer, params, [torch.ones(3), torch.full((3,), nan, dtype=torch.bfloat16)])
    assert all((p == 1).all() for p in params)


def test_units_of_a_large_tensor_have_their_own_factors() -> None:
    """Of 2^20 numbers, so that two of them fill what is looked at at once."""
    rule = AdaptiveGradientClip(1e-3)
    w, size = Parameter(torch.ones(3, 1 << 20)), torch.tensor([[1.0], [2.0], [4.0]])
    optimizer = Adagrad([w], LR, rule=rule, initial_accumulator_value=1.0, fused=False)
    step(optimizer, [w], [size.expand(w.shape)])
    sigma = 1e-3 / size
    torch.testing.assert_close(optimizer.clip_factors()[w][:, None], sigma)
    torch.testing.assert_close(w.detach()[:, :1], 1 - LR * sigma * size / (1 + size.square()).sqrt())


# The slow reference

FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "torch": {"eps": 1e-3},
    "TFRS": {"eps": 1e-3, "epsilon": Epsilon.INSIDE, "accumulate": Accumulate.AFTER},
    "clipped accumulator": {"accumulate": Accumulate.AFTER_CLIPPED},
    "weight decay": {"weight_decay": 0.1},
}


@all_of("dtype", list(TOLERANCE))
@all_of("form", FORMS)
@over("rule", RULES)
def test_fifty_steps_of_the_reference(rule: Rule, form: dict[str, Any], dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = Adagrad(params, lr=0.1, rule=rule, **form)
    options = {name: getattr(value, "value", value) for name, value in form.items() if name != "epsilon"}
    close = partial(torch.testing.assert_close, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    weights = [p.detach().double().numpy().copy() for p in params]
    totals = [np.full_like(w, 0.1) for w in weights]
    clipped = 0
    for t, grads in enumerate(gradients(params, 50)):
        step(optimizer, params, grads)
        wide = [grad.double().numpy() for grad in grads]
        sigma = reference_of(rule, wide)
        for i, p in enumerate(params):
            weights[i], totals[i], factor = reference.adagrad_step(
                weights[i], wide[i], totals[i], lr=0.1, sigma=sigma, eps_inside="epsilon" in form, **options
            )
            clipped += int((factor != 1).any())
            if t % 5 == 0:  # in between they show in the weights
                close(optimizer.clip_factors()[p].double(), torch.from_numpy(np.asarray(factor)))
    for p, w, total in zip(params, weights, totals, strict=True):
        close(p.detach().double(), torch.from_numpy(w))
        close(optimizer.state[p]["sum"].double(), torch.from_numpy(total))
    assert clipped or rule == NoClip()


# torch's own Adagrad, and no effect where none is claimed


@over("lr", {"a power of two": (LR, 0.0), "any rate": (0.1, 1.0)})
@over("dtype", list(TOLERANCE))
def test_no_clip_is_torch_adagrad(dtype: torch.dtype, lr: tuple[float, float]) -> None:
    """Bit for bit where the rate rounds nothing; else torch's (lr g) / s and our lr (g / s) differ by a rounding."""
    rate, roundings = lr
    ours, theirs = (params := parameters(dtype)), twins(params)
    optimizer = Adagrad(ours, lr=rate, rule=NoClip(), eps=1e-10, fused=False)
    peer = torch.optim.Adagrad(theirs, lr=rate, initial_accumulator_value=0.1, eps=1e-10)
    for grads in gradients(params, 30):
        step(optimizer, ours, grads)
        step(peer, theirs, grads)
    tolerance = 30 * roundings * torch.finfo(dtype).eps
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)
    assert_equal(sums(optimizer, ours), sums(peer, theirs))


ONES = [GradientClip(1e30), GlobalGradientClip(1e30), AdaptiveGradientClip(1e30), Clippy(1e30, 1e30)]


@all_of("dtype", [*TOLERANCE, torch.bfloat16])
@all_of("form", FORMS)
@over("rule", ONES)
def test_sigma_one_leaves_every_bit(rule: Rule, form: dict[str, Any], dtype: torch.dtype) -> None:
    ours, naive = (params := parameters(dtype)), twins(params)
    steps = gradients(params, 10)
    follow(optimizer := Adagrad(ours, lr=0.1, rule=rule, fused=False, **form), ours, steps)
    follow(peer := Adagrad(naive, lr=0.1, rule=NoClip(), fused=False, **form), naive, steps)
    assert_equal(ours, naive)
    assert_equal(sums(optimizer, ours), sums(peer, naive))


@over("fused", [None, False])
def test_no_clip_of_zero_weights_is_a_step_like_any_other(fused: bool | None) -> None:
    w = Parameter(torch.zeros(4, 3))
    optimizer = Adagrad([w], lr=0.1, fused=fused)
    step(optimizer, [w], [torch.ones(4, 3)])
    torch.testing.assert_close(w.detach(), torch.full((4, 3), -0.1 / 1.1**0.5))
    assert float(optimizer.clip_factors()[w]) == 1.0


def test_trust_ratio_of_zero_weights_is_the_naive_step() -> None:
    ours, naive = Parameter(torch.zeros(4, 3)), Parameter(torch.zeros(4, 3))
    steps = gradients([ours], 1)
    follow(Adagrad([ours], lr=0.1, rule=TrustRatio(), fused=False), [ours], steps)
    follow(Adagrad([naive], lr=0.1, fused=False), [naive], steps)
    assert_equal([ours], [naive])


# The contract of an optimizer


@all_of("make", OPTIMIZERS)
def test_parameters_without_a_gradient_stay(make: Make) -> None:
    params = parameters()
    optimizer, before = make(params), twins(params)
    step(optimizer, params, [None, *gradients(params, 1)[0][1:]])
    assert torch.equal(params[0], before[0])
    assert params[0] not in optimizer.state
    assert set(optimizer.clip_factors()) == set(params[1:])
    assert not any(torch.equal(p, old) for p, old in zip(params[1:], before[1:], strict=True))
    step(optimizer, params, [None] * 4)
    assert set(optimizer.clip_factors()) == set(params[1:])  # those of their last step


@all_of("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@all_of("make", OPTIMIZERS)
def test_gradients_are_left_as_found(make: Make, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    (grads,) = gradients(params, 1)
    step(make(params), params, grads)
    assert_equal([p.grad for p in params if p.grad is not None], grads)


@all_of("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@all_of("make", OPTIMIZERS)
def test_types_are_kept_and_the_accumulator_is_wide(make: Make, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = make(params)
    for grads in gradients(params, 3):
        step(optimizer, params, grads)
        assert {p.dtype for p in params} == {dtype}
        for p in params:
            wide = torch.promote_types(dtype, torch.float32)
            assert p.isfinite().all()
            assert optimizer.clip_factors()[p].dtype in (wide, torch.float64)
            assert {name: x.dtype for name, x in optimizer.state[p].items()} == {"step": torch.float32, "sum": wide}
    assert {optimizer.state[p]["step"].item() for p in params} == {3.0}


@all_of("make", OPTIMIZERS)
def test_the_closure_is_called_once_and_its_loss_returned(make: Make) -> None:
    params, calls = parameters(), []
    expected, optimizer = twins(params), make(params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert len(calls) == 1
    step(make(expected), expected, [2 * p.detach() for p in expected])
    assert_equal(params, expected)


def test_a_step_without_a_closure_returns_nothing() -> None:
    assert Adagrad(parameters(), lr=0.1).step() is None


@all_of("make", OPTIMIZERS)
def test_never_waits_for_the_device(make: Make) -> None:
    """A tensor on ``meta`` has no values: whatever looks at one raises."""
    params = [Parameter(p.detach().to("meta")) for p in parameters()]
    optimizer = make(params)
    step(optimizer, params, [torch.empty_like(p) for p in params])
    assert all(factor.is_meta for factor in optimizer.clip_factors().values())


@all_of("make", OPTIMIZERS)
def test_zero_gradients_move_nothing(make: Make) -> None:
    params = parameters()
    decay = 1 - LR * make(params).param_groups[0]["weight_decay"]
    expected = [decay * p.detach() for p in params]
    step(optimizer := make(params), params, [torch.zeros_like(p) for p in params])
    assert_equal(params, expected)
    assert all((factor == 1).all() for factor in optimizer.clip_factors().values())


@all_of("make", OPTIMIZERS)
def test_empty_and_one_element_parameters(make: Make) -> None:
    params = [Parameter(torch.randn(shape)) for shape in ((), (1,), (0,), (0, 3), (3, 0), (0, 2, 3), (2, 2))]
    optimizer = make(params)
    follow(optimizer, params, gradients(params, 3))
    assert all(p.isfinite().all() for p in params)
    for p in params:
        if p.numel() == 0 and optimizer.param_groups[0]["rule"].scope.value != "model":
            assert (optimizer.clip_factors()[p] == 1).all()


@all_of("make", OPTIMIZERS)
def test_a_schedule_sets_the_rate(make: Make) -> None:
    params = parameters()
    by_hand = twins(params)
    optimizer, peer = make(params), make(by_hand)
    schedule = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    for t, grads in enumerate(gradients(params, 5)):
        step(optimizer, params, grads)
        schedule.step()
        peer.param_groups[0]["lr"] = LR * 0.5**t
        step(peer, by_hand, grads)
    assert_equal(params, by_hand)


def test_a_rate_in_a_tensor_is_the_same_rate() -> None:
    params = parameters()
    others, steps = twins(params), gradients(params, 10)
    follow(ClippyAdagrad(params, LR, weight_decay=0.1), params, steps)
    follow(ClippyAdagrad(others, torch.tensor(LR), weight_decay=0.1), others, steps)
    assert_equal(params, others)


def test_maximize_is_the_step_of_the_opposite_gradient() -> None:
    params = parameters()
    others, steps = twins(params), gradients(params, 10)
    follow(ClippyAdagrad(params, LR, maximize=True), params, steps)
    follow(ClippyAdagrad(others, LR), others, [[-grad for grad in grads] for grads in steps])
    assert_equal(params, others)


# State: resume, copies, checkpoints


@all_of("make", OPTIMIZERS)
def test_a_state_dict_resumes_and_stays_equal(make: Make) -> None:
    params = parameters()
    steps = gradients(params, 25)
    follow(optimizer := make(params), params, steps[:5])
    resumed = twins(params)
    (other := make(resumed)).load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for grads in steps[5:]:
        step(optimizer, params, grads)
        step(other, resumed, grads)
        assert_equal(params, resumed)
    assert_equal(sums(optimizer, params), sums(other, resumed))
    assert_equal(list(optimizer.clip_factors().values()), list(other.clip_factors().values()))


@over("duplicate", {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))})
@all_of("make", OPTIMIZERS)
def test_a_copy_goes_on_by_itself(make: Make, duplicate: Callable[[Adagrad], Adagrad]) -> None:
    params = parameters()
    steps = gradients(params, 10)
    follow(optimizer := make(params), params, steps[:5])
    other = duplicate(optimizer)
    copied, before = other.param_groups[0]["params"], twins(params)
    follow(other, copied, steps[5:])
    assert_equal(params, before)
    follow(optimizer, params, steps[5:])
    assert_equal(params, copied)
    assert list(other.clip_factors()) == copied


def test_a_loaded_accumulator_stays_in_float32() -> None:
    params = parameters(torch.bfloat16)
    steps = gradients(params, 10)
    follow(optimizer := ClippyAdagrad(params, LR), params, steps[:5])
    resumed = twins(params)
    (other := ClippyAdagrad(resumed, LR)).load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal(sums(other, resumed), sums(optimizer, params))


def test_a_saved_state_dict_loads_without_unpickling() -> None:
    params = parameters()
    follow(optimizer := ClippyAdagrad(params, LR), params, gradients(params, 3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    (other := ClippyAdagrad(params, LR)).load_state_dict(torch.load(file, weights_only=True))
    assert_equal(sums(other, params), sums(optimizer, params))


def test_a_checkpoint_of_torch_adagrad_can_be_taken_over() -> None:
    params = parameters()
    steps = gradients(params, 4)
    follow(peer := torch.optim.Adagrad(params, lr=LR, initial_accumulator_value=0.1, eps=1e-10), params, steps[:2])
    taken = twins(params)
    (optimizer := Adagrad(taken, lr=LR, eps=1e-10)).load_state_dict(copy.deepcopy(peer.state_dict()))
    follow(optimizer, taken, steps[2:])
    follow(peer, params, steps[2:])
    for p, q in zip(params, taken, strict=True):  # torch has lr g over the root, we lr times r
        torch.testing.assert_close(q.detach(), p.detach(), rtol=2.0**-21, atol=LR * 2.0**-21)


# Parameter groups


def test_groups_have_their_own_rule_and_rate() -> None:
    params = parameters()
    alone, steps = twins(params), gradients(params, 10)
    own = [{"rule": Clippy(0.1), "lr": 0.5}, {"rule": AdaptiveGradientClip(), "eps": 1e-3}, {"epsilon": "inside"}, {}]
    optimizer = Adagrad([{"params": [p]} | each for p, each in zip(params, own, strict=True)], lr=LR)
    assert optimizer.param_groups[2]["epsilon"] is Epsilon.INSIDE
    follow(optimizer, params, steps)
    for i, each in enumerate(own):
        follow(Adagrad([alone[i]], **{"lr": LR} | each), [alone[i]], [[grads[i]] for grads in steps])
    assert_equal(params, alone)


def test_a_group_added_later_starts_afresh() -> None:
    params = parameters()
    alone, steps = twins(params), gradients(params, 10)
    optimizer = ClippyAdagrad.paper(params[:2], LR)
    follow(optimizer, params[:2], [grads[:2] for grads in steps[:5]])
    optimizer.add_param_group({"params": params[2:], "lr": 0.5, "rule": GradientClip(), "accumulate": "after"})
    follow(optimizer, params, steps[5:])
    follow(ClippyAdagrad.paper(alone[:2], LR), alone[:2], [grads[:2] for grads in steps])
    late = Adagrad(alone[2:], 0.5, rule=GradientClip(), accumulate=Accumulate.AFTER)
    follow(late, alone[2:], [grads[2:] for grads in steps[5:]])
    assert_equal(params, alone)


def test_a_global_clip_shares_one_factor_over_groups_with_an_equal_rule() -> None:
    params = parameters()
    (grads,) = gradients(params, 1)
    rule, other = GlobalGradientClip(1e-3), GlobalGradientClip(2e-3)
    groups = [{"params": params[:1]}, {"params": params[1:2], "rule": GlobalGradientClip(1e-3), "lr": 0.5}]
    optimizer = Adagrad([*groups, {"params": params[2:], "rule": other}], lr=LR, rule=rule)
    step(optimizer, params, grads)
    factors = list(optimizer.clip_factors().values())
    norms = [torch.cat([g.flatten() for g in part]).norm().item() for part in (grads[:2], grads[2:])]
    expected = [1e-3 / norms[0]] * 2 + [2e-3 / norms[1]] * 2
    assert [factor.item() for factor in factors] == pytest.approx(expected)


def test_clip_factors_of_tensors_and_units() -> None:
    params = parameters()
    for rule, shapes in (
        (GradientClip(), [(), (), (), ()]),
        (AdaptiveGradientClip(), [(4,), (), (2,), ()]),
        (AdaptiveGradientClip(unit_dims=2), [(), (), (2, 3), ()]),
    ):
        optimizer = Adagrad(params, lr=0.1, rule=rule)
        assert optimizer.clip_factors() == {}
        follow(optimizer, params, gradients(params, 2))
        factors = optimizer.clip_factors()
        assert [factors[p].shape for p in params] == shapes
        factors.clear()
        assert len(optimizer.clip_factors()) == len(params)


# What is refused

BAD_OPTIONS: list[tuple[str, Any]] = [
    *((name, x) for name in ("initial_accumulator_value", "eps", "weight_decay", "lr") for x in (-0.1, nan, inf)),
    *(("rule", x) for x in ("clippy", Clippy, None)),
    *((name, x) for name in ("epsilon", "accumulate") for x in ("sideways", 1)),
]


def in_a_group(params: list[Parameter], **options: Any) -> Adagrad:
    return Adagrad([{"params": params} | options], lr=0.1)


@over("make", {"for all": Adagrad, "in a group": in_a_group})
@over("bad", BAD_OPTIONS)
def test_bad_options_are_refused_by_name(bad: tuple[str, Any], make: Callable[..., Adagrad]) -> None:
    name, value = bad
    with pytest.raises((ValueError, TypeError), match=rf"(?i)\b{name}\b") as refusal:
        make(parameters(), **{"lr": 0.1, name: value})
    assert (value.__name__ if isinstance(value, type) else repr(value)) in str(refusal.value)


@over("make", {"the paper": ClippyAdagrad, "TFRS": ClippyAdagrad.tfrs})
@over("name", ["relative", "absolute", "initial_accumulator_value", "eps", "weight_decay", "lr"])
def test_clippy_adagrad_refuses_by_name(name: str, make: Callable[..., Adagrad]) -> None:
    with pytest.raises(ValueError, match=f"^{name} is -0.1; expected "):
        make(parameters(), **{"lr": 0.1, name: -0.1})


def test_a_rate_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^lr is a tensor of shape \(2,\)"):
        Adagrad(parameters(), lr=torch.tensor([0.1, 0.2]))


@over("value", [-0.1, nan, inf, [0.1]])
def test_a_bad_rate_in_a_tensor_is_refused(value: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"^lr is "):
        Adagrad(parameters(), lr=torch.tensor(value))


@over("accumulate", ["after", "after_clipped"])
def test_a_delayed_accumulator_needs_a_start(accumulate: str) -> None:
    with pytest.raises(ValueError, match=r"^initial_accumulator_value and eps are both 0"):
        Adagrad(parameters(), lr=0.1, initial_accumulator_value=0.0, accumulate=accumulate)


@over("dtype", [torch.complex64, torch.int64])
def test_only_real_floating_point_parameters(dtype: torch.dtype) -> None:
    param = Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    with pytest.raises(ValueError, match=f"^params has a parameter of type {dtype}"):
        Adagrad([param], lr=0.1)


@over("bad", BAD_OPTIONS)
def test_a_refused_group_leaves_the_optimizer_unchanged(bad: tuple[str, Any]) -> None:
    refuse_and_go_on(*bad, (ValueError, TypeError))


@over("bad", [("lr", "0.1"), ("eps", None), ("weight_decay", "no")])
def test_a_group_with_an_option_that_is_no_number_leaves_it_unchanged(bad: tuple[str, Any]) -> None:
    refuse_and_go_on(*bad, Exception)


def refuse_and_go_on(name: str, value: Any, error: type[Exception] | tuple[type[Exception], ...]) -> None:
    params = parameters()
    alone, steps = twins(params[:2]), gradients(params, 4)
    optimizer = ClippyAdagrad(params[:2], LR)
    follow(optimizer, params[:2], [grads[:2] for grads in steps[:2]])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error):
        optimizer.add_param_group({"params": params[2:], name: value})
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    follow(optimizer, params[:2], [grads[:2] for grads in steps[2:]])
    follow(ClippyAdagrad(alone, LR), alone, [grads[:2] for grads in steps])
    assert_equal(params[:2], alone)
    optimizer.add_param_group({"params": params[2:]})


# A start at zero


def test_zero_accumulator_and_zero_eps_stay_finite() -> None:
    w = Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Adagrad([w], lr=0.1, initial_accumulator_value=0.0, eps=0.0)
    step(optimizer, [w], [torch.tensor([0.0, 3.0])])
    torch.testing.assert_close(w.detach(), torch.tensor([1.0, 0.9]))
    step(optimizer, [w], [torch.tensor([-2.0, 0.0])])
    torch.testing.assert_close(w.detach(), torch.tensor([1.1, 0.9]))


def test_a_first_gradient_whose_square_underflows_moves_by_at_most_the_rate() -> None:
    w = Parameter(torch.tensor([1.0]))
    step(Adagrad([w], lr=0.1, initial_accumulator_value=0.0, eps=0.0), [w], [torch.tensor([1e-25])])
    assert (w.detach() - 1.0).abs().item() <= 0.1 * (1 + 1e-5)


def test_a_found_inf_of_zero_does_not_switch_the_own_check_off() -> None:
    w = Parameter(torch.ones(2))
    optimizer = ClippyAdagrad([w], LR)
    optimizer.found_inf = torch.tensor(0.0)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(RuntimeWarning, match="the step was skipped"):
        step(optimizer, [w], [torch.tensor([nan, 1.0])])
    assert w.tolist() == [1.0, 1.0]
    assert optimizer.skipped_steps == 1


def test_steps_that_grad_scaler_skips_are_its_own() -> None:
    w = Parameter(torch.ones(2))
    optimizer, scaler = ClippyAdagrad([w], LR), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((w * inf).sum()).backward()
    scaler.step(optimizer)
    assert w.tolist() == [1.0, 1.0]
    assert optimizer.skipped_steps == 0
