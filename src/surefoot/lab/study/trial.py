"""One run from its configuration to its folder.

A run folder holds ``config.toml``, the complete configuration; ``metrics.parquet``, a row for each step;
``days.parquet``, the scores of every day; and ``events.jsonl``, the journal, whose last line, ``"finished"``, is the
result. A folder without that line was interrupted. A watched run also has ``monitor/``, ``capsules/`` and, if it
can recover, ``checkpoints/``; its journal is written as things happen.
"""

import math
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surefoot.capsule.ring import Ring
from surefoot.detect.detector import Detector, Event
from surefoot.errors import InputError
from surefoot.files import make_folder, write_whole
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Log
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.settings import dump, load
from surefoot.lab.sources import completejourney, synthetic
from surefoot.lab.study.claim import RUN_LOCK, difference
from surefoot.lab.study.config import DataConfig, MonitorConfig, RunConfig
from surefoot.lab.study.model import build_model, fit_label_units
from surefoot.lab.training.loop import Run, train, warm_up
from surefoot.lab.training.progress import Progress
from surefoot.observe.monitor import Monitor
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.embedding_tables import split_parameters
from surefoot.optim.nonfinite import NonFinite
from surefoot.recover.journal import Journal, described
from surefoot.recover.journal import read as read_journal
from surefoot.recover.recovery import Recovery
from surefoot.supervisor import Supervisor

_CONFIG, _JOURNAL, _WATCHED = "config.toml", "events.jsonl", "monitor"

_RESULT = {"verdict", "onset", "steps", "scored_day"}  # some of what a result has
_MENDED = "expected the journal of a run: delete the run's folder to have it run again"


@lru_cache(maxsize=1)
def load_log(data: DataConfig) -> Log | PreparedLog:
    """Return the log, on disk if it is too large for memory; a process that runs many trials loads it once.

    Raises:
        InputError: if it cannot be had or holds what cannot be trained on.
    """
    if data.source == "completejourney":
        return completejourney.load(data.days)
    if data.prepared is not None:
        log = _partitioned(data, data.prepared).last(data.days)
        return log if log.bytes > data.memory_mib << 20 else log.load()
    try:
        return synthetic.make(
            days=data.days, rows_per_day=data.rows_per_day, drift_day=data.drift_day, drift=data.drift, seed=data.seed
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"data: {error}") from None


def days_of_log(data: DataConfig) -> int | None:
    """Return how many partitions a prepared log has in all; None of our own logs, which are as long as asked for."""
    if data.prepared is None:
        return None
    return len(_partitioned(data, data.prepared).days)


def _partitioned(data: DataConfig, folder: str) -> PreparedLog:
    log = PreparedLog.open(folder)
    if data.partition_days is not None or data.partition_rows is not None:
        log = log.partitions(days=data.partition_days, rows=data.partition_rows)
    return log


@dataclass(frozen=True)
class TrainingParts:
    """What a configured run trains with."""

    model: nn.Module
    dense: Adagrad
    embedding: Optimizer | None  # of a model with embedding tables
    scheduler: LRScheduler
    window: MovingWindow
    layers: dict[str, nn.Parameter]  # those of the dense optimizer

    @property
    def optimizers(self) -> list[Optimizer]:
        """Of the dense layers, then of the embedding tables, if there are any."""
        return [self.dense] if self.embedding is None else [self.dense, self.embedding]


def assemble(config: RunConfig, log: Log | PreparedLog) -> TrainingParts:
    """Return the parts of a run before its first step, its weights drawn from its seed.

    Raises:
        InputError: if the device is not there.
    """
    training, device = config.training, _device(config.training.device)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless told either way
    torch.manual_seed(config.seed)
    model = build_model(config.model, log)
    fit_label_units(model, log)
    model = model.to(device)
    parameters = split_parameters(model)
    dense = Adagrad(
        parameters.dense.values(),
        config.rate,
        rule=config.rule.build(),
        initial_accumulator_value=training.initial_accumulator_value,
        nonfinite=NonFinite.PROPAGATE,  # a rule is judged by itself; a recovery skips steps of all optimizers
    )
    embedding = None
    if parameters.embedding:
        embedding = torch.optim.Adagrad(
            parameters.embedding.values(),
            training.embedding_rate,
            initial_accumulator_value=training.embedding_initial_accumulator_value,
        )
    window = MovingWindow(
        log,
        training.batch_size,
        training.window_days,
        training.steps_per_day,
        config.seed,
        draw=training.draw,
        cache=config.data.cache_mib << 20,
    )
    return TrainingParts(model, dense, embedding, warm_up(dense, config.warmup_steps), window, parameters.dense)


