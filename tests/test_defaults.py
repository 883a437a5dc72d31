"""Numbers do not depend on torch's default type and default device, which are for what a user makes, not for us."""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import small_training
import surefoot
from properties import over
from surefoot import Adagrad, Clippy, ClippyAdagrad, GlobalGradientClip, clip_updates, guard
from surefoot.capsule.ring import Ring
from surefoot.lab import metrics
from surefoot.lab.data.schema import Batch, Task
from surefoot.lab.models.ranker import Ranker
from surefoot.lab.training.loop import read, start_reading, take_step
from surefoot.observe.monitor import Monitor
from surefoot.observe.step_record import Combine, over_ranks
from surefoot.observe.streaming_metrics import Kinds, clean, scores
from surefoot.optim.embedding_tables import split_parameters

LR = 0.1
TASKS = small_training.LOG.schema.tasks
ROOT = Path(surefoot.__file__).parent
MAKERS = {"arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand"}
MAKERS |= {"randint", "randn", "randperm", "scalar_tensor", "sparse_coo_tensor", "tensor", "zeros"}


@contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[None]:
    """Have torch make other tensors than usual where it is not told which."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


DEFAULTS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "float64": {"dtype": torch.float64},
    "meta": {"device": "meta"},
    "bfloat16 on meta": {"dtype": torch.bfloat16, "device": "meta"},
}


def says_which(keywords: Sequence[ast.keyword]) -> bool:
    names = {keyword.arg for keyword in keywords}
    return {"dtype", "device"} <= names or None in names  # None: a dict of both, spread


def makers_without(source: str) -> list[str]:
    """Return the calls that make a tensor and leave its type or its device to torch's defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            by_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if by_torch and node.func.attr in MAKERS and not says_which(node.keywords):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_every_tensor_is_made_with_its_type_and_its_device() -> None:
    paths = sorted(ROOT.rglob("*.py"))
    assert len(paths) > 50
    assert {str(path.relative_to(ROOT)): found for path in paths if (found := makers_without(path.read_text()))} == {}


def test_a_tensor_made_without_them_would_be_seen() -> None:
    assert makers_without("torch.empty(3, dtype=torch.float32)") == ["line 1: torch.empty(3, dtype=torch.float32)"]
    assert makers_without("torch.ones(3, dtype=torch.float32, device='cpu')") == []


# Optimizers

MANY = 20_000  # small parameters
MAKE: dict[str, Callable[[list[Parameter]], Optimizer]] = {
    "ClippyAdagrad": lambda params: ClippyAdagrad(params, LR, absolute=1e-3),
    "ClippyAdagrad, eager": lambda params: ClippyAdagrad(params, LR, absolute=1e-3, fused=False),
    "Adagrad under a rule of the model": lambda params: Adagrad(params, LR, rule=GlobalGradientClip(1e-2)),
    "tfrs": lambda params: ClippyAdagrad.tfrs(params, LR),
    "skip_tensor": lambda params: ClippyAdagrad(params, LR, nonfinite="skip_tensor"),
    "clipped SGD": lambda params: clipped(torch.optim.SGD(params, LR, momentum=0.9)),
}


def clipped(optimizer: Optimizer) -> Optimizer:
    clip_updates(optimizer, Clippy(0.5, 1e-3))
    return optimizer


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        assert (x.dtype, x.device) == (y.dtype, y.device)
        assert torch.equal(x, y)


