"""A batch's rows: how to take some of them, and what is unusual about each."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.capsule.snapshot import Plain
from surefoot.errors import InputError

_SHOWN = 3  # values named of a row


@dataclass(frozen=True)
class UnusualValue:
    """A value of a row that lies outside what the steps before have shown.

    Args:
        column: its name, or its place in the batch.
        value: what it is.
        low: the least of the steps before.
        high: the highest.
    """

    column: str
    value: float
    low: float
    high: float


def take_rows(batch: Plain, rows: Tensor) -> Plain:
    """Return the batch with some of its rows, in every tensor whose first dimension is the batch's.

    Args:
        batch: the first tensor in it says how many rows there are.
        rows: row numbers, (rows,).
    """
    count = rows_in(batch)

    def taken(tree: Plain) -> Plain:
        if isinstance(tree, Tensor):
            return tree[rows] if tree.ndim and len(tree) == count else tree
        if isinstance(tree, Mapping):
            return {key: taken(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(taken(value) for value in tree)
        return tree

    return taken(batch)


def rows_in(batch: Plain) -> int:
    """Return how many rows a batch has: the first dimension of the first tensor that has one."""
    for _, tensor in _tensors(batch):
        if tensor.ndim:
            return len(tensor)
    raise InputError(
        "the batch holds no tensor with rows; expected at least one, or a function of your own to take rows"
    )


@dataclass(frozen=True)
class RowScores:
    """How far each value of a batch lies outside what was seen before."""

    columns: list[str]
    batch: Tensor  # (rows, columns)
    low: Tensor  # (columns,)
    high: Tensor
    beyond: Tensor  # (rows, columns): how many ranges beyond the range; inf where not finite

    @property
    def rank(self) -> list[float]:
        """How strange each row is."""
        return self.beyond.amax(1).tolist() if self.columns else [0.0] * len(self.batch)

    def values(self, row: int) -> list[UnusualValue]:
        """Return what is outside in a row, the worst first."""
        if not self.columns:
            return []
        worst = self.beyond[row].argsort(descending=True, stable=True).tolist()
        return [
            UnusualValue(self.columns[i], float(self.batch[row, i]), float(self.low[i]), float(self.high[i]))
            for i in worst[:_SHOWN]
            if self.beyond[row, i] > 0
        ]


def row_scores(batch: Plain, before: Iterable[Plain], names: Mapping[str, Sequence[str]]) -> RowScores:
    """Compare the real-valued columns of a batch with those of batches before it.

    Args:
        batch: the first tensor in it says how many rows there are.
        before: others like it.
        names: for the columns of its parts, by the part's place.
    """
    columns, values = _columns(batch, names)
    seen = [part for each in before if (part := _columns(each, names)[1]).shape[1] == values.shape[1]]
    known = torch.cat(seen or [values])
    finite = known.isfinite()
    low = torch.where(finite, known, math.inf).amin(0) if columns else values.new_zeros(0)
    high = torch.where(finite, known, -math.inf).amax(0) if columns else values.new_zeros(0)
    width = torch.where(high > low, high - low, 1.0)
    beyond = torch.maximum(low - values, values - high).clamp(min=0) / width
    beyond = torch.where(values.isfinite(), beyond, math.inf)
    if seen:  # in a masked task's labels NaN is nothing strange
        often = torch.stack([part.isnan().any(0) for part in seen]).double().mean(0) >= 0.5
        beyond = torch.where(values.isnan() & often, 0.0, beyond)
    return RowScores(columns, values, low, high, beyond)


def _columns(batch: Plain, names: Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the batch's real-valued columns as one tensor, (rows, columns), in float64, and their names."""
    count, found, parts = rows_in(batch), list[str](), list[Tensor]()
    for path, tensor in _tensors(batch):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == count:
            flat = tensor.double().reshape(count, -1)
            known = names.get(path, ())
            several = tensor.ndim > 1
            found += (
                known
                if len(known) == flat.shape[1]
                else [f"{path}[:, {i}]" if several else path for i in range(flat.shape[1])]
            )
            parts.append(flat)
    return found, torch.cat(parts, 1) if parts else torch.zeros(count, 0, dtype=torch.float64, device="cpu")


def _tensors(tree: Plain, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _tensors(value, f"{path}[{i}]")
