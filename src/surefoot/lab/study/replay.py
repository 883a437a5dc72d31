"""A capsule of a configured run: the training built again from its configuration, under its own rule or another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from surefoot import rules
from surefoot.capsule import storage
from surefoot.capsule.bad_rows import Bisection, bisect
from surefoot.capsule.replay import Replay, ReplayedStep, Training, go_on, replay
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.errors import InputError
from surefoot.files import parse_toml
from surefoot.lab.data.schema import Batch
from surefoot.lab.data.sliding_window import MovingWindow
from surefoot.lab.file_discovery import is_url
from surefoot.lab.settings import parse
from surefoot.lab.study.config import RULES, RecoveryConfig, RuleConfig, RunConfig
from surefoot.lab.study.trial import TrainingParts, assemble, load_log
from surefoot.lab.training.loop import read, start_reading, take_step
from surefoot.recover.recorded_steps import under_recovery
from surefoot.rules import Rule

WHAT_IF: dict[str, Rule] = {name: kind() for name, kind in RULES.items() if name != "naive"}
RELATIVE = "relative_loss/"
_FOREIGN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)  # a state that fits no such training


@dataclass(frozen=True)
class Elsewhere:
    """What a capsule's configuration names and is to be had elsewhere, or has to be named by the user.

    Args:
        data: the folder or URL of the log; None: as configured.
        model: ``package.module:function``, the factory of a model that is not the package's own.
    """

    data: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Rebuilt:
    """A configured run, ready to take a capsule's steps."""

    config: RunConfig
    window: MovingWindow
    training: Training

    @property
    def judged(self) -> list[str]:
        """The names of the relative losses that verdicts look at."""
        return [f"{RELATIVE}{task.name}" for task in self.window.log.schema.tasks if task.judged]

    def more(self, capsule: Capsule, count: int) -> Iterator[Batch]:
        """Yield up to ``count`` batches that follow the capsule's last one in the log, if it noted where it was."""
        note = capsule.steps[-1].note
        if not {"day", "index"} <= note.keys():
            return
        stream = self.window.stream(len(self.window.log.days) - 1)
        stream.load_state_dict({**stream.state_dict(), "day": note["day"], "index": note["index"]})
        yield from (batch for _, batch in islice(stream, 1, 1 + count))


@dataclass(frozen=True)
class Examined:
    """What was found in a capsule.

    Args:
        capsule: the capsule.
        judged: names of the relative losses that verdicts look at.
        replay: of its steps.
        own: the name of the run's own rule.
        went_on: by rule's name, the run's own first, its steps gone on with after the event; empty if not asked for.
        bisection: the search for rows, or None if it was not asked for, or could not be made.
        not_searched: why it could not.
    """

    capsule: Capsule
    judged: list[str]
    replay: Replay
    own: str
    went_on: dict[str, list[ReplayedStep]]
    bisection: Bisection | None
    not_searched: str = ""


@dataclass(frozen=True)
class Recorded:
    """What the capsule of somebody else's loop holds; without that loop it cannot be run.

    Args:
        capsule: the capsule.
        steps: those that were seen to their end.
    """

    capsule: Capsule
    steps: list[StepRecord]

    def factors(self, step: StepRecord) -> dict[str, dict[str, float]]:
        """Return the factors that follow from gradient norms alone, by rule and layer; of dense gradients."""
        whole = math.hypot(*step.norms.values())
        norms = {"gc": step.norms, "global_gc": dict.fromkeys(step.norms, whole)}
        thresholds = {"gc": rules.GradientClip().threshold, "global_gc": rules.GlobalGradientClip().threshold}
        return {
            rule: {layer: _factor(norm, thresholds[rule]) for layer, norm in each.items()}
            for rule, each in norms.items()
        }


def _factor(norm: float, threshold: float) -> float:
    return 1.0 if norm <= threshold else threshold / norm  # NaN for NaN