def trained(make: Callable[[list[Parameter]], Optimizer], count: int, **default: Any) -> list[Tensor]:
    """Take steps and return weights, state and factors; only the steps are taken under the defaults."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(1 + i % 5)) for i in range(count)]
    steps = [[torch.randn_like(p) for p in params] for _ in range(3 if count < MANY else 1)]
    with defaults(**default):
        optimizer = make(params)
        for grads in steps:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            optimizer.step()
        if count < MANY:  # torch's loading takes the square of their number
            optimizer.load_state_dict(optimizer.state_dict())
        told = optimizer.clip_factors() if isinstance(optimizer, Adagrad) else {}
        values = [x for p in params for x in optimizer.state[p].values()]
    return [*(p.detach() for p in params), *values, *told.values()]


@cache
def many_under_float32() -> list[Tensor]:
    return trained(MAKE["ClippyAdagrad"], MANY)


@over("default", DEFAULTS)
def test_the_kernel_steps_many_parameters_as_ever(default: dict[str, Any]) -> None:
    same(trained(MAKE["ClippyAdagrad"], MANY, **default), many_under_float32())


@over("default", DEFAULTS)
@over("make", MAKE)
def test_a_step_is_what_it_is_under_float32(
    make: Callable[[list[Parameter]], Optimizer], default: dict[str, Any]
) -> None:
    same(trained(make, 40, **default), trained(make, 40))


@over("default", DEFAULTS)
def test_optimizers_under_a_guard_skip_together(default: dict[str, Any]) -> None:
    params = [Parameter(torch.ones(3)) for _ in range(2)]
    with defaults(**default):
        optimizers = ClippyAdagrad(params[:1], LR), torch.optim.SGD(params[1:], LR)
        guard(*optimizers)

        def step(first: float) -> list[Tensor]:
            for p, value in zip(params, (first, 1.0), strict=True):
                p.grad = torch.full_like(p, value)
            for each in optimizers:
                each.step()
            return [p.detach().clone() for p in params]

        moved = step(1.0)
        with pytest.warns(RuntimeWarning, match="the step was skipped"):
            same(step(torch.nan), moved)
    assert all((p < 1).all() for p in moved)


@over("default", DEFAULTS)
@over("dims", [1, 2])
def test_a_sparse_gradient_steps_as_under_float32(dims: int, default: dict[str, Any]) -> None:
    params = [Parameter(torch.ones(5, 3)) for _ in range(2)]
    dense = torch.zeros(5, 3)
    dense[1, 1] = 2.0
    grad = dense.to_sparse(dims)
    for p, each in zip(params, (default, {}), strict=True):
        p.grad = grad.clone()
        with defaults(**each):
            ClippyAdagrad([p], LR).step()
    same([params[0].detach()], [params[1].detach()])
    assert params[0][1, 1] < 1


# What looks on


def ranker() -> tuple[Ranker, list[Optimizer]]:
    """Return a small model and its optimizers, made under float32."""
    model = small_training.training().model
    assert isinstance(model, Ranker)
    parts = split_parameters(model.eval())
    return model, [ClippyAdagrad(parts.dense.values(), LR), Adagrad(parts.embedding.values(), LR)]


def batch_of(step: int) -> Batch:
    return small_training.WINDOW.batch(small_training.WINDOW.rows_of(0, step))


def watched(**default: Any) -> list[dict[str, float]]:
    """Train a small model with monitor and ring, and return what the monitor wrote; the loop is under the defaults."""
    rows: list[dict[str, float]] = []
    model, optimizers = ranker()
    names = [task.name for task in TASKS]
    with defaults(**default):
        monitor = Monitor(
            model,
            optimizers,
            tasks={task.name: task.kind for task in TASKS},
            every=4,
            refresh=2,
            sinks=[lambda step, values: rows.append({"step": step, **values})],
        )
        ring = Ring(model, optimizers)
        for step in range(6):
            batch = batch_of(step)
            ring.record(step, batch)
            outputs, each = take_step(model, batch, optimizers, TASKS)
            losses = dict(zip(names, each.unbind(), strict=True))
            ring.observe(step, losses)
            columns = (dict(zip(names, x.unbind(1), strict=True)) for x in (outputs, batch.labels))
            monitor.step(losses, **dict(zip(("outputs", "labels"), columns, strict=True)))
        monitor.close()
    return rows


@over("default", DEFAULTS)
def test_the_monitor_sees_what_it_sees_under_float32(default: dict[str, Any]) -> None:
    found, expected = watched(**default), watched()
    assert len(found) == 6
    assert any(name.startswith("auc/") for name in found[0])
    assert [repr(row) for row in found] == [repr(row) for row in expected]  # NaN is not equal to itself


def of_numbers(outputs: Tensor, labels: Tensor, ranks: Tensor, combine: Tensor) -> tuple[list[Tensor], str]:
    """Return what is computed of given tensors, and in words what is numbers already."""
    kinds = Kinds((True, True), torch.tensor([True, True], device="cpu"))
    groups = torch.arange(len(outputs), dtype=torch.int64, device="cpu") // 7
    tensors = [*scores(clean(outputs.T, labels.T), kinds).values(), over_ranks(ranks, combine)]
    return tensors, repr(metrics.evaluate(outputs, labels, TASKS[:2], groups))


@over("default", DEFAULTS)
def test_scores_are_what_they_are_under_float32(default: dict[str, Any]) -> None:
    outputs, labels = torch.randn(300, 2), (torch.rand(300, 2) < 0.3).float()
    ranks, combine = torch.randn(3, 3), torch.tensor([Combine.MEAN, Combine.MAX, Combine.MIN])
    expected = of_numbers(outputs, labels, ranks, combine)
    with defaults(**default):
        found = of_numbers(outputs, labels, ranks, combine)
    same(found[0], expected[0])
    assert found[1] == expected[1]


def judged_step(
    model: Ranker, batch: Batch, optimizers: list[Optimizer], tasks: tuple[Task, ...]
) -> tuple[list[Tensor], str]:
    """Take a step; return what the model gave, and in words what is told of it."""
    predicted = take_step(model, batch, optimizers, tasks)
    return list(predicted), repr(read(start_reading(predicted.losses, batch.labels, tasks), tasks))


@over("default", DEFAULTS)
def test_a_masked_task_is_judged_as_under_float32(default: dict[str, Any]) -> None:
    tasks = tuple(replace(task, masked=True) for task in TASKS)
    batch = batch_of(0)
    batch.labels[:5] = torch.nan
    model, optimizers = ranker()
    expected = judged_step(model, batch, optimizers, tasks)
    model, optimizers = ranker()
    with defaults(**default):
        found = judged_step(model, batch, optimizers, tasks)
    same(found[0], expected[0])
    assert found[1] == expected[1]


@over("default", DEFAULTS)
def test_batches_are_drawn_as_under_float32(default: dict[str, Any]) -> None:
    with defaults(**default):
        drawn = [batch_of(step) for step in range(3)]
    for step, batch in enumerate(drawn):
        expected = batch_of(step)
        same([batch.categorical, batch.dense, batch.labels], [expected.categorical, expected.dense, expected.labels])
