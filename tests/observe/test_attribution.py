"""Attribution names the task, the feature, the table and the row; and leaves the model as it was."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import own_log
from properties import over
from surefoot.lab.data.schema import Batch
from surefoot.lab.models.layers import FeatureEmbedding, RowNames, SharedBottom
from surefoot.lab.models.ranker import LinearRanker, Ranker, task_losses
from surefoot.lab.sources import synthetic
from surefoot.observe.attribution import Attribution, attribute

LOG = synthetic.make(days=1, rows_per_day=256)
TASKS = LOG.schema.tasks
NAMES = {"dense": LOG.schema.dense}


def ranker() -> Ranker:
    torch.manual_seed(0)
    rows = [column.rows for column in LOG.schema.categorical]
    width = 4 * len(rows) + len(LOG.schema.dense)
    return Ranker(
        embedding=FeatureEmbedding(rows, 4),
        interaction=nn.Identity(),
        bottom=SharedBottom(width, [16, 16], len(TASKS)),
        heads=nn.ModuleDict({task.name: nn.Linear(16, 1) for task in TASKS}),
    )


def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    each = task_losses(model(batch.categorical, batch.dense), batch.labels, TASKS)
    return {task.name: loss for task, loss in zip(TASKS, each.unbind(), strict=True)}


def batch() -> Batch:
    return Batch(*(part[:64].clone() for part in LOG.rows))


def test_the_norms_are_those_of_the_gradients() -> None:
    model, rows = ranker(), batch()
    found = attribute(model, rows, losses)
    assert set(found.shared) == {f"bottom.layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    for task, loss in losses(model, rows).items():
        assert found.losses[task] == pytest.approx(loss.item())
        model.zero_grad()
        loss.backward(retain_graph=True)
        for name, by_task in found.shared.items():
            grad = model.get_parameter(name).grad
            assert grad is not None
            assert by_task[task] == pytest.approx(float(grad.norm()), rel=1e-5)


@over("task", [task.name for task in TASKS])
def test_the_task_that_sent_it_is_named(task: str) -> None:
    def scaled(model: nn.Module, rows: Batch) -> dict[str, Tensor]:
        return {name: loss * (1000 if name == task else 1) for name, loss in losses(model, rows).items()}

    assert attribute(ranker(), batch(), scaled).task == task


@over("column", list(LOG.schema.dense))
def test_a_feature_that_is_a_thousand_times_too_large_is_named(column: str) -> None:
    rows = batch()
    rows.dense[:, LOG.schema.dense.index(column)] *= 1000
    found = attribute(ranker(), rows, losses, names=NAMES)
    assert found.columns[0].name == f"dense[{column}]"
    assert found.columns[0].share > 0.9
    assert sum(share.share for share in attribute(ranker(), rows, losses, top=100).columns) == pytest.approx(1)


@over("bad", {"nan": math.nan, "inf": math.inf})
def test_a_feature_that_is_not_finite_is_named(bad: float) -> None:
    rows = batch()
    rows.dense[5, 1] = bad
    found = attribute(ranker(), rows, losses)
    assert found.columns[0].name == "dense[1]"
    assert math.isnan(found.columns[0].effect)
    assert not any(math.isnan(column.effect) for column in found.columns[1:])


@over("damage", {"large": 1e4, "nan": math.nan})
def test_a_damaged_embedding_row_is_named(damage: float) -> None:
    model, rows = ranker(), batch()
    damaged = int(rows.categorical[7, 1] + model.embedding.first[1])  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportArgumentType]
    with torch.no_grad():
        model.get_parameter("embedding.table.weight")[damaged] = damage
    found = attribute(model, rows, losses)
    assert found.rows[0].name == f"embedding.table.weight[{damaged}]"
    assert [table.name for table in found.tables] == ["embedding.table.weight"]


def test_rows_have_the_names_that_they_are_given() -> None:
    model, rows = ranker(), batch()
    table = [f"id {i}" for i in range(model.get_parameter("embedding.table.weight").shape[0])]
    found = attribute(model, rows, losses, names={"embedding.table.weight": table}, top=3)
    assert len(found.rows) == 3
    assert all(row.name.startswith("embedding.table.weight[id ") for row in found.rows)


def test_the_row_gradient_is_that_of_the_sum() -> None:
    model, rows = ranker(), batch()
    found = attribute(model, rows, losses, top=10_000)
    sum(losses(model, rows).values(), torch.zeros(())).backward()
    grad = model.get_parameter("embedding.table.weight").grad
    assert grad is not None
    grad = grad.coalesce()
    expected = {
        f"embedding.table.weight[{i}]": v
        for i, v in zip(grad.indices()[0].tolist(), grad.values().norm(dim=1).tolist(), strict=True)
    }
    assert {row.name: row.gradient for row in found.rows} == pytest.approx(expected, rel=1e-4)


OWN = own_log.make(days=1, rows_per_day=256)


def own_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    each = task_losses(model(batch.categorical, batch.dense), batch.labels, OWN.schema.tasks)
    return {task.name: loss for task, loss in zip(OWN.schema.tasks, each.unbind(), strict=True)}


@over("tag", [1, 8])
def test_a_damaged_row_of_a_column_with_several_values_is_named(tag: int) -> None:
    model, rows = LinearRanker(OWN.schema), OWN.day(0)
    with torch.no_grad():
        model.embedding.table.weight[tag] = 1e3
    names = {"embedding.table.weight": RowNames(OWN.schema.categorical), "dense": OWN.schema.dense}
    found = attribute(model, rows, own_losses, names=names, top=10_000)
    assert found.rows[0].name == f"embedding.table.weight[tags {tag}]"
    named = {share.name for share in found.rows}
    touched = {f"tags {i}" for i in rows.categorical[:, :3].unique().tolist() if i}
    touched |= {f"user {i}" for i in rows.categorical[:, 3].unique().tolist()}
    assert {f"embedding.table.weight[{name}]" for name in touched} <= named
    assert "embedding.table.weight[tags 0]" not in named


def test_a_task_of_which_no_row_counts_has_no_gradient() -> None:
    rows = Batch(*(part.clone() for part in OWN.day(0)))
    rows.labels[:, 1] = torch.nan
    found = attribute(LinearRanker(OWN.schema), rows, own_losses)
    assert found.losses["like"] == 0
    assert {by_task["like"] for by_task in found.shared.values()} == {0.0}
    assert all(math.isfinite(share.gradient) for share in (*found.columns, *found.rows))


class Bag(nn.Module):
    """What a plain model may look like: dense gradients of a bag, batch norm, dropout, keyword arguments, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.shared = nn.Linear(6, 4)
        self.unshared = nn.Linear(4, 1)

    def forward(self, ids: Tensor, *, features: dict[str, Tensor]) -> Tensor:
        x = torch.cat([self.bag(ids), features["price"][:, None], features["age"][:, None]], 1)
        return self.drop(self.shared(self.norm(x)))


