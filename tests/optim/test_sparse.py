"""Sparse gradients of any number of sparse dimensions move what the same dense gradients move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import surefoot
from properties import all_of, over
from surefoot.observe.attribution import _by_row
from surefoot.observe.step_stats import touched
from surefoot.optim.sparse import at_its_places, by_row
from surefoot.rules import AdaptiveGradientClip, Clippy, GlobalGradientClip, GradientClip, NoClip, Rule

SHAPES = ((5, 3), (4, 3, 2), (6,), (1, 4), (), (3, 0))
PER_TENSOR: tuple[Rule, ...] = (NoClip(), Clippy(), Clippy(0.1, 1e-4), GradientClip(0.1), GlobalGradientClip(0.1))
Make = Callable[[list[Parameter], Rule], Optimizer]


def clipped(optimizer: Optimizer, rule: Rule) -> Optimizer:
    surefoot.clip_updates(optimizer, rule)
    return optimizer


OPTIMIZERS: dict[str, Make] = {
    "surefoot": lambda params, rule: surefoot.Adagrad(params, 0.1, rule=rule),
    "after the step": lambda params, rule: surefoot.Adagrad(params, 0.1, rule=rule, accumulate="after", eps=1e-7),
    "torch Adagrad": lambda params, rule: clipped(
        torch.optim.Adagrad(params, 0.1, initial_accumulator_value=0.1), rule
    ),
    "SGD": lambda params, rule: clipped(torch.optim.SGD(params, 0.1), rule),
}


def some(shape: tuple[int, ...]) -> Tensor:
    """Return a gradient with zeros among its numbers."""
    return torch.randn(shape) * (torch.rand(shape) < 0.4)


def as_sparse(grad: Tensor, dims: int, *, twice: bool) -> Tensor:
    """Return a gradient sparse in so many dimensions, each number stored in two halves if ``twice``."""
    sparse = grad.to_sparse(dims) if dims else grad.to_sparse()
    if not twice:
        return sparse
    indices, values = sparse.indices(), sparse.values() / 2
    return torch.sparse_coo_tensor(
        torch.cat([indices, indices], 1), torch.cat([values, values]), grad.shape, check_invariants=True
    )


def cases() -> list[tuple[tuple[int, ...], int]]:
    return [(shape, dims) for shape in SHAPES for dims in range(1 if shape else 0, len(shape) + 1)]


def test_one_number_moves_one_number() -> None:
    w = Parameter(torch.ones(5, 3))
    w.grad = torch.zeros(5, 3).index_put_((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0)).to_sparse()
    surefoot.ClippyAdagrad([w], lr=0.1).step()
    assert (w != 1).nonzero().tolist() == [[1, 1]]


@all_of("twice", [False, True])
@all_of("case", cases())
@all_of("rule", PER_TENSOR)
@over("make", OPTIMIZERS)
def test_a_sparse_gradient_is_the_dense_one(make: Make, rule: Rule, case: tuple[Any, int], twice: bool) -> None:
    shape, dims = case
    w, dense = Parameter(torch.randn(shape)), Parameter(torch.randn(shape))
    dense.data.copy_(w.data)
    optimizers = [make([p], rule) for p in (w, dense)]
    for _ in range(3):
        dense.grad = some(shape)
        w.grad = as_sparse(dense.grad, dims, twice=twice)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(w.data, dense.data, rtol=1e-6, atol=1e-7)


@over("case", [case for case in cases() if case[0] and 0 not in case[0]])
def test_units_of_any_sparse_gradient_are_whole_rows(case: tuple[Any, int]) -> None:
    shape, dims = case
    w, by_rows = Parameter(torch.randn(shape)), Parameter(torch.randn(shape))
    by_rows.data.copy_(w.data)
    grad = some(shape)
    w.grad, by_rows.grad = as_sparse(grad, dims, twice=True), as_sparse(grad, 1, twice=False)
    optimizers = [surefoot.Adagrad([p], 0.1, rule=AdaptiveGradientClip(0.01)) for p in (w, by_rows)]
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(w.data, by_rows.data)
    torch.testing.assert_close(optimizers[0].clip_factors()[w], optimizers[1].clip_factors()[by_rows])


@all_of("case", cases())
@over("rule", [GradientClip(0.1), GlobalGradientClip(0.1), AdaptiveGradientClip(0.01)])
def test_clip_gradients_of_any_sparse_gradient(rule: Rule, case: tuple[Any, int]) -> None:
    shape, dims = case
    grad = some(shape)
    w, by_rows = Parameter(torch.ones(shape)), Parameter(torch.ones(shape))
    w.grad, by_rows.grad = as_sparse(grad, dims, twice=True), as_sparse(grad, min(1, dims), twice=False)
    ours, theirs = (surefoot.clip_gradients([p], rule)[p] for p in (w, by_rows))
    torch.testing.assert_close(ours, theirs)
    assert w.grad.sparse_dim() == dims
    torch.testing.assert_close(w.grad.to_dense(), by_rows.grad.to_dense())


@over("case", cases())
def test_rows_are_where_the_numbers_are(case: tuple[Any, int]) -> None:
    shape, dims = case
    grad = some(shape)
    sparse = as_sparse(grad, dims, twice=True)
    rows = by_row(sparse)
    assert by_row(grad) is grad
    torch.testing.assert_close(rows.to_dense() if rows.is_sparse else rows, grad)
    weight, values = touched(torch.ones(shape), sparse)
    assert weight.shape == values.shape
    if dims:
        assert rows.sparse_dim() == 1
        assert rows.indices()[0].tolist() == sorted({*sparse.coalesce().indices()[0].tolist()})
        torch.testing.assert_close(at_its_places(rows.values(), sparse.coalesce()), sparse.coalesce().values())


def test_attribution_names_each_row_once() -> None:
    grad = torch.zeros(5, 3)
    grad[1], grad[4, 0] = 2.0, 1.0
    part, same = _by_row(torch.ones(5, 3), grad.to_sparse()), _by_row(torch.ones(5, 3), grad)
    assert part.indices.tolist() == [1, 4]
    for ours, dense in zip(part, same, strict=True):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_survey_sees_the_touched_rows(dims: int) -> None:
    table = torch.nn.Embedding(5, 3)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.5)
    monitor = surefoot.Monitor(table, optimizer, every=1)
    grad = torch.zeros(5, 3)
    grad[2, 1] = 2.0
    table.weight.grad = grad.to_sparse(dims)
    optimizer.step()
    monitor.step({"task": torch.tensor(1.0)})
    monitor.close()
    assert monitor.values["l2_norm/grad/weight"] == 2.0
    assert monitor.values["l2_norm/update/weight"] == pytest.approx(1.0)  # lr times the update
