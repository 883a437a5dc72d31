"""Models of a user's own, as a configuration names them: ``own_models:two_towers``."""

from typing import Any

import torch
from torch import Tensor, nn

from surefoot.lab.data.schema import Schema


class TwoTowers(nn.Module):
    """Ids in one tower, numbers in the other, names of its own."""

    def __init__(self, schema: Schema, *, width: int, tables: bool = True) -> None:
        super().__init__()
        self.places = sum(column.width for column in schema.categorical)
        largest = max(column.rows for column in schema.categorical)
        self.ids = nn.ModuleList(nn.Embedding(largest, width) for _ in range(self.places if tables else 0))
        self.left = nn.Linear(width * max(len(self.ids), 1), width)
        self.right = nn.Linear(len(schema.dense), width)
        self.out = nn.Linear(2 * width, len(schema.tasks))

    def forward(self, categorical: Tensor, dense: Tensor) -> Tensor:
        ids = [table(categorical[:, i]) for i, table in enumerate(self.ids)]
        left = self.left(torch.cat(ids, 1) if ids else dense.new_zeros(len(dense), self.left.in_features))
        return self.out(torch.cat([left, self.right(dense)], 1).relu())


def two_towers(schema: Schema, width: int = 8) -> nn.Module:
    return TwoTowers(schema, width=width)


def without_tables(schema: Schema) -> nn.Module:
    return TwoTowers(schema, width=8, tables=False)


def tables_alone(schema: Schema) -> nn.Module:
    model = Answers(schema, torch.zeros(64, len(schema.tasks)))
    model.table = nn.Embedding(4, 2)
    del model.line
    return model


class Answers(nn.Module):
    """Gives what it is told to, whatever it is asked."""

    def __init__(self, schema: Schema, answer: Any) -> None:
        super().__init__()
        self.line, self.answer = nn.Linear(1, 1), answer

    def forward(self, categorical: Tensor, dense: Tensor) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def raises(schema: Schema) -> nn.Module:
    raise KeyError("widths")


def no_module(schema: Schema) -> Any:
    return 7


def several_outputs(schema: Schema) -> nn.Module:
    return Answers(schema, [torch.zeros(64)] * len(schema.tasks))


def too_narrow(schema: Schema) -> nn.Module:
    return Answers(schema, torch.zeros(64, 1))


def whole_numbers(schema: Schema) -> nn.Module:
    return Answers(schema, torch.zeros(64, len(schema.tasks), dtype=torch.int64))


def not_finite(schema: Schema) -> nn.Module:
    answer = torch.zeros(64, len(schema.tasks))
    answer[3, 1] = torch.nan
    return Answers(schema, answer)


def fails_on_rows(schema: Schema) -> nn.Module:
    return Answers(schema, RuntimeError("shapes\ncannot be multiplied"))


not_a_function = 7
