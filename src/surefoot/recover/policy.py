"""The stages of the recovery policy, and their numbers: skip the step, slow down, roll back, stop."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol, Self

from surefoot import checks
from surefoot.capsule.snapshot import Stateful

EARLY = frozenset({"clip_ratio", "grad_norm"})
"""Signals of a step that is too large, before anything is known to be worse for it; the others tell of harm done."""


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value!r}; expected a number between 0 and 1")


@dataclass(frozen=True)
class Slow:
    """The second stage: smaller steps for a while.

    Args:
        factor: of the rate; of Clippy's thresholds too, which the rate alone does not reach where it clips.
        steps: healthy steps at the lowered rate; as many again each time that it doubles on its way back.

    Raises:
        ValueError: if the factor is not between 0 and 1, or ``steps`` is not above 0.
    """

    factor: float = 0.1
    steps: int = 5

    def __post_init__(self) -> None:
        _fraction("factor", self.factor)
        checks.positive("steps", self.steps)


@dataclass(frozen=True)
class RollBack:
    """The third stage: back to the last healthy checkpoint, past the batches since, on at a lower rate.

    Args:
        factor: of the rate, once more with each roll-back in a row.
        steps: as for ``Slow``.
        look: batches that the model only looks at first, without a step: if all is well again by then, it was a bad
            batch that did no harm, and nothing goes back. 0: go back at once.
        hold: batches that it looks at after going back, before it takes a step; twice as many with each roll-back in a
            row, and more while an alarm on one of them shows that it is the data that are bad.
        longest_hold: batches after which it goes on even so: data that have changed for good must be learnt, and for
            ``RecoveryPolicy.confirm`` steps no alarm about that is acted on.
        at_most: roll-backs in a row. The count starts again once the rate is whole and a checkpoint made since has been
            found healthy.

    Raises:
        ValueError: if the factor is not between 0 and 1, or another number is not above 0 (``look``, ``hold``: below
            0).
    """

    factor: float = 0.5
    steps: int = 20
    look: int = 10
    hold: int = 5
    longest_hold: int = 30
    at_most: int = 3

    def __post_init__(self) -> None:
        _fraction("factor", self.factor)
        for name in ("look", "hold"):
            checks.non_negative(name, getattr(self, name))
        for name in ("steps", "longest_hold", "at_most"):
            checks.positive(name, getattr(self, name))


@dataclass(frozen=True)
class RecoveryPolicy:
    """Which stages there are, and when the next one is taken.

    Args:
        skip: skip steps whose gradients are not finite, by selection, all optimizers together.
        slow: how to slow down on an early signal; None: do not.
        roll_back: how to roll back; None: do not.
        stop: stop when the other stages have not helped; if False, go on whatever happens.
        patience: steps that a stage has to help.
        confirm: steps without an alarm after which a checkpoint counts as healthy. An onset is noticed some steps late.

    Raises:
        ValueError: if ``patience`` or ``confirm`` is not above 0.
    """

    skip: bool = True
    slow: Slow | None = Slow()
    roll_back: RollBack | None = RollBack()
    stop: bool = True
    patience: int = 10
    confirm: int = 30

    def __post_init__(self) -> None:
        checks.positive("patience", self.patience)
        checks.positive("confirm", self.confirm)


class Action(StrEnum):
    """What ``Recovery.step`` has done."""

    NONE = "none"
    SKIPPED = "skipped"  # a step was, and that may be enough
    SLOWED = "slowed"
    LOOKING = "looking"  # at batches, without a step, to see whether the model has been harmed
    ROLLED_BACK = "rolled_back"  # model, optimizers, schedulers, detector and random generators are as they were
    STOP = "stop"  # leave the loop: exit code 3


class Alarm(Protocol):
    """What a detector says when something starts."""

    @property
    def step(self) -> int: ...
    @property
    def signal(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Judge(Stateful, Protocol):
    """A detector: it has a state, and says whether anything is wrong now."""

    @property
    def healthy(self) -> bool: ...


class Watcher(Stateful, Protocol):
    """A monitor: it has a detector. Its state has the number of the step to come, ``"step"``."""

    @property
    def detector(self) -> Judge: ...


@dataclass
class State:
    """Which stage the run is in, in numbers that a checkpoint holds."""

    steps: int = 0
    clean: int = 0  # steps since the last sign of trouble
    stage: Action = Action.NONE  # the last one taken in the present trouble
    onset: int = 0  # of the present trouble
    since: int = 0  # steps when the stage was taken
    deadline: int = 0  # steps after which the stage has not helped
    skipped: int = -1  # the last step known to have been skipped
    factor: float = 1.0
    wait: int = 0  # healthy steps before the rate begins to return
    doubling: int = 1  # healthy steps in which it doubles then
    roll_backs: int = 0  # in a row
    rolled_at: int = 0  # steps at the last one
    held_from: int = 0  # steps at which it began to look
    hold: int = 0  # batches it looks at, at least, after a bad one
    hold_until: int = 0
    trial: int = -1  # steps of the checkpoint gone back to, while it is not known to be healthy
    excused: bool = False  # whether weights that have learnt nothing found a batch odd, which says nothing
    accepted: int = -1  # steps at which data were last taken as they are
    stopped: bool = False
    pending: list[int] = field(default_factory=list)  # checkpoints not tagged yet

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """Return what ``state_dict`` has saved; numbers of an earlier version that are none of these are left out."""
        known: dict[str, Any] = {each.name: saved[each.name] for each in fields(cls) if each.name in saved}
        return cls(**{**known, "stage": Action(saved["stage"])})

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers, in plain types."""
        return {**asdict(self), "stage": self.stage.value}

    def lower(self, factor: float, steps: int) -> float:
        """Lower the rate to a factor, which is returned, for so many healthy steps."""
        self.factor, self.wait, self.doubling = factor, steps, steps
        return factor

    def return_rate(self) -> bool:
        """Let a lowered rate return by one healthy step; say whether it has just become whole."""
        if self.factor == 1.0:
            return False
        if self.wait > 0:
            self.wait -= 1
            return False
        self.factor = min(1.0, self.factor * 2 ** (1 / self.doubling))
        return self.factor == 1.0
