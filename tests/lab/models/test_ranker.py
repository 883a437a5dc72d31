"""The ranker: shapes, parts that can be swapped, parameters told apart, losses, rows that do not count."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from properties import over
from surefoot.lab.data.schema import Task
from surefoot.lab.models.layers import CrossLayer, CrossNetwork, FeatureEmbedding, MixtureOfExperts, SharedBottom
from surefoot.lab.models.ranker import LabelUnits, LinearRanker, Ranker, loss_weights, task_losses
from surefoot.lab.sources import synthetic
from surefoot.optim.embedding_tables import split_parameters
from surefoot.tasks import TaskKind

LOG = synthetic.make(days=1, rows_per_day=16)
ROWS = [column.rows for column in LOG.schema.categorical]
TASKS = len(LOG.schema.tasks)
WIDTH = 4 * len(ROWS) + len(LOG.schema.dense)


def ranker(interaction: nn.Module | None = None, bottom: nn.Module | None = None) -> Ranker:
    return Ranker(
        embedding=FeatureEmbedding(ROWS, 4),
        interaction=interaction or nn.Identity(),
        bottom=bottom or SharedBottom(WIDTH, [8, 6], TASKS),
        heads=nn.ModuleDict({task.name: nn.Linear(6, 1) for task in LOG.schema.tasks}),
    )


@pytest.mark.parametrize(
    "model",
    [
        ranker(),
        ranker(interaction=CrossNetwork(WIDTH, 2)),
        ranker(bottom=MixtureOfExperts(WIDTH, [8, 6], TASKS, experts=3)),
        LinearRanker(LOG.schema),
    ],
    ids=["shared", "cross", "experts", "linear"],
)
def test_one_output_a_task_and_a_gradient_everywhere(model: nn.Module):
    rows = LOG.day(0)
    outputs = model(rows.categorical, rows.dense)
    assert outputs.shape == (16, TASKS)
    task_losses(outputs, rows.labels, LOG.schema.tasks).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_every_task_has_an_output_of_its_own():
    model = ranker()
    rows = LOG.day(0)
    before = model(rows.categorical, rows.dense)
    with torch.no_grad():
        model.get_parameter("heads.like.bias").add_(1)
    change = (model(rows.categorical, rows.dense) - before).abs().amax(0) > 0
    assert change.tolist() == [task.name == "like" for task in LOG.schema.tasks]


def test_columns_do_not_share_vectors():
    embedding = FeatureEmbedding([2, 3], 4, std=1.0)
    vectors = embedding(torch.tensor([[0, 0], [1, 2]], dtype=torch.int32))
    assert vectors.shape == (2, 2, 4)
    assert vectors[0, 0].equal(embedding.table.weight[0])
    assert vectors[0, 1].equal(embedding.table.weight[2])
    assert vectors[1, 1].equal(embedding.table.weight[4])


def test_the_cross_layer_is_dcn_v2s():
    layer, x0, x = CrossLayer(3), torch.randn(2, 3), torch.randn(2, 3)
    by_hand = x0 * (x @ layer.linear.weight.T + layer.linear.bias) + x
    torch.testing.assert_close(layer(x0, x), by_hand)


def test_the_cross_network_ends_in_a_layer_norm():
    output = CrossNetwork(8, 1)(100 * torch.randn(5, 8))
    torch.testing.assert_close(output.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.var(1, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_experts_are_mixed_by_each_tasks_gate():
    bottom = MixtureOfExperts(3, [4], 2, experts=2)
    x = torch.randn(5, 3)
    weights = bottom.gates[1](x).softmax(1)
    by_hand = sum(weights[:, [i]] * expert(x) for i, expert in enumerate(bottom.experts))
    torch.testing.assert_close(bottom(x)[1], by_hand)


def test_embeddings_are_told_apart():
    dense, embedding = split_parameters(ranker(interaction=CrossNetwork(WIDTH, 1)))
    assert list(embedding) == ["embedding.table.weight"]
    assert {"interaction.layers.0.linear.weight", "bottom.layers.0.weight", "heads.click.bias"} <= set(dense)
    assert "embedding.table.weight" not in dense
    assert list(split_parameters(nn.EmbeddingBag(3, 2)).embedding) == ["weight"]


def test_losses():
    tasks = (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))
    losses = task_losses(torch.tensor([[0.0, 3.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), tasks)
    torch.testing.assert_close(
        losses, torch.tensor([2.0]).log().repeat(2) * torch.tensor([1, 0]) + torch.tensor([0, 2.0])
    )


BOTH = (Task("click", TaskKind.BINARY, masked=True), Task("time", TaskKind.REGRESSION, masked=True))


def masked_batch(share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return outputs, labels that are NaN where a row does not count, and which do."""
    outputs, labels = torch.randn(40, 2).requires_grad_(), torch.randint(2, (40, 2)).float()
    seen = torch.rand(40, 2) < share
    return outputs, torch.where(seen, labels, torch.nan), seen


