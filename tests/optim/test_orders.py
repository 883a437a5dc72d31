"""Whatever is attached to two optimizers, and in whatever order: one result.

A cell of the table is one pair of optimizers under one arrangement of what can be attached, stepped in one way through
the same nine training steps: gradients that are NaN or infinite in either optimizer, and steps that one of them
misses. The result has to be, bit for bit, that of two optimizers which never saw the steps that nobody was to take.

``pytest tests/optim/test_orders.py -m slow -s`` runs all cells and prints the table.
"""

import itertools
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import surefoot
from surefoot.recover.recovery import Recovery

LR = 0.1
Make = Callable[[list[nn.Parameter]], Optimizer]
KINDS: dict[str, Make] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=LR),
    "SGD, momentum": lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=LR),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=LR, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=LR),
    "ClippyAdagrad": lambda params: surefoot.ClippyAdagrad(params, lr=LR),
}
PARTS = ("clip", "guard", "recovery", "monitor", "scaler")


class Way(NamedTuple):
    """How a loop calls its optimizers."""

    first: int = 0  # which of the two steps first
    zero: str = "after both"  # or "after each", or "to 0": both, keeping the tensors
    closure: bool = False  # one that does nothing is passed, as Lightning does


WAYS = [
    *(Way(first) for first in (0, 1)),
    *(Way(first, "to 0") for first in (0, 1)),
    *(Way(first, "after each") for first in (0, 1)),
    *(Way(first, closure=True) for first in (0, 1)),
]


class Batch(NamedTuple):
    """One training step: what is wrong with the gradients of which optimizer, and which of them is called."""

    bad: tuple[float, float] = (0.0, 0.0)
    called: tuple[bool, bool] = (True, True)


BATCHES = (
    Batch(),
    Batch(bad=(nan, 0.0)),
    Batch(),
    Batch(bad=(0.0, inf)),
    Batch(called=(False, True)),
    Batch(bad=(inf, 0.0), called=(False, True)),
    Batch(called=(True, False)),
    Batch(bad=(0.0, nan), called=(True, False)),
    Batch(),
)


class Cell(NamedTuple):
    pair: tuple[str, str]
    order: tuple[str, ...]  # of attaching
    way: Way


def arrangements() -> list[tuple[str, ...]]:
    """Return every order of every choice of parts among which something makes the optimizers skip together."""
    found = [order for n in range(1, len(PARTS) + 1) for order in itertools.permutations(PARTS, n)]
    return [order for order in found if {"guard", "recovery"} & {*order}]


def ways(order: tuple[str, ...]) -> list[Way]:
    """Return the ways to step: GradScaler takes no closure, and asks that gradients stay until both have stepped."""
    return [way for way in WAYS if "scaler" not in order or not (way.closure or way.zero == "after each")]


def cells() -> Iterator[Cell]:
    """Yield every pair of optimizers under every arrangement, the ways taking turns."""
    for i, pair in enumerate(itertools.product(KINDS, KINDS)):
        for j, order in enumerate(arrangements()):
            several = ways(order)
            yield Cell(pair, order, several[(i + j) % len(several)])


