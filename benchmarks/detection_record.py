"""Records of short training runs, for benchmarks/detection.py: what a monitor would have seen, and the outcome.

A set-up (log, seed, model, rate) is trained once unharmed: the twin. Each of its faults goes on from a copy of the twin
made at the fault's step, so that a run equals its twin up to there bit for bit and nothing is trained twice.

At every step a probe is scored before the step, with the weights that also give the step's loss. One row in 8 or 16 of
the log is kept out of training for it; at each step those of the window's days are scored (some 750 rows), by the run
and by its twin alike. Where data would be served as the fault makes them (``Fault.world``), they are scored a second
time in that form. Each day's rows are also scored with the run's own weights of the start of that day and of the two
days before: what a run that learns slowly, or a harder day, does not fall behind.
"""

import copy
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detection_metrics import constant_losses, scores
from faults import Fault, drift_day, none
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.lab.data.schema import Batch, Log, Task
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.models.layers import CrossNetwork, FeatureEmbedding, SharedBottom
from surefoot.lab.models.ranker import Ranker, task_losses
from surefoot.lab.sources import completejourney, synthetic
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.embedding_tables import split_parameters
from surefoot.optim.nonfinite import NonFinite
from surefoot.rules import Clippy, NoClip
from surefoot.tasks import TaskKind

STEPS = 640
BATCH = 256
STEPS_PER_DAY = 20
DAYS = STEPS // STEPS_PER_DAY
WINDOW_DAYS = 3
PROBE_ONE_IN = {"synthetic": 8, "completejourney": 16}
WINDOW_ROWS, REFRESH = 8192, 8  # the monitor's defaults: rows of its window, steps from one score to the next
DIM = 8
EMBEDDING_RATE = 0.1
RARE = 0.01
DRIFT_STEP = 200
LAST_DAYS = 100  # of completejourney, from which a seed picks its stretch


@dataclass(frozen=True)
class Setup:
    """What all runs of one twin share."""

    index: int
    data: str
    seed: int
    narrow: bool  # only the first 8 dense features: in completejourney, what is known of the household
    hidden: tuple[int, ...]
    cross_layers: int
    binary_only: bool
    rate: float
    warmup_steps: int
    clippy: bool
    skips: bool  # a step whose gradient is not finite
    rare: bool = False  # one row in a hundred is a positive
    drift: float | None = None  # what some features are multiplied by from DRIFT_STEP on, in all of its runs


@lru_cache(maxsize=4)
def _whole_log(data: str, seed: int) -> Log:
    if data == "completejourney":
        return completejourney.load(LAST_DAYS)
    return synthetic.make(days=DAYS, rows_per_day=2048, seed=seed)


class Logs(NamedTuple):
    """The rows to train on and those to score, of the same days."""

    train: Log
    probe: Log
    first: int  # day


def load_logs(setup: Setup) -> Logs:
    """Return the logs with the tasks and features of this set-up, and the number of its first day."""
    real = setup.data == "completejourney"
    log = _whole_log(setup.data, 0 if real else setup.seed)
    first = setup.seed * 7 % (len(log.days) - DAYS + 1)
    tasks = log.schema.tasks
    kept = [i for i, t in enumerate(tasks) if t.judged and (t.kind is TaskKind.BINARY or not setup.binary_only)]
    dense = 8 if setup.narrow else len(log.schema.dense)
    log = replace(
        log,
        schema=replace(log.schema, tasks=tuple(tasks[i] for i in kept), dense=log.schema.dense[:dense]),
        rows=log.rows._replace(labels=log.rows.labels[:, kept], dense=log.rows.dense[:, :dense]),
    )
    if setup.rare:
        log = replace(log, rows=log.rows._replace(labels=_thinned(log.rows.labels, log.schema.tasks, setup.seed)))
    probed = torch.arange(len(log.rows.labels)) % PROBE_ONE_IN[setup.data] == 0
    return Logs(_only(log, ~probed), _only(log, probed), first)


def _thinned(labels: Tensor, tasks: Sequence[Task], seed: int) -> Tensor:
    """Return the labels with all but RARE of the rows of each binary task made negative, at random."""
    draw = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    binary = torch.tensor([task.kind is TaskKind.BINARY for task in tasks])
    return torch.where(binary & (draw > RARE / labels.mean(0)), 0.0, labels)


def _only(log: Log, rows: Tensor) -> Log:
    """Return the log's chosen rows, (rows,) bool."""
    before = torch.cat([torch.zeros(1, dtype=torch.long), rows.cumsum(0)])
    starts = tuple(before[list(log.starts)].tolist())
    return replace(log, starts=starts, rows=Batch(*(part[rows] for part in log.rows)))


