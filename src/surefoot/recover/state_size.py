"""How large the states of a training are: what a bad batch leaves in momentum, accumulators and averages shows here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_SQUARES = 10.0  # times as large, and a step that is divided by the root is a third as long
_AVERAGES = 100.0  # of signed numbers, whose size changes with the noise of batches, and which soon forget
_LEAST = {False: 1e-4, True: 1.0}  # of the largest of its kind, by whether that is signed: less counts as that
_SAMPLE = 4096  # numbers that the median is taken of
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Size(NamedTuple):
    """How large one tensor is."""

    mean: float  # of the magnitudes
    typical: float  # their median, of a sample
    signed: bool  # whether a number is below 0
    kind: str  # of state, "exp_avg" or "running_mean", say


@torch.no_grad()
def sizes_of(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Size]:
    """Return the size of each optimizer state and each buffer, by name; one wait for the device.

    Single numbers, step counters among them, and what is no floating-point number have none.
    """
    found = [(name, kind, values) for name, kind, values in _states(model, optimizers) if values.ndim]
    stats = _read([_measured(values) for _, _, values in found])
    return {
        name: Size(mean, typical, least < 0, kind)
        for (name, kind, _), (mean, typical, least) in zip(found, stats, strict=True)
    }


def growth(now: Mapping[str, Size], then: Mapping[str, Size]) -> tuple[float, str] | None:
    """Return what has grown so much that it weighs on the steps to come: how many times, and in words; None if nothing.

    Numbers of which none is negative are sums or averages of squares, which grow with the steps taken: ten times as
    large, on average or at the median, is too much for the few steps after which this is asked. The size of signed
    ones, averages of gradients or inputs, changes with noise: too much is a hundred times the largest of their kind.
    A state that was not there cannot be judged, and counts as grown.
    """
    signed = {size.kind for size in (*now.values(), *then.values()) if size.signed}
    largest: dict[str, float] = {}
    for size in then.values():
        largest[size.kind] = max(size.mean, largest.get(size.kind, 0.0))
    for name, size in now.items():
        before = then.get(name)
        if before is None:
            return 1.0, f"{name} cannot be judged so early"
        averages = size.kind in signed
        least = _LEAST[averages] * largest[size.kind]
        ratio = _ratio(size.mean, max(before.mean, least))
        if not averages and before.typical:
            ratio = max(ratio, _ratio(size.typical, max(before.typical, least)))
        if not ratio <= (_AVERAGES if averages else _SQUARES):  # NaN is not
            return ratio, f"{name} is {ratio:.3g} times as large as before"
    return None


@torch.no_grad()
def not_finite(model: nn.Module, optimizers: Sequence[Optimizer]) -> set[str]:
    """Return the names of the weights, buffers and states that hold NaN or infinity; one wait for the device."""
    weights = [(name, "", param.detach()) for name, param in model.named_parameters()]
    named = [each for each in (*weights, *_states(model, optimizers)) if each[2].numel() and each[2].dtype in _FLOATS]
    norms = _read([torch.linalg.vector_norm(values, torch.inf).reshape(1) for _, _, values in named])
    return {name for (name, _, _), (norm,) in zip(named, norms, strict=True) if not abs(norm) < float("inf")}


def _states(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the floating-point states and buffers, each with its name and kind."""
    names = {param: name for name, param in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, param in enumerate(param for group in optimizer.param_groups for param in group["params"]):
            for kind, values in optimizer.state.get(param, {}).items():
                if isinstance(values, Tensor) and values.dtype in _FLOATS and values.numel():
                    yield f"{kind} of {names.get(param, f'parameter {j} of optimizer {i}')}", kind, values
    for name, buffer in model.named_buffers():
        if buffer.dtype in _FLOATS and buffer.numel():
            yield name, name.rpartition(".")[2], buffer


def _measured(values: Tensor) -> Tensor:
    """Return the mean and the median magnitude and the least number, (3,)."""
    flat = values.detach().reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)].abs().float()
    wide = torch.promote_types(flat.dtype, torch.float32)
    mean = torch.linalg.vector_norm(flat, 1, dtype=wide) / len(flat)
    return torch.stack([mean.float(), sample.median(), flat.min().float()])


def _read(numbers: Sequence[Tensor]) -> list[list[float]]:
    """Return the numbers on the host; those of one device take one wait."""
    if not numbers:
        return []
    return torch.stack([each.float().to(numbers[0].device) for each in numbers]).tolist()


def _ratio(now: float, before: float) -> float:
    return now / before if before else (float("inf") if now else 1.0)
