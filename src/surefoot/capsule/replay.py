"""Run a capsule's steps again: bit for bit as they were, or as they would have been under another rule."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.capsule import snapshot, storage
from surefoot.capsule.counterfactual import EVERY_RULE, Counterfactual, CounterfactualObserver
from surefoot.capsule.ring import layer_norms
from surefoot.capsule.snapshot import Plain, Stateful
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.errors import InputError
from surefoot.optim.embedding_tables import split_parameters
from surefoot.optim.unwrap import with_in_backward
from surefoot.rules import Rule

_SET_BY_REPLAY = {"versions", "threads", "matmul_precision", "deterministic"}


@dataclass(frozen=True)
class Training:
    """A training that can take a capsule's steps, made as the one that was recorded.

    Args:
        model: of the same architecture, on the device to run on.
        optimizers: of the same kinds and groups, in the same order; their states come from the capsule.
        step: takes one step on a batch (on the CPU, named tuples as tuples): forward, backward, optimizers, schedulers.
            Returns the losses by the names that were recorded; further ones are welcome.
        others: as the ring was given them.
        fetch: the batch made of these rows of the log, for capsules that hold row numbers only.
        norms: called after a step, if the loop recorded norms of its own; by default ``layer_norms`` of the model.
        prepare: called before each step with its record, to set what the loop noted.
        columns: names for the columns of a batch's parts, by the part's place: ``{"batch[1]": ("age", "price")}``.
        layers: parameters to ask the rules about, by name; by default all but embedding tables.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    step: Callable[[Any], Mapping[str, Tensor | float]]
    others: Sequence[Stateful] = ()
    fetch: Callable[[Tensor], Any] | None = None
    norms: Callable[[], Mapping[str, Tensor | float]] | None = None
    prepare: Callable[[StepRecord], None] = lambda record: None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    layers: Mapping[str, nn.Parameter] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizers", with_in_backward(self.model, self.optimizers))

    def batch_of(self, record: StepRecord) -> Plain:
        """Return the batch of a step, a copy.

        Raises:
            InputError: if the capsule holds row numbers and there is nothing to fetch the rows with.
        """
        if record.batch is not None:
            return snapshot.host_copy(record.batch, "batch")
        if self.fetch is None or record.rows is None:
            raise InputError(
                f"step {record.step} has row numbers only; expected a fetch function that returns the rows"
            )
        return snapshot.host_copy(self.fetch(record.rows), "batch")


@dataclass(frozen=True)
class ReplayedStep:
    """What one step showed when it was run again."""

    step: int
    losses: dict[str, float]
    norms: dict[str, float]
    counterfactual: Counterfactual


@dataclass(frozen=True)
class Difference:
    """Where a replay first left the record."""

    step: int
    name: str
    recorded: float | str
    replayed: float | str


@dataclass(frozen=True)
class Replay:
    """What came of running a capsule's steps again.

    Args:
        event: the step to look at.
        steps: all of them.
        difference: the first number that was not the same, or None: equal bit for bit.
        compared: how many losses and norms were compared.
        states: how many snapshots of weights and states were compared, the weights after the last step among them.
        surroundings: what is not as it was on this machine, in words; a difference is no wonder then.
    """

    event: int
    steps: list[ReplayedStep]
    difference: Difference | None
    compared: int
    states: int
    surroundings: list[str]


def replay(capsule: Capsule, training: Training, *, what_if: Mapping[str, Rule] = EVERY_RULE) -> Replay:
    """Run the steps again as they were, and compare every loss, norm and snapshot with the record, bit for bit.

    The recorded number of threads and settings are in force meanwhile; the training is left as after the last step.

    Args:
        capsule: as ``storage.read`` returns it.
        training: made as the recorded one, its rule included.
        what_if: rules to ask what they would have done, by name.

    Raises:
        ValueError: if the training does not fit the capsule.
        InputError: if the capsule is damaged.
    """
    differences: list[Difference] = []
    steps, compared, states = [], 0, 0
    with as_recorded(capsule):
        begin(capsule, training, rules="compare")
        runs = run(training, capsule.steps, what_if)
        for record, following, seen in zip(capsule.steps, [*capsule.steps[1:], None], runs, strict=True):
            steps.append(seen)
            if record.observed:
                compared += len(record.losses) + len(record.norms)
                differences += _differences(record, seen)
            if following is not None and following.step in capsule.snapshots:
                states += 1
                differences += _state_differences(capsule.state(following.step), training, record.step)
        if capsule.digests is not None:
            states += 1
            differences += _digest_differences(capsule.digests, training, steps[-1].step)
    first = differences[0] if differences else None
    return Replay(capsule.event, steps, first, compared, states, surroundings(capsule.facts))