@dataclass
class Training:
    """A model and its optimizers; a copy of it goes its own way."""

    model: nn.Module
    optimizers: tuple[Optimizer, ...]  # dense, embedding
    past: deque[nn.Module] = field(default_factory=lambda: deque(maxlen=WINDOW_DAYS))  # the model at the start of days


def start(setup: Setup, log: Log) -> Training:
    """Return the set-up before its first step."""
    torch.manual_seed(setup.seed)
    rows = [column.rows for column in log.schema.categorical]
    width = len(rows) * DIM + len(log.schema.dense)
    model = Ranker(
        embedding=FeatureEmbedding(rows, DIM),
        interaction=CrossNetwork(width, setup.cross_layers) if setup.cross_layers else nn.Identity(),
        bottom=SharedBottom(width, setup.hidden, len(log.schema.tasks)),
        heads=nn.ModuleDict({task.name: nn.Linear(setup.hidden[-1], 1) for task in log.schema.tasks}),
    )
    parameters = split_parameters(model)
    rule = Clippy() if setup.clippy else NoClip()
    dense = Adagrad(
        parameters.dense.values(), setup.rate, rule=rule, nonfinite=NonFinite.PROPAGATE, initial_accumulator_value=0.1
    )
    embedding = torch.optim.Adagrad(
        parameters.embedding.values(), EMBEDDING_RATE, initial_accumulator_value=1e-6, foreach=False
    )
    return Training(model, (dense, embedding))


class Recorder:
    """The rows of one run."""

    def __init__(self, logs: Logs, fault: Fault, setup: Setup) -> None:
        self.logs, self.fault = logs, fault
        self.drift = none() if setup.drift is None else drift_day(DRIFT_STEP, logs.train.schema, factor=setup.drift)
        self.rows: list[Tensor] = []
        self.outputs: list[Tensor] = []  # of the batches, each (rows, tasks)
        self.labels: list[Tensor] = []
        self.probed: list[Tensor] = []  # each (rows, tasks)
        self.served: list[Tensor] = []
        self.past: list[np.ndarray] = []  # of each day from the fault's on, the scores of past weights, (2 * tasks,)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.logs.train.schema.tasks

    def probe(self, step: int) -> Batch:
        """Return the rows that are scored at a step."""
        day = self.logs.first + step // STEPS_PER_DAY
        return self.drift.on_batch(step, self.logs.probe.window(max(0, day - WINDOW_DAYS + 1), day))

    @torch.no_grad()
    def score_past(self, step: int, models: Iterable[nn.Module]) -> None:
        """Score the day's rows with weights of the past; keep the best of each score."""
        probe = self.probe(step)
        outputs = torch.stack([model(probe.categorical, probe.dense) for model in models])
        table, tasks = scores(outputs, probe.labels, self.tasks), len(self.tasks)
        with np.errstate(invalid="ignore"):
            self.past.append(np.concatenate([np.fmax.reduce(table[:, :tasks]), np.fmin.reduce(table[:, tasks:])]))

    @torch.no_grad()
    def score(self, step: int, model: nn.Module) -> None:
        probe = self.probe(step)
        self.probed.append(model(probe.categorical, probe.dense))
        if self.fault.world:
            served = self.fault.on_batch(step, probe)
            same = served is probe
            self.served.append(self.probed[-1] if same else model(served.categorical, served.dense))


def take_step(setup: Setup, training: Training, recorder: Recorder, step: int, batch: Batch) -> None:
    """Take one step as the fault has it, and record it."""
    model, (dense, embedding), fault = training.model, training.optimizers, recorder.fault
    tasks = recorder.tasks
    if step % STEPS_PER_DAY == 0:
        training.past.append(copy.deepcopy(model))
    if step % STEPS_PER_DAY == 0 or not recorder.past:
        recorder.score_past(step, training.past)
    fault.on_state(step, model, training.optimizers)
    recorder.score(step, model)
    batch = fault.on_batch(step, recorder.drift.on_batch(step, batch))
    outputs = model(batch.categorical, batch.dense)
    losses = task_losses(outputs, batch.labels, tasks)
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    trained = fault.on_losses(step, losses)
    trained.sum().backward()
    table = embedding.param_groups[0]["params"][0]
    table.grad = table.grad.coalesce()
    params = dense.param_groups[0]["params"]
    norms = torch.stack(torch._foreach_norm([*(p.grad for p in params), table.grad._values()]))  # pyright: ignore
    warm = min(1.0, (step + 1) / setup.warmup_steps) if setup.warmup_steps else 1.0
    rate = setup.rate * warm * fault.rate(step)
    ratios = _clip_ratios(params, [dense.state[p]["sum"] if p in dense.state else None for p in params], rate)
    with torch.no_grad():
        relative = losses.detach() / constant_losses(batch.labels, tasks)
        recorder.rows.append(torch.cat([trained.detach(), relative, ratios, norms, torch.tensor([rate])]))
        recorder.outputs.append(outputs.detach())
        recorder.labels.append(batch.labels)
    if norms.isfinite().all() or not setup.skips:
        dense.param_groups[0]["lr"] = rate
        embedding.param_groups[0]["lr"] = EMBEDDING_RATE * fault.rate(step)
        for optimizer in training.optimizers:
            optimizer.step()


