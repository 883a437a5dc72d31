# pyright: reportMissingImports=false
"""deepctr-torch's own MMOE as a model of the laboratory: ``clients.mmoe_factory:build``."""

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import MMOE
from torch import Tensor, nn

from surefoot.lab import Schema


class Mmoe(nn.Module):
    """Takes ids and numbers apart, as the laboratory gives them; deepctr-torch takes them in one tensor."""

    def __init__(self, schema: Schema, experts: int) -> None:
        super().__init__()
        ids = [SparseFeat(column.name, column.rows, embedding_dim=8) for column in schema.categorical]
        numbers = [DenseFeat(name, 1) for name in schema.dense]
        names = [task.name for task in schema.tasks]
        self.mmoe = MMOE(
            ids + numbers,
            num_experts=experts,
            expert_dnn_hidden_units=(64, 32),
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=(16,),
            task_types=["regression"] * len(names),  # leaves out the sigmoid: logits come out
            task_names=names,
            init_std=0.05,
        )

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        return self.mmoe(torch.cat([categorical.to(dense.dtype), dense], 1))


def build(schema: Schema, experts: int = 3) -> nn.Module:
    return Mmoe(schema, experts)
