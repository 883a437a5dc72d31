"""One sequential run: day after day, old to new, each day scored before anything is trained on it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from surefoot.detect.detector import Detector, FreshScore, Signals, Verdict
from surefoot.lab.data.schema import Batch, Task
from surefoot.lab.data.sliding_window import MovingWindow, Stream
from surefoot.lab.metrics import evaluate
from surefoot.lab.models.ranker import loss_weights, task_losses
from surefoot.lab.training.progress import Progress, Row
from surefoot.observe.streaming_metrics import ENOUGH, UsualRows
from surefoot.optim.adagrad import Adagrad
from surefoot.recover.policy import Action
from surefoot.supervisor import Supervisor
from surefoot.tasks import TaskKind

_EVALUATION_ROWS = 8192
_Told = tuple[Row, bool]  # a step's row, and whether it is of few rows


class Seen(NamedTuple):
    """What a model showed of a batch, before the step on it."""

    outputs: Tensor  # (rows, tasks)
    losses: Tensor  # (tasks,)
    relative_losses: Tensor  # (tasks,): each over that of the best constant prediction on these rows; 0: too few count


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
    recorder, usual = _Recorder(tasks, list(layers), run.steps), UsualRows()
    progress.pending = recorder.peek
    for day, batch in _day_by_day(model, progress, run, curve_day):
        seen = take_step(model, batch, optimizers, tasks)
        factors = _mean_factors(optimizers[0], layers.values())
        rate = float(optimizers[0].param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
        few = usual.are_few(len(batch.labels))
        previous = recorder.exchange(step, day, rate, torch.cat([seen.losses, seen.relative_losses, factors]), few=few)
        if supervisor is not None:
            run.stopped_early = _supervise(supervisor, tasks, batch, seen, day, progress.stream) is Action.STOP
        elif previous is not None:
            run.stopped_early = _diverged(detector, *previous, judged)
        on_step(step)
        step += 1
        if run.stopped_early:
            break
    last = recorder.flush()
    if last and supervisor is None and not run.stopped_early:
        _diverged(detector, *last, judged)
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


def take_step(model: nn.Module, batch: Batch, optimizers: Sequence[Optimizer], tasks: tuple[Task, ...]) -> Seen:
    """Take one step; return what the model showed before it, on its device."""
    batch = batch.to(next(model.parameters()).device)
    outputs = model(batch.categorical, batch.dense)
    losses = task_losses(outputs, batch.labels, tasks)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    (losses @ loss_weights(model, tasks).to(losses)).backward()
    for optimizer in optimizers:
        optimizer.step()
    return Seen(outputs.detach(), losses.detach(), losses.detach() / _constant_losses(batch.labels, tasks))


def _supervise(
    supervisor: Supervisor, tasks: tuple[Task, ...], batch: Batch, seen: Seen, day: int, stream: Stream
) -> Action:
    """Let a step be judged: by the judged tasks; a capsule keeps the losses and relative losses of all."""
    names, judged = [task.name for task in tasks], [task.name for task in tasks if task.judged]
    losses = dict(zip(names, seen.losses.unbind(), strict=True))
    relative = zip(names, seen.relative_losses.unbind(), strict=True)
    outputs = dict(zip(names, seen.outputs.unbind(1), strict=True))
    labels = dict(zip(names, batch.labels.unbind(1), strict=True))
    index = stream.position[1] - 1 if stream.position[0] == day else stream.window.steps(day) - 1
    return supervisor.step(
        {name: losses[name] for name in judged},
        outputs={name: outputs[name] for name in judged},
        labels={name: labels[name] for name in judged},
        rows=stream.rows,
        note={"day": day, "index": index},
        shown=losses | {f"relative_loss/{name}": value for name, value in relative},
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


def _constant_losses(labels: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    """Return each task's loss under the best constant prediction on these rows, (tasks,); never 0.

    Infinite for a masked task of which too few rows count to tell: the loss relative to it is 0.
    """
    if any(task.masked for task in tasks):
        return _constant_losses_of_seen(labels, tasks)
    mean = labels.mean(0)
    rate = mean.clamp(1 / len(labels), 1 - 1 / len(labels))  # a batch without a positive still has a loss
    entropy = -rate * rate.log() - (1 - rate) * (1 - rate).log()
    variance = labels.var(0, correction=0).clamp(min=torch.finfo(labels.dtype).tiny)
    return torch.where(_binary(tasks, labels), entropy, variance)


def _constant_losses_of_seen(labels: Tensor, tasks: tuple[Task, ...]) -> Tensor:
    seen = ~labels.isnan()
    count = seen.sum(0)
    mean = torch.where(seen, labels, 0.0).sum(0) / count
    least = 1 / count.clamp(min=2).to(labels.dtype)
    rate = mean.clamp(least, 1 - least)
    entropy = -rate * rate.log() - (1 - rate) * (1 - rate).log()
    variance = torch.where(seen, labels - mean, 0.0).square().sum(0) / count
    constant = torch.where(_binary(tasks, labels), entropy, variance.clamp(min=torch.finfo(labels.dtype).tiny))
    masked = torch.tensor([task.masked for task in tasks], dtype=torch.bool, device=labels.device)
    return torch.where(masked & (count < ENOUGH), torch.inf, constant)


def _binary(tasks: tuple[Task, ...], beside: Tensor) -> Tensor:
    return torch.tensor([task.kind is TaskKind.BINARY for task in tasks], dtype=torch.bool, device=beside.device)


def _mean_factors(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> Tensor:
    """Return the clip factor of each parameter, averaged over its units, (params,); 1 where there is none."""
    factors = optimizer.clip_factors() if isinstance(optimizer, Adagrad) else {}
    means = [factors[p].mean() if p in factors else p.new_ones(()) for p in params]
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float32, device="cpu")


def _diverged(detector: Detector, row: dict[str, float | int | str], few: bool, judged: list[Task]) -> bool:
    """Show the detector a step as a monitor would; return whether a task has diverged fully.

    Of a step of few rows it is shown what is not finite, and so of a masked task of which too few rows counted to tell,
    whose relative loss is 0.
    """
    losses, relative_losses = {}, {}
    for task in judged:
        loss, relative = float(row[f"loss/{task.name}"]), float(row[f"relative_loss/{task.name}"])
        if not math.isfinite(relative) or not (few or (task.masked and not relative)):
            losses[task.name], relative_losses[task.name] = loss, relative
    detector.update(int(row["step"]), Signals(losses=losses, relative_losses=relative_losses))
    return detector.verdict is Verdict.FULL


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
    """Keeps the rows of the steps, reading each one step late so that no step waits for the device."""

    def __init__(self, tasks: tuple[Task, ...], layers: list[str], rows: list[Row]) -> None:
        self.rows = rows
        names = [task.name for task in tasks]
        self._names = [
            *(f"loss/{name}" for name in names),
            *(f"relative_loss/{name}" for name in names),
            *(f"clip_factor/{layer}" for layer in layers),
        ]
        self._pending: tuple[int, int, float, Tensor, bool] | None = None

    def exchange(self, step: int, day: int, rate: float, values: Tensor, *, few: bool) -> _Told | None:
        """Put in this step, and whether it has few rows; give back the row of the one before."""
        row, self._pending = self.flush(), (step, day, rate, values, few)
        return row

    def flush(self) -> _Told | None:
        """Give back the row of the last step put in, and whether that had few rows, if it has not been given back."""
        if self._pending is None or (row := self.peek()) is None:
            return None
        few, self._pending = self._pending[-1], None
        self.rows.append(row)
        return row, few

    def peek(self) -> Row | None:
        """Return the row of the last step put in, if it has not been given back."""
        if self._pending is None:
            return None
        step, day, rate, values, _ = self._pending
        return {"step": step, "day": day, "lr": rate, **dict(zip(self._names, values.tolist(), strict=True))}