@torch.no_grad()
def _clip_ratios(params: Sequence[Tensor], sums: Sequence[Tensor | None], rate: float) -> Tensor:
    """Return Clippy's max_i lr |r_i| / (0.5 |w_i| + 0.01) of each parameter's step, unclipped, (params,)."""
    ratios = []
    for p, total in zip(params, sums, strict=True):
        assert p.grad is not None
        update = p.grad / (p.grad.square() + (0.1 if total is None else total)).sqrt()
        ratios.append((update.abs() / (p.abs() * 0.5).add_(0.01)).amax())
    return torch.stack(ratios) * rate


def record(setup: Setup, faults: Sequence[Fault], folder: Path) -> None:
    """Train the set-up unharmed and with each fault; write ``<index>.npz`` and ``<index>.json``."""
    logs = load_logs(setup)
    batches = list(_batches(logs, setup.seed))
    training = start(setup, logs.train)
    twin = Recorder(logs, none(), setup)
    copies: dict[int, Training] = {}
    for step, batch in enumerate(batches):
        if any(fault.step == step for fault in faults):
            copies[step] = copy.deepcopy(training)
        take_step(setup, training, twin, step, batch)
    arrays = {f"0/{name}": values for name, values in _tables(twin, twin).items()}
    for number, fault in enumerate(faults, 1):
        branch = copy.deepcopy(copies[fault.step])
        recorder = Recorder(logs, fault, setup)
        for step in range(fault.step, STEPS):
            take_step(setup, branch, recorder, step, batches[step])
        arrays |= {f"{number}/{name}": values for name, values in _tables(recorder, twin).items()}
    np.savez(folder / f"{setup.index:03d}.draft.npz", allow_pickle=False, **arrays)
    names = [task.name for task in twin.tasks]
    about = {
        "setup": vars(setup),
        "tasks": names,
        "binary": [task.kind is TaskKind.BINARY for task in twin.tasks],
        "layers": [*split_parameters(training.model).dense, "embedding"],
        "runs": [_plain(none()), *(_plain(fault) for fault in faults)],
    }
    (folder / f"{setup.index:03d}.json").write_text(json.dumps(about, indent=1))
    (folder / f"{setup.index:03d}.draft.npz").rename(
        folder / f"{setup.index:03d}.npz"
    )  # last: its presence means whole


def _plain(fault: Fault) -> dict[str, object]:
    return {"name": fault.name, "step": fault.step, "steps": fault.steps, "harmless": fault.harmless}


def _batches(logs: Logs, seed: int) -> Iterator[Batch]:
    window = MovingWindow(logs.train, BATCH, WINDOW_DAYS, STEPS_PER_DAY, seed)
    for day in range(logs.first, logs.first + DAYS):
        yield from window.batches(day)


def _tables(recorder: Recorder, twin: Recorder) -> dict[str, np.ndarray]:
    """Return what is kept of a run, float32, one row a step from the fault's step on.

    ``steps``: losses as trained on, relative losses (tasks each), clip ratios (dense layers),
    gradient norms (layers), rate.
    ``outputs``, ``labels``: of the batches, (rows, tasks), for what a monitor's window shows.
    ``probe``: AUC and relative loss (tasks each) of the probe; ``served`` likewise, as the fault would serve it;
    ``past`` likewise, the best of past weights on the same rows.
    """
    missing = len(twin.outputs) - len(recorder.outputs)
    found = {
        "steps": torch.stack(recorder.rows).numpy(),
        "outputs": torch.stack(recorder.outputs).numpy(),
        "labels": torch.stack(recorder.labels).numpy(),
        "probe": _probed(recorder.probed, recorder, missing),
        "past": np.stack(recorder.past)[np.arange(missing, STEPS) // STEPS_PER_DAY - missing // STEPS_PER_DAY],
    }
    if recorder.served:
        found["served"] = _probed(recorder.served, recorder, missing)
    return found


def _probed(outputs: Sequence[Tensor], recorder: Recorder, start: int) -> np.ndarray:
    """Return (steps, 2 * tasks): AUC where binary, relative loss; outputs are (rows, tasks), from step start on."""
    days = groupby(range(start, STEPS), lambda step: step // STEPS_PER_DAY)
    tables = []
    for _, group in days:
        steps = list(group)
        labels = recorder.probe(steps[0]).labels
        tables.append(scores(torch.stack([outputs[step - start] for step in steps]), labels, recorder.tasks))
    return np.concatenate(tables)
