"""The multitask ranker of the paper's fig. 2, and the linear model that any ranker should beat."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from surefoot.lab.data.schema import Schema, Task
from surefoot.lab.models.layers import FeatureEmbedding
from surefoot.tasks import TaskKind


class LabelUnits(nn.Module):
    """Turns what the heads give into the labels' own units, so that they begin at each task's constant.

    ``center + scale * output``. As it is made, with a center of 0 and a scale of 1, it changes nothing. ``fit`` takes
    from past labels what the best constant prediction is: of a regression the mean, and the standard deviation as the
    scale; of a binary task the logit of the rate of positives, and 1. A head that gives 0 then predicts the constant.
    ``loss_weights`` divides a regression's squared error by the square of its scale, so that the heads are trained as
    if the labels had been standardised, while outputs, losses and scores stay in the label's own units.

    Args:
        tasks: how many.

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
        """Take centers and scales from labels, each (rows, tasks), that were known before anything is predicted.

        A task without a label there, or whose labels are all the same, keeps a scale of 1; a rate of positives of 0
        or 1 is taken as half a row's.
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
    """Return the weight of each task's loss in the sum to minimise, (tasks,), on the device of the model.

    It is the task's own; of a regression over the square of the scale that the model's ``LabelUnits``, if it has any,
    took from past labels.
    """
    units = next((module for module in model.modules() if isinstance(module, LabelUnits)), None)
    beside = next(model.parameters())
    weights = torch.tensor([task.weight for task in tasks], dtype=beside.dtype, device=beside.device)
    return weights if units is None else weights / units.scale.square()


class Ranker(nn.Module):
    """Embeddings and dense features, an interaction, a bottom that the tasks share, a linear head for each.

    Args:
        embedding: turns ids (rows, columns) into vectors (rows, columns, dim).
        interaction: from the input (rows, width) to the bottom's, of the same shape: a ``CrossNetwork`` or
            ``nn.Identity()``.
        bottom: from there to a list of what each task sees, each (rows, hidden).
        heads: one module for each task, from (rows, hidden) to (rows, 1), by the task's name.
        units: from (rows, tasks) to the labels' units, of the same shape: a ``LabelUnits``; None: as they are.
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
        """Return one output for each task, (rows, tasks): a logit where it is binary, a value where it is not."""
        x = torch.cat([self.embedding(categorical).flatten(1), dense], dim=1)
        seen = self.bottom(self.interaction(x))
        return self.units(torch.cat([head(h) for head, h in zip(self.heads.values(), seen, strict=True)], dim=1))


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
        for param in self.linear.parameters():
            nn.init.zeros_(param)  # as its tables: it begins at each task's constant
        self.units = LabelUnits(len(schema.tasks))

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        """Return one output for each task, (rows, tasks)."""
        return self.units(self.embedding(categorical).sum(1) + self.linear(dense))


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
