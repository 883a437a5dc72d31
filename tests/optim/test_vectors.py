"""The authors' trajectories that are sparse or poisoned, and a thousand steps beside the slow reference.

The thirteen dense and finite trajectories stand in test_adagrad.py.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from test_adagrad import CASES, TRAJECTORIES, options_of, rates_of
from torch import Tensor
from torch.nn import Parameter

import reference
from properties import over, reference_of
from surefoot import Accumulate, Adagrad, Clippy, ClippyAdagrad, Epsilon

SPARSE = {case["name"]: case for case in CASES if case["kind"] == "sparse"}
POISONED = {case["name"]: case for case in CASES if case["name"] not in TRAJECTORIES | SPARSE}
BETTER = "acc0_zero_grad"  # where 0 * inf poisons theirs and nothing moves in ours
TOLERANCE = 1e-9


def numbers(x: Any) -> Tensor:
    """Return numbers as float64; the file has "inf" and "nan" as strings."""
    return torch.from_numpy(np.array(np.array(x, dtype=object).astype(np.float64)))


def test_every_trajectory_is_followed_somewhere() -> None:
    assert len(CASES) == len({case["name"] for case in CASES}) == 20
    assert (len(TRAJECTORIES), len(SPARSE), len(POISONED)) == (13, 3, 4)
    assert TRAJECTORIES.keys() | SPARSE.keys() | POISONED.keys() == {case["name"] for case in CASES}
    assert BETTER in POISONED


def same_as(w: Parameter, optimizer: ClippyAdagrad, expected: dict[str, Any]) -> None:
    found = {"w": w.detach(), "accum": optimizer.state[w]["sum"], "sigma": optimizer.clip_factors()[w]}
    for name, value in found.items():
        assert value.dtype is torch.float64
        torch.testing.assert_close(
            value, numbers(expected[name]), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True, msg=lambda m, n=name: n + m
        )


def test_the_sparse_trajectories_have_three_accumulator_modes_and_duplicates() -> None:
    modes = [options_of(case)["accumulate"] for case in SPARSE.values()]
    assert sorted(modes) == sorted(mode.value for mode in Accumulate)
    for case in SPARSE.values():
        assert any(len(set(rows)) < len(rows) for rows, _ in case["steps"])


@over("case", SPARSE)
def test_sparse_trajectories_of_the_authors_code(case: dict[str, Any]) -> None:
    w = Parameter(numbers(case["w0"]))
    lr = float(np.float32(case["args"]["learning_rate"]))
    optimizer = ClippyAdagrad.tfrs([w], lr, **options_of(case))
    for (rows, values), expected in zip(case["steps"], case["trace"], strict=True):
        w.grad = torch.sparse_coo_tensor(torch.tensor([rows]), numbers(values), w.shape, check_invariants=True)
        optimizer.step()
        same_as(w, optimizer, expected)


@over("case", {name: case for name, case in POISONED.items() if name != BETTER})
def test_poisoned_trajectories_of_the_authors_code(case: dict[str, Any]) -> None:
    w = Parameter(numbers(case["w0"]))
    optimizer = ClippyAdagrad.tfrs([w], **options_of(case), nonfinite="propagate")
    for grad, rate, expected in zip(case["grads"], rates_of(case), case["trace"], strict=True):
        assert not numbers(expected["w"]).isfinite().all()
        optimizer.param_groups[0]["lr"] = rate
        w.grad = numbers(grad)
        optimizer.step()
        same_as(w, optimizer, expected)


def test_a_zero_accumulator_without_eps_stays_finite_where_the_authors_code_is_poisoned() -> None:
    case = POISONED[BETTER]
    assert all(numbers(each["w"]).isnan().all() for each in case["trace"])
    w = Parameter(numbers(case["w0"]))
    optimizer = ClippyAdagrad.tfrs([w], **options_of(case), nonfinite="propagate")
    ours = ([1.0, 0.9], [0.9, 0.9 - 0.1 * 0.1 / 0.02**0.5])  # the coordinate without a gradient stays
    for grad, rate, theirs, expected in zip(case["grads"], rates_of(case), case["trace"], ours, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        w.grad = numbers(grad)
        optimizer.step()
        torch.testing.assert_close(w.detach(), numbers(expected), rtol=1e-7, atol=0.0)  # their rate is a float32
        same_as(w, optimizer, theirs | {"w": w.tolist(), "sigma": 1.0})


# A thousand steps

# How far weights, accumulators and factors may drift in 1,000 steps, relative to the tensor's largest number.
DRIFT = {torch.float32: 1e-4, torch.float64: 1e-9}
PAPER = Clippy(0.5, 1e-2)
WAYS: dict[str, dict[str, Any]] = {
    "paper, kernel": {"fused": None},
    "paper, eager": {"fused": False},
    "TFRS": {"eps": 1e-7, "epsilon": Epsilon.INSIDE, "accumulate": Accumulate.AFTER},
    "TFRS, clipped accumulator": {"eps": 1e-7, "epsilon": Epsilon.INSIDE, "accumulate": Accumulate.AFTER_CLIPPED},
}


def distance(found: Tensor, expected: Any) -> float:
    """Return the largest difference relative to the largest number expected."""
    expected = torch.from_numpy(np.asarray(expected))
    assert found.shape == expected.shape
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())


@over("dtype", list(DRIFT))
@over("options", WAYS)
def test_a_thousand_steps_of_the_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    params = [Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 3), (5,), ())]
    optimizer = Adagrad(params, lr=0.1, rule=PAPER, **options)
    weights = [p.detach().double().numpy().copy() for p in params]
    totals = [np.full_like(w, 0.1) for w in weights]
    form = {name: getattr(value, "value", value) for name, value in options.items() if name not in ("fused", "epsilon")}
    follow = partial(reference.adagrad_step, lr=0.1, eps_inside="epsilon" in options, **form)
    clipped = 0
    for size in 10.0 ** (2 * torch.rand(1000) - 1):
        for i, p in enumerate(params):
            p.grad = (size * torch.randn(p.shape)).to(dtype)
            g = p.grad.double().numpy()
            weights[i], totals[i], sigma = follow(weights[i], g, totals[i], sigma=reference_of(PAPER, []))
            clipped += int(sigma < 1)
        optimizer.step()
    assert 0 < clipped < 3000
    for p, w, total in zip(params, weights, totals, strict=True):
        assert optimizer.state[p]["step"] == 1000
        assert distance(p, w) <= DRIFT[dtype]
        assert distance(optimizer.state[p]["sum"], total) <= DRIFT[dtype]