def bag_losses(model: nn.Module, features: dict[str, Tensor]) -> Mapping[str, Tensor]:
    h = model(torch.arange(20).reshape(10, 2) % 10, features=features)
    return {"a": h.square().mean(), "b": model.unshared(h).square().mean(), "constant": torch.ones(())}  # pyright: ignore[reportCallIssue]


def test_it_works_on_plain_models_and_leaves_them_as_they_were() -> None:
    torch.manual_seed(0)
    model = Bag()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = {"price": torch.rand(10), "age": torch.rand(10)}
    state = torch.get_rng_state()
    found = attribute(model, features, bag_losses)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert not model._forward_pre_hooks
    assert not features["price"].requires_grad
    assert {share.name for share in found.columns} == {"features.price[0]", "features.age[0]"}
    assert "shared.weight" in found.shared
    assert "unshared.weight" not in found.shared
    assert found.losses["constant"] == 1


def test_the_text() -> None:
    found = attribute(ranker(), batch(), losses, top=2, names=NAMES)
    lines = str(found).splitlines()
    assert lines[0].split() == ["gradient", "norm", "at", *(task.name for task in TASKS)]
    assert lines[1].startswith("loss ")
    assert any(line.startswith("bottom.layers.0.weight ") for line in lines)
    assert any(line.split()[:2] == ["input", "gradient"] for line in lines)
    assert any(line.endswith(" %") for line in lines)


class Pair(NamedTuple):
    x: Tensor
    more: list[Any]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, pair: Pair, *rest: Any) -> Tensor:
        return self.linear(pair.x) + self.linear(pair.more[0]) + self.linear(rest[0][0]) + len(rest[1])


def test_inputs_are_found_in_what_holds_them() -> None:
    x = torch.ones(2, 3)

    def only(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"a": model(Pair(x, [2 * x, "text"]), (3 * x,), "more").sum()}

    found: Attribution = attribute(Nested(), x, only)
    assert {share.name.partition("[")[0] for share in found.columns} == {"pair.x", "pair.more.0", "1.0"}
    assert found.shared == {}
    assert found.task is None
    assert found.rows == ()


@over("wrong", {"top": ({"top": 0}, "top is 0"), "losses": ({"losses": lambda m, b: {}}, "losses returned nothing")})
def test_wrong_arguments_are_refused(wrong: tuple[dict[str, Any], str]) -> None:
    options, message = wrong
    arguments: dict[str, Any] = {"model": ranker(), "batch": batch(), "losses": losses} | options
    with pytest.raises(ValueError, match=message):
        attribute(**arguments)
