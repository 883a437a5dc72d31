"""One sequential run: day after day, old to new, each day scored before anything is trained on it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from surefoot.detect.detector import Detector, FreshScore, Verdict
from surefoot.lab.data.schema import Batch, Task
from surefoot.lab.data.sliding_window import MovingWindow, Stream
from surefoot.lab.metrics import evaluate
from surefoot.lab.models.ranker import loss_weights, task_losses
from surefoot.lab.training.progress import Progress, Row
from surefoot.observe.detector_input import DetectorInput
from surefoot.observe.step_record import Combine, Reading, Record, interpreted
from surefoot.observe.streaming_metrics import clean
from surefoot.optim.adagrad import Adagrad
from surefoot.recover.policy import Action
from surefoot.supervisor import Supervisor
from surefoot.tasks import TaskKind

_EVALUATION_ROWS = 8192


class Predicted(NamedTuple):
    """What a model gave for a batch, before the step on it."""

    outputs: Tensor  # (rows, tasks)
    losses: Tensor  # (tasks,)


@dataclass
class Run:
    """What a run leaves behind.

    Args:
        steps: a row for each step: its number, day, learning rate, losses, relative losses, clip factors. Of a masked
            task the relative loss is 0 where too few rows of the batch count to tell.
        next_day: a row for each day that was scored before it was trained on, the last one included.
        curve: a row for each day after which the curve's day was scored.
        verdict: healthy, micro or full.
        stopped_early: whether a full divergence ended the run.
        never_learnt: the judged tasks that were never better than a constant prediction, nor rank better than chance
            in the end: a failure of its own kind.
    """

    steps: list[dict[str, float | int | str]] = field(default_factory=list)
    next_day: list[dict[str, float | int | str]] = field(default_factory=list)
    curve: list[dict[str, float | int | str]] = field(default_factory=list)
    verdict: Verdict = Verdict.HEALTHY
    stopped_early: bool = False
    never_learnt: list[str] = field(default_factory=list)

    @property
    def final(self) -> dict[str, float | int | str]:
        """The scores of the day after the last one trained on."""
        return self.next_day[-1]


def train(
    model: nn.Module,
    window: MovingWindow,
    optimizers: Sequence[Optimizer],
    *,
    days: int,
    detector: Detector,
    layers: dict[str, nn.Parameter],
    schedulers: Iterable[LRScheduler] = (),
    curve_day: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    supervisor: Supervisor | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train on the log's first ``days`` day partitions, in order; score each before it enters, and the next one last.

    A run that diverges fully stops there, and is scored as it is.

    Args:
        model: from (categorical, dense) to one output a task; on the device to train on, its embeddings included.
        window: the batches.
        optimizers: all are stepped; the first one's rate and clip factors are recorded.
        days: partitions to train on; partition number ``days`` is scored at the end.
        detector: sees the losses and relative losses of the judged tasks, one step late.
        layers: parameters of the first optimizer whose clip factors are recorded, by name.
        schedulers: stepped once a step.
        curve_day: a partition to score after every day, for a figure; nothing may be chosen by it.
        on_step: called after each step with its number, for a progress bar.
        supervisor: watches the run and acts on alarms; its detector judges the run then, not ``detector``.
        progress: how far the run is, if it goes on from a checkpoint.

    Raises:
        ValueError: if there are not more than ``days`` partitions, or ``days`` is below 1.
    """
    if not 1 <= days < len(window.log.days):
        raise ValueError(f"days is {days}; expected 1 to {len(window.log.days) - 1}, to leave a day to score")
    progress = Progress(window.stream(days)) if progress is None else progress
    run, step = Run(progress.steps, progress.next_day, progress.curve), len(progress.steps)
    if supervisor is not None and supervisor.monitor is not None:
        detector = supervisor.monitor.detector
    tasks = window.log.schema.tasks
    judged = [task for task in tasks if task.judged]
    recorder = _Recorder(tasks, list(layers), run.steps, detector if supervisor is None else None)
    progress.pending = recorder.peek
    for day, batch in _day_by_day(model, progress, run, curve_day):
        predicted = take_step(model, batch, optimizers, tasks)
        factors = dict(zip(layers, _mean_factors(optimizers[0], layers.values()), strict=True))
        rate = float(optimizers[0].param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
        reading = start_reading(predicted.losses, batch.labels, tasks, factors)
        recorder.exchange({"step": step, "day": day, "lr": rate}, reading)
        if supervisor is None:
            run.stopped_early = detector.verdict is Verdict.FULL
        else:
            run.stopped_early = _supervise(supervisor, tasks, batch, predicted, day, progress.stream) is Action.STOP
        on_step(step)
        step += 1
        if run.stopped_early:
            break
    recorder.flush(show=not run.stopped_early)
    if run.stopped_early:
        _end_day(model, window, run, int(run.steps[-1]["day"]), curve_day)
    run.next_day.append(_score_day(model, window, days))
    fresh = {task.name: _fresh_score(task, run.final) for task in judged}
    run.verdict = detector.finish(step, fresh) if supervisor is None else supervisor.close(fresh)
    run.never_learnt = [task for task in detector.never_learnt if not fresh[task].auc_low > 0.5]
    return run


def _fresh_score(task: Task, scores: dict[str, float | int | str]) -> FreshScore:
    if task.kind is TaskKind.BINARY:
        return FreshScore(float(scores[f"ne/{task.name}"]), float(scores[f"auc_low/{task.name}"]))
    rmse, constant = float(scores[f"rmse/{task.name}"]), float(scores[f"rmse_constant/{task.name}"])
    return FreshScore((rmse / constant) ** 2 if constant else math.nan)


def warm_up(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Return a schedule that raises the rate linearly from rate / steps to the full rate over the first ``steps``."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps) if steps else 1.0)


def take_step(model: nn.Module, batch: Batch, optimizers: Sequence[Optimizer], tasks: tuple[Task, ...]) -> Predicted:
    """Take one step; return what the model gave before it, on its device."""
    batch = batch.to(next(model.parameters()).device)
    outputs = model(batch.categorical, batch.dense)
    losses = task_losses(outputs, batch.labels, tasks)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    (losses @ loss_weights(model, tasks).to(losses)).backward()
    for optimizer in optimizers:
        optimizer.step()
    return Predicted(outputs.detach(), losses.detach())


def start_reading(
    losses: Tensor, labels: Tensor, tasks: tuple[Task, ...], factors: Mapping[str, Tensor] | None = None
) -> Reading:
    """Send a step's losses, the moments of its labels and the layers' clip factors to the host."""
    record, names, labels = Record(), [task.name for task in tasks], labels.T
    record.add("loss", names, losses, Combine.MEAN)
    record.add_labels(names, clean(labels, labels), [task.kind is TaskKind.BINARY for task in tasks])
    record.add_found("clip_factor", factors or {}, factors or {}, Combine.MIN)
    return record.start()


def read(reading: Reading, tasks: tuple[Task, ...]) -> dict[tuple[str, str], float]:
    """Return what ``start_reading`` has sent, by kind and name: losses, relative losses and clip factors among it.

    A loss of which no row counts is not there, nor is a relative loss of which too few do.
    """
    binary = {task.name: task.kind is TaskKind.BINARY for task in tasks}
    return interpreted(reading.get(), binary, [task.name for task in tasks if task.masked])


def _supervise(
    supervisor: Supervisor, tasks: tuple[Task, ...], batch: Batch, predicted: Predicted, day: int, stream: Stream
) -> Action:
    """Let a step be judged: by the judged tasks; a capsule keeps the losses of all."""
    names, judged = [task.name for task in tasks], [task.name for task in tasks if task.judged]
    losses = dict(zip(names, predicted.losses.unbind(), strict=True))
    outputs = dict(zip(names, predicted.outputs.unbind(1), strict=True))
    labels = dict(zip(names, batch.labels.unbind(1), strict=True))
    index = stream.position[1] - 1 if stream.position[0] == day else stream.window.steps(day) - 1
    return supervisor.step(
        {name: losses[name] for name in judged},
        outputs={name: outputs[name] for name in judged},
        labels={name: labels[name] for name in judged},
        rows=stream.rows,
        note={"day": day, "index": index},
        shown=losses,
    )


def _day_by_day(model: nn.Module, progress: Progress, run: Run, curve_day: int | None) -> Iterator[tuple[int, Batch]]:
    """Yield the batches and their days; score every day but the first before it enters, the curve's after each."""
    window = progress.stream.window
    for day, batch in progress.stream:
        if day != progress.today:
            _end_day(model, window, run, progress.today, curve_day)
            run.next_day.append(_score_day(model, window, day))
            progress.today = day
        yield day, batch
    _end_day(model, window, run, progress.today, curve_day)


def _end_day(model: nn.Module, window: MovingWindow, run: Run, day: int, curve_day: int | None) -> None:
    if curve_day is not None:
        run.curve.append(_score_day(model, window, curve_day) | {"after": window.log.days[day]})


def _mean_factors(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> Tensor:
    """Return the clip factor of each parameter, averaged over its units, (params,); 1 where there is none."""
    factors = optimizer.clip_factors() if isinstance(optimizer, Adagrad) else {}
    means = [factors[p].mean() if p in factors else p.new_ones(()) for p in params]
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float32, device="cpu")


@torch.no_grad()
def _score_day(model: nn.Module, window: MovingWindow, day: int) -> dict[str, float | int | str]:
    """Return the metrics of every task on one day partition, of which no more than outputs and labels are held."""
    log, device = window.log, next(model.parameters()).device
    outputs, labels = list[Tensor](), list[Tensor]()
    model.eval()
    for rows in log.pieces(day, _EVALUATION_ROWS):
        outputs.append(model(rows.categorical.to(device), rows.dense.to(device)).cpu())
        labels.append(rows.labels)
    model.train()
    scores = evaluate(torch.cat(outputs), torch.cat(labels), log.schema.tasks, log.groups_of(day))
    return {"day": log.days[day], **scores}


class _Recorder:
    """Keeps the rows of the steps, reading each one step late so that no step waits for the device.

    Args:
        tasks: of the log.
        layers: whose clip factors are recorded.
        rows: to be added to.
        detector: to be shown what the judged tasks did; None: somebody else shows it that.
    """

    def __init__(self, tasks: tuple[Task, ...], layers: list[str], rows: list[Row], detector: Detector | None) -> None:
        self.rows = rows
        self._tasks, self._detector = tasks, detector
        self._unjudged = {task.name for task in tasks if not task.judged}
        self._detector_input = DetectorInput([task.name for task in tasks if task.masked])
        self._names = [(kind, task.name) for kind in ("loss", "relative_loss") for task in tasks]
        self._names += [("clip_factor", layer) for layer in layers]
        self._pending: tuple[Row, Reading] | None = None

    def exchange(self, beside: Row, reading: Reading) -> None:
        """Put in this step, with what is known of it already; read the one before."""
        self.flush()
        self._pending = beside, reading

    def flush(self, *, show: bool = True) -> None:
        """Read the last step put in, if that has not been done; show it to the detector."""
        if self._pending is None:
            return
        (beside, reading), self._pending = self._pending, None
        values = read(reading, self._tasks)
        self.rows.append(beside | self._row(values))
        if self._detector is not None and show:
            judged = {name: value for name, value in values.items() if name[1] not in self._unjudged}
            self._detector.update(int(beside["step"]), self._detector_input.signals(judged))

    def peek(self) -> Row | None:
        """Return the row of the last step put in, if it has not been read."""
        if self._pending is None:
            return None
        beside, reading = self._pending
        return beside | self._row(read(reading, self._tasks))

    def _row(self, values: Mapping[tuple[str, str], float]) -> Row:
        return {f"{kind}/{name}": values.get((kind, name), 0.0) for kind, name in self._names}
