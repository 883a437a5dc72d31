"""A configured run with a ring looking on, up to an alarm."""

from collections.abc import Callable
from pathlib import Path

from surefoot.capsule import storage
from surefoot.capsule.ring import Ring
from surefoot.capsule.storage import Capsule
from surefoot.lab.data.schema import Batch
from surefoot.lab.settings import dump
from surefoot.lab.study.config import RunConfig
from surefoot.lab.study.trial import assemble, load_log
from surefoot.lab.training.loop import take_step
from surefoot.recover.lr_scale import LrScale

DRIFT = RunConfig.model_validate(  # a run of the preset "drift"
    {
        "rate": 0.1,
        "data": {"days": 20, "drift_day": 14},
        "training": {"batch_size": 128, "initial_accumulator_value": 0.1},
        "rule": {"name": "naive"},
    }
)
TINY = RunConfig.model_validate(
    {"rate": 0.1, "data": {"days": 6, "rows_per_day": 512}, "model": {"hidden": [16]}, "training": {"batch_size": 64}}
)
ALARM = {"task": "rating", "layer": None, "signal": "loss", "reason": "the relative loss of rating rose"}


def capsule_of(
    config: RunConfig,
    folder: Path,
    *,
    alarm: int,
    after: int = 4,
    spoil: Callable[[int, Batch], None] | None = None,
    slowed: range = range(0),
    written: str | None = "",
) -> Capsule:
    """Train until ``after`` steps past the alarm's, and return the capsule of the last steps.

    Args:
        config: the run's.
        folder: for the capsule.
        alarm: its step.
        after: steps to take after that.
        spoil: may write into each batch before its step; the ring then keeps the batches, else their row numbers.
        slowed: steps taken at half the rate; every third of them is held.
        written: the configuration to write into the capsule, "" for the run's own.
    """
    parts = assemble(config, load_log(config.data))
    ring, lr_scale = Ring(parts.model, parts.optimizers, others=[parts.scheduler]), LrScale(parts.optimizers)
    stream = parts.window.stream(len(parts.window.log.days) - 1)
    names = [task.name for task in parts.window.log.schema.tasks]
    for step in range(alarm + after + 1):
        day, index = stream.position
        _, batch = next(stream)
        if spoil is not None:
            spoil(step, batch)
        lr_scale.factor, lr_scale.held = 0.5 if step in slowed else 1.0, step in slowed and step % 3 == 0
        note = {"day": day, "index": index, "rate_factor": lr_scale.factor, "held": int(lr_scale.held)}
        ring.record(step, None if spoil is None else batch, rows=stream.rows, note=note)
        losses = take_step(parts.model, batch, parts.optimizers, parts.window.log.schema.tasks).losses
        parts.scheduler.step()
        ring.observe(step, dict(zip(names, losses.unbind(), strict=True)))
    path = ring.write(folder, alarm={"step": alarm, **ALARM}, config=dump(config) if written == "" else written)
    assert path is not None
    return storage.read(path)