class Run:
    """Two optimizers, what is attached to them, and the steps they take."""

    def __init__(self, cell: Cell, folder: Path, *, eager: bool = False) -> None:
        self.way = cell.way
        torch.manual_seed(3)
        self.model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(4, 1)])
        self.optimizers = [
            KINDS[kind](list(layer.parameters())) for kind, layer in zip(cell.pair, self.model, strict=True)
        ]
        for optimizer in self.optimizers:
            if eager and isinstance(optimizer, surefoot.Adagrad):
                optimizer._fused = False
        self.counts: dict[str, Callable[[], int]] = {}
        self.scaler = self.monitor = self.recovery = None
        for part in cell.order:
            getattr(self, f"attach_{part}")(folder)
        self.seen: list[object] = []

    def attach_clip(self, folder: Path) -> None:
        for i, optimizer in enumerate(self.optimizers):
            if not isinstance(optimizer, surefoot.Adagrad):
                handle = surefoot.clip_updates(optimizer, surefoot.Clippy())
                self.counts[f"clip {i}"] = lambda handle=handle: handle.skipped_steps

    def attach_guard(self, folder: Path) -> None:
        guard = surefoot.guard(*self.optimizers)
        self.counts["guard"] = lambda: guard.skipped_steps

    def attach_recovery(self, folder: Path) -> None:
        self.recovery = Recovery(self.model, self.optimizers, folder, every=1000)

    def attach_monitor(self, folder: Path) -> None:
        self.monitor = surefoot.Monitor(self.model, self.optimizers, every=2)

    def attach_scaler(self, folder: Path) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)

    def backward(self, batch: Batch, i: int) -> None:
        generator = torch.Generator().manual_seed(i)
        losses = []
        for layer, bad in zip(self.model, batch.bad, strict=True):
            for p in layer.parameters():
                grad = torch.randn(p.shape, generator=generator)
                grad.view(-1)[0] += bad  # the gradient of (p * grad).sum()
                losses.append((p * grad).sum())
        loss = torch.stack(losses).sum()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def call(self, optimizer: Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.step(optimizer)
        elif self.way.closure:
            optimizer.step(closure=lambda: None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        else:
            optimizer.step()
        if self.way.zero == "after each":
            optimizer.zero_grad()

    def take(self, batch: Batch, i: int) -> None:
        self.backward(batch, i)
        for which in (self.way.first, 1 - self.way.first):
            if batch.called[which]:
                self.call(self.optimizers[which])
        if self.scaler is not None:
            self.scaler.update()
        if self.monitor is not None:
            self.monitor.step({"task": torch.tensor(1.0)})
            self.seen.append(dict(self.monitor.values))
        if self.recovery is not None:
            self.recovery.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.way.zero != "to 0")

    def result(self) -> list[Any]:
        """Return weights, states and groups."""
        saved = [optimizer.state_dict() for optimizer in self.optimizers]
        return [p.detach() for p in self.model.parameters()] + [[each["state"], each["param_groups"]] for each in saved]

    def told(self) -> dict[str, object]:
        """Return what the parts have to say of the run."""
        skipped = {}
        if self.recovery is not None:
            text = self.recovery.journal.path.read_text() if self.recovery.journal.path.exists() else ""
            skipped = {"recovery": text.count('"skipped"')}
        left = [hasattr(optimizer, "found_inf") for optimizer in self.optimizers]
        return {"left": left, "seen": self.seen, **skipped, **{key: count() for key, count in self.counts.items()}}


def run(cell: Cell, folder: Path) -> Run:
    """Return a run of the cell that has taken all steps."""
    taken = Run(cell, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the step was skipped", RuntimeWarning)
        for i, batch in enumerate(BATCHES):
            taken.take(batch, i)
    return taken


@cache
def expected(pair: tuple[str, str], clipped: bool, scaled: bool) -> str:
    """Return the result of optimizers that are called only for the steps that are to be taken.

    A gradient that is scaled is not for surefoot's kernel, whose roundings are its own.
    """
    never = Run(Cell(pair, ("clip",) if clipped else (), Way()), Path(), eager=scaled)
    for i, batch in enumerate(BATCHES):
        never.backward(batch, i)
        for optimizer, called in zip(never.optimizers, batch.called, strict=True):
            if called and batch.bad == (0.0, 0.0):
                optimizer.step()
            optimizer.zero_grad()
    return exact(never.result())


def exact(result: object) -> str:
    """Return what differs where one bit does, NaN like NaN."""
    if isinstance(result, Tensor):
        return f"{result.dtype}{[x.hex() for x in result.double().flatten().tolist()]}"
    if isinstance(result, dict):
        return str({key: exact(result[key]) for key in sorted(result)})
    return str([exact(each) for each in result]) if isinstance(result, list | tuple) else repr(result)


class Table:
    """Counts cells and differences by pair of optimizers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cells, self.different = folder, Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.examples: list[tuple[Cell, str]] = []
        self._told: dict[object, str] = {}  # by those that may differ in their order alone

    def add(self, cell: Cell) -> None:
        taken = run(cell, self.folder / str(self.cells.total()))
        told = exact(taken.told())
        alike = self._told.setdefault((cell.pair, frozenset(cell.order), cell.way), told)
        self.cells[cell.pair] += 1
        wrong = "" if told == alike else "what is told"
        if exact(taken.result()) != expected(cell.pair, "clip" in cell.order, "scaler" in cell.order):
            wrong = "the result"
        if wrong:
            self.different[cell.pair] += 1
            self.examples.append((cell, wrong))

    def __str__(self) -> str:
        lines = [f"{'differences / cells':<20}" + "".join(f"{other:>16}" for other in KINDS)]
        for one in KINDS:
            row = (f"{self.different[one, other]} / {self.cells[one, other]}" for other in KINDS)
            lines.append(f"{one:<20}" + "".join(f"{each:>16}" for each in row))
        return "\n".join([*lines, f"{self.cells.total()} cells, {self.different.total()} differences"])


def sample() -> list[Cell]:
    """Return cells: each pair of optimizers with all parts in two orders, and each two parts in each way."""
    draw, chosen, pairs = random.Random(0), list[Cell](), list(itertools.product(KINDS, KINDS))
    for pair in pairs:
        way = draw.choice(ways(PARTS))
        chosen += [Cell(pair, (*draw.sample(PARTS, len(PARTS)),), way) for _ in range(2)]
    for order in (each for each in arrangements() if len(each) == 2):
        chosen += [Cell(draw.choice(pairs), order, way) for way in ways(order)]
    return chosen


def fill(chosen: Sequence[Cell], folder: Path) -> Table:
    table = Table(folder)
    for cell in chosen:
        table.add(cell)
    return table


def test_any_order_of_attaching_has_one_result(tmp_path: Path) -> None:
    table = fill(sample(), tmp_path)
    assert len(table.cells) == len(KINDS) ** 2
    assert table.cells.total() == 72 + 10 * 8 + 4 * 4
    assert not table.examples, table.examples[:5]


@pytest.mark.slow
def test_the_whole_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = fill(list(cells()), tmp_path)
    with capsys.disabled():
        print(f"\n{table}")
    assert not table.examples, table.examples[:5]
