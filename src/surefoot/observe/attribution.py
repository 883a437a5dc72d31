"""Who sent a bad gradient: which task into the shared layers, which feature, which rows of which embedding table."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from surefoot.optim.embedding_tables import embedding_tables
from surefoot.optim.groups import named_parameters
from surefoot.optim.sparse import by_row

T = TypeVar("T")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Share:
    """The part that an input's column, an embedding table or a row of it has in the gradient.

    Args:
        name: of the input and the column, of the table, or of the table and the row.
        gradient: L2 norm of the derivative of the summed losses by it.
        effect: L2 norm of the product of value and derivative: what it brings into the next layer's gradient. NaN if a
            value is not finite; a derivative that is not finite does not count.
        share: of the sum of squared effects of all columns, tables or rows; NaN where ``effect`` is.
    """

    name: str
    gradient: float
    effect: float
    share: float


@dataclass(frozen=True)
class Attribution:
    """The gradient of one batch, taken apart; ``print`` shows tables.

    Args:
        losses: by task.
        shared: by shared layer, the L2 norm of each task's gradient there. Shared is where several tasks have one.
        columns: of the model's floating-point inputs, those that are not finite first, then by their share.
        tables: the embedding tables that the losses reach, in the same order.
        rows: of these tables, in the same order.
    """

    losses: Mapping[str, float]
    shared: Mapping[str, Mapping[str, float]]
    columns: tuple[Share, ...]
    tables: tuple[Share, ...]
    rows: tuple[Share, ...]

    @property
    def task(self) -> str | None:
        """The task whose gradient at the shared layers is largest, or not finite; None if nothing is shared."""
        sums = {task: math.hypot(*(each.get(task, 0.0) for each in self.shared.values())) for task in self.losses}
        return max(sums, key=lambda task: (not math.isfinite(sums[task]), sums[task])) if self.shared else None

    def __str__(self) -> str:
        tasks = list(self.losses)
        each = {"loss": self.losses, **self.shared}
        lines = [
            ("gradient norm at", *tasks),
            *((name, *(_shown(by_task.get(task)) for task in tasks)) for name, by_task in each.items()),
        ]
        text = [_aligned(lines)]
        for title, several in (("input", self.columns), ("embedding table", self.tables), ("row", self.rows)):
            rows = [(s.name, _shown(s.gradient), _shown(s.effect), f"{100 * s.share:.1f} %") for s in several]
            text += [_aligned([(title, "gradient", "value x gradient", "share"), *rows])] if rows else []
        return "\n\n".join(text)


def attribute(
    model: nn.Module,
    batch: T,
    losses: Callable[[nn.Module, T], Mapping[str, Tensor]],
    *,
    top: int = 10,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Attribution:
    """Take the gradient of a batch apart by task, input column and embedding row.

    The model runs once on the batch, in the mode that it is in, and each task's loss is differentiated. Weights,
    ``p.grad``, buffers and random numbers stay as they were. Waits for the device. Of a model wrapped in DDP pass
    ``model.module``.

    Args:
        model: any; embedding tables are told by their module's class.
        batch: what ``losses`` takes.
        losses: from the model and the batch to each task's loss, 0-d, as it goes into the sum that is trained on.
        top: how many columns, and how many rows, to name.
        names: what to call the columns of an input, by the name of the argument of ``forward``, or the rows of a
            table, by the name of the parameter; they have numbers where there is no name.

    Raises:
        ValueError: if ``top`` is below 1 or there are no losses.

    >>> model = nn.Linear(3, 2)
    >>> x = torch.tensor([[1.0, 1000.0, 1.0], [1.0, -1000.0, 2.0]])
    >>> def losses(model, x):
    ...     outputs = model(x)
    ...     return {"click": outputs[:, 0].square().mean(), "buy": 100 * outputs[:, 1].square().mean()}
    >>> attribute(model, x, losses).columns[0].name
    'input[1]'
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected a whole number, 1 or above")
    tables = embedding_tables(model)
    params = {every[0]: param for param, every in named_parameters(model) if param.requires_grad}
    with _undisturbed(model), _as_leaves(model) as inputs, torch.enable_grad():
        found = dict(losses(model, batch))
        if not found:
            raise ValueError("losses returned nothing; expected a loss for each task")
        norms, totals = _by_task(found, {**params, **inputs}, {*tables, *inputs.values()})
    shared = {
        name: {task: norms[task][name] for task in found if name in norms[task]}
        for name, param in params.items()
        if param not in tables and sum(each.get(name, 0.0) != 0 for each in norms.values()) > 1
    }
    columns = {name: _by_column(x, totals[name]) for name, x in inputs.items() if name in totals}
    rows = {name: _by_row(param, totals[name]) for name, param in params.items() if name in totals}
    labels = names or {}
    return Attribution(
        losses={task: float(loss.detach()) for task, loss in found.items()},
        shared=shared,
        columns=_shares(columns, top, labels),
        tables=_shares({name: _whole(part) for name, part in rows.items()}, len(rows), dict.fromkeys(rows)),
        rows=_shares(rows, top, labels),
    )


