"""The layers that ranking models are made of."""

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_TABLES_OF_TORCHREC = re.compile("(Fused|Sharded|)Embedding(Bag)?Collection")  # by name: nobody has to import torchrec


class FeatureEmbedding(nn.Module):
    """One vector for each id of each categorical column, all in a single table with sparse gradients.

    Args:
        rows: how many ids each column has.
        dim: numbers in a vector.
        std: of the normal distribution that the vectors start from.
    """

    first: Tensor  # row of the table at which each column begins

    def __init__(self, rows: Sequence[int], dim: int, *, std: float = 0.01) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(rows), dim, sparse=True)
        nn.init.normal_(self.table.weight, std=std)
        first = torch.tensor([0, *rows[:-1]]).cumsum(0)
        self.register_buffer("first", first, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (rows, columns, dim) from ``ids``, (rows, columns) of integers."""
        return self.table(ids + self.first)


class CrossLayer(nn.Module):
    """DCN-v2's cross: x0 * (W x + b) + x.

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
    """Return linear layers from each width to the next, a ReLU after every one."""
    return nn.Sequential(*(part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())))


class SharedBottom(nn.Module):
    """Hard sharing: one stack of layers that every task sees.

    Args:
        width: of the input.
        hidden: widths of the layers.
        tasks: how many.
    """

    def __init__(self, width: int, hidden: Sequence[int], tasks: int) -> None:
        super().__init__()
        self.layers = mlp([width, *hidden])
        self.tasks = tasks

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what each task sees, (rows, hidden[-1]), from (rows, width)."""
        return [self.layers(x)] * self.tasks


class MixtureOfExperts(nn.Module):
    """Soft sharing: stacks of layers, mixed for each task by a gate of its own (MMoE).

    Args:
        width: of the input.
        hidden: widths of each expert's layers.
        tasks: how many, one gate each.
        experts: how many.

    Reference: J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, eq. (5) to (7).
    """

    def __init__(self, width: int, hidden: Sequence[int], tasks: int, *, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp([width, *hidden]) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what each task sees, (rows, hidden[-1]), from (rows, width)."""
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return [torch.einsum("re,reh->rh", gate(x).softmax(dim=1), outputs) for gate in self.gates]


def embedding_tables(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of the model's embedding tables, told by the class of the module that owns them.

    >>> embedding_tables(nn.Linear(2, 1))
    set()
    """
    return {param for module in model.modules() if _is_table(module) for param in module.parameters()}


def _is_table(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return True
    return any(_TABLES_OF_TORCHREC.fullmatch(base.__name__) for base in type(module).__mro__)
