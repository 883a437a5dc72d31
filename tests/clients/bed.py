"""What every client is put through: the same rows, rates, faults and questions."""

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torch.optim import Optimizer

import surefoot
from surefoot.lab.metrics import auc
from surefoot.optim.unwrap import in_backward, unwrapped

TASKS = ("click", "buy")
FIELDS, VALUES, DENSE = 3, 200, 6
BATCH, STEPS = 128, 230
FAULTY = 2  # the dense feature that a fault is in
IN_TIME = 8  # steps after a fault in which an alarm still tells of it


class Rows(NamedTuple):
    """Rows of a log: ids (rows, 3), dense (rows, 6), labels (rows, 2)."""

    ids: Tensor
    dense: Tensor
    labels: Tensor

    def batches(self) -> Iterator["Rows"]:
        """Yield them in order."""
        for start in range(0, len(self.ids), BATCH):
            yield Rows(*(part[start : start + BATCH] for part in self))


def rows(count: int, seed: int) -> Rows:
    """Return rows of two binary tasks that share what they depend on, labels 30 % and 10 % positive or so."""
    fixed = torch.Generator().manual_seed(0)
    effect = 0.8 * torch.randn(FIELDS, VALUES, 2, generator=fixed)
    slope = torch.randn(DENSE, 2, generator=fixed)
    draw = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(VALUES, (count, FIELDS), generator=draw)
    dense = torch.randn(count, DENSE, generator=draw)
    logits = dense @ slope + (dense[:, :1] * dense[:, 1:2]) + sum(effect[i][ids[:, i]] for i in range(FIELDS))
    labels = (torch.rand(count, 2, generator=draw) < torch.sigmoid(logits - torch.tensor([1.5, 3.5]))).float()
    return Rows(ids, dense, labels)


class Kind(StrEnum):
    """What goes wrong."""

    NAN = "nan"  # one number of one row
    FEATURE = "feature"  # a feature of a whole batch times 1e4
    RATE = "rate"  # times 50, for five steps


class Fault(NamedTuple):
    """Something that goes wrong at a step."""

    kind: Kind
    step: int


FAULTS = [Fault(kind, step) for kind in Kind for step in (10, 40, 150)]


def spoiled(clean: Rows, fault: Fault | None) -> Rows:
    """Return the rows with the fault in them, if it is one of rows."""
    if fault is None or fault.kind is Kind.RATE:
        return clean
    parts = Rows(*(part.clone() for part in clean))
    batch = slice(fault.step * BATCH, (fault.step + 1) * BATCH)
    if fault.kind is Kind.FEATURE:
        parts.dense[batch, FAULTY] *= 1e4
    else:
        parts.dense[fault.step * BATCH + 17, FAULTY] = math.nan
    return parts


def log_loss(prediction: Tensor, label: Tensor, reduction: str = "mean") -> Tensor:
    """Return torch's loss of probabilities, and NaN where torch raises an error that no trainer survives."""
    bad = prediction.isnan()
    loss = binary_cross_entropy(torch.where(bad, 0.5, prediction), label, reduction=reduction)
    return loss + torch.where(bad, prediction, 0.0).sum()


def telling(made: "Made", task: str) -> Callable[..., Tensor]:
    """Return a loss of probabilities that reports what it was called with, for trainers that show it to nobody else."""

    def loss(prediction: Tensor, label: Tensor, reduction: str = "mean") -> Tensor:
        total = log_loss(prediction, label, reduction)
        made.seen[task] = total.detach()
        if (supervisor := made.seen.get("supervisor")) is not None:
            rows = torch.arange(len(label)) + BATCH * supervisor.steps  # surefoot
            supervisor.report({task: total}, outputs={task: prediction}, labels={task: label}, rows=rows)  # surefoot
        return total

    return loss


class Clock:
    """Counts a model's forward passes in training, and sets the rate after each: the fault of a rate is here."""

    def __init__(self, model: nn.Module, optimizers: list[Optimizer], fault: Fault | None) -> None:
        self.step = 0
        self._optimizers = [(each, each.param_groups[0]["lr"]) for each in optimizers]
        self._fault = fault if fault is not None and fault.kind is Kind.RATE else None
        model.register_forward_hook(self._begin)

    def _begin(self, model: nn.Module, args: Any, output: Any) -> None:
        if not model.training:
            return
        if self._fault is not None:
            wrong = self._fault.step <= self.step < self._fault.step + 5
            for optimizer, rate in self._optimizers:
                for group in optimizer.param_groups:  # which may be others than at first
                    group["lr"] = rate * (50 if wrong else 1)
        self.step += 1


class Made(NamedTuple):
    """A client's model, the optimizers as the client hands them out, and whatever else it trains with."""

    model: nn.Module
    optimizers: list[Optimizer]
    trainer: Any
    seen: dict[str, Any]  # losses of the last step, by task, and what else the client keeps


class Supervise:
    """Makes a supervisor for a client, and remembers it."""

    def __init__(self, folder: Path, policy: surefoot.RecoveryPolicy = surefoot.RecoveryPolicy()) -> None:
        self.folder, self.policy, self.alarms = folder, policy, list[surefoot.Alarm]()
        self.made: surefoot.Supervisor | None = None

    def __call__(self, model: nn.Module, optimizers: Any, **said: str) -> surefoot.Supervisor:
        self.made = surefoot.Supervisor(
            model,
            optimizers,
            self.folder,
            tasks=dict.fromkeys(TASKS, "binary"),
            recovery=self.policy,
            ring=surefoot.Ring(model, optimizers, steps=24, every=8),
            capsule_after=4,
            on_alarm=self.alarms.append,
            outputs=said.get("outputs"),
            losses=said.get("losses"),
        )
        return self.made


