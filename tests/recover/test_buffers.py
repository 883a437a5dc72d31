"""Buffers: given back after a step that was none, whatever they are and however they were changed."""

from collections.abc import Callable

import pytest
import torch
from states import equal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from properties import over
from surefoot.capsule.snapshot import host_copy
from surefoot.recover.buffers import Buffers

DEVICE = "cuda" if torch.backends.cuda.is_built() else "cpu"  # some of torch's shape functions want a real build


class Statistics(nn.Module):
    """Buffers of many kinds, which a forward pass changes in place or makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # is not finite, and never changes
        self.register_buffer("extremes", torch.tensor([torch.inf, -torch.inf]))  # is not finite before it is used
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(4, dtype=torch.bool), persistent=False)
        self.register_buffer("average", torch.zeros(4, dtype=torch.bfloat16))
        self.register_buffer("last", None)
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen |= (x > 0).any(0)
        self.average = 0.9 * self.average + 0.1 * x.mean(0).bfloat16()
        self.last = x[0].detach().clone()
        self.extremes = torch.stack([self.extremes[0].minimum(x.min()), self.extremes[1].maximum(x.max())])
        return self.norm(x)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return host_copy({name: buffer for name, buffer in model.named_buffers() if buffer is not None}, "buffers")


def a_step(value: float = 1.0) -> Tensor:
    x = torch.randn(8, 4)
    x[2, 1] = value
    return x


def test_a_skipped_step_leaves_all_as_it_was():
    torch.manual_seed(0)
    model = Statistics()
    model(a_step())
    buffers, before = Buffers(model), copied(model)
    for _ in range(2):
        model(a_step())
        buffers.settle(skipped=True)
        assert equal(copied(model), before)
    model(a_step())
    buffers.settle(skipped=False)
    after = copied(model)
    assert not equal(after, before)
    model(a_step())
    buffers.settle(skipped=torch.tensor(True))
    assert equal(copied(model), after)
    model(a_step())
    buffers.settle(skipped=torch.tensor(False))
    assert not equal(copied(model), after)


@over("value", {"NaN": torch.nan, "inf": torch.inf, "-inf": -torch.inf})
def test_what_is_not_finite_is_not_kept(value: float):
    torch.manual_seed(0)
    model = Statistics()
    model(a_step())
    buffers, before = Buffers(model), copied(model)
    model(a_step(value))
    buffers.settle(skipped=False)
    assert equal(copied(model), before)


def test_a_buffer_that_is_made_later_or_moved_stays():
    model = Statistics()
    buffers = Buffers(model)
    model(a_step())
    model.double()
    buffers.settle(skipped=True)
    assert model.last is not None
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.dtype is torch.float64
    before = copied(model)
    model(a_step().double())
    buffers.settle(skipped=True)
    assert equal(copied(model), before)


def test_a_model_without_buffers_has_nothing_to_do():
    buffers = Buffers(nn.Linear(2, 1))
    buffers.settle(skipped=True)
    buffers.settle(skipped=torch.tensor(False))


def test_a_large_buffer_is_copied_only_if_it_has_changed():
    model = nn.BatchNorm1d(1)
    model.register_buffer("table", torch.zeros(100_000))
    wide = nn.BatchNorm1d(100_000)
    other = nn.Sequential(model, wide)
    buffers = Buffers(other)
    (table,) = [kept.values for kept in buffers._kept if kept is not None and kept.buffer is model.get_buffer("table")]
    version = table._version
    wide(torch.full((2, 100_000), torch.nan))  # of whose change torch's own count tells nothing
    buffers.settle(skipped=False)
    assert table._version == version
    assert bool(wide.get_buffer("running_mean").isfinite().all())
    model.get_buffer("table").add_(1)
    buffers.settle(skipped=True)
    assert not model.get_buffer("table").any()


SKIPPED: dict[str, Callable[[], bool | Tensor]] = {
    "known": lambda: False,
    "on the device": lambda: torch.empty((), dtype=torch.bool, device=DEVICE),
}


@over("skipped", SKIPPED)
def test_no_number_is_read_on_the_host(skipped: Callable[[], bool | Tensor]):
    """Fake tensors have no values: whatever reads one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.BatchNorm1d(4, device=DEVICE)
        buffers = Buffers(model)
        for _ in range(3):
            model(torch.empty(8, 4, device=DEVICE))
            buffers.settle(skipped())
        with pytest.raises(DataDependentOutputException):
            bool(model.running_mean.sum())  # pyright: ignore[reportOptionalMemberAccess]