class _Effects(NamedTuple):
    """The columns of an input, or the touched rows of a table: their numbers, squared gradients and effects, (n,)."""

    indices: Tensor
    gradients: Tensor
    effects: Tensor


def _by_task(
    losses: Mapping[str, Tensor], sources: Mapping[str, Tensor], kept: set[Tensor]
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Return the norm of each loss's gradient at each source that it reaches; of those kept, the sum's gradient."""
    norms: dict[str, dict[str, float]] = {}
    totals: dict[str, Tensor] = {}
    for task, loss in losses.items():
        norms[task] = {}
        if not loss.requires_grad:
            continue
        grads = torch.autograd.grad(loss, list(sources.values()), retain_graph=True, allow_unused=True)
        for (name, source), grad in zip(sources.items(), grads, strict=True):
            if grad is None:
                continue
            grad = grad.coalesce() if grad.is_sparse else grad
            norms[task][name] = float((grad.values() if grad.is_sparse else grad).float().norm())
            if source in kept:
                totals[name] = totals[name] + grad if name in totals else grad
    return norms, totals


def _by_column(x: Tensor, grad: Tensor) -> _Effects:
    """Return the parts of an input's columns, its last dimension; of one dimension all is a column."""
    x, grad = (each.detach().reshape(-1, each.shape[-1] if each.ndim > 1 else 1).T for each in (x, grad))
    return _part(torch.arange(len(x), dtype=torch.int64, device=x.device), x, grad)


def _by_row(table: Tensor, grad: Tensor) -> _Effects:
    """Return the parts of the rows of a table that a gradient touches."""
    grad = by_row(grad)
    if grad.is_sparse:
        rows, values = grad.indices()[0], grad.values()
    else:
        rows = grad.flatten(1).abs().sum(1).nonzero()[:, 0]
        values = grad[rows]
    return _part(rows, table.detach()[rows].flatten(1), values.flatten(1))


def _part(indices: Tensor, x: Tensor, grad: Tensor) -> _Effects:
    """Return the part of rows of values and their gradients, (n, numbers) each."""
    x, grad = x.float(), grad.float()
    finite = grad.isfinite()
    effect = torch.where(finite, x * torch.where(finite, grad, 0.0), 0.0).square().sum(1)
    return _Effects(indices, grad.square().sum(1), torch.where(x.isfinite().all(1), effect, math.nan))


def _whole(part: _Effects) -> _Effects:
    return _Effects(part.indices.new_zeros(1), part.gradients.sum(0, keepdim=True), part.effects.sum(0, keepdim=True))


def _shares(parts: Mapping[str, _Effects], top: int, names: Mapping[str, Sequence[str] | None]) -> tuple[Share, ...]:
    """Return the largest of several parts, those that are not finite before all others.

    A part's entries are called by ``names``, numbered where it has none, or called as the part itself if it has None.
    """
    total = sum(float(part.effects.nansum()) for part in parts.values())
    found: list[tuple[float, Share]] = []
    for name, part in parts.items():
        ranks = part.effects.nan_to_num(nan=math.inf)
        best = ranks.topk(min(top, len(ranks)))
        for rank, i in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            effect, gradient = float(part.effects[i]), float(part.gradients[i])
            share = effect / total if total else effect  # 0, or NaN
            called = _called(name, int(part.indices[i]), names)
            found.append((rank, Share(called, math.sqrt(gradient), math.sqrt(effect), share)))
    found.sort(key=lambda each: each[0], reverse=True)
    return tuple(share for _, share in found[:top])


def _called(name: str, index: int, names: Mapping[str, Sequence[str] | None]) -> str:
    several = names.get(name, ())
    if several is None:
        return name
    return f"{name}[{several[index] if index < len(several) else index}]"


@contextmanager
def _as_leaves(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Let the floating-point tensors that the model is called with be leaves of the graph; yield them by name.

    They are there once the model has run: its arguments, named as ``forward`` names them, and what dictionaries, lists
    and tuples among these hold.
    """
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value
            leaves[name] = value.detach().clone().requires_grad_()
            return leaves[name]
        if isinstance(value, dict):
            return {key: leaf(f"{name}.{key}", each) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = zip(value._fields, value, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
            return type(value)(*(leaf(f"{name}.{key}", each) for key, each in fields))
        if isinstance(value, (list, tuple)):
            return type(value)(leaf(f"{name}.{i}", each) for i, each in enumerate(value))
        return value

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in _POSITIONAL]
        names += [str(i) for i in range(len(names), len(args))]
        args = tuple(leaf(name, each) for name, each in zip(names, args, strict=False))
        return args, {name: leaf(name, each) for name, each in kwargs.items()}

    hook = model.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield leaves
    finally:
        hook.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put buffers and random number generators back at the end."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cards = {each.device.index for each in model.parameters() if each.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cards)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
