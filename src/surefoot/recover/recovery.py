"""What a run does about an alarm, stage by stage, in any PyTorch loop; each action is written into its journal."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot import checks
from surefoot.capsule.snapshot import Stateful, host_copy
from surefoot.errors import InputError
from surefoot.optim.unwrap import unwrapped, with_in_backward
from surefoot.recover.checkpoint_schedule import CheckpointSchedule
from surefoot.recover.checkpoints import Checkpoints, step_of
from surefoot.recover.journal import Journal
from surefoot.recover.lr_scale import LrScale
from surefoot.recover.policy import EARLY, Action, Alarm, Judge, RecoveryPolicy, RollBack, Slow, State, Watcher
from surefoot.recover.saved_run import SavedRun
from surefoot.recover.skip_stage import UntakenSteps, on_any_rank

_AT_ONCE = 100.0  # times as large: nothing grows so within the steps between two checkpoints, but by a single step
_OF_WINDOW = ("auc", "prediction_std_ratio", "saturation", "calibration")  # signals of many batches at once
_CALM = 3  # batches in a row, without a sign of trouble, that end a look


class Recovery:
    """Brings a run back from a divergence by itself.

    Call ``step`` once after the optimizers' steps, with the detector's alarm if there is one; or from a post-step hook
    of the last of them, wherever among its hooks. The stages, each of which the policy can leave out:

    1. A step whose gradients are not finite is skipped, by selection, by all optimizers together.
    2. On an early signal the steps become smaller for a while, by a factor that no scheduler sees or overwrites.
    3. On any other signal the model only looks at batches for a while, without a step. If trouble goes on, weights,
       optimizers, schedulers, detector and random generators go back to the newest checkpoint that is known to be
       healthy and older than the onset; the batches since are not taken again. It looks again: an alarm then means
       that it is the data that are bad, and it waits for them to pass. It goes on at half the rate, which returns
       gently.
    4. ``Action.STOP``: leave the loop with exit code 3. Every checkpoint is still there.

    The loader stays where it is: that is where it would be if it had gone back too and then been advanced past the
    batches between. With ``state_dict`` it is saved with the rest, and ``resume`` continues at the very batch; without,
    the batches go on where they are. What happens is written to ``events.jsonl`` in the folder, at once and in order.
    Every rank of a distributed run has its own folder; the ranks roll back to a checkpoint that all of them have.

    Make it when everything else is there: the state at that moment is the first checkpoint, tagged healthy.

    Args:
        model: its state is saved and restored.
        optimizers: the optimizer, or all of them, surefoot's or torch's.
        folder: the run's: ``checkpoints/`` and ``events.jsonl`` are in it.
        policy: the stages.
        monitor: the ``Monitor`` that the alarms come from, rolled back with the model.
        detector: the same of a loop that has a detector and no monitor. With neither, alarms alone tell.
        schedulers: of the rate.
        loader: what yields the batches, if it has ``state_dict`` and ``load_state_dict``.
        more: anything else with a state, by name: a ``GradScaler``, an average of weights.
        every: steps between two checkpoints, at the most; at first there are more: after 10, 20, ...
            100, 120, ... steps (see ``CheckpointSchedule``).
        seconds: between two checkpoints, at the most, as the last steps were; ``math.inf``: steps alone decide.
        keep: how many healthy checkpoints stay.
        on_roll_back: called before anything goes back, to write down or forget what belongs to the present weights.

    Raises:
        ValueError: if ``every``, ``seconds`` or ``keep`` is not above 0, there is no optimizer, or a weight is not
            finite.
        InputError: if the folder cannot be written. A disk that is full, now or later, is warned of and ends nothing.

    >>> import tempfile, torch
    >>> from surefoot.observe.monitor import Monitor
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = Monitor(model, optimizer)
    >>> recovery = Recovery(model, optimizer, tempfile.mkdtemp(), monitor=monitor)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     loss = model(torch.randn(8, 2)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     if recovery.step(monitor.step({"rating": loss})) is Action.STOP:
    ...         raise SystemExit(3)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        folder: Path | str,
        *,
        policy: RecoveryPolicy = RecoveryPolicy(),
        monitor: Watcher | None = None,
        detector: Judge | None = None,
        schedulers: Sequence[Stateful] = (),
        loader: Stateful | None = None,
        more: Mapping[str, Stateful] | None = None,
        every: int = 500,
        seconds: float = 600.0,
        keep: int = 3,
        on_roll_back: Callable[[], object] = lambda: None,
    ) -> None:
        checks.positive("every", every)
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds!r}; expected a number above 0")
        several, stepped = unwrapped(optimizers), with_in_backward(model, optimizers)
        if not stepped:
            raise ValueError("optimizers is empty; expected one or more")
        self.policy, self.every = policy, every
        self.journal = Journal(Path(folder) / "events.jsonl")
        self.on_roll_back = on_roll_back
        if monitor is not None and detector is not None:
            raise ValueError("monitor and detector are both given; expected one: a monitor has its detector")
        self._monitor, self._detector = monitor, detector if monitor is None else monitor.detector
        self._lr_scale = LrScale(stepped)
        self._lr_scale.on_end = self._end_step
        self._waiting: list[Alarm | None] = []  # told in the middle of an optimizer's step, one for each call
        self._done = Action.NONE  # about the last step
        together, apart = (several, stepped[len(several) :]) if policy.skip else ([], [])
        self._untaken = UntakenSteps(model, together, apart)
        self._state = State()
        self._start = None if self._detector is None else host_copy(self._detector.state_dict(), "detector")
        self._old_detector: dict[str, Any] | None = None  # to be restored once more
        waiting = 1 + policy.confirm // min(every, 10)  # so many are saved before the first is known to be healthy
        self._saved = SavedRun(
            model,
            stepped,
            Checkpoints(Path(folder) / "checkpoints", keep=keep, waiting=waiting),
            CheckpointSchedule(every, seconds),
            loader=loader,
            parts={"schedulers": schedulers, "more": more, "detector": detector, "monitor": monitor},
            log=self._log,
        )
        self._must_resume = bool(self.checkpoints.entries())
        if not self._must_resume:
            self._saved.begin(self._state)

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return self._saved.checkpoints

    @property
    def beside(self) -> dict[str, Stateful]:
        """What checkpoints hold too, by name, and only ``resume`` gives back."""
        return self._saved.beside

    @property
    def steps(self) -> int:
        """Steps taken, those that were rolled back and those held included: the batches that have gone by."""
        return self._state.steps

    @property
    def action(self) -> Action:
        """What was done about the last step that has ended; ``Action.STOP`` ever after a stop."""
        return Action.STOP if self._state.stopped else self._done

    @property
    def rate_factor(self) -> float:
        """What the rate is multiplied by now."""
        return self._state.factor

    @property
    def holding(self) -> bool:
        """Whether the model only looks at batches now, without a step."""
        return self._lr_scale.held

    def resume(self) -> int:
        """Go on after an interruption from the newest intact checkpoint, loader included; return its steps, 0 if none.

        Raises:
            ValueError: if the checkpoint was saved with other parts.
        """
        self._must_resume = False
        path = self.checkpoints.latest()
        if path is None:
            return 0
        self._state = self._saved.resume(path)
        self._lr_scale.factor = self._state.factor
        self._untaken.forget()
        self._log("resumed", checkpoint=path.name)
        return self._state.steps

    def step(self, alarm: Alarm | None = None) -> Action:
        """Take note of one training step; do what the policy says.

        Called by a hook in the middle of an optimizer's step, it acts at the end of that step, after all other hooks:
        until then weights may still change, and rates are the lowered ones.

        Args:
            alarm: what the detector has raised, about this step or the one before; None: nothing new.

        Returns:
            What was done; in the middle of a step: at the end of the one before. ``Action.STOP`` means that the loop
            should end.

        Raises:
            InputError: if the folder has checkpoints of an earlier run and ``resume`` was not called.
        """
        if self._must_resume:
            raise InputError(
                f"folder {self.journal.path.parent} has checkpoints of an earlier run; expected resume() before the "
                "first step, or a new folder"
            )
        if self._lr_scale.in_step:
            self._waiting.append(alarm)
            return self._done
        self._act(alarm)
        return self._done

    def before_backward(self, loss: Tensor) -> bool:
        """Say whether a step may be taken on a loss: whether it is finite, on all ranks. It waits for the device.

        For models of which some parameters step within the backward pass. There each parameter can refuse a gradient
        that is not finite only by itself (and fused tables cannot at all); this refuses the whole batch:

            if recovery.before_backward(loss):
                loss.backward()
                optimizer.step()

        ``monitor.step`` and ``recovery.step`` are called all the same. A batch that was refused counts as skipped.
        """
        return not self._untaken.refuses(loss)

    def close(self) -> None:
        """Take the hooks off the optimizers. A second call changes nothing."""
        self._lr_scale.remove()
        self._untaken.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return which stage the run is in, for a trainer that saves model, optimizers and the rest itself."""
        return self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with model, optimizers and the rest as they were then: a checkpoint is made of them.

        Checkpoints of later steps, by a run that was interrupted, are deleted.
        """
        self._must_resume = False
        self._state = State.of(state)
        self._state.pending = [step for step in self._state.pending if step <= self._state.steps]
        self._lr_scale.factor = self._state.factor
        self._untaken.forget()
        self._saved.delete_after(self._state.steps)
        self._saved.save(self._state)

    def _end_step(self) -> None:
        """Act on what was told in the middle of the step that has just ended."""
        waiting, self._waiting = self._waiting, []
        for alarm in waiting:
            self._act(alarm)

    def _act(self, alarm: Alarm | None) -> None:
        self._done = self._decide(alarm)

    def _decide(self, alarm: Alarm | None) -> Action:
        state = self._state
        state.steps += 1
        if state.stopped:
            return Action.STOP
        self._untaken.settle_buffers(held=self.holding)
        if self._detector is not None and self._old_detector is not None:  # it has just heard of the step rolled back
            self._detector.load_state_dict(self._old_detector)
        self._old_detector = None
        if alarm is not None and alarm.step < state.rolled_at:
            alarm = None  # of a step that was rolled back
        self._count_skipped(alarm is not None)
        if alarm is not None:
            details = {name: getattr(alarm, name, None) for name in ("task", "layer", "signal", "reason")}
            self._log("alarm", **{"step": alarm.step, **details})
        calm = alarm is None and (self._detector is None or self._detector.healthy)
        if self.holding:
            return self._look(calm, alarm)
        if not calm and state.accepted >= 0 and state.steps <= state.accepted + self.policy.confirm:
            return self._learn(alarm)
        if alarm is not None:
            return self._escalate(alarm.step, alarm.signal, alarm.reason)
        if calm:
            state.clean += 1
            if state.stage is Action.SLOWED and state.clean == _CALM and (action := self._undo_trace("")):
                return action
            self._go_on()
        elif state.clean:  # wrong again, and no word of what
            state.onset, state.clean, state.deadline = state.steps - 1, 0, state.steps + self.policy.patience
        elif state.steps >= state.deadline:
            return self._escalate(state.onset, "", f"no better {self.policy.patience} steps later")
        return Action.NONE

    # When nothing is wrong

    def _go_on(self) -> None:
        state = self._state
        if state.clean >= self.policy.patience:
            state.stage = Action.NONE
        if state.return_rate():
            self._log("rate_restored")
        self._lr_scale.factor = state.factor
        if state.clean >= self.policy.confirm:
            self._tag(state.steps - self.policy.confirm)
        self._saved.save_if_due(state)

    def _tag(self, up_to: int) -> None:
        """Tag the checkpoints of the first ``up_to`` steps healthy: training has gone on well since."""
        state = self._state
        if not state.pending or state.pending[0] > up_to or not self._saved.tag_healthy(up_to, state.steps):
            return
        if state.pending[0] > state.rolled_at and state.factor == 1.0:
            state.roll_backs = 0
        state.pending = [step for step in state.pending if step > up_to]

    # When something is

    def _escalate(self, step: int, signal: str, reason: str) -> Action:
        """Take the first stage that may help against what began at ``step``."""
        state, policy = self._state, self.policy
        early, fresh = signal in EARLY, state.stage in (Action.NONE, Action.SKIPPED)
        if early and state.stage is Action.SLOWED and step < state.since:
            return Action.NONE  # of a step that was taken before
        state.onset = min(state.onset, step) if state.stage in (Action.SKIPPED, Action.SLOWED) else step
        state.clean = 0
        if state.stage is Action.NONE and on_any_rank(state.skipped >= step):
            return self._take(Action.SKIPPED)
        if policy.slow is not None and early and state.stage is not Action.SLOWED:
            return self._slow(policy.slow, reason)
        if policy.roll_back is not None and state.roll_backs < policy.roll_back.at_most:
            if state.stage not in (Action.LOOKING, Action.SLOWED):
                if (action := self._undo_trace(reason)) is not None:
                    return action
                if policy.roll_back.look:
                    return self._begin_look(policy.roll_back, signal, reason)
            action = self._go_back(policy.roll_back, reason)
            if action is not Action.NONE:
                return action
        if policy.slow is not None and fresh:
            return self._slow(policy.slow, reason)
        if policy.stop:
            return self._stop(reason)
        return self._take(Action.NONE)

    def _take(self, stage: Action, wait: int = 0) -> Action:
        state = self._state
        state.stage, state.since = stage, state.steps
        state.deadline = state.steps + wait + self.policy.patience
        return stage

    def _slow(self, slow: Slow, reason: str) -> Action:
        self._lower(slow, reason)
        return self._take(Action.SLOWED)

    def _lower(self, slow: Slow, reason: str) -> None:
        self._lr_scale.factor = self._state.lower(self._state.factor * slow.factor, slow.steps)
        self._log("slowed", rate_factor=self._state.factor, reason=reason)

    def _go_back(self, how: RollBack, reason: str, *, at_once: bool = False) -> Action:
        """Roll back if there is something to go back to; rather slow down first than unlearn data accepted since.

        What came at once, within a step, came after the newest checkpoint before it: that one is tried first.
        """
        state, slow = self._state, self.policy.slow
        path = self.checkpoints.latest_healthy_of_all(state.onset, pending=at_once)
        if path is None:
            return Action.NONE
        if step_of(path) < state.accepted and slow is not None and state.stage is not Action.SLOWED:
            return self._slow(slow, reason)
        return self._roll_back(how, path, reason, at_once=at_once)

    def _roll_back(self, how: RollBack, path: Path, reason: str, *, at_once: bool) -> Action:
        """Put everything but the loader back, and look at the next batches first."""
        state, back_to = self._state, step_of(path)
        self.on_roll_back()
        self._saved.roll_back(path, state.steps)
        self._untaken.forget()
        state.pending = [step for step in state.pending if step <= back_to]
        state.roll_backs += 1
        state.rolled_at = state.steps
        whole = at_once and state.stage is not Action.SLOWED  # not the rate was wrong, but a batch
        self._lr_scale.factor = state.lower(how.factor ** (state.roll_backs - whole), how.steps)
        state.trial = back_to if back_to in state.pending else -1
        self._hold(how.hold * 2 ** (state.roll_backs - 1))
        if self._monitor is None and self._detector is not None:
            self._old_detector = host_copy(self._detector.state_dict(), "detector")
        self._log(
            "rolled_back",
            steps=back_to,
            checkpoint=path.name,
            batches_dropped=state.steps - back_to,
            hold=state.hold,
            rate_factor=state.factor,
            in_a_row=state.roll_backs,
            reason=reason,
        )
        return self._take(Action.ROLLED_BACK, state.hold)

    def _undo_trace(self, reason: str) -> Action | None:
        """Go back at once if the batches since the onset have left something in the state that losses do not show."""
        state, how = self._state, self.policy.roll_back
        if how is None or state.roll_backs >= how.at_most or (trace := self._saved.growth_since(state.onset)) is None:
            return None
        ratio, words = trace
        action = self._go_back(how, "; ".join(filter(None, (reason, words))), at_once=ratio > _AT_ONCE)
        return None if action is Action.NONE else action

    def _begin_look(self, how: RollBack, signal: str, reason: str) -> Action:
        self._log("looking", batches=how.look, reason=reason)
        if self._monitor is not None and signal not in _OF_WINDOW:  # in which the bad batch would stay for long
            self._monitor.load_state_dict(self._monitor.state_dict())
        self._hold(how.look)
        return self._take(Action.LOOKING, how.look)

    def _hold(self, batches: int) -> None:
        """Take no step for some batches."""
        state = self._state
        state.held_from, state.hold, state.excused = state.steps, batches, False
        state.hold_until = state.steps + batches
        self._lr_scale.held = batches > 0

    def _look(self, calm: bool, alarm: Alarm | None) -> Action:
        """Judge a batch on which no step was taken."""
        state, how = self._state, self.policy.roll_back
        assert how is not None
        calm = calm or self._excused(alarm)
        state.clean = state.clean + 1 if calm else 0
        if state.stage is Action.LOOKING:
            if state.clean >= _CALM:
                return self._release("released")
            if state.steps < state.hold_until:
                return Action.NONE
            self._lr_scale.held = False
            action = self._go_back(how, f"no better after a look at {how.look} batches")
            return self._release("released") if action is Action.NONE else action
        if not calm and state.trial > 0:  # perhaps these weights were harmed already: older ones will tell
            state.onset, state.roll_backs = max(0, state.trial - 1), state.roll_backs - 1
            if (action := self._go_back(how, "the newest checkpoint was not healthy")) is not Action.NONE:
                return action
        if alarm is not None and alarm.signal in EARLY and self.policy.slow is not None:
            self._lower(self.policy.slow, alarm.reason)  # not the data: the step that it would take is too large
        if not calm and state.steps >= state.held_from + how.longest_hold:  # healthy weights, so it is the data
            self._start_detector_anew()
            state.accepted = state.steps
            return self._release("accepted")
        if not calm:
            state.hold_until = state.steps + state.hold
        return Action.NONE if state.steps < state.hold_until else self._release("released")

    def _excused(self, alarm: Alarm | None) -> bool:
        """Return whether no more is wrong than that weights which have learnt nothing do worse on one batch than on
        another: that tells of its labels, and not that the data are bad.
        """
        state = self._state
        if alarm is None or state.stage is Action.LOOKING:
            return state.excused
        state.excused = alarm.signal == "relative_loss" and not getattr(self._detector, "has_learnt", True)
        return state.excused

    def _learn(self, alarm: Alarm | None) -> Action:
        """Let the run learn data that have just been accepted, which looks like harm: smaller steps at the most."""
        state = self._state
        state.clean = 0
        if alarm is not None and alarm.signal in EARLY and self.policy.slow is not None:
            return self._slow(self.policy.slow, alarm.reason)
        return Action.NONE

    def _start_detector_anew(self) -> None:
        """Let the detector learn what is healthy from here on; what it has reported stays."""
        if self._detector is not None:
            reported = {key: value for key, value in self._detector.state_dict().items() if key in ("events", "alarms")}
            self._detector.load_state_dict({**host_copy(self._start, "detector"), **reported})

    def _release(self, event: str) -> Action:
        state = self._state
        self._lr_scale.held, state.trial = False, -1
        if state.excused:  # its alarm, too, is of these weights
            self._start_detector_anew()
            state.excused = False
        self._log(event, batches_held=state.steps - state.held_from)
        self._take(state.stage)
        return Action.NONE

    def _stop(self, reason: str) -> Action:
        self._state.stopped = True
        kept = [entry.path.name for entry in self.checkpoints.entries()]
        self._log("stopped", reason=reason, checkpoints=kept)
        return self._take(Action.STOP)

    def _count_skipped(self, now: bool) -> None:
        count = self._untaken.count(now=now)
        if not count:
            return
        state = self._state
        if state.skipped < state.steps - 2:  # not one more in a row
            self._log("skipped", count=count)
        state.skipped = state.steps - 1

    def _log(self, event: str, **details: Any) -> None:
        self.journal.tell(event, **{"step": self._state.steps - 1, **details})
