"""Monitor, detector, recovery and capsules behind one call a step."""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.best_effort import BestEffort
from surefoot.capsule.reported_step import ReportedStep
from surefoot.capsule.ring import Ring, layer_norms
from surefoot.capsule.snapshot import Plain, Stateful
from surefoot.detect.detector import Alarm, Detector, Event, FreshScore, Verdict
from surefoot.errors import TrainingStopped
from surefoot.observe.monitor import Monitor
from surefoot.observe.reported_forms import Losses, Outputs
from surefoot.observe.sinks import parquet_sink
from surefoot.optim.unwrap import unwrapped, unwrapped_model
from surefoot.recover.journal import Journal, described
from surefoot.recover.policy import Action, RecoveryPolicy
from surefoot.recover.recovery import Recovery
from surefoot.recover.rolled_back_events import RolledBackEvents
from surefoot.tasks import TaskKind

_log = logging.getLogger(__name__)


class Made(Enum):
    """Says that the supervisor makes a part itself."""

    HERE = "here"


def warn_of(alarm: Alarm) -> None:
    """Log an alarm as a warning."""
    _log.warning("step %s: %s", alarm.step, alarm.reason)


class Supervisor:
    """Watches a training loop, keeps its last steps for a replay, and brings it back from a divergence.

    One call a step, after the optimizers' steps and before gradients are zeroed:

    1. the losses and norms of the step are kept for a capsule (``Ring``);
    2. the step is measured and shown to the detector, one step late (``Monitor``);
    3. an alarm is given to ``on_alarm``, written into ``events.jsonl``, and a capsule into ``capsules/``;
    4. the recovery skips, slows down, rolls back or stops (``Recovery``); what it did is returned.

    What a step starts from, the states of the random generators above all, is kept when the model is called: in
    training mode, with gradients enabled, for the first time since the last step. Of a container without a ``forward``
    of its own, such as ``ModuleDict``, the same holds for its members. A loop that calls neither is served by what was
    kept at the end of the last step; one that also draws random numbers between two steps calls ``begin`` itself.

    A loop that somebody else has written is served by ``report``, called from the loss: the step then ends by itself
    when all optimizers have stepped.

    Make the supervisor when everything else is there. Use it in a ``with`` block, or call ``close`` at the end.

    Args:
        model: the model; a wrapper of ``torch.nn.parallel``, ``torch.compile``, accelerate or Lightning's Fabric is
            looked through.
        optimizers: the optimizer, or all of them; wrappers of accelerate, Lightning and TorchRec are looked through.
        folder: for ``events.jsonl``, ``capsules/``, ``checkpoints/`` and, if polars is installed, ``monitor/``.
        tasks: ``"binary"`` or ``"regression"`` for each task whose labels are given.
        outputs: what the outputs of binary tasks are: ``"logits"`` or ``"probabilities"``; None: it is found out.
        losses: what a task's loss is of those of its rows: ``"mean"`` or ``"sum"``; None: it is found out.
        masked: tasks of which only some rows have a label, their losses being means over these.
        detector: of the monitor made here; None is one with the defaults.
        monitor: one of your own, which the four arguments above do not reach; None: nobody raises alarms, and the
            recovery only skips steps.
        recovery: the policy of a recovery made here, or one of your own (made with the same monitor); None: nothing is
            skipped, slowed down or rolled back, and a run that has diverged fully stops.
        ring: one of your own; None: no capsules.
        schedulers: of the rate: they go back with the model.
        loader: what yields the batches, if it has ``state_dict`` and ``load_state_dict``: ``resume`` goes on there.
        more: whatever else a step changes and has a state, by name: a ``GradScaler``, an average of weights.
        config: the run's configuration as TOML, for the capsules.
        capsule_after: steps that a capsule shows after its alarm.
        on_alarm: called with each alarm; by default it is logged as a warning.
        on_stop: called once when training should stop. Without it ``report``, or the next call of the model, raises
            ``TrainingStopped`` where a step has ended by itself; ``step`` returns ``Action.STOP`` in any case.

    Raises:
        ValueError: if an argument is wrong, or given beside a part that it does not reach.
        InputError: if the folder cannot be written.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    >>> x, y = torch.ones(8, 2), torch.arange(8.0)
    >>> with Supervisor(model, optimizer, tempfile.mkdtemp(), tasks={"rating": "regression"}) as supervisor:
    ...     for _ in range(3):
    ...         prediction = model(x).squeeze(1)
    ...         loss = (prediction - y).square().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         told = {"outputs": {"rating": prediction}, "labels": {"rating": y}, "batch": (x, y)}
    ...         if supervisor.step({"rating": loss}, **told) is Action.STOP:
    ...             break
    >>> supervisor.close(), supervisor.last_alarm
    (<Verdict.HEALTHY: 'healthy'>, None)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        folder: Path | str,
        *,
        tasks: Mapping[str, TaskKind | str] | None = None,
        outputs: Outputs | str | None = None,
        losses: Losses | str | None = None,
        masked: Collection[str] = (),
        detector: Detector | None = None,
        monitor: Monitor | Made | None = Made.HERE,
        recovery: Recovery | RecoveryPolicy | None = RecoveryPolicy(),
        ring: Ring | Made | None = Made.HERE,
        schedulers: Sequence[Stateful] = (),
        loader: Stateful | None = None,
        more: Mapping[str, Stateful] | None = None,
        config: str | None = None,
        capsule_after: int = 8,
        on_alarm: Callable[[Alarm], object] = warn_of,
        on_stop: Callable[[], object] | None = None,
    ) -> None:
        self.folder = Path(folder)
        called, model, several = model, unwrapped_model(model), unwrapped(optimizers)
        self._rolled_back = RolledBackEvents()
        if monitor is not Made.HERE:
            _refuse_beside("monitor", tasks=tasks, outputs=outputs, losses=losses, masked=masked, detector=detector)
        elif isinstance(recovery, Recovery):
            raise ValueError("recovery is given and monitor is not; expected the monitor that it was made with")
        else:
            metrics = self.folder / "monitor" / "metrics.parquet"
            monitor = Monitor(
                model,
                several,
                tasks=tasks,
                outputs=outputs,
                losses=losses,
                masked=masked,
                detector=detector,
                sinks=[parquet_sink(metrics)] if find_spec("polars") else [],
            )
        others = [*schedulers, *(more or {}).values()]
        self.monitor = monitor
        self.ring = Ring(model, optimizers, others=others) if ring is Made.HERE else ring
        if isinstance(recovery, RecoveryPolicy):
            recovery = Recovery(
                model,
                optimizers,
                self.folder,
                policy=recovery,
                monitor=monitor,
                schedulers=schedulers,
                loader=loader,
                more=more,
            )
        self.recovery = recovery
        self.journal = Journal(self.folder / "events.jsonl") if recovery is None else recovery.journal
        if recovery is not None:
            recovery.beside["supervisor"] = self._rolled_back
            recovery.on_roll_back = partial(self._before_roll_back, recovery.on_roll_back)
        self._config, self._capsule_after = config, capsule_after
        self._on_alarm, self._on_stop = on_alarm, on_stop
        self._steps = 0
        self._told = 0  # of the detector's events
        self._action = Action.NONE
        self._last_alarm: Alarm | None = None
        self._stopped = False  # on_stop has been called
        self._verdict: Verdict | None = None  # once closed
        self._best_effort = BestEffort()
        # within a step
        self._kept = ReportedStep()
        self._begun = False
        self._called = self._was_called = False  # the model, in this step and in the last one
        self._reports = False  # steps end by themselves
        self._stepped: set[Optimizer] = set()
        self._norms: dict[str, Tensor] | None = None
        self._layers, self._optimizers = list(model.named_parameters()), several
        self._hooks: list[Any] = [part.register_forward_pre_hook(self._entered) for part in _with_forward(called)]
        self._hooks += [each.register_step_post_hook(self._after_optimizer) for each in several]

    @property
    def steps(self) -> int:
        """Steps that have ended; the number of the one to come."""
        return self._steps

    @property
    def action(self) -> Action:
        """What was done about the last step that has ended."""
        return self._action if self.recovery is None else self.recovery.action

    @property
    def last_alarm(self) -> Alarm | None:
        """The last alarm; None before the first."""
        return self._last_alarm

    @property
    def events(self) -> list[Event]:
        """The run's divergences, those that were rolled back included, oldest first."""
        found = [] if self.monitor is None else self.monitor.detector.events
        return sorted([*found, *self._rolled_back.events], key=lambda event: event.onset)

    def begin(self) -> None:
        """Keep what the next step starts from; needed only where the model is not called, see the class."""
        note: dict[str, float | int | str] = {}
        if self.recovery is not None:
            note = {"rate_factor": self.recovery.rate_factor, "held": int(self.recovery.holding)}
        self._with_ring(lambda ring: ring.begin(self._steps, note=note))
        self._begun = True

    def step(
        self,
        losses: Mapping[str, Tensor],
        *,
        outputs: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        batch: Plain = None,
        rows: Tensor | None = None,
        note: Mapping[str, float | int | str] | None = None,
        shown: Mapping[str, Tensor] | None = None,
    ) -> Action:
        """End a step: call it after the optimizers' steps and before gradients are zeroed.

        Where gradients are accumulated over several batches this is one step: give it the mean of their losses (or one
        batch's, which only makes them noisier), and all batches as a list.

        Args:
            losses: a 0-d tensor for each task, as the step began.
            outputs: (rows,) or (rows, 1) for each task to score.
            labels: the same of the labels, NaN where there is none.
            batch: tensors, numbers, strings, None, in tuples, lists and dicts, unchanged since the step began: what a
                replay takes. A step with neither ``batch`` nor ``rows`` cannot be replayed, and no capsule is written.
            rows: (rows,) integers, which rows of a log the batch is made of: in place of the batch, or beside it.
            note: numbers and words to find again in a capsule, such as the day.
            shown: numbers of the step that a capsule keeps, and that its replay must return, in place of the losses.

        Returns:
            What was done; ``Action.STOP`` means that the loop should end. Called within an optimizer's step, by a hook:
            what was done about the step before.
        """
        self._kept.add(losses, outputs, labels, batch, rows)
        return self._end(note, shown)

    def report(
        self,
        losses: Mapping[str, Tensor],
        *,
        outputs: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        batch: Plain = None,
        rows: Tensor | None = None,
    ) -> None:
        """Tell what the model shows of a batch, in a loop that is not your own: from the loss or the training step.

        Several calls, one for each task, are one report. The step ends when the last of the optimizers has stepped; if
        some step more rarely, when the model is called again after a step of any. A batch that no optimizer's step
        follows is part of the next one, as under gradient accumulation: the losses, outputs and labels of the last
        part count, and a capsule has all batches in a list (of row numbers, all of them). Where gradients are disabled,
        as in an evaluation, nothing is taken in.

        Args:
            losses: as for ``step``, like the rest.
            outputs: of the tasks.
            labels: of the tasks.
            batch: what a replay takes.
            rows: which rows of a log it is made of.

        Raises:
            TrainingStopped: if training should stop and there is no ``on_stop``.
        """
        if not torch.is_grad_enabled():
            return
        self._raise_if_stopped()
        self._kept.add(losses, outputs, labels, batch, rows)
        self._kept.reported = self._reports = True

    def resume(self) -> int:
        """Go on after an interruption from the recovery's newest checkpoint; return its steps, 0 if there is none.

        Raises:
            ValueError: if there is no recovery, or the checkpoint was saved with other parts.
        """
        if self.recovery is None:
            raise ValueError("recovery is None; expected one: the checkpoints to resume from are its own")
        self._steps = self.recovery.resume()
        self._told = 0 if self.monitor is None else len(self.monitor.detector.events)
        self._forget_step()
        return self._steps

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers and words, for a trainer that saves model and optimizers itself."""
        return {
            "steps": self._steps,
            "saved": self._rolled_back.state_dict()["events"],
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "recovery": None if self.recovery is None else self.recovery.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; model, optimizers and the rest are as they were when it was taken."""
        self._steps = int(state["steps"])
        self._rolled_back.load_state_dict({"events": state["saved"]})
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.load_state_dict(state["monitor"])
            self._told = len(self.monitor.detector.events)
        if self.recovery is not None and state["recovery"] is not None:
            self.recovery.load_state_dict(state["recovery"])
        self._forget_step()

    def close(self, scores: Mapping[str, FreshScore] | None = None) -> Verdict:
        """End the watch, write what still waits, take the hooks off; return the verdict on the run.

        Full if it had to be stopped, micro if it was rolled back. A second call changes nothing.

        Args:
            scores: of the trained model on rows that it was not trained on, where there are such, for the verdict.
        """
        if self._verdict is not None:
            return self._verdict
        if self._kept.reported and self._stepped:
            self._end()
        for hook in self._hooks:
            hook.remove()
        stopped = self.action is Action.STOP
        if self.monitor is not None:
            self.monitor.close(scores)
            self._tell_events()
        self._with_ring(lambda ring: ring.close())
        if self.recovery is not None:
            self.recovery.close()
        full = self.monitor is not None and self.monitor.detector.verdict is Verdict.FULL
        if stopped and self._last_alarm is not None and not full:
            self._rolled_back.add(self._last_alarm, Verdict.FULL, self._last_alarm.step)
        order = list(Verdict)
        self._verdict = max((event.verdict for event in self.events), key=order.index, default=Verdict.HEALTHY)
        return self._verdict

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error the last steps are written as a capsule first."""
        if isinstance(error, Exception) and not isinstance(error, TrainingStopped):
            reason = f"{type(error).__name__}: {error}"
            alarm = {"step": self._steps - 1, "signal": "exception", "reason": reason}
            self._with_ring(lambda ring: self._write_last(ring, alarm))
        self.close()

    def _write_last(self, ring: Ring, alarm: dict[str, Any]) -> None:
        """Write a capsule of the last steps, if there are any and it is not on its way already."""
        if ring.flush() is None and ring.steps:
            ring.write(self.folder / "capsules", alarm=alarm, config=self._config)

    # A step

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _entered(self, module: nn.Module, args: Any) -> None:
        """The model is called: a step begins, if none has begun."""
        if not (module.training and torch.is_grad_enabled()):
            return
        if self._kept.reported and self._stepped:
            self._end()
        self._raise_if_stopped()
        self._called = True
        if not self._begun:
            self.begin()

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer has stepped: with the last of them the step has ended, if it was reported."""
        self._stepped.add(optimizer)
        if not self._kept.reported:
            return
        if len(self._stepped) == len(self._optimizers):
            self._end()
        elif self.ring is not None:
            self._norms = layer_norms(self._layers)  # gradients may be gone when the step is known to have ended

    def _end(
        self, note: Mapping[str, float | int | str] | None = None, shown: Mapping[str, Tensor] | None = None
    ) -> Action:
        kept, self._kept = self._kept, ReportedStep()
        self._with_ring(lambda ring: self._keep(ring, kept, note, kept.losses if shown is None else shown))
        alarm = None
        if self.monitor is not None:
            alarm = self.monitor.step(
                kept.losses, outputs=kept.outputs or None, labels=kept.labels or None, batch=kept.batch
            )
        looking = self.recovery is not None and self.recovery.holding  # such an alarm is about the data
        if alarm is not None:
            self._last_alarm = alarm
            self._on_alarm(alarm)
            if not looking:
                folder, told = self.folder / "capsules", asdict(alarm)
                self._with_ring(
                    lambda ring: ring.write_later(self._capsule_after, folder, alarm=told, config=self._config)
                )
        action = self._act(alarm)
        self._tell_events()
        self._steps += 1
        self._forget_step()
        if not self._was_called:
            self.begin()
        if action is Action.STOP:
            self._stop()
        return action

    def _act(self, alarm: Alarm | None) -> Action:
        if self.recovery is not None:
            return self.recovery.step(alarm)
        if alarm is not None:
            self.journal.tell("alarm", **asdict(alarm))
        full = self.monitor is not None and self.monitor.detector.verdict is Verdict.FULL
        self._action = Action.STOP if full else Action.NONE
        return self._action

    def _forget_step(self) -> None:
        """Let the next step begin."""
        self._was_called, self._called = self._called, False
        self._begun, self._norms = False, None
        self._stepped.clear()

    def _keep(
        self, ring: Ring, kept: ReportedStep, note: Mapping[str, float | int | str] | None, shown: Mapping[str, Tensor]
    ) -> None:
        """Give the ring its step."""
        if kept.batch is None and kept.rows is None:
            self.ring = None
            warnings.warn(
                "no capsules are written: a step had neither batch= nor rows=; give one of them, or ring=None",
                RuntimeWarning,
                stacklevel=5,
            )
        elif self._begun:
            ring.attach(kept.batch, rows=kept.rows, note=note)
            ring.observe(self._steps, shown, self._norms)
        else:
            ring.clear()  # of this step nothing was kept: those before cannot be run on

    def _stop(self) -> None:
        if not self._stopped and self._on_stop is not None:
            self._stopped = True
            self._on_stop()

    def _raise_if_stopped(self) -> None:
        """Act on a stop that was decided at the end of an optimizer's step."""
        if not self._reports or self.action is not Action.STOP:
            return
        self._stop()
        if self._on_stop is None:
            reason = "" if self._last_alarm is None else f": {self._last_alarm.reason}"
            raise TrainingStopped(f"training has diverged and is stopped after step {self._steps - 1}{reason}")

    # What is told

    def _before_roll_back(self, before: Callable[[], object]) -> None:
        before()
        self._with_ring(lambda ring: ring.clear())
        if self._last_alarm is not None and self.recovery is not None:
            self._rolled_back.add(self._last_alarm, Verdict.MICRO, self.recovery.steps - 1)

    def _tell_events(self) -> None:
        """Write divergences into the journal once they are over."""
        events = [] if self.monitor is None else self.monitor.detector.events
        self._told = min(self._told, len(events))  # what was rolled back is gone
        for event in events[self._told :]:
            self.journal.tell("divergence", **described(event))
        self._told = len(events)

    def _with_ring(self, use: Callable[[Ring], object]) -> None:
        """Let the ring do something; one that fails is given up."""
        if (ring := self.ring) is None:
            return
        failed = True
        with self._best_effort("keeping the last steps for capsules"):
            use(ring)
            failed = False
        if failed:
            self.ring = None


def _with_forward(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model if it has a ``forward``; of a container without one its members."""
    if type(model).forward is not nn.Module.forward:
        yield model
        return
    for child in model.children():
        yield from _with_forward(child)


def _refuse_beside(part: str, **given: object) -> None:
    """Refuse arguments of a part that is not made here."""
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} is {value!r} beside {part}; expected it to be given to the {part} itself")
