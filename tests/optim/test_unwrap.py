"""Which optimizers can be worked on; wrappers of other libraries are in tests/clients."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer

from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.optim.unwrap import in_backward, load_in_place, own_state, unwrapped, with_in_backward

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own
    from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward


class OfItsOwn(Optimizer):
    """As some libraries have them: no state of torch's, so that hooks on it never run."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self._optimizer_step_pre_hooks = optimizer, {}

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.optimizer.step()


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def take_a_step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [SGD, Adam, Adagrad, ClippyAdagrad])
def test_an_optimizer_that_is_not_wrapped_is_itself(make: Callable[..., Optimizer]) -> None:
    optimizer = make(linear().parameters(), lr=0.1)
    assert unwrapped(optimizer) == unwrapped([optimizer]) == [optimizer]


def test_an_optimizer_whose_hooks_never_run_is_refused() -> None:
    with pytest.raises(TypeError, match="optimizers has a OfItsOwn, whose step runs no hooks; expected"):
        unwrapped(OfItsOwn(SGD(linear().parameters(), lr=0.1)))


def test_optimizers_within_the_backward_pass_come_last_and_once() -> None:
    model = nn.Sequential(linear(), nn.Linear(2, 1))
    _apply_optimizer_in_backward(SGD, model[0].parameters(), {"lr": 0.1})
    own = SGD(model[1].parameters(), lr=0.1)
    within = in_backward(model)
    assert len(within) == 2
    assert with_in_backward(model, own) == [own, *within]
    assert with_in_backward(model, [own, within[1]]) == [own, within[1], within[0]]


def test_a_state_is_loaded_into_the_objects_that_are_there() -> None:
    model = linear()
    optimizer = Adam(model.parameters(), lr=0.1)
    state, groups, group = optimizer.state, optimizer.param_groups, optimizer.param_groups[0]
    foreign = nn.Parameter(torch.empty(0))
    state[foreign] = {"place": torch.tensor(3)}
    take_a_step(model, optimizer)
    saved = own_state(optimizer)
    saved = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in saved["state"].items()}} | {
        "param_groups": [{**saved["param_groups"][0], "lr": 0.5}]
    }
    take_a_step(model, optimizer)
    load_in_place(optimizer, saved)
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert groups[0] is group
    assert group["lr"] == 0.5
    steps: list[Tensor] = [state[param]["step"] for param in model.parameters()]
    assert all(float(step) == 1 for step in steps)
    assert int(state[foreign]["place"]) == 3