@dataclass
class Client:
    """A trainer that nobody here wrote. A subclass says how it is made, run and asked.

    Args:
        name: of it.
        sane: a rate at which its stock optimizer trains well.
        high: one at which that diverges.
        glue: where a user adds lines to have all of surefoot; they end in ``# surefoot``. Imports are not counted.
    """

    name: str = ""
    sane: float = 0.05
    high: float = 3.0
    glue: tuple[Any, ...] = ()

    def make(self, rate: float) -> Made:
        """Make model, optimizers and trainer."""
        raise NotImplementedError

    def train(self, made: Made, data: Rows, supervise: Supervise | None) -> None:
        """Train on the batches in order, by the client's own loop."""
        raise NotImplementedError

    def predict(self, made: Made, data: Rows) -> Tensor:
        """Return (rows, 2): anything that orders the rows."""
        raise NotImplementedError

    def again(self, made: Made, data: Rows) -> None:
        """Take one step of a capsule; by default by training on it alone."""
        self.train(made, data, None)

    def record(self, made: Made, task: str, loss: Tensor) -> None:
        """Keep a loss for ``again``."""
        made.seen[task] = loss.detach()


class Use(StrEnum):
    """What of surefoot is used."""

    NOTHING = "nothing"
    CLIP = "clip"
    ALL = "all"


@dataclass
class Outcome:
    """What came of a run."""

    aucs: dict[str, float]
    seconds: float
    alarms: list[surefoot.Alarm] = field(default_factory=list)
    stopped: bool = False
    capsules: list[Path] = field(default_factory=list)
    data: Rows | None = None

    @property
    def auc(self) -> float:
        """The mean over the tasks; 0.5 where predictions are not finite."""
        return sum(self.aucs.values()) / len(self.aucs)


def steppers(made: Made) -> list[Optimizer]:
    """Return the optimizers that take the client's steps."""
    return [*unwrapped(made.optimizers), *in_backward(made.model)]


def clip(made: Made) -> list[surefoot.ClipHandle]:
    """Put Clippy on what the client steps."""
    return [surefoot.clip_updates(optimizer, surefoot.Clippy()) for optimizer in steppers(made)]


def run(
    client: Client,
    *,
    use: Use,
    rate: float,
    fault: Fault | None = None,
    folder: Path | None = None,
    seed: int = 0,
    steps: int = STEPS,
    policy: surefoot.RecoveryPolicy = surefoot.RecoveryPolicy(),
) -> Outcome:
    """Train once, and score it on rows that it has not seen."""
    torch.manual_seed(seed)
    data = spoiled(rows(steps * BATCH, seed), fault)
    made = client.make(rate)
    Clock(made.model, steppers(made), fault)
    if use is not Use.NOTHING:
        clip(made)
    supervise = None
    if use is Use.ALL:
        assert folder is not None
        supervise = Supervise(folder, policy)
    begin = time.perf_counter()
    with contextlib.suppress(surefoot.TrainingStopped):
        client.train(made, data, supervise)
    seconds = time.perf_counter() - begin
    supervisor = None if supervise is None else supervise.made
    if supervisor is not None:
        supervisor.close()
    test = rows(8192, seed + 500)
    scores = client.predict(made, test).detach().float().cpu()
    finite = bool(scores.isfinite().all())
    aucs = {task: auc(scores[:, i], test.labels[:, i]) if finite else 0.5 for i, task in enumerate(TASKS)}
    capsules = sorted((folder / "capsules").glob("step-*")) if folder is not None else []
    alarms = supervise.alarms if supervise is not None else []
    stopped = supervisor is not None and supervisor.action is surefoot.Action.STOP
    return Outcome(aucs, seconds, alarms, stopped, capsules, data)


def named(outcome: Outcome, fault: Fault) -> surefoot.Alarm | None:
    """Return the alarm that tells of a fault, its step and its task or layer right; None if there is none."""
    in_time = [each for each in outcome.alarms if fault.step <= each.step <= fault.step + IN_TIME]
    return next((each for each in in_time if each.task is not None or each.layer is not None), None)


def run_again(client: Client, path: Path, *, rate: float, fault: Fault | None, data: Rows) -> surefoot.Replay:
    """Replay a capsule in a training made anew."""
    made = client.make(rate)
    clock, handles = Clock(made.model, steppers(made), fault), clip(made)
    assert handles

    def prepare(record: surefoot.StepRecord) -> None:
        clock.step = record.step

    def step(batch: Any) -> dict[str, Tensor]:
        client.again(made, Rows(*batch))
        return {task: made.seen[task] for task in TASKS}

    def fetch(which: Tensor) -> Rows:
        return Rows(*(part[which] for part in data))

    training = surefoot.Training(made.model, made.optimizers, step, fetch=fetch, prepare=prepare)
    return surefoot.replay(surefoot.read_capsule(path), surefoot.under_recovery(training))


def lines(client: Client) -> int:
    """Return how many lines a user adds in this client."""
    sources = [inspect.getsource(place) for place in client.glue]
    return sum(line.endswith("# surefoot") for source in sources for line in source.splitlines())
