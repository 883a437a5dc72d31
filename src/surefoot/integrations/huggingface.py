"""The supervisor as a callback of Hugging Face's Trainer; needs ``pip install transformers``."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.capsule.snapshot import Plain
from surefoot.recover.policy import Action
from surefoot.supervisor import Supervisor

_missing: ModuleNotFoundError | None = None
if TYPE_CHECKING:
    TrainerCallback: Any = object
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:  # raised when a callback is made, so that this module can always be imported
        _missing, TrainerCallback = error, object


class SupervisorCallback(TrainerCallback):
    """Supervises the steps of a ``Trainer``, and ends training when the supervisor decides to stop.

    ``compute_loss`` of your trainer calls ``report`` with the losses by task; a step ends with the optimizer's step.

    Args:
        make: builds the supervisor from the model and its optimizers, when training starts.

    Raises:
        ModuleNotFoundError: if transformers is missing.
    """

    def __init__(self, make: Callable[[nn.Module, list[Optimizer]], Supervisor]) -> None:
        if _missing is not None:
            raise _missing
        super().__init__()
        self._make = make
        self.supervisor: Supervisor | None = None

    def report(
        self,
        losses: Mapping[str, Tensor],
        *,
        outputs: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        batch: Plain = None,
        rows: Tensor | None = None,
    ) -> None:
        """Pass a batch's losses and outputs to ``Supervisor.report``; outside of training, do nothing."""
        if self.supervisor is not None:
            self.supervisor.report(losses, outputs=outputs, labels=labels, batch=batch, rows=rows)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **more: Any
    ) -> None:
        """Build the supervisor."""
        self.supervisor = self._make(model, [optimizer])

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """End training if the supervisor has decided to stop."""
        if self.supervisor is not None and self.supervisor.action is Action.STOP:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Close the supervisor."""
        if self.supervisor is not None:
            self.supervisor.close()
            self.supervisor = None