@over("share", [0.2, 0.5, 1.0])
def test_a_masked_tasks_loss_is_that_of_the_rows_that_count(share: float):
    outputs, labels, seen = masked_batch(share)
    losses = task_losses(outputs, labels, BOTH)
    for i, task in enumerate(BOTH):
        plain = replace(task, masked=False)
        expected = task_losses(outputs[seen[:, i], i, None], labels[seen[:, i], i, None], (plain,))[0]
        torch.testing.assert_close(losses[i], expected)
    (grad,) = torch.autograd.grad(losses.sum(), outputs)
    assert grad[~seen].eq(0).all()
    assert grad[seen].ne(0).all()


@over("output", {"plain": 0.5, "inf": math.inf, "nan": math.nan})
def test_without_a_row_that_counts_loss_and_gradients_are_zero(output: float):
    outputs = torch.full((8, 2), output, requires_grad=True)
    losses = task_losses(outputs, torch.full((8, 2), torch.nan), BOTH)
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.eq(0).all()


def test_what_is_not_finite_in_a_row_that_counts_is_told():
    outputs, labels, seen = masked_batch(0.5)
    with torch.no_grad():
        outputs[seen[:, 0].nonzero()[0], 0] = torch.nan
    assert task_losses(outputs, labels, BOTH).isnan().tolist() == [True, False]


def test_a_task_that_is_not_masked_is_as_torch_has_it_whatever_the_labels():
    outputs, labels, _ = masked_batch(1.0)
    plain = tuple(replace(task, masked=False) for task in BOTH)
    expected = nn.functional.mse_loss(outputs[:, 1], labels[:, 1])
    assert task_losses(outputs, labels, (BOTH[0], plain[1]))[1].equal(expected)
    labels[3, 0] = torch.nan
    assert task_losses(outputs, labels, plain).isnan().tolist() == [True, False]


PLAIN = (Task("click", TaskKind.BINARY), Task("time", TaskKind.REGRESSION))


def fitted(labels: list[list[float]], tasks: tuple[Task, ...] = PLAIN) -> LabelUnits:
    units = LabelUnits(len(tasks))
    units.fit([torch.tensor(labels)], tasks)
    return units


def test_outputs_of_zero_are_each_tasks_best_constant():
    outputs = fitted([[0.0, 8.0], [0.0, 10.0], [1.0, 9.0], [0.0, 13.0]])(torch.zeros(1, 2))
    torch.testing.assert_close(outputs[:, 0].sigmoid(), torch.tensor([0.25]))
    assert outputs[0, 1] == 10.0


@over(
    "labels",
    {
        "no positive, all the same": [[0.0, 3.0], [0.0, 3.0]],
        "only positives": [[1.0, 3.0], [1.0, 3.0]],
        "one row": [[1.0, 3.0]],
        "without a label": [[math.nan, math.nan]],
    },
)
def test_labels_that_tell_little_leave_finite_units(labels: list[list[float]]):
    units = fitted(labels, BOTH)
    assert units.center.isfinite().all()
    assert units.scale.tolist() == [1.0, 1.0]


def test_units_count_only_the_rows_that_have_a_label():
    units = fitted([[0.0, 8.0], [1.0, math.nan], [math.nan, 12.0]], BOTH)
    assert units.center.tolist() == [0.0, 10.0]
    assert units.scale.tolist() == [1.0, 2.0]


def test_units_as_they_are_made_change_nothing():
    outputs = torch.randn(9, 2)
    assert LabelUnits(2)(outputs).equal(outputs)


def test_a_regressions_squared_error_is_weighed_by_its_variance():
    model = nn.Sequential(nn.Linear(3, 2), fitted([[0.0, 8.0], [1.0, 12.0]]))
    assert loss_weights(model, (PLAIN[0], replace(PLAIN[1], weight=3.0))).tolist() == [1.0, 3.0 / 4]
    assert loss_weights(nn.Linear(3, 2), PLAIN).tolist() == [1.0, 1.0]