def examine(
    folder: Path,
    *,
    rule: str | None = None,
    steps: int = 64,
    bisect_batch: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Examined | Recorded:
    """Replay the capsule of a configured run; of another one return what it recorded.

    Args:
        folder: the capsule's.
        rule: the name of a rule to run the same batches under.
        steps: how many after the event to go on, with batches of the log where the capsule ends; with ``rule`` only.
        bisect_batch: whether to search for the rows that made the event.
        elsewhere: the log and the model, where they are not to be had as the configuration says.

    Raises:
        InputError: if the capsule is missing or damaged, or the rule is unknown.
    """
    capsule = storage.read(folder)
    if capsule.config is None:
        if rule is not None:
            _rule(rule)
        return Recorded(capsule, [step for step in capsule.steps if step.observed])
    own = rebuild(capsule, elsewhere=elsewhere)
    # a wrong name is told before anything runs
    others = [] if rule is None else [rebuild(capsule, rule, policy_to=capsule.event, elsewhere=elsewhere)]
    try:
        result = replay(
            capsule, own.training, what_if=_what_if(own.config.rule, *(each.config.rule for each in others))
        )
    except InputError:
        raise
    except _FOREIGN as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise InputError(f"{folder} cannot be replayed: {' '.join(str(reason).split())}") from None
    left = max(0, capsule.event + steps - capsule.steps[-1].step)
    went_on = {
        each.config.rule.name: go_on(capsule, each.training, more=each.more(capsule, left), what_if={})
        for each in ([rebuild(capsule, policy_to=capsule.event, elsewhere=elsewhere), *others] if others else [])
    }
    found, reason = None, ""
    if bisect_batch:
        try:
            found = bisect(capsule, rebuild(capsule, elsewhere=elsewhere).training)
        except InputError as error:  # what the replay has shown is worth no less
            reason = str(error)
    return Examined(capsule, own.judged, result, own.config.rule.name, went_on, found, reason)


def _what_if(*more: RuleConfig) -> dict[str, Rule]:
    """Return the rules that are asked what they would have done: ours, and of other packages those in use."""
    return WHAT_IF | {rule.name: rule.build() for rule in more if rule.name not in RULES}


def rebuild(
    capsule: Capsule, rule: str | None = None, *, policy_to: float = math.inf, elsewhere: Elsewhere | None = None
) -> Rebuilt:
    """Return the training of a capsule's configuration.

    Args:
        capsule: with a configuration in it.
        rule: the name of another rule, with its default thresholds; None: the run's own.
        policy_to: the last step at which steps are slowed down or held as the recovery policy did then.
        elsewhere: the log and the model, where they are not to be had as the configuration says.

    Raises:
        InputError: if the capsule has no configuration, or it or the rule's name cannot be used.
    """
    config = config_of(capsule, elsewhere or Elsewhere())
    if rule is not None:
        config = config.model_copy(update={"rule": _rule(rule)})
    parts = assemble(config, load_log(config.data))
    return Rebuilt(config, parts.window, _training(parts, config.recovery, policy_to))


def config_of(capsule: Capsule, elsewhere: Elsewhere) -> RunConfig:
    """Return the run's configuration.

    A capsule may come from anybody: what it names is neither asked for over the network nor run as code, unless the
    user names it too.

    Args:
        capsule: with a configuration in it.
        elsewhere: the log and the model, where they are not to be had as the configuration says.

    Raises:
        InputError: if there is none, it is not a run's, or it names a URL or a factory of models and ``elsewhere`` has
            no other.
    """
    if capsule.config is None:
        raise InputError(
            f"{capsule.folder} has no config.toml, as it is of a loop of your own; expected a capsule of "
            "'surefoot train': replay yours from Python, as docs/replay.md shows"
        )
    table = parse_toml(capsule.config, capsule.folder / "config.toml")
    config = parse(RunConfig, table, f"{capsule.folder}/config.toml")
    factory = config.model.factory
    if (factory is None) != (elsewhere.model is None):
        seen = f"a model of the package, and --model is {elsewhere.model}; expected none"
        if factory is not None:
            seen = f"model.factory {factory!r}, and code that a capsule names is not run; name it yourself: --model"
        raise InputError(f"{capsule.folder}/config.toml has {seen}")
    if elsewhere.model is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"factory": elsewhere.model})})
    if elsewhere.data is not None:
        table = config.model_dump(exclude_none=True)
        return parse(RunConfig, {**table, "data": {**table["data"], "source": elsewhere.data}}, "--data")
    if is_url(config.data.source):
        raise InputError(
            f"{capsule.folder}/config.toml has data.source {config.data.source!r}, and URLs are not opened for "
            "a capsule; name the log yourself: --data"
        )
    return config


def _rule(name: str) -> RuleConfig:
    try:
        return parse(RuleConfig, {"name": name}, "--rule")
    except InputError as error:
        raise InputError(str(error).replace("--rule: rule.name", "--rule")) from None


def _training(parts: TrainingParts, recovery: RecoveryConfig | None, policy_to: float) -> Training:
    schema = parts.window.log.schema
    tasks = schema.tasks

    def step(batch: Any) -> dict[str, float]:
        batch = Batch(*batch)
        losses = take_step(parts.model, batch, parts.optimizers, tasks).losses
        parts.scheduler.step()
        values = read(start_reading(losses, batch.labels, tasks), tasks)
        relative = {f"{RELATIVE}{task.name}": values.get(("relative_loss", task.name), 0.0) for task in tasks}
        return dict(zip([task.name for task in tasks], losses.tolist(), strict=True)) | relative

    training = Training(
        parts.model,
        parts.optimizers,
        step,
        others=[parts.scheduler],
        fetch=parts.window.batch,
        columns={"batch[1]": schema.dense, "batch[2]": tuple(f"label {task.name}" for task in schema.tasks)},
        layers=parts.layers,
    )
    return training if recovery is None else under_recovery(training, skip=recovery.skip, up_to=policy_to)