def run_trial(config: RunConfig, folder: Path, *, on_step: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train as configured, write the run folder, return the result, which is the journal's last line.

    A run with recovery that has checkpoints in the folder goes on from the newest.

    Raises:
        InputError: if the log, the device or the number of days cannot be used, or the folder cannot be written.
    """
    torch.set_num_threads(config.training.threads)
    log = load_log(config.data)
    parts = assemble(config, log)
    make_folder(folder)  # before anything is trained that could not be kept
    supervisor, progress = make_supervisor(config, parts, folder) or (None, None)
    detector = Detector()
    last = len(log.days) - 1
    started = time.perf_counter()
    try:
        run = train(
            parts.model,
            parts.window,
            parts.optimizers,
            days=_days(config, log),
            detector=detector,
            layers=parts.layers,
            schedulers=[parts.scheduler],
            curve_day=last if config.until == "final" else None,
            on_step=on_step,
            supervisor=supervisor,
            progress=progress,
        )
    except BaseException:
        if supervisor is not None and supervisor.monitor is not None:
            supervisor.monitor.flush()  # what was seen is what one wants to know now
        raise
    events = detector.events if supervisor is None else supervisor.events
    result = _result(run, events, seconds=time.perf_counter() - started)
    _write(folder, config, run)
    if supervisor is None:
        _write_journal(folder / _JOURNAL, events, run.never_learnt, result)
    else:
        for task in run.never_learnt:
            supervisor.journal.write("never_learnt", task=task)
        supervisor.journal.write("finished", **result)
    finished = read_result(folder)
    assert finished is not None
    return finished


def claim(folder: Path, config: RunConfig, *, resume: bool = False) -> str:
    """Make sure that a folder is new, or this run's, interrupted; return in words what becomes of what is there.

    Args:
        folder: the run's.
        config: the run.
        resume: whether nothing but going on from a checkpoint will do.

    Raises:
        InputError: if it holds something else, another run, or this one, finished; with ``resume`` also if it has no
            checkpoint to go on from.
    """
    new = not folder.exists() or (folder.is_dir() and not {path.name for path in folder.iterdir()} - {RUN_LOCK})
    if new and not resume:
        return ""
    found = written_config(folder, resume=resume)
    if found != config:
        raise InputError(
            f"--out {folder} holds another run: {difference(found, config, _CONFIG)}; expected a new or an empty "
            "folder, or this run's"
        )
    if read_result(folder) is not None:
        raise InputError(
            f"--out {folder} holds this run, finished, and is not empty; expected a new or an empty folder"
        )
    if _has_checkpoints(folder):
        return f"{folder} holds this run, interrupted: going on from its last checkpoint"
    if resume:
        raise InputError(
            f"--resume is given and {folder} has no checkpoint; expected the folder of a run with [recovery] that was "
            "interrupted, or the same command without --resume, which starts anew"
        )
    shutil.rmtree(folder / _WATCHED, ignore_errors=True)
    (folder / _JOURNAL).unlink(missing_ok=True)
    return f"{folder} holds this run, interrupted: starting anew, as only a run with [recovery] has checkpoints"


def written_config(folder: Path, *, resume: bool) -> RunConfig:
    """Return the configuration of the run that a folder holds.

    Raises:
        InputError: if it holds none; with ``resume`` it says that there is nothing to go on with.
    """
    written = folder / _CONFIG
    if written.is_file():
        return load(RunConfig, written)
    if resume:
        raise InputError(
            f"--resume is given and {folder} holds no run; expected the folder of one that was interrupted"
        )
    raise InputError(f"--out {folder} exists and is not empty; expected a new or an empty folder, or this run's")


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*.pt"))


def _days(config: RunConfig, log: Log | PreparedLog) -> int:
    return len(log.days) - (1 if config.until == "final" else 2)


def make_supervisor(config: RunConfig, parts: TrainingParts, folder: Path) -> tuple[Supervisor, Progress] | None:
    """Return what watches the run, and how far that is, None if the configuration asks for nothing; its files are in
    the folder.
    """
    if config.monitor is None and config.recovery is None:
        return None
    settings, tasks = config.monitor or MonitorConfig(), parts.window.log.schema.tasks
    make_folder(folder)
    write_whole(folder / _CONFIG, dump(config))
    going_on = config.recovery is not None and _has_checkpoints(folder)
    monitor = Monitor(
        parts.model,
        parts.optimizers,
        tasks={task.name: task.kind for task in tasks if task.judged},
        masked=[task.name for task in tasks if task.masked],
        folder=folder / _WATCHED,
        every=settings.every,
        rows=settings.rows,
    )
    limit = settings.capsule_mib << 20
    ring = None
    if settings.capsules:
        ring = Ring(
            parts.model,
            parts.optimizers,
            others=[parts.scheduler],
            steps=settings.capsule_steps,
            max_bytes=limit,
            max_disk_bytes=limit,
        )
    progress = Progress(parts.window.stream(_days(config, parts.window.log)))
    recovery = None
    if config.recovery is not None:
        recovery = Recovery(
            parts.model,
            parts.optimizers,
            folder,
            policy=config.recovery,
            monitor=monitor,
            schedulers=[parts.scheduler],
            loader=progress,
            every=config.recovery.every,
            keep=config.recovery.keep,
        )
    supervisor = Supervisor(
        parts.model,
        parts.optimizers,
        folder,
        monitor=monitor,
        recovery=recovery,
        ring=ring,
        config=dump(config),
        on_alarm=lambda alarm: None,  # the journal has it
    )
    if going_on:
        supervisor.resume()
    return supervisor, progress


def total_steps(config: RunConfig) -> int:
    """Return how many steps the run takes if it does not diverge."""
    log, training = load_log(config.data), config.training
    window = MovingWindow(log, training.batch_size, training.window_days, training.steps_per_day)
    return sum(window.steps(day) for day in range(_days(config, log)))


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run's folder, scores that are not finite as NaN; None if it did not finish.

    Raises:
        InputError: naming the journal, if it is damaged.
    """
    journal = folder / _JOURNAL
    if not journal.exists():
        return None
    try:
        *_, last = [{}, *read_journal(journal)]
        if last.get("event") != "finished":
            return None
        if missing := _RESULT - set(last):
            raise InputError(f"{journal} has no {min(missing)!r} in its last line; {_MENDED}")
    except InputError:
        raise
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{journal} cannot be read: {error}; {_MENDED}") from None
    return {key: math.nan if value is None and "/" in key else value for key, value in last.items() if key != "event"}


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device is 'cuda' and no CUDA device is found; expected 'cpu' on this machine")
    return torch.device(name)


def _result(run: Run, events: list[Event], seconds: float) -> dict[str, Any]:
    """Return the run in one flat row."""
    worst = min(
        (event for event in events if event.verdict is run.verdict), key=lambda event: event.onset, default=None
    )
    factors = [key for key in run.steps[0] if key.startswith("clip_factor/")]
    values = [float(row[key]) for row in run.steps for key in factors]
    return {
        "verdict": run.verdict.value,
        "onset": worst.onset if worst else None,
        "reason": worst.reason if worst else None,
        "steps": len(run.steps),
        "seconds": round(seconds, 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "clipped_share": sum(value != 1.0 for value in values) / len(values),
        **{key: value for key, value in run.final.items() if key != "day"},
        **_of_constants(run),
        "scored_day": run.final["day"],
    }


def _of_constants(run: Run) -> dict[str, float]:
    """Return, by task, the least error on any day, scored before it was trained on, over that of the best constant.

    The RMSE of a regression, the log-loss of a binary task, ``{"of_constant/rating": 0.8}``: a task of 1 or more has
    never beaten its constant. NaN where no day says.
    """
    found: dict[str, list[float]] = {}
    for day in run.next_day:
        for key, value in day.items():
            metric, _, task = key.partition("/")
            if metric == "ne":
                found.setdefault(f"of_constant/{task}", []).append(float(value))
            elif metric == "rmse" and (constant := float(day[f"rmse_constant/{task}"])):
                found.setdefault(f"of_constant/{task}", []).append(float(value) / constant)
    return {
        task: min((each for each in shares if math.isfinite(each)), default=math.nan) for task, shares in found.items()
    }


def _write(folder: Path, config: RunConfig, run: Run) -> None:
    """Write all of the folder but the journal.

    Raises:
        InputError: naming the file that cannot be written.
    """
    write_whole(folder / _CONFIG, dump(config))
    days = [{"scored": kind} | row for kind, rows in (("next_day", run.next_day), ("curve", run.curve)) for row in rows]
    for name, rows in (("metrics", run.steps), ("days", days)):
        file = BytesIO()
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(file)
        write_whole(folder / f"{name}.parquet", file.getvalue())


def _write_journal(path: Path, events: list[Event], never_learnt: list[str], result: dict[str, Any]) -> None:
    """Write the journal last, by a rename, so that its presence means that all else is whole."""
    draft = Journal(path.with_suffix(".jsonl.draft"))
    try:
        draft.path.unlink(missing_ok=True)
        for event in events:
            draft.write("divergence", **described(event))
        for task in never_learnt:
            draft.write("never_learnt", task=task)
        draft.write("finished", **result)
        draft.path.rename(path)
    except OSError as error:
        with suppress(OSError):
            draft.path.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}; expected a folder with room for it") from None
