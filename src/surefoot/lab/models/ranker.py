"""The multitask ranker of the paper's fig. 2, and a linear model as a baseline."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from surefoot.lab.data.schema import Schema, Task
from surefoot.lab.models.layers import FeatureEmbedding
from surefoot.tasks import TaskKind


class LabelUnits(nn.Module):
    """Converts outputs of the heads to the labels' units: ``center + scale * output``.

    Initially, the center is 0 and the scale 1. ``fit`` computes them from past labels: mean and standard deviation for
    a regression, the logit of the positive rate and 1 for a binary task. A head with output 0 then predicts the best
    constant, so training starts there. ``loss_weights`` divides a regression's squared error by the scale's square. So
    the heads are trained as if labels were standardised, and outputs, losses and scores are in the label's units.

    Args:
        tasks: number of tasks.

    >>> units = LabelUnits(1)
    >>> units.fit([torch.tensor([[8.0], [10.0]])], (Task("minutes", TaskKind.REGRESSION),))
    >>> units(torch.tensor([[0.0], [2.0]])).tolist()
    [[9.0], [11.0]]
    """

    center: Tensor  # (tasks,)
    scale: Tensor  # (tasks,)

    def __init__(self, tasks: int) -> None:
        super().__init__()
        like_layers = {"dtype": torch.get_default_dtype(), "device": torch.get_default_device()}
        self.register_buffer("center", torch.zeros(tasks, **like_layers))
        self.register_buffer("scale", torch.ones(tasks, **like_layers))

    def forward(self, outputs: Tensor) -> Tensor:
        """Return (rows, tasks) in the labels' units from (rows, tasks)."""
        return self.center + self.scale * outputs

    def fit(self, labels: Iterable[Tensor], tasks: Sequence[Task]) -> None:
        """Compute centers and scales from past labels, each (rows, tasks).

        A task without labels, or with equal labels, keeps a scale of 1. The positive rate of n rows is clipped
        to 0.5 / n and 1 - 0.5 / n.
        """
        seen = torch.cat([part.double() for part in labels])
        for i, task in enumerate(tasks):
            label = seen[:, i]
            label = label[~label.isnan()]
            if not len(label):
                continue
            if task.kind is TaskKind.BINARY:
                self.center[i] = label.mean().clamp(0.5 / len(label), 1 - 0.5 / len(label)).logit()
                continue
            spread = label.std(correction=0)
            self.center[i], self.scale[i] = label.mean(), torch.where(spread > 0, spread, 1.0)


def loss_weights(model: nn.Module, tasks: Sequence[Task]) -> Tensor:
    """Return the weight of each task's loss in the sum to minimise, (tasks,), on the model's device.

    It is the task's weight, divided by the square of the scale of the model's ``LabelUnits`` if it has one.
    """
    units = next((module for module in model.modules() if isinstance(module, LabelUnits)), None)
    beside = next(model.parameters())
    weights = torch.tensor([task.weight for task in tasks], dtype=beside.dtype, device=beside.device)
    return weights if units is None else weights / units.scale.square()


class Ranker(nn.Module):
    """Embeddings and dense features, a feature interaction, a shared bottom, and a linear head for each task.

    Args:
        embedding: turns ids (rows, columns) into vectors (rows, columns, dim).
        interaction: a ``CrossNetwork`` or ``nn.Identity()``, from (rows, width) to (rows, width).
        bottom: from (rows, width) to a list of each task's features, (rows, hidden).
        heads: one module for each task, from (rows, hidden) to (rows, 1), by the task's name.
        units: a ``LabelUnits``, from (rows, tasks) to (rows, tasks); None: outputs are not changed.
    """

    def __init__(
        self,
        *,
        embedding: nn.Module,
        interaction: nn.Module,
        bottom: nn.Module,
        heads: nn.ModuleDict,
        units: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.interaction = interaction
        self.bottom = bottom
        self.heads = heads
        self.units = nn.Identity() if units is None else units

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        """Return one output for each task, (rows, tasks): a logit for a binary task, a value for a regression."""
        x = torch.cat([self.embedding(categorical).flatten(1), dense], dim=1)
        seen = self.bottom(self.interaction(x))
        return self.units(torch.cat([head(h) for head, h in zip(self.heads.values(), seen, strict=True)], dim=1))


def task_heads(tasks: Sequence[Task], width: int) -> nn.ModuleDict:
    """Return a linear head for each task, from (rows, width) to (rows, 1), by its name.

    A name that a module cannot have, such as the name of a method, gets an underscore: ``forward_``.

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
    """The linear floor: a weight for each id and for each dense feature, for each task.

    A column with several values a row adds the mean of their weights.

    Args:
        schema: columns of the log.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        rows, widths = [column.rows for column in schema.categorical], [column.width for column in schema.categorical]
        self.embedding = FeatureEmbedding(rows, len(schema.tasks), widths=widths, std=0.0)
        self.linear = nn.Linear(len(schema.dense), len(schema.tasks))
        for param in self.linear.parameters():
            nn.init.zeros_(param)  # like the embeddings: training starts at each task's constant
        self.units = LabelUnits(len(schema.tasks))

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        """Return one output for each task, (rows, tasks)."""
        return self.units(self.embedding(categorical).sum(1) + self.linear(dense))


def task_losses(outputs: Tensor, labels: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """Return the mean loss of each task, (tasks,): log-loss in nats if binary, squared error for a regression.

    For a masked task, the mean is over the rows whose label is not NaN; without such a row, the loss and its gradients
    are 0.

    Args:
        outputs: (rows, tasks), logits for binary tasks.
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
