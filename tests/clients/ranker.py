"""The model of those clients that bring a trainer and no model: a shared bottom, two heads, and dropout."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from clients.bed import DENSE, FIELDS, TASKS, VALUES, Rows


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(VALUES, 8) for _ in range(FIELDS))
        self.bottom = nn.Sequential(
            nn.Linear(8 * FIELDS + DENSE, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in TASKS)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)  # pyright: ignore[reportArgumentType]

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Return logits (rows, tasks)."""
        found = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        h = self.bottom(torch.cat([*found, dense], 1))
        return torch.cat([head(h) for head in self.heads], 1)


def losses_of(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {task: binary_cross_entropy_with_logits(logits[:, i], labels[:, i]) for i, task in enumerate(TASKS)}


def by_task(columns: Tensor) -> dict[str, Tensor]:
    return dict(zip(TASKS, columns.unbind(1), strict=True))


@torch.no_grad()
def predicted(model: nn.Module, data: Rows) -> Tensor:
    model.eval()
    return model(data.ids, data.dense)
