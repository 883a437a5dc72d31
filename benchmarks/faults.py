"""Faults that break training runs, for the benchmarks of detection and recovery.

    fault = nan_batch(step=300)
    for step, batch in enumerate(batches):
        fault.on_state(step, model, optimizers)          # before the forward pass
        batch = fault.on_batch(step, batch)
        losses = fault.on_losses(step, task_losses(...)) # (tasks,)
        ...
        optimizer.param_groups[0]["lr"] = rate * fault.rate(step)

What a fault draws at random depends on its seed and the step alone, so that a run rolled back sees it again as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from surefoot.lab.data.schema import Batch, Schema
from surefoot.tasks import TaskKind


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Args:
        name: of the kind.
        step: the first step that it acts on.
        steps: how many steps it acts on; None: to the end.
        batch: from a batch and a generator to the batch that arrives instead.
        state: damages the model or the optimizers, once, before the forward pass of the first step.
        losses: from the losses of the tasks, (tasks,), to those that are trained on.
        rates: from the number of steps since ``step`` to what the rate is multiplied by; 1 after ``steps``.
        world: whether data would arrive like this where the model is served, too.
        harmless: whether it was made not to harm.
        seed: of what is drawn at random.
    """

    name: str
    step: int
    steps: int | None = 1
    batch: Callable[[Batch, Generator], Batch] | None = None
    state: Callable[[nn.Module, Sequence[Optimizer], Generator], None] | None = None
    losses: Callable[[Tensor], Tensor] | None = None
    rates: Callable[[int], float] | None = None
    world: bool = False
    harmless: bool = False
    seed: int = 0

    def acts(self, step: int) -> bool:
        """Whether it acts on this step."""
        return self.step <= step and (self.steps is None or step < self.step + self.steps)

    def on_batch(self, step: int, batch: Batch) -> Batch:
        """Return the batch as it arrives."""
        return self.batch(batch, self._generator(step)) if self.batch and self.acts(step) else batch

    def on_state(self, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Damage the model or the optimizers, if this is the step for it."""
        if self.state is not None and step == self.step:
            with torch.no_grad():
                self.state(model, optimizers, self._generator(step))

    def on_losses(self, step: int, losses: Tensor) -> Tensor:
        """Return the losses, (tasks,), as they are trained on."""
        return self.losses(losses) if self.losses and self.acts(step) else losses

    def rate(self, step: int) -> float:
        """Return what the rate is multiplied by."""
        return self.rates(step - self.step) if self.rates and self.acts(step) else 1.0

    def _generator(self, step: int) -> Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


# Loud: something arrives, or is done, that no healthy step has.


def nan_batch(step: int, *, rows: int = 1) -> Fault:
    """A batch in which the first ``rows`` rows have a dense feature that is NaN."""
    return Fault("nan_batch", step, batch=_first_rows(rows, torch.nan))


def inf_batch(step: int, *, rows: int = 1) -> Fault:
    """A batch in which the first ``rows`` rows have a dense feature that is infinite."""
    return Fault("inf_batch", step, batch=_first_rows(rows, torch.inf))


def flipped_labels(step: int, schema: Schema, *, steps: int = 20) -> Fault:
    """Binary labels the wrong way round, other labels with the wrong sign."""
    binary = torch.tensor([task.kind is TaskKind.BINARY for task in schema.tasks])
    return Fault(
        "flipped_labels",
        step,
        steps,
        batch=lambda batch, _: batch._replace(labels=torch.where(binary, 1 - batch.labels, -batch.labels)),
    )


def scaled_feature(step: int, *, factor: float = 1e3, steps: int = 10, column: int = 0) -> Fault:
    """One dense feature in the wrong unit for some steps."""
    return Fault("scaled_feature", step, steps, batch=_scaled([column], factor), world=True)


def drift_day(step: int, schema: Schema, *, factor: float = 30.0, share: float = 0.25) -> Fault:
    """A share of the dense features changes its unit for good, as after a rewrite of a pipeline."""
    columns = list(range(max(1, int(share * len(schema.dense)))))
    return Fault("drift_day", step, None, batch=_scaled(columns, factor), world=True)


def shifted_day(step: int, schema: Schema, *, by: float = 1.0, share: float = 0.5, steps: int = 40) -> Fault:
    """A holiday: a share of the dense features is moved by ``by`` of the batch's standard deviations, then is back."""
    columns = list(range(max(1, int(share * len(schema.dense)))))

    def shifted(batch: Batch, _: Generator) -> Batch:
        dense = batch.dense.clone()
        dense[:, columns] += by * dense[:, columns].std(0)
        return batch._replace(dense=dense)

    return Fault("shifted_day", step, steps, batch=shifted, world=True)


def damaged_row(step: int, *, row: int, size: float = 1e3) -> Fault:
    """One row of the embedding table, best that of a frequent id, filled with ``size``."""

    def damage(model: nn.Module, _optimizers: Sequence[Optimizer], _generator: Generator) -> None:
        for table in _tables(model):
            table.weight[row] = size

    return Fault("damaged_row", step, state=damage)


def rate_spike(step: int, *, factor: float = 30.0, steps: int = 5) -> Fault:
    """The rate is too high for a few steps."""
    return Fault("rate_spike", step, steps, rates=lambda _: factor)


def heavy_task(step: int, *, task: int = 0, factor: float = 100.0, steps: int = 10) -> Fault:
    """One task's loss is multiplied by ``factor`` for some steps."""

    def weighted(losses: Tensor) -> Tensor:
        weights = torch.ones_like(losses)
        weights[task] = factor
        return losses * weights

    return Fault("heavy_task", step, steps, losses=weighted)


def rate_step(step: int, *, factor: float) -> Fault:
    """The rate goes up and stays there."""
    return Fault("rate_step", step, None, rates=lambda _: factor)


def rate_ramp(step: int, *, factor: float, steps: int = 100) -> Fault:
    """The rate goes up by ``factor`` over ``steps`` steps, the same share at each, and stays there."""
    return Fault("rate_ramp", step, None, rates=lambda since: factor ** min(1.0, (since + 1) / steps))


# Quiet: every value is one that a healthy step could have.


def shuffled_ids(step: int, *, steps: int | None = None) -> Fault:
    """Each id column is shuffled within the batch: a join that lost its key."""

    def shuffled(batch: Batch, generator: Generator) -> Batch:
        order = torch.rand(batch.categorical.shape, generator=generator).argsort(0)
        return batch._replace(categorical=batch.categorical.gather(0, order))

    return Fault("shuffled_ids", step, steps, batch=shuffled, world=True)


def zeroed_features(step: int, *, steps: int | None = None) -> Fault:
    """All dense features are 0: a feed that is empty."""

    def zeroed(batch: Batch, _: Generator) -> Batch:
        return batch._replace(dense=torch.zeros_like(batch.dense))

    return Fault("zeroed_features", step, steps, batch=zeroed, world=True)


def lost_embeddings(step: int, *, std: float = 0.01) -> Fault:
    """The embedding tables start anew; their accumulators do not."""

    def lose(model: nn.Module, _optimizers: Sequence[Optimizer], generator: Generator) -> None:
        for table in _tables(model):
            table.weight.copy_(std * torch.randn(table.weight.shape, generator=generator))

    return Fault("lost_embeddings", step, state=lose)


def lost_accumulators(step: int) -> Fault:
    """Every Adagrad accumulator is back at its initial value, as after a restart from weights alone."""

    def lose(_model: nn.Module, optimizers: Sequence[Optimizer], _generator: Generator) -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if "sum" in optimizer.state[param]:
                        optimizer.state[param]["sum"].fill_(group["initial_accumulator_value"])

    return Fault("lost_accumulators", step, state=lose)


# BestEffort: what a schedule does.


def lower_rate(step: int, *, factor: float = 0.1) -> Fault:
    """The rate goes down and stays there."""
    return Fault("lower_rate", step, None, rates=lambda _: factor, harmless=True)


def warm_restart(step: int, *, steps: int = 100) -> Fault:
    """The rate starts again at a hundredth and climbs back over ``steps`` steps, the same amount at each."""
    return Fault("warm_restart", step, steps, rates=lambda since: max(0.01, since / steps), harmless=True)


def higher_rate(step: int, *, factor: float = 1.5) -> Fault:
    """The rate goes up a little and stays there."""
    return Fault("higher_rate", step, None, rates=lambda _: factor, harmless=True)


def none() -> Fault:
    """Nothing goes wrong."""
    return Fault("none", 0, None, harmless=True)


def _first_rows(rows: int, value: float) -> Callable[[Batch, Generator], Batch]:
    def spoiled(batch: Batch, _: Generator) -> Batch:
        dense = batch.dense.clone()
        dense[:rows, 0] = value
        return batch._replace(dense=dense)

    return spoiled


def _scaled(columns: list[int], factor: float) -> Callable[[Batch, Generator], Batch]:
    def scaled(batch: Batch, _: Generator) -> Batch:
        dense = batch.dense.clone()
        dense[:, columns] *= factor
        return batch._replace(dense=dense)

    return scaled


def _tables(model: nn.Module) -> list[nn.Embedding]:
    """Return the model's embedding tables.

    Raises:
        ValueError: if there are none.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise ValueError(f"model is a {type(model).__name__} without an nn.Embedding; expected at least one table")
    return tables
