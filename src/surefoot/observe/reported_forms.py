"""What the numbers that a loop gives are: outputs as logits or as probabilities, losses as means or as sums over rows.

A monitor needs to know, and a loop seldom says. The losses of the first steps tell: the log-loss, or squared error, of
the outputs is worked out in each form and compared with the loss that was given.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from surefoot.observe.streaming_metrics import ABSENT, Kinds

_STEPS = 8  # the first ones, of which one has to tell
_NEAR = 1e-2  # relative difference to what a loss would be; half precision needs as much
_EDGE = 1e-7  # no nearer to 0 and 1 than this is a probability taken
AS_LOGITS, AS_PROBABILITIES = MEASURED = "loss_of_logits", "loss_of_probabilities"


class Outputs(StrEnum):
    """What the outputs of binary tasks are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


class Losses(StrEnum):
    """What a task's loss is of those of its rows."""

    MEAN = "mean"
    SUM = "sum"


Form = TypeVar("Form", Outputs, Losses)


class Forms:
    """What each task's outputs and loss are: as the user says, else as the first steps tell; logits and means else.

    Args:
        outputs: of all binary tasks; None: to be found out.
        losses: of all tasks; None: to be found out.

    Raises:
        ValueError: if one of them is unknown.
    """

    def __init__(self, outputs: Outputs | str | None, losses: Losses | str | None) -> None:
        self._outputs = None if outputs is None else _checked("outputs", outputs, Outputs)
        self._losses = None if losses is None else _checked("losses", losses, Losses)
        self._found: dict[str, tuple[Outputs, Losses]] = {}
        self._looks: dict[str, int] = {}  # steps without an answer
        self._inside: dict[str, bool] = {}  # whether the outputs of all these were between 0 and 1

    def outputs(self, task: str) -> Outputs:
        """Return what a task's outputs are taken for."""
        return self._outputs or self._found.get(task, (Outputs.LOGITS, Losses.MEAN))[0]

    def losses(self, task: str) -> Losses:
        """Return what a task's loss is taken for."""
        return self._losses or self._found.get(task, (Outputs.LOGITS, Losses.MEAN))[1]

    def sums(self, tasks: Iterable[str]) -> set[str]:
        """Return those of the tasks whose losses are sums."""
        return {task for task in tasks if self.losses(task) is Losses.SUM}

    def is_open(self, tasks: Sequence[str]) -> bool:
        """Whether something of these tasks has still to be found out."""
        known = self._outputs is not None and self._losses is not None
        return not known and any(task not in self._found for task in tasks)

    def logits(self, task: str, outputs: Tensor) -> Tensor:
        """Return a binary task's outputs as logits."""
        return outputs.float().logit(_EDGE) if self.outputs(task) is Outputs.PROBABILITIES else outputs

    def measure(self, cleaned: Tensor, kinds: Kinds) -> dict[str, Tensor]:
        """Return what the mean losses would be, each (tasks,), by the form of the outputs, which are as given.

        Args:
            cleaned: outputs and labels as ``window.clean`` returns them.
            kinds: of the tasks.
        """
        outputs, labels, seen = cleaned
        count, binary = seen.sum(1), kinds.mask
        of_logits = binary_cross_entropy_with_logits(outputs, labels, seen, reduction="none").sum(1)
        squares = ((outputs - labels).square() * seen).sum(1)
        share = outputs.clamp(0, 1)
        logs = labels * share.log().clamp(min=-100) + (1 - labels) * (1 - share).log().clamp(min=-100)
        inside = (share == outputs).all(1) & binary
        return {
            AS_LOGITS: torch.where(binary, of_logits, squares) / count,
            AS_PROBABILITIES: torch.where(inside, -(logs * seen).sum(1) / count, ABSENT),
        }

    def find(self, step: Mapping[tuple[str, str], float], binary: Mapping[str, bool]) -> bool:
        """Take in a step's values by kind and task; return whether that changes what something is taken for."""
        found: dict[str, tuple[Outputs, Losses]] = {}
        for (kind, task), mean in step.items():
            if kind != AS_LOGITS or task in self._found or ("loss", task) not in step:
                continue
            inside = step.get((AS_PROBABILITIES, task), ABSENT)
            loss, rows = step["loss", task], step.get(("label_count", task), 0.0)
            form = _form_of(loss, rows, mean, inside)
            if form is not None:
                found[task] = (self._outputs or form[0], self._losses or form[1])
                continue
            self._looks[task] = self._looks.get(task, 0) + 1
            self._inside[task] = self._inside.get(task, binary[task]) and inside != ABSENT
            if self._looks[task] >= _STEPS:
                found[task] = (self._outputs or Outputs.LOGITS, self._losses or Losses.MEAN)
                if self._inside[task] and self._outputs is None:
                    _warn(
                        f"outputs of {task} all lie between 0 and 1 and its loss does not tell whether they are "
                        "probabilities; they are taken for logits",
                        "outputs='probabilities' or outputs='logits'",
                    )
        before = {task: (self.outputs(task), self.losses(task)) for task in found}
        self._found |= found
        self._tell(found)
        return any(found[task] != before[task] for task in found)

    def state_dict(self) -> dict[str, list[str]]:
        """Return what was found, in plain strings."""
        return {task: [str(form) for form in forms] for task, forms in self._found.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[str]]) -> None:
        """Take over what was found."""
        self._found = {task: (Outputs(outputs), Losses(losses)) for task, (outputs, losses) in state.items()}

    def _tell(self, found: Mapping[str, tuple[Outputs, Losses]]) -> None:
        """Say once what was found that a loop should say."""
        odd = [task for task, (outputs, _) in found.items() if outputs is Outputs.PROBABILITIES]
        if odd and self._outputs is None:
            _warn(
                f"outputs of {', '.join(odd)} are probabilities, as the loss tells, and are taken so",
                "outputs='probabilities'",
            )
        odd = [task for task, (_, losses) in found.items() if losses is Losses.SUM]
        if odd and self._losses is None:
            _warn(f"losses of {', '.join(odd)} are sums over the rows, and are divided by their number", "losses='sum'")


def _form_of(loss: float, rows: float, of_logits: float, of_probabilities: float) -> tuple[Outputs, Losses] | None:
    """Return the form in which the loss of the outputs is the loss given, the nearest of them; None if in none."""
    if rows < 2:
        return None
    ways = {
        (Outputs.LOGITS, Losses.MEAN): of_logits,
        (Outputs.LOGITS, Losses.SUM): of_logits * rows,
        (Outputs.PROBABILITIES, Losses.MEAN): of_probabilities,
        (Outputs.PROBABILITIES, Losses.SUM): of_probabilities * rows,
    }
    off = {form: abs(loss - way) / way for form, way in ways.items() if way > 0}
    nearest = min(off, key=lambda form: off[form], default=None)
    return nearest if nearest is not None and off[nearest] <= _NEAR else None


def _checked(name: str, value: object, kind: type[Form]) -> Form:
    try:
        return kind(value)
    except ValueError:
        choices = " or ".join(repr(each.value) for each in kind)
        raise ValueError(f"{name} is {value!r}; expected {choices}, or None to find out") from None


def _warn(what: str, argument: str) -> None:
    warnings.warn(f"Monitor: the {what}. Monitor(..., {argument}) says so for certain.", stacklevel=5)
