"""The warning that the accumulator is still mostly its start: once, when it is so, and from nothing that is dead."""

import copy
import warnings

import pytest
import torch
from torch.nn import Parameter

from properties import over
from surefoot import Adagrad, ClippyAdagrad
from surefoot.optim.accumulator_start import AFTER

SMALL, LARGE = 1e-3, 1.0  # gradients


def follow(optimizer: Adagrad, size: float, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, size)
        optimizer.step()


def test_it_is_told_once_with_the_share_the_value_and_the_remedy() -> None:
    a, b = Parameter(torch.ones(30)), Parameter(torch.ones(10))
    optimizer = ClippyAdagrad.paper([{"params": [a]}, {"params": [b], "initial_accumulator_value": 1e-6}], lr=0.1)
    follow(optimizer, SMALL, AFTER - 1)
    expected = (
        r"ClippyAdagrad: after 300 steps the accumulator of 100% of 30 weights with a gradient is still mostly its "
        r"initial value, 0\.1, .* expected a lower initial_accumulator_value \(under Clippy 1e-6\) or a higher lr"
    )
    with pytest.warns(UserWarning, match=expected):
        follow(optimizer, SMALL, 1)
    follow(optimizer, SMALL, 2 * AFTER)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    follow(optimizer, SMALL, 2 * AFTER)


@over("case", {"an almost empty accumulator": (1e-6, SMALL), "large gradients": (0.1, LARGE), "from 0": (0.0, SMALL)})
def test_it_is_not_told_where_gradients_set_the_step(case: tuple[float, float]) -> None:
    start, size = case
    follow(ClippyAdagrad([Parameter(torch.ones(10))], 0.1, initial_accumulator_value=start), size, 2 * AFTER)


def test_what_has_no_gradient_does_not_count() -> None:
    alive, dead, table = Parameter(torch.ones(2)), Parameter(torch.ones(100)), Parameter(torch.ones(50, 2))
    optimizer = ClippyAdagrad.paper([alive, dead, table], lr=0.1)
    for _ in range(2 * AFTER):
        alive.grad, dead.grad = torch.ones(2), torch.zeros(100)
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([[1]]), torch.full((1, 2), SMALL), table.shape, check_invariants=True
        )
        optimizer.step()


def test_half_is_not_most() -> None:
    optimizer = ClippyAdagrad.paper([a := Parameter(torch.ones(2)), b := Parameter(torch.ones(2))], lr=0.1)
    for _ in range(AFTER):
        a.grad, b.grad = torch.full((2,), SMALL), torch.full((2,), LARGE)
        optimizer.step()


def test_it_counts_across_devices_that_cannot_be_read_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(Adagrad([Parameter(torch.ones(3, device="meta"))], 0.1, nonfinite="propagate"), SMALL, AFTER + 1)


def test_a_copy_counts_anew() -> None:
    optimizer = ClippyAdagrad.paper([Parameter(torch.ones(3))], lr=0.1)
    follow(optimizer, SMALL, AFTER - 1)
    follow(copy.deepcopy(optimizer), SMALL, AFTER - 1)
