"""Layers of ranking models."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import overload

import torch
from torch import Tensor, nn

from surefoot.lab.data.schema import Categorical


class FeatureEmbedding(nn.Module):
    """One vector for each id of each categorical column, all in a single table with sparse gradients.

    A column with several values a row returns the mean of their vectors. In such a column, id 0 is padding and is
    ignored; a row without a value returns zeros.

    Args:
        rows: number of ids of each column.
        dim: length of a vector.
        widths: most values a row, of each column; by default one.
        std: standard deviation of the normal distribution of the initial vectors.

    Raises:
        ValueError: if there is not one width for each column, or one is below 1.

    >>> embedding = FeatureEmbedding([4, 9], dim=2, widths=[1, 3])
    >>> embedding(torch.tensor([[0, 5, 7, 0], [3, 0, 0, 0]])).shape
    torch.Size([2, 2, 2])
    """

    first: Tensor  # (places,) first row of the table, of each place's column
    begins: Tensor  # (columns,) first place of each column
    filled: Tensor  # (places,) whether id 0 is padding

    def __init__(
        self, rows: Sequence[int], dim: int, *, widths: Sequence[int] | None = None, std: float = 0.01
    ) -> None:
        super().__init__()
        widths = [1] * len(rows) if widths is None else list(widths)
        if len(widths) != len(rows) or min(widths, default=1) < 1:
            raise ValueError(f"widths is {widths}; expected {len(rows)} whole numbers, 1 or above")
        here = torch.get_default_device()  # the device of the table too
        sizes, places = torch.tensor([list(rows), widths], dtype=torch.int64, device=here)
        self.register_buffer("first", (sizes.cumsum(0) - sizes).repeat_interleave(places), persistent=False)
        self.register_buffer("begins", places.cumsum(0) - places, persistent=False)
        self.register_buffer("filled", (places > 1).repeat_interleave(places), persistent=False)
        if max(widths, default=1) > 1:
            self.table = nn.EmbeddingBag(sum(rows), dim, mode="mean", sparse=True)
        else:  # EmbeddingBag gives the same numbers, but takes four times as long
            self.table = nn.Embedding(sum(rows), dim, sparse=True)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (rows, columns, dim) from ``ids``, (rows, places) integers; a column has ``width`` places."""
        if isinstance(self.table, nn.Embedding):
            return self.table(ids + self.first)
        values = ~self.filled | (ids != 0)
        before = values.flatten().cumsum(0) - values.flatten().long()  # number of values before each place
        begins = torch.arange(0, ids.numel(), ids.shape[1], dtype=torch.int64, device=ids.device)[:, None] + self.begins
        # the boolean index waits for the device, as sparse gradients do anyway; padding_idx takes twice as long
        return self.table((ids + self.first)[values], before[begins.flatten()]).unflatten(0, begins.shape)


class RowNames(Sequence[str]):
    """Names of the rows of a ``FeatureEmbedding``'s table: column and id, computed when they are read.

    Args:
        columns: columns in the order of the table.

    >>> names = RowNames([Categorical("user", 500), Categorical("item", 1000)])
    >>> len(names), names[499], names[500]
    (1500, 'user 499', 'item 0')
    """

    def __init__(self, columns: Sequence[Categorical]) -> None:
        self._columns = columns
        self._ends = list(accumulate(column.rows for column in columns))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        place = bisect_right(self._ends, row)
        column = self._columns[place]
        return f"{column.name} {row - self._ends[place] + column.rows}"


class CrossLayer(nn.Module):
    """DCN-v2's cross layer: x0 * (W x + b) + x.

    Reference: R. Wang et al., "DCN V2", arXiv:2008.13535, eq. (1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Return (rows, width) from the input and the last layer's output, each (rows, width)."""
        return torch.addcmul(x, x0, self.linear(x))


class CrossNetwork(nn.Module):
    """Cross layers, then layer norm, as in the paper's Large+DCN."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x0: Tensor) -> Tensor:
        """Return (rows, width) from (rows, width)."""
        x = x0
        for layer in self.layers:
            x = layer(x0, x)
        return self.norm(x)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers from each width to the next, each with a ReLU."""
    return nn.Sequential(*(part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())))


class SharedBottom(nn.Module):
    """Hard parameter sharing: one stack of layers for all tasks.

    Args:
        width: width of the input.
        hidden: widths of the layers.
        tasks: number of tasks.
    """

    def __init__(self, width: int, hidden: Sequence[int], tasks: int) -> None:
        super().__init__()
        self.layers = mlp([width, *hidden])
        self.tasks = tasks

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of each task, (rows, hidden[-1]), from (rows, width)."""
        return [self.layers(x)] * self.tasks


class MixtureOfExperts(nn.Module):
    """Soft parameter sharing (MMoE): a gate for each task mixes the outputs of the experts.

    Args:
        width: width of the input.
        hidden: widths of each expert's layers.
        tasks: number of tasks and gates.
        experts: number of experts.

    Reference: J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, eq. (5) to (7).
    """

    def __init__(self, width: int, hidden: Sequence[int], tasks: int, *, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp([width, *hidden]) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of each task, (rows, hidden[-1]), from (rows, width)."""
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [torch.einsum("re,reh->rh", gate(x).softmax(dim=1), outputs) for gate in self.gates]
