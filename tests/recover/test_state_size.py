"""What a bad batch leaves in the state is seen, what a healthy run leaves is not."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import surefoot
from properties import over
from surefoot.recover.state_size import Size, growth, not_finite, sizes_of

MAKE: dict[str, Callable[[nn.Module], Optimizer]] = {
    "ClippyAdagrad from .1": lambda m: surefoot.ClippyAdagrad(m.parameters(), 0.05, initial_accumulator_value=0.1),
    "ClippyAdagrad from 1e-6": lambda m: surefoot.ClippyAdagrad(m.parameters(), 0.05, initial_accumulator_value=1e-6),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.05),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), 0.01),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01),
    "SGD with momentum": lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9),
}


class Training:
    """A small regression with a batch norm."""

    def __init__(self, make: Callable[[nn.Module], Optimizer]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
        self.optimizer = make(self.model)

    def step(self, factor: float = 1.0, rows: slice | Sequence[int] = slice(None)) -> None:
        x = torch.randn(64, 8)
        y = x.sum(1)
        x[rows] *= factor
        self.optimizer.zero_grad()
        (self.model(x)[:, 0] - y).square().mean().backward()
        self.optimizer.step()

    def sizes(self) -> dict[str, Size]:
        return sizes_of(self.model, [self.optimizer])


@over("make", MAKE)
def test_a_healthy_run_leaves_nothing(make: Callable[[nn.Module], Optimizer]):
    """From each checkpoint to the next."""
    training = Training(make)
    then: dict[int, dict[str, Size]] = {}
    for step in range(1, 301):
        training.step()
        if step % 10 == 0:
            then[step] = training.sizes()
            for before in (step - 10, step - 20 if step > 100 else step - 10):
                if before in then:
                    assert growth(then[step], then[before]) is None, (before, step)


@over("make", MAKE)
@over("at", {"early": 12, "late": 150})
def test_one_bad_batch_is_seen(make: Callable[[nn.Module], Optimizer], at: int):
    training = Training(make)
    then: dict[str, Size] = {}
    for step in range(at):
        training.step()
        if step + 1 == at // 10 * 10:
            then = training.sizes()
    training.step(factor=1e4)
    assert "times as large as before" in str(growth(training.sizes(), then))


def test_a_state_of_which_nothing_was_known_counts_as_grown():
    training = Training(MAKE["Adam"])
    then = training.sizes()
    training.step()
    assert growth(training.sizes(), then) == (1.0, "exp_avg of 0.weight cannot be judged so early")
    assert growth(then, then) is None


def test_a_size_that_is_no_number_counts_as_grown():
    then = {"exp_avg of weight": Size(1.0, 1.0, True, "exp_avg")}
    now = {"exp_avg of weight": Size(torch.nan, torch.nan, True, "exp_avg")}
    found = growth(now, then)
    assert found is not None
    assert found[1] == "exp_avg of weight is nan times as large as before"


def test_a_buffer_is_looked_at_too():
    training = Training(MAKE["SGD with momentum"])
    training.step()
    then = training.sizes()
    running_mean: Tensor = training.model.get_buffer("1.running_mean")
    running_mean.mul_(100)
    found = growth(training.sizes(), then)
    assert found is not None
    assert found == (pytest.approx(100, rel=1e-4), "1.running_mean is 100 times as large as before")


@over("value", {"NaN": torch.nan, "inf": torch.inf})
@over("where", {"weight": "0.weight", "buffer": "1.running_var", "state": "sum of 3.bias"})
def test_what_is_not_finite_is_named(value: float, where: str):
    training = Training(MAKE["Adagrad"])
    training.step()
    assert not_finite(training.model, [training.optimizer]) == set()
    tensors = {**dict(training.model.named_parameters()), **dict(training.model.named_buffers())}
    tensors["sum of 3.bias"] = training.optimizer.state[tensors["3.bias"]]["sum"]
    with torch.no_grad():
        tensors[where].reshape(-1)[0] = value
    assert not_finite(training.model, [training.optimizer]) == {where}


def test_large_and_odd_tensors_are_measured():
    model = nn.Module()
    model.register_buffer("huge", torch.full((3,), 1e30, dtype=torch.float64))
    model.register_buffer("short", torch.full((100_000,), 100.0, dtype=torch.float16))
    model.register_buffer("empty", torch.zeros(0))
    model.register_buffer("count", torch.zeros(3, dtype=torch.int64))
    sizes = sizes_of(model, [])
    assert sizes.keys() == {"huge", "short"}
    assert sizes["huge"].mean == pytest.approx(1e30)
    assert sizes["short"] == Size(100.0, 100.0, False, "short")
