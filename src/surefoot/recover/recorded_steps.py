"""Steps of a capsule as a recovery let them be taken: skipped, smaller, or held."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from surefoot.capsule.replay import Training
from surefoot.capsule.storage import StepRecord
from surefoot.optim.unwrap import in_backward
from surefoot.recover.buffers import Buffers
from surefoot.recover.lr_scale import LrScale
from surefoot.recover.skip_stage import SkipStage


def under_recovery(training: Training, *, skip: bool = True, up_to: float = math.inf) -> Training:
    """Return a training that takes the steps of a supervisor's capsule as they were taken.

    A step whose gradients are not finite is skipped, and the model's buffers stay as they were; the learning rate and
    held steps are those that the supervisor noted (``rate_factor`` and ``held``), which are 1 and no without a note.
    The hooks for that stay on the training's optimizers.

    Args:
        training: made as the recorded one.
        skip: whether the recovery's policy skips steps.
        up_to: the last step whose note counts: those after it are whole.
    """
    within = in_backward(training.model)
    own = [each for each in training.optimizers if each not in within]
    stages = [SkipStage(several) for several in (own, *([each] for each in within)) if several and skip]
    scale, buffers = LrScale(training.optimizers), Buffers(training.model)

    def prepare(record: StepRecord) -> None:
        training.prepare(record)
        buffers.keep()
        note = record.note if record.step <= up_to else {}
        scale.factor, scale.held = float(note.get("rate_factor", 1.0)), bool(note.get("held", 0))
        for stage in stages:
            stage.last()

    def step(batch: Any) -> Mapping[str, Tensor | float]:
        shown = training.step(batch)
        buffers.settle(True if scale.held else own != [] and skip and stages[0].last())
        return shown

    return replace(training, step=step, prepare=prepare)
