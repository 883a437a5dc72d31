"""The monitor: one call a step measures each task and each layer, and tells whether training is about to diverge."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.best_effort import BestEffort
from surefoot.detect.detector import Alarm, Detector, FreshScore, Verdict
from surefoot.detect.signals import Signals
from surefoot.observe import layer_stats
from surefoot.observe.attribution import Attribution
from surefoot.observe.batch_norms import BatchNorms
from surefoot.observe.detector_input import DetectorInput
from surefoot.observe.reported_forms import Forms, Losses, Outputs
from surefoot.observe.sinks import Sink, default_sinks
from surefoot.observe.step_observer import StepObserver
from surefoot.observe.step_record import SCORES, Combine, Reading, Record, interpreted
from surefoot.observe.streaming_metrics import ABSENT, Kinds, Window, clean
from surefoot.optim.embedding_tables import embedding_tables
from surefoot.optim.groups import NamePattern, match_names, named_parameters
from surefoot.optim.unwrap import unwrapped
from surefoot.rules import ALL, NoClip, Rule, checked
from surefoot.tasks import TaskKind


class Monitor:
    r"""Watches a training loop from one call a step, without making the host wait for the device.

    In every step: the loss of each task and, where labels are given, their mean and the relative loss, which is the
    loss over that of the best constant prediction on the same rows; of each layer the gradient's norm, the optimizer's
    clip factor and Clippy's ratio :math:`\max_i \eta |r_i| / (\lambda_{rel} |w_i| + \lambda_{abs})`, above 1 where it
    would clip; of each batch norm how far the batch's mean lies from its running mean; whether all is finite. Every
    ``every`` steps: the norms of gradient, update and weight of each layer and embedding table, the share of dead
    units, the update-to-weight ratio, and the factor that each rule *would* have given, by unit the mean and the least.
    Every ``refresh`` steps, over the last ``rows`` rows: AUC, normalised entropy, calibration, and the standard
    deviation of the predictions over that of the labels.

    Values are read, written to the sinks and shown to the detector one step late. A layer is a named parameter that an
    optimizer holds, embedding tables apart, which are told by their module's class. Under ``torch.distributed`` all
    ranks see the same values, hence take the same decisions: losses and scores are means over ranks, norms and ratios
    the largest; only rank 0 writes.

    Clippy's ratio is measured by the optimizer where its rule is Clippy, with that rule's thresholds; otherwise with
    the defaults on the unclipped step. That step is known from the state of ``surefoot.Adagrad`` and
    ``torch.optim.Adagrad``; for any other optimizer it is what the weights did, which takes a copy of the layers.

    Args:
        model: gives the parameters their names.
        optimizers: one or several: surefoot's, torch's, with or without ``clip_updates``.
        tasks: ``"binary"`` or ``"regression"`` for each task whose labels are given. The loss of a binary task is the
            log-loss in nats, a regression task's the squared error.
        outputs: what the outputs of binary tasks are: ``"logits"`` or ``"probabilities"``; None finds out from the
            losses of the first steps, and warns if they are probabilities.
        losses: what a task's loss is of those of its rows: ``"mean"`` or ``"sum"``, which is divided by their number;
            None finds out, and warns of sums. Where no form gives the loss, these are logits and means.
        masked: tasks of which only some rows have a label, their losses being means over these. From a step that has
            fewer than 32 the detector learns nothing of the task, unless its loss is not finite.
        folder: for ``metrics.parquet`` and the files of TensorBoard; None writes nothing.
        every: steps from one full survey to the next; step 0 has one.
        refresh: steps from one score of the window to the next.
        rows: how many rows the window holds.
        detector: sees each step; None makes one with the defaults.
        what_if: the rules to ask; None is one of each.
        layers: name patterns of the parameters to look at; None is all that the optimizers hold.
        sinks: functions of a step's number and its values by name; None is those of the folder. One that fails, for a
            full disk say, is told by a warning and ends no training.
        attribute: from a batch to an ``Attribution``; called on the batch of an alarm's step, if ``step`` was given it.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if an interval is below 1, a kind is unknown, or a pattern matches no parameter.

    >>> import torch, surefoot
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = surefoot.ClippyAdagrad(model.parameters(), lr=0.1)
    >>> monitor = Monitor(model, optimizer, tasks={"click": "binary"})
    >>> x, y = torch.ones(8, 4), torch.tensor([0.0, 1.0] * 4)
    >>> for _ in range(3):
    ...     logits = model(x).squeeze(1)
    ...     loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     alarm = monitor.step({"click": loss}, outputs={"click": logits}, labels={"click": y})
    ...     assert alarm is None
    >>> sorted(monitor.values)[:3]
    ['clip_factor/bias', 'clip_factor/weight', 'clip_ratio/bias']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        tasks: Mapping[str, TaskKind | str] | None = None,
        outputs: Outputs | str | None = None,
        losses: Losses | str | None = None,
        masked: Collection[str] = (),
        folder: Path | str | None = None,
        every: int = 50,
        refresh: int = 8,
        rows: int = 8192,
        detector: Detector | None = None,
        what_if: Sequence[Rule] | None = None,
        layers: Sequence[NamePattern] | None = None,
        sinks: Sequence[Sink] | None = None,
        attribute: Callable[[Any], Attribution] | None = None,
    ) -> None:
        several = unwrapped(optimizers)
        _check(model, several, every=every, refresh=refresh, rows=rows)
        self.every, self.refresh = every, refresh
        self.tasks = {task: TaskKind(kind) for task, kind in (tasks or {}).items()}
        self._masked = frozenset(masked)
        self._forms = Forms(outputs, losses)
        self._binary = {task: kind is TaskKind.BINARY for task, kind in self.tasks.items()}
        self.detector = Detector() if detector is None else detector
        self.rules = tuple(kind() for kind in ALL if kind is not NoClip) if what_if is None else tuple(what_if)
        for rule in self.rules:
            checked(rule, "what_if")
        self._model, self._optimizers, self._patterns = model, several, layers
        self._layers, self._tables = _split(model, several, layers)
        self._held = _count(several)
        self._batch_norms = BatchNorms(model)
        self._observers = [self._observe(optimizer) for optimizer in several]
        self._window = Window(rows)
        self._scored_from = 0  # step: what the window showed before is of rows that are out of it
        self._detector_input = DetectorInput(self._masked)
        self._last_kinds: Kinds | None = None
        self._sinks = _sinks(sinks, folder, every)
        self._best_effort = BestEffort()
        self._attribute = attribute
        self._step = 0
        self._pending: tuple[int, Reading, Any] | None = None
        self._written = -1  # the last step whose row the sinks have
        self._last: tuple[int, Signals] | None = None
        self._values: dict[str, float] = {}
        self.attribution: Attribution | None = None

    def _observe(self, optimizer: Optimizer) -> StepObserver:
        return StepObserver(optimizer, *self._held_by(optimizer), lambda: self._step % self.every == 0)

    def _held_by(self, optimizer: Optimizer) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Return those layers and tables that an optimizer holds."""
        held = {param for group in optimizer.param_groups for param in group["params"]}
        layers = {name: p for name, p in self._layers.items() if p in held}
        return layers, {name: p for name, p in self._tables.items() if p in held}

    def _note_added(self) -> None:
        """Look at what ``add_param_group`` has added since the last step, from the next step on."""
        if (held := _count(self._optimizers)) != self._held:
            self._held = held
            self._layers, self._tables = _split(self._model, self._optimizers, self._patterns)
            for observer, optimizer in zip(self._observers, self._optimizers, strict=True):
                observer.look_at(*self._held_by(optimizer))

    @torch.no_grad()
    def step(
        self,
        losses: Mapping[str, Tensor],
        *,
        outputs: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        batch: object = None,
    ) -> Alarm | None:
        """Take in a step, after all optimizers have stepped and before gradients are zeroed.

        Args:
            losses: a 0-d tensor for each task.
            outputs: (rows,) or (rows, 1) for each task to score: logits if it is binary.
            labels: the same of the labels, NaN where there is none. Alone they give relative losses; a task that is in
                both is scored.
            batch: what ``attribute`` takes.

        Returns:
            What the detector said of the step before.

        Raises:
            ValueError: if a task with labels has no kind, or outputs and labels differ in their number of rows.
        """
        record = Record()
        tasks = list(losses)
        each = torch.stack([losses[task].detach().float().reshape(()) for task in tasks])
        each = torch.where(each == ABSENT, math.nan, each)
        record.add("loss", tasks, each, Combine.MEAN)
        if labels:
            self._add_scores(record, tasks, outputs, labels)
        self._add_layers(record)
        if self._batch_norms:
            record.add_found("batch_shift", self._batch_norms.names, self._batch_norms.shifts(), Combine.MAX)
        if self._step % self.every == 0:
            self._add_survey(record)
        for observer in self._observers:
            observer.forget()
        self._note_added()
        alarm = self._read()
        self._pending = self._step, record.start(), batch
        self._step += 1
        return alarm

    def close(self, scores: Mapping[str, FreshScore] | None = None) -> Verdict:
        """Read the last step, end detector and sinks, return the verdict on the run; a second call changes nothing.

        Args:
            scores: of the trained model on rows it was not trained on, where there are such, for the verdict.
        """
        self._read()
        for observer in self._observers:
            observer.remove()
        self._tell_sinks("close")
        return self.detector.finish(self._step, scores)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def flush(self) -> None:
        """Let the sinks write all rows, the last step's too; ``state_dict`` does so, for a run that goes on from it."""
        if self._pending is not None:
            step, reading, _ = self._pending  # which the detector sees later
            self._write(step, _row(self._values_of(step, reading.get())))
        self._tell_sinks("flush")

    def _tell_sinks(self, word: str, *arguments: int) -> None:
        """Call a method of the sinks that have it; what fails there ends no training."""
        for sink in self._sinks:
            if callable(method := getattr(sink, word, None)):
                with self._best_effort(f"{word} of {_named(sink)}"):
                    method(*arguments)

    @property
    def signals(self) -> Signals | None:
        """What the detector saw last, of the step ``signals_step``."""
        return self._last[1] if self._last else None

    @property
    def signals_step(self) -> int | None:
        """The number of the step that ``signals`` describes."""
        return self._last[0] if self._last else None

    @property
    def values(self) -> Mapping[str, float]:
        """All values of that step, by the names that sinks see."""
        return self._values

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the step to come and the detector's state, all plain; what sinks hold is written."""
        self.flush()
        return {
            "step": self._step,
            "detector": self.detector.state_dict(),
            "rows": self._detector_input.state_dict(),
            "forms": self._forms.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what sinks have of its step and later ones, what is not read yet, the window go."""
        self._step = int(state["step"])
        self._written = self._step - 1
        self._tell_sinks("rewind", self._step)
        self.detector.load_state_dict(state["detector"])
        self._detector_input.load_state_dict(state.get("rows", ()))
        self._forms.load_state_dict(state.get("forms", {}))
        self._pending, self._window, self._scored_from = None, Window(self._window.rows), 0
        self._batch_norms.forget()

    # What a record holds

    def _add_scores(
        self, record: Record, tasks: list[str], outputs: Mapping[str, Tensor] | None, labels: Mapping[str, Tensor]
    ) -> None:
        seen = labels if outputs is None else outputs
        tasks = [task for task in tasks if task in seen and task in labels]
        if not tasks:
            return
        columns = [[some[task].detach().reshape(-1) for task in tasks] for some in (seen, labels)]
        rows = {len(column) for each in columns for column in each}
        if len(rows) > 1:
            raise ValueError(
                f"outputs and labels have {sorted(rows)} rows; expected the same, labels NaN where unknown"
            )
        truth = torch.stack([x.float() for x in columns[1]])
        cleaned = clean(torch.stack(columns[0]), truth)
        kinds = self._kinds(tasks, cleaned.device)
        if outputs is not None and self._forms.is_open(tasks):
            for kind, values in self._forms.measure(cleaned, kinds).items():
                record.add(kind, tasks, values, Combine.MEAN)
        if outputs is not None and any(self._forms.outputs(task) is Outputs.PROBABILITIES for task in tasks):
            of_tasks = zip(tasks, columns[0], kinds.binary, strict=True)
            cleaned = clean(
                torch.stack([self._forms.logits(t, x) if binary else x for t, x, binary in of_tasks]), truth
            )
        record.add_labels(tasks, cleaned, kinds.binary)
        if outputs is None:
            return
        self._window.add(cleaned)
        if self._step % self.refresh == 0:
            for name, scores in self._window.scores(kinds).items():
                record.add(name, tasks, scores, Combine.MEAN)

    def _add_layers(self, record: Record) -> None:
        norms: dict[str, Tensor] = {}
        sigmas: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for observer in self._observers:
            norms |= observer.norms()
            clippys, seen = observer.measures()
            own, others = own | clippys, others | seen
            sigmas |= {name: sigma for name, sigma in observer.factors().items() if name not in clippys} if seen else {}
        record.add_found("l2_norm/grad", self._layers, norms, Combine.MAX)
        record.add_found("clippy", self._layers, own, Combine.MIN)
        record.add_found("clip_factor", self._layers, sigmas, Combine.MIN)
        record.add_found("clip_measure", self._layers, others, Combine.MIN)

    def _add_survey(self, record: Record) -> None:
        looks = {name: look for observer in self._observers for name, look in observer.looks().items()}
        for kind, values in layer_stats.full(looks, self.rules, tables=self._tables).items():
            if kind == "l2_norm/grad":  # layers have theirs in every step
                record.add_found(kind, self._tables, values, Combine.MAX)
            else:
                record.add_found(kind, [*self._layers, *self._tables], values, Combine.MAX)

    def _read(self) -> Alarm | None:
        """Read the step that is pending; write it, show it to the detector, return what that says."""
        if self._pending is None:
            return None
        (step, reading, batch), self._pending = self._pending, None
        found = reading.get()
        if self._forms.find(dict(found), self._binary):
            self._forget_window()
        values = self._values_of(step, found)
        self._values = _row(values)
        signals = self._detector_input.signals(values)
        self._last = step, signals
        was_healthy = self.detector.healthy
        alarm = self.detector.update(step, signals)
        if self.detector.healthy and not was_healthy:
            self._forget_window()  # which holds what the alarm was about: it would become what is usual
        self._write(step, self._values)
        if alarm is not None and batch is not None and self._attribute is not None:
            with self._best_effort("attribution"):
                self.attribution = self._attribute(batch)
        return alarm

    def _values_of(self, step: int, found: list[tuple[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
        """Return what a step's record says, by kind and key."""
        values = interpreted(found, self._binary, self._masked, self._forms.sums(self.tasks))
        return {name: value for name, value in values.items() if step >= self._scored_from or name[0] not in SCORES}

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        """Give a step's row to the sinks, if they do not have it."""
        if step <= self._written:
            return
        self._written = step
        for sink in self._sinks:
            with self._best_effort(f"writing to {_named(sink)}"):
                sink(step, row)

    def _forget_window(self) -> None:
        """Let the window begin with the batch to come."""
        self._window, self._scored_from = Window(self._window.rows), self._step + 1

    def _kinds(self, tasks: list[str], device: torch.device) -> Kinds:
        """Return the kinds of the tasks, kept from step to step."""
        for task in tasks:
            if task not in self._binary:
                raise ValueError(
                    f"labels has {task!r}, whose kind is not known; expected tasks={{{task!r}: 'binary'}}, say"
                )
        binary = tuple(self._binary[task] for task in tasks)
        if self._last_kinds is None or (self._last_kinds.binary, self._last_kinds.mask.device) != (binary, device):
            self._last_kinds = Kinds(binary, torch.tensor(binary, dtype=torch.bool, device=device))
        return self._last_kinds


def _check(model: object, optimizers: Sequence[object], **intervals: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}; expected a torch.nn.Module")
    if not optimizers:
        raise ValueError("optimizers is empty; expected at least one")
    for name, value in intervals.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number, 1 or above")


def _count(optimizers: Sequence[Optimizer]) -> list[list[int]]:
    """Return how many parameters each group of each optimizer has."""
    return [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]


def _split(
    model: nn.Module, optimizers: Sequence[Optimizer], patterns: Sequence[NamePattern] | None
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the parameters to look at by name, those of embedding tables apart."""
    named, tables = named_parameters(model), embedding_tables(model)
    matched = match_names("layers", patterns, named) if patterns is not None else [(0,)] * len(named)
    held = {param for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
    chosen = [each for each, found in zip(named, matched, strict=True) if found and each.param in held]
    if not chosen:
        raise ValueError("optimizers hold no parameter of the model that is to be looked at; expected at least one")
    layers = {names[0]: param for param, names in chosen if param not in tables}
    return layers, {names[0]: param for param, names in chosen if param in tables}


def _sinks(sinks: Sequence[Sink] | None, folder: Path | str | None, every: int) -> list[Sink]:
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return []
    if sinks is not None:
        return list(sinks)
    return [] if folder is None else default_sinks(Path(folder), every=every)


def _row(values: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Return a step's values by the names that sinks see."""
    return {f"{kind}/{key}": value for (kind, key), value in values.items() if kind != "rows"}


def _named(sink: Sink) -> str:
    return getattr(sink, "__name__", type(sink).__name__)
