"""Supervisor and monitor as callbacks of Lightning; needs ``pip install surefoot[lightning]``."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from surefoot.detect.detector import Alarm
from surefoot.observe.monitor import Monitor
from surefoot.recover.policy import Action
from surefoot.supervisor import Supervisor

_missing: ModuleNotFoundError | None = None
if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError as error:  # raised when a callback is made, so that this module can always be imported
        _missing, Callback = error, object

_log = logging.getLogger(__name__)


def tell(alarm: Alarm, trainer: Any) -> None:
    """Log an alarm as a warning."""
    _log.warning("step %s: %s", alarm.step, alarm.reason)


class SupervisorCallback(Callback):
    """Calls a supervisor once a step, and ends training when the supervisor decides to stop.

    ``training_step`` returns a dictionary with ``loss``, for Lightning, and the arguments of ``Supervisor.step``:
    ``losses`` and, if there are any, ``outputs`` and ``labels``, each a dictionary by task. Under gradient accumulation
    these are the last micro-batch's, and a capsule holds all micro-batches. Lightning's checkpoints hold the
    supervisor's state.

    Args:
        make: builds the supervisor from the module and its optimizers, when training starts.

    Raises:
        ModuleNotFoundError: if Lightning is missing.
    """

    def __init__(self, make: Callable[[nn.Module, list[Optimizer]], Supervisor]) -> None:
        if _missing is not None:
            raise _missing
        super().__init__()
        self._make = make
        self.supervisor: Supervisor | None = None
        self._state: dict[str, Any] | None = None
        self._steps = 0  # of optimizers, as the trainer counts them
        self._batches: list[Any] = []  # since the last step

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the supervisor, and load its state from the checkpoint, if any."""
        self.supervisor = self._make(pl_module, trainer.optimizers)
        if self._state is not None:
            self.supervisor.load_state_dict(self._state)
        self._steps, self._batches = trainer.global_step, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell the supervisor that a step begins."""
        if not self._batches and self.supervisor is not None:
            self.supervisor.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Pass the step to the supervisor, if the optimizer has stepped.

        Raises:
            TypeError: if ``training_step`` returned no losses by task.
        """
        if self.supervisor is None:
            return
        self._batches.append(batch)
        if trainer.global_step == self._steps:
            return
        batches, self._batches, self._steps = self._batches, [], trainer.global_step
        losses, shown, labels = _shown(outputs)
        batch = batches[0] if len(batches) == 1 else batches
        if self.supervisor.step(losses, outputs=shown, labels=labels, batch=batch) is Action.STOP:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the supervisor."""
        if self.supervisor is not None:
            self.supervisor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the supervisor, which writes the last steps as a capsule."""
        if self.supervisor is not None:
            self.supervisor.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """Return the supervisor's state."""
        return {} if self.supervisor is None else self.supervisor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state for the supervisor that will be built."""
        self._state = state_dict or None


def _shown(outputs: Any) -> tuple[Any, Any, Any]:
    """Return losses, outputs and labels from the result of ``training_step``."""
    if not (isinstance(outputs, dict) and "losses" in outputs):
        raise TypeError(f"training_step returned {type(outputs).__name__}; expected a dictionary that has 'losses'")
    return outputs["losses"], outputs.get("outputs"), outputs.get("labels")


class MonitorCallback(Callback):
    """Calls a monitor once a step.

    ``training_step`` returns a dictionary with ``loss``, for Lightning, and the arguments of ``Monitor.step``:
    ``losses`` and, if there are any, ``outputs`` and ``labels``, each a dictionary by task. Under gradient accumulation
    these are the last micro-batch's. Lightning's checkpoints hold the monitor's state.

    Args:
        make: builds the monitor from the module and its optimizers, when training starts.
        on_alarm: called with an alarm and the trainer, whose ``should_stop`` it may set; by default it logs a warning.

    Raises:
        ModuleNotFoundError: if Lightning is missing.
    """

    def __init__(
        self,
        make: Callable[[nn.Module, list[Optimizer]], Monitor],
        *,
        on_alarm: Callable[[Alarm, Any], None] = tell,
    ) -> None:
        if _missing is not None:
            raise _missing
        super().__init__()
        self._make, self._on_alarm = make, on_alarm
        self.monitor: Monitor | None = None
        self._state: dict[str, Any] | None = None
        self._steps = 0  # of optimizers, as the trainer counts them

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the monitor, and load its state from the checkpoint, if any."""
        self.monitor = self._make(pl_module, trainer.optimizers)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Pass the step to the monitor, if the optimizer has stepped.

        Raises:
            TypeError: if ``training_step`` returned no losses by task.
        """
        if trainer.global_step == self._steps or self.monitor is None:
            return
        self._steps = trainer.global_step
        losses, shown, labels = _shown(outputs)
        alarm = self.monitor.step(losses, outputs=shown, labels=labels, batch=batch)
        if alarm is not None:
            self._on_alarm(alarm, trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor: its sinks then hold the steps before the error."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state."""
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state for the monitor that will be built."""
        self._state = state_dict or None

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
