"""One run's checkpoints: what goes into them, which are known to be healthy, and the way back to one."""

import errno
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from surefoot.capsule.snapshot import Stateful
from surefoot.errors import InputError
from surefoot.recover.checkpoint_schedule import CheckpointSchedule
from surefoot.recover.checkpoints import Checkpoints, Tag, collect_state, restore_state, step_of
from surefoot.recover.policy import State
from surefoot.recover.skip_stage import largest_of_ranks, on_any_rank
from surefoot.recover.state_size import Size, growth, not_finite, sizes_of

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what ends no training, not even at its start
_COMPARED = 16  # checkpoints whose states' sizes are remembered


class SavedRun:
    """Saves a run, and puts it back.

    Nothing that is not finite is saved, but for buffers that were not finite to begin with, such as masks. A disk that
    is full ends no training: it is warned of, and told to ``log``.

    Args:
        model: its state is saved and restored.
        optimizers: likewise.
        checkpoints: where.
        schedule: when.
        loader: what yields the batches; only ``resume`` gives it back.
        parts: the other arguments of ``collect_state``.
        log: writes an event and its details into the journal.

    Raises:
        ValueError: if a weight is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        checkpoints: Checkpoints,
        schedule: CheckpointSchedule,
        *,
        loader: Stateful | None,
        parts: Mapping[str, Any],
        log: Callable[..., None],
    ) -> None:
        self.checkpoints, self.beside = checkpoints, dict[str, Stateful]()
        self._model, self._optimizers, self._schedule = model, optimizers, schedule
        self._loader, self._parts, self._log = loader, parts, log
        self._sizes: dict[int, dict[str, Size]] = {}  # of states, by the steps of the checkpoint
        self._never_finite = not_finite(model, optimizers)
        weights = {name for name, _ in model.named_parameters()}
        if bad := sorted(self._never_finite & weights):
            raise ValueError(f"model has {bad[0]!r} that is NaN or infinite; expected finite weights to begin with")

    def begin(self, state: State) -> None:
        """Save the state at the start, which counts as healthy."""
        self._note_sizes(0)
        try:
            self.checkpoints.save(0, self._collect(state))
            self.checkpoints.tag_healthy(0)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                folder = self.checkpoints.folder
                raise InputError(f"folder {folder} cannot be written: {error.strerror or error}") from None
            self._tell_failed(error, 0)

    def save_if_due(self, state: State) -> None:
        """Save a checkpoint if it is time for one."""
        if self._schedule.due(state.steps):
            self.save(state)

    def save(self, state: State) -> None:
        """Save a checkpoint, which is pending then."""
        began = time.monotonic()
        wrong = not_finite(self._model, self._optimizers) - self._never_finite
        if on_any_rank(bool(wrong)):
            self._log("checkpoint_failed", reason=f"{', '.join(sorted(wrong)) or 'another rank'} is not finite")
        else:
            self._note_sizes(state.steps)
            try:
                self.checkpoints.save(state.steps, self._collect(state))
            except OSError as error:
                self._tell_failed(error, state.steps)
            else:
                state.pending.append(state.steps)
        self._schedule.begin(state.steps, took=time.monotonic() - began, agree=largest_of_ranks)

    def tag_healthy(self, up_to: int, steps: int) -> bool:
        """Tag the checkpoints of the first ``up_to`` steps healthy; return whether the disk has taken it."""
        try:
            self.checkpoints.tag_healthy(up_to)
        except OSError as error:  # they stay pending for now
            self._tell_failed(error, steps)
            return False
        return True

    def roll_back(self, path: Path, steps: int) -> None:
        """Put everything but the loader back, and mark later checkpoints as suspect.

        Args:
            path: the checkpoint.
            steps: taken by now; a monitor goes on counting from there, as the batches do.
        """
        back_to, saved = step_of(path), self.checkpoints.load(path)
        if self._parts["monitor"] is not None:
            saved["named"]["monitor"]["step"] = steps
        restore_state(saved, self._model, self._optimizers, **self._parts)
        self._sizes = {step: sizes for step, sizes in self._sizes.items() if step <= back_to}
        self._note_sizes(steps)
        try:
            self.checkpoints.tag_suspect(back_to)
        except OSError as error:
            self._tell_failed(error, steps)

    def resume(self, path: Path) -> State:
        """Put everything back as it was saved, the loader too; return how far the policy was."""
        saved = self.checkpoints.load(path)
        restore_state(saved, self._model, self._optimizers, loader=self._loader, **self._parts)
        for name, each in self.beside.items():
            if name in saved.get("beside", {}):
                each.load_state_dict(saved["beside"][name])
        state = State.of(saved["recovery"])
        state.pending = [entry.step for entry in self.checkpoints.entries() if entry.tag is Tag.PENDING]
        self._note_sizes(state.steps)
        return state

    def delete_after(self, steps: int) -> None:
        """Delete the checkpoints of later steps, by a run that was interrupted."""
        try:
            self.checkpoints.delete(after=steps)
        except OSError as error:
            self._tell_failed(error, steps)

    def growth_since(self, onset: int) -> tuple[float, str] | None:
        """Return what the batches since the onset have left in the state: how many times as large it is, and in words.

        Momentum goes on pushing where a bad batch pointed, and an accumulator that has learnt it makes all steps small,
        though the losses may be well again. None: nothing, on any rank, or there is no earlier checkpoint to ask.
        """
        steps = [step for step in self._sizes if step <= onset]
        if not steps:
            return None
        ratio, words = growth(sizes_of(self._model, self._optimizers), self._sizes[max(steps)]) or (0.0, "")
        (ratio,) = largest_of_ranks([ratio])
        return (ratio, words) if ratio else None

    def _note_sizes(self, steps: int) -> None:
        """Remember how large the states are now, to be compared with later."""
        self._sizes[steps] = sizes_of(self._model, self._optimizers)
        self._sizes = {step: self._sizes[step] for step in sorted(self._sizes)[-_COMPARED:]}

    def _collect(self, state: State) -> dict[str, Any]:
        saved = collect_state(self._model, self._optimizers, loader=self._loader, **self._parts)
        beside = {name: each.state_dict() for name, each in self.beside.items()}
        return {**saved, "recovery": state.state_dict(), "beside": beside}

    def _tell_failed(self, error: OSError, steps: int) -> None:
        self._log("checkpoint_failed", reason=str(error))
        warnings.warn(f"the checkpoint after {steps} steps was not written: {error}", stacklevel=6)
