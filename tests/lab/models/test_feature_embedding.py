"""The embedding of columns with one value and with several: means, padding, gradients, names of rows."""

import copy

import pytest
import torch
from torch import Tensor, nn

import own_log
from properties import over
from surefoot.lab.data.schema import Categorical
from surefoot.lab.models.layers import FeatureEmbedding, RowNames
from surefoot.lab.models.ranker import LinearRanker
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.embedding_tables import embedding_tables

ROWS, WIDTHS = [4, 9, 6], [1, 3, 2]


@pytest.fixture(autouse=True)
def _sparse_gradients_are_trusted() -> None:
    torch.sparse.check_sparse_tensor_invariants.disable()


def draw(rows: int = 64) -> Tensor:
    """Return ids of the three columns; those with several values often have fewer, in any place."""
    ids = torch.cat([torch.randint(size, (rows, width)) for size, width in zip(ROWS, WIDTHS, strict=True)], 1)
    ids[:, 1:][torch.rand(rows, 5) < 0.4] = 0
    return ids.int()


def by_hand(weight: Tensor, ids: Tensor) -> Tensor:
    """Return what the embedding should, value by value."""
    vectors = []
    for row in ids.tolist():
        for first, begin, width in ((0, 0, 1), (4, 1, 3), (13, 4, 2)):
            values = [first + i for i in row[begin : begin + width] if i or width == 1]
            vectors.append(sum((weight[i] for i in values), torch.zeros(2)) / max(len(values), 1))
    return torch.stack(vectors).view(len(ids), 3, 2)


def test_a_column_with_several_values_gives_their_mean() -> None:
    embedding = FeatureEmbedding(ROWS, 2, widths=WIDTHS, std=1.0)
    weight = embedding.table.weight
    vectors = embedding(torch.tensor([[0, 5, 0, 7, 0, 0]]))
    assert vectors[0, 0].equal(weight[0])  # of a column with one value id 0 is an id
    torch.testing.assert_close(vectors[0, 1], (weight[4 + 5] + weight[4 + 7]) / 2)
    assert vectors[0, 2].tolist() == [0.0, 0.0]


@over("rows", [0, 1, 64])
def test_vectors_and_gradients_agree_with_the_slow_ones(rows: int) -> None:
    embedding, ids = FeatureEmbedding(ROWS, 2, widths=WIDTHS, std=1.0), draw(rows)
    weight = embedding.table.weight.detach().clone().requires_grad_()
    expected = by_hand(weight, ids) if rows else torch.zeros(0, 3, 2)
    vectors = embedding(ids)
    torch.testing.assert_close(vectors, expected.detach())
    above = torch.randn(rows, 3, 2)
    vectors.backward(above)
    grad = embedding.table.weight.grad
    assert grad is not None
    assert grad.is_sparse
    if rows:
        expected.backward(above)
        torch.testing.assert_close(grad.to_dense(), weight.grad)
    assert not {4, 13} & set(grad.coalesce().indices()[0].tolist())  # what fills places is never touched


@over("optimizer", {"ours": Adagrad, "torch": torch.optim.Adagrad})
def test_steps_go_on_over_a_batch_without_a_value(optimizer: type[Adagrad]) -> None:
    embedding = FeatureEmbedding([9, 6], 2, widths=[3, 2], std=1.0)
    steps = optimizer(embedding.parameters(), lr=0.1)
    before = embedding.table.weight.detach().clone()
    for ids in (torch.zeros(4, 5, dtype=torch.int32), draw()[:, 1:]):
        steps.zero_grad()
        embedding(ids).sum().backward()
        steps.step()
    changed = (embedding.table.weight != before).any(1)
    assert changed.tolist() == [i not in (0, 9) for i in range(15)]


@over("widths", {"not said": None, "ones": [1, 1, 1]})
def test_with_one_value_each_all_is_as_a_plain_table_gives_it(widths: list[int] | None) -> None:
    torch.manual_seed(0)
    embedding = FeatureEmbedding(ROWS, 2, widths=widths)
    torch.manual_seed(0)
    table = nn.Embedding(sum(ROWS), 2, sparse=True)
    nn.init.normal_(table.weight, std=0.01)
    ids = torch.randint(4, (64, 3))
    vectors, expected = embedding(ids), table(ids + torch.tensor([0, 4, 13]))
    assert vectors.equal(expected)
    above = torch.randn(64, 3, 2)
    vectors.backward(above)
    expected.backward(above)
    grads = [each.weight.grad for each in (embedding.table, table)]
    assert all(grad is not None for grad in grads)
    one, other = (grad.coalesce() for grad in grads if grad is not None)
    assert one.indices().equal(other.indices())
    assert one.values().equal(other.values())


def test_the_state_has_one_name_whatever_the_widths() -> None:
    several, one = FeatureEmbedding(ROWS, 2, widths=WIDTHS), FeatureEmbedding(ROWS, 2)
    assert list(several.state_dict()) == list(one.state_dict()) == ["table.weight"]
    assert embedding_tables(several) == {several.table.weight}
    again = copy.deepcopy(several)
    assert again(draw()).shape == (64, 3, 2)


def test_without_columns_there_are_no_vectors() -> None:
    assert FeatureEmbedding([], 2)(torch.zeros(5, 0, dtype=torch.int32)).shape == (5, 0, 2)


@over("widths", {"too few": [1, 3], "zero": [1, 0, 2]})
def test_widths_that_cannot_be(widths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"widths is \[1, .*\]; expected 3 whole numbers, 1 or above"):
        FeatureEmbedding(ROWS, 2, widths=widths)


def test_the_linear_floor_takes_several_values() -> None:
    log = own_log.make(days=1, rows_per_day=64)
    model, rows = LinearRanker(log.schema), log.day(0)
    outputs = model(rows.categorical, rows.dense)
    assert outputs.shape == (64, len(log.schema.tasks))
    outputs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_rows_of_the_table_have_names() -> None:
    columns = [Categorical("user", 4), Categorical("tags", 9, width=3), Categorical("city", 6)]
    names = RowNames(columns)
    assert list(names) == [f"{column.name} {i}" for column in columns for i in range(column.rows)]
    assert (len(names), names[-1], names[3:5]) == (19, "city 5", ["user 3", "tags 0"])
    with pytest.raises(IndexError):
        names[19]
    assert len(RowNames([])) == 0