def go_on(
    capsule: Capsule, training: Training, *, more: Iterable[Plain] = (), what_if: Mapping[str, Rule] = EVERY_RULE
) -> list[ReplayedStep]:
    """Run the steps from the oldest snapshot on under the training's own rule, whatever the recorded one was.

    Batches, random states, rates and optimizer states are the recorded ones; only the rule is another.

    Args:
        capsule: as ``storage.read`` returns it.
        training: made as the recorded one but for its rule.
        more: batches to go on with after the last step.
        what_if: rules to ask what they would have done, by name.

    Raises:
        ValueError: if the training does not fit the capsule.
        InputError: if the capsule is damaged.
    """
    with as_recorded(capsule):
        begin(capsule, training, rules="keep")
        seen = list(run(training, capsule.steps, what_if))
        observer = CounterfactualObserver(training.optimizers, _layers(training), what_if)
        try:
            for step, batch in enumerate(more, start=seen[-1].step + 1):
                seen.append(take(training, observer, step, batch))
        finally:
            observer.remove()
    return seen


@contextmanager
def as_recorded(capsule: Capsule) -> Iterator[None]:
    """Put the recorded number of threads and settings in force; leave all, generators too, as they were found."""
    facts = capsule.facts
    deterministic = torch.are_deterministic_algorithms_enabled()
    with snapshot.undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of skipped steps: the run itself has told them
        torch.set_num_threads(int(facts["threads"]))
        torch.set_float32_matmul_precision(facts["matmul_precision"])
        torch.use_deterministic_algorithms(bool(facts["deterministic"]))
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)


def begin(capsule: Capsule, training: Training, *, rules: str) -> None:
    """Bring the training to the oldest snapshot."""
    snapshot.restore(
        capsule.state(capsule.snapshots[0]), training.model, training.optimizers, training.others, rules=rules
    )


def run(training: Training, records: Sequence[StepRecord], what_if: Mapping[str, Rule]) -> Iterator[ReplayedStep]:
    """Take the steps of the records from where the training stands."""
    observer = CounterfactualObserver(training.optimizers, _layers(training), what_if)
    try:
        for record in records:
            batch = training.batch_of(record)
            training.prepare(record)
            snapshot.set_random_state(record.generators)
            seen = take(training, observer, record.step, batch)
            missing = [name for name in record.losses if name not in seen.losses]
            if missing:
                raise ValueError(
                    f"step returned no loss {missing[0]!r}; expected {', '.join(record.losses)}, as recorded"
                )
            yield seen
    finally:
        observer.remove()


def take(training: Training, observer: CounterfactualObserver, step: int, batch: Plain) -> ReplayedStep:
    """Take one step, and read what it showed."""
    shown = training.step(batch)
    losses = {name: float(loss.detach() if isinstance(loss, Tensor) else loss) for name, loss in shown.items()}
    norms = layer_norms(training.model.named_parameters()) if training.norms is None else training.norms()
    return ReplayedStep(step, losses, {name: float(norm) for name, norm in norms.items()}, observer.take())


def surroundings(then: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was, of all that decides the last bits of a step, in words."""
    now = snapshot.facts()
    pairs = [(name, then["versions"].get(name), now["versions"].get(name)) for name in then["versions"]]
    pairs += [(name, then.get(name), now[name]) for name in now if name not in _SET_BY_REPLAY]
    return [
        f"{name.replace('_', ' ')} was {old or 'none'} and is {new or 'none'}" for name, old, new in pairs if old != new
    ]


def _layers(training: Training) -> Mapping[str, nn.Parameter]:
    return split_parameters(training.model).dense if training.layers is None else training.layers


def _differences(record: StepRecord, seen: ReplayedStep) -> list[Difference]:
    """Return what differs in the step's numbers."""
    found = []
    for kind, then, now in (("loss", record.losses, seen.losses), ("norm", record.norms, seen.norms)):
        for name, value in then.items():
            if name not in now:
                found.append(Difference(record.step, f"{kind} {name}", value, "none"))
            elif repr(value) != repr(now[name]):  # NaN is NaN, and -0.0 is not 0.0
                found.append(Difference(record.step, f"{kind} {name}", value, now[name]))
    return found


def _state_differences(state: dict[str, Any], training: Training, step: int) -> list[Difference]:
    live = snapshot.live_state(training.model, training.optimizers, training.others)
    where = snapshot.first_difference(state, snapshot.host_copy(live, "state"), "state")
    return [] if where is None else [Difference(step, f"{where} after the step", "one value", "another")]


def _digest_differences(digests: Mapping[str, int], training: Training, step: int) -> list[Difference]:
    now = storage.digests(training.model)
    return [
        Difference(step, f"{name} after the step", f"checksum {checksum}", f"checksum {now.get(name)}")
        for name, checksum in digests.items()
        if now.get(name) != checksum
    ]
