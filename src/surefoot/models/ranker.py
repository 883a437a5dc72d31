"""The multitask ranker of the paper's fig. 2, and the linear model that any ranker should beat."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from surefoot.data.schema import Schema, Task, TaskKind
from surefoot.models.layers import FeatureEmbedding, embedding_tables


class Ranker(nn.Module):
    """Embeddings and dense features, an interaction, a bottom that the tasks share, a linear head for each.

    Args:
        embedding: turns ids (rows, columns) into vectors (rows, columns, dim).
        interaction: from the input (rows, width) to the bottom's, of the same shape: a ``CrossNetwork`` or
            ``nn.Identity()``.
        bottom: from there to a list of what each task sees, each (rows, hidden).
        heads: one module for each task, from (rows, hidden) to (rows, 1), by the task's name.
    """

    def __init__(
        self, *, embedding: nn.Module, interaction: nn.Module, bottom: nn.Module, heads: nn.ModuleDict
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.interaction = interaction
        self.bottom = bottom
        self.heads = heads

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        """Return one output for each task, (rows, tasks): a logit where it is binary, a value where it is not."""
        x = torch.cat([self.embedding(categorical).flatten(1), dense], dim=1)
        seen = self.bottom(self.interaction(x))
        return torch.cat([head(h) for head, h in zip(self.heads.values(), seen, strict=True)], dim=1)


def task_heads(tasks: Sequence[Task], width: int) -> nn.ModuleDict:
    """Return a linear head for each task, from (rows, width) to (rows, 1), by its name.

    A name that no module can have, as that of a method, gets an underscore: ``forward_``.

    >>> list(task_heads([Task("forward", TaskKind.BINARY), Task("is.click", TaskKind.BINARY)], 8))
    ['forward_', 'is_click']
    """
    heads = nn.ModuleDict()
    for task in tasks:
        name = task.name.replace(".", "_")
        while hasattr(heads, name) or name in heads:
            name += "_"
        heads[name] = nn.Linear(width, 1)
    return heads


class LinearRanker(nn.Module):
    """A weight for each id, a weight for each dense feature, nothing more: the floor.

    A column with several values a row has the mean of their weights.

    Args:
        schema: the log's columns.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        rows, widths = [column.rows for column in schema.categorical], [column.width for column in schema.categorical]
        self.embedding = FeatureEmbedding(rows, len(schema.tasks), widths=widths, std=0.0)
        self.linear = nn.Linear(len(schema.dense), len(schema.tasks))

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        """Return one output for each task, (rows, tasks)."""
        return self.embedding(categorical).sum(1) + self.linear(dense)


class SplitParameters(NamedTuple):
    """A model's parameters by name, told apart."""

    dense: dict[str, nn.Parameter]
    embedding: dict[str, nn.Parameter]


def split_parameters(model: nn.Module) -> SplitParameters:
    """Tell embedding tables from all other parameters: the paper clips only the others."""
    tables = embedding_tables(model)
    named = dict(model.named_parameters())
    return SplitParameters(
        {name: p for name, p in named.items() if p not in tables},
        {name: p for name, p in named.items() if p in tables},
    )


def task_losses(outputs: Tensor, labels: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """Return the mean loss of each task, (tasks,): log-loss in nats where binary, squared error where not.

    The mean is over the rows that count for the task: all, or, of a masked one, those whose label is not NaN. If none
    does, its loss is 0, and so are its gradients.

    Args:
        outputs: (rows, tasks), logits where binary.
        labels: (rows, tasks).
        tasks: in the order of the columns.
    """
    return torch.stack([_mean_loss(outputs[:, i], labels[:, i], task) for i, task in enumerate(tasks)])


def _mean_loss(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    loss = binary_cross_entropy_with_logits if task.kind is TaskKind.BINARY else mse_loss
    if not task.masked:
        return loss(outputs, labels)
    seen = ~labels.isnan()
    outputs, labels = torch.where(seen, outputs, 0.0), torch.where(seen, labels, 0.0)  # no gradient sees a NaN
    losses = loss(outputs, labels, reduction="none")
    return torch.where(seen, losses, 0.0).sum() / seen.sum().clamp(min=1)
