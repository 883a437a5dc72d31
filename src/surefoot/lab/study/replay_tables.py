"""What a replay found, as tables of text and as one plain document."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from surefoot.capsule.bad_rows import BadRow, Bisection
from surefoot.capsule.batch_rows import UnusualValue
from surefoot.capsule.recovery_test import LossChange, loss_changes
from surefoot.capsule.replay import Replay, ReplayedStep
from surefoot.capsule.storage import Capsule, StepRecord
from surefoot.lab.study.replay import Examined, Recorded

_Step = TypeVar("_Step", ReplayedStep, StepRecord)
BEFORE, AFTER = 6, 6  # steps shown around the event
_LAYERS = 12  # in the what-if table, those that Clippy would have clipped most
_LOSSES = 6  # of a loop of one's own, as many as fit
_ROWS = 12  # of a batch, in the table of bad_rows
_KINDS = {
    "norm": "the gradient norm of",
    "loss": "the loss",
    "clip_ratio": "Clippy's ratio at",
    "error": "the error of the step",
}


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and sections of rows; a row that has its first cell alone is a head."""

    title: str
    heads: tuple[str, ...]
    sections: list[list[tuple[str, ...]]]


def outcome(result: Replay) -> str:
    """Return in a sentence whether the replay was equal to the record."""
    run = f"Replayed the steps {result.steps[0].step} to {result.steps[-1].step}:"
    if result.difference is None:
        states = f"{result.states} state{'s' if result.states != 1 else ''} of weights"
        return f"{run} {result.compared} losses and norms and {states} equal bit for bit."
    first = result.difference
    where = f"{run} first different at step {first.step}, {first.name}: {first.recorded}, replayed as {first.replayed}."
    return where + ("" if result.surroundings else " Versions, processor and settings are those of the record.")


def around(seen: Sequence[_Step], event: int) -> list[_Step]:
    """Return the steps to show."""
    return [each for each in seen if event - BEFORE <= each.step <= event + AFTER]


def trajectory(seen: Sequence[ReplayedStep], event: int, names: Iterable[str]) -> Table:
    """Return losses and the largest of Clippy's ratios, step by step around the event."""
    names = list(names)
    rows = [
        (
            f"{'> ' if each.step == event else ''}{each.step}",
            *(_number(each.losses.get(name, math.nan)) for name in names),
            _number(max(each.counterfactual.clip_ratios.values(), default=math.nan)),
        )
        for each in around(seen, event)
    ]
    heads = ("step", *(name.rpartition("/")[2] for name in names), "Clippy's\nratio")
    return Table("relative losses, before each step", heads, [rows])


def what_if(seen: Sequence[ReplayedStep], event: int) -> Table:
    """Return the factor of every rule at each weight matrix: at the event, and the least around it."""
    shown = around(seen, event)
    at = next((each for each in shown if each.step == event), shown[-1])
    rules, ratios = list(at.counterfactual.factors), at.counterfactual.clip_ratios
    matrices = [layer for layer in ratios if not layer.endswith("bias")]
    worst = sorted(matrices, key=lambda layer: -_worst_first(ratios[layer]))[:_LAYERS]
    layers = [layer for layer in matrices if layer in worst]

    def section(steps: Sequence[ReplayedStep], words: str) -> list[tuple[str, ...]]:
        least = {
            rule: {layer: _least(each.counterfactual.factors[rule].get(layer) for each in steps) for layer in layers}
            for rule in rules
        }
        rows = [(layer, *(_number(least[rule][layer], 2) for rule in rules)) for layer in layers]
        return [(words, *("" for _ in rules)), *rows]

    span = f"least of steps {shown[0].step} to {shown[-1].step}"
    title = "what each rule would have left of the unclipped step: sigma"
    return Table(title, ("", *rules), [section([at], f"at step {at.step}"), section(shown, span)])


def comparison(recorded: Mapping[str, LossChange], under: Mapping[str, LossChange], names: tuple[str, str]) -> Table:
    """Return each task's level before the event, and at the end under the recorded rule and under another."""
    rows = [
        (task.rpartition("/")[2], *map(_number, (then.before, then.worst, then.end, now.worst, now.end)))
        for task, then in recorded.items()
        for now in [under[task]]
    ]
    heads = ("task", "before", *(f"{name},\n{word}" for name in names for word in ("worst", "end")))
    return Table("relative losses: median before, highest since, median at the end", heads, [rows])


def verdict(rule: str, loss_changes: Mapping[str, LossChange], last: int) -> str:
    """Return in a sentence whether the run survives under a rule."""
    if any(math.isnan(level.end) for level in loss_changes.values()):
        return f"Under {rule} it cannot be told: there are too few steps after the event."
    if any(math.isnan(level.limit) for level in loss_changes.values()):
        return f"Under {rule} it cannot be told: there is no step before the event to compare with."
    lost = [f"{name.rpartition('/')[2]} ends at {_number(x.end)}" for name, x in loss_changes.items() if not x.survived]
    if not lost:
        return f"Under {rule} the run survives, to step {last}."
    return f"Under {rule} the run does not survive: {', '.join(lost)}."


def finding(found: Bisection) -> str:
    """Return in sentences what the search found."""
    signal = found.signal
    what = f"{_KINDS[signal.kind]} {signal.name}".rstrip()
    lines = [f"At step {found.event} {what} is {_number(signal.value)}; at most {_number(signal.healthy)} before."]
    if found.step != found.event:
        lines.append(f"The batch of step {found.step} is to blame: without that step it does not come to this.")
    if found.complete:
        rows = f"Without {_rows(found.rows)} of {found.batch_rows}"
    else:
        rows = f"It is not a few rows: without {len(found.rows)} of {found.batch_rows}"
    lines.append(f"{rows} it is {_number(found.without)} ({found.tried} tries).")
    return " ".join(lines)


def bad_rows(found: Bisection) -> Table:
    """Return the rows found, or if they are many the columns in which they are unusual."""
    if not found.complete:
        return _columns(found.rows)
    rows = [line for row in found.rows[:_ROWS] for line in _lines(row)]
    return Table("rows whose removal avoids it", ("row of\nbatch", "row of\nlog", "column", "value", "before"), [rows])


def page(found: Examined | Recorded) -> list[str | Table]:
    """Return all there is to say, in order."""
    if isinstance(found, Recorded):
        return _recorded(found)
    result = found.replay
    parts: list[str | Table] = [_alarm(found.capsule), outcome(result)]
    if result.difference is not None:
        parts += [f"Not as it was: {words}." for words in result.surroundings]
    parts += [trajectory(result.steps, result.event, found.judged), what_if(result.steps, result.event)]
    parts += _rules(found)
    if found.not_searched:
        parts.append(f"Rows were not looked for: {found.not_searched}.")
    return parts if found.bisection is None else [*parts, finding(found.bisection), bad_rows(found.bisection)]


def _alarm(capsule: Capsule) -> str:
    alarm = capsule.alarm or {}
    return (
        f"Alarm at step {alarm['step']}: {alarm.get('reason') or 'no reason given'}."
        if "step" in alarm
        else "No alarm."
    )


def _recorded(found: Recorded) -> list[str | Table]:
    """Return what the capsule of somebody else's loop shows without being run, and what it does not."""
    capsule, steps = found.capsule, found.steps
    said = [
        _alarm(capsule),
        f"The capsule is of a loop of your own, and nothing was run: it holds the steps {capsule.steps[0].step} to "
        f"{capsule.steps[-1].step} and {len(capsule.snapshots)} snapshots of weights and states, whole and undamaged.",
    ]
    missing = (
        "Missing without your model and step function: whether it replays bit for bit, the factors of agc, lamb and "
        "clippy, another rule (--rule), the rows (--bisect-batch). docs/replay.md has the lines to replay it in Python."
    )
    if not steps:
        return [*said, "No step of it was seen to its end: neither losses nor norms are known.", missing]
    shown, names = around(steps, capsule.event), list(steps[-1].losses)[:_LOSSES]
    rows = [
        (
            f"{'> ' if each.step == capsule.event else ''}{each.step}",
            *(_number(each.losses.get(name, math.nan)) for name in names),
            _number(math.hypot(*each.norms.values()) if each.norms else math.nan),
        )
        for each in shown
    ]
    heads = ("step", *(name.rpartition("/")[2] for name in names), "gradient\nnorm")
    return [*said, Table("losses, before each step, as recorded", heads, [rows]), _norms(found), missing]


def _norms(found: Recorded) -> Table:
    """Return the gradient norms at the event, of the layers that rose most, and the factors that follow from them."""
    at = next((each for each in found.steps if each.step == found.capsule.event), found.steps[-1])
    before = [each for each in found.steps if each.step < at.step]
    highest = {layer: max((each.norms.get(layer, 0.0) for each in before), default=math.nan) for layer in at.norms}
    rise = {layer: norm / highest[layer] if highest[layer] else math.inf for layer, norm in at.norms.items()}
    order = sorted(at.norms, key=lambda layer: -_worst_first(rise[layer]))[:_LAYERS]
    factors = found.factors(at)
    rows = [
        (
            layer,
            _number(at.norms[layer]),
            _number(highest[layer]),
            *(_number(each[layer], 2) for each in factors.values()),
        )
        for layer in at.norms
        if layer in order
    ]
    title = f"gradient norms at step {at.step}, and the factors that follow from them: sigma"
    return Table(title, ("", "norm", "highest\nbefore", *factors), [rows])


def _rules(found: Examined) -> list[str | Table]:
    """Return the comparison of the run's own rule with another, and the verdicts."""
    event = found.replay.event
    by_rule = {
        rule: loss_changes(seen, event, names=found.judged, relative=True) for rule, seen in found.went_on.items()
    }
    if not by_rule:
        return []
    own, other = found.own, list(by_rule)[-1]
    table = comparison(by_rule[own], by_rule[other], (own, other))
    return [table, *(verdict(rule, each, found.went_on[rule][-1].step) for rule, each in by_rule.items())]


def document(found: Examined | Recorded) -> dict[str, Any]:
    """Return all of it in what JSON can hold."""
    if isinstance(found, Recorded):
        steps = [
            {"step": each.step, "losses": each.losses, "norms": each.norms, "factors": found.factors(each)}
            for each in found.steps
        ]
        capsule = found.capsule
        told = {"capsule": str(capsule.folder), "alarm": capsule.alarm, "event": capsule.event, "equal": None}
        return _plain({**told, "steps": steps})
    result = found.replay
    return _plain(
        {
            "capsule": str(found.capsule.folder),
            "alarm": found.capsule.alarm,
            "event": result.event,
            "equal": result.difference is None,
            "difference": None if result.difference is None else asdict(result.difference),
            "compared": result.compared,
            "states": result.states,
            "surroundings": result.surroundings,
            "steps": [_asdict(each) for each in result.steps],
            "went_on": {rule: [_asdict(each) for each in seen] for rule, seen in found.went_on.items()},
            "bisection": None if found.bisection is None else asdict(found.bisection),
            "not_searched": found.not_searched,
        }
    )


def _asdict(seen: ReplayedStep) -> dict[str, Any]:
    return {"step": seen.step, "losses": seen.losses, "norms": seen.norms, **seen.counterfactual._asdict()}


def _lines(row: BadRow) -> list[tuple[str, ...]]:
    """Return a line for each unusual value of a row."""
    numbers = str(row.number), "" if row.row is None else str(row.row)
    if not row.values:
        return [(*numbers, "nothing unusual", "", "")]
    values = [(value.column, _number(value.value), _range(value)) for value in row.values]
    return [(*(numbers if i == 0 else ("", "")), *value) for i, value in enumerate(values)]


def _columns(rows: Sequence[BadRow]) -> Table:
    """Return in how many of the rows each column is unusual."""
    found: dict[str, list[UnusualValue]] = {}
    for value in (value for row in rows for value in row.values):
        found.setdefault(value.column, []).append(value)
    lines = [
        (column, f"{len(values)} of {len(rows)}", _number(max(values, key=_size).value), _range(values[0]))
        for column, values in sorted(found.items(), key=lambda item: -len(item[1]))[:_ROWS]
    ]
    return Table("columns that are unusual in these rows", ("column", "rows", "farthest", "before"), [lines])


def _size(value: UnusualValue) -> float:
    return abs(value.value) if math.isfinite(value.value) else math.inf


def _range(value: UnusualValue) -> str:
    return f"{_number(value.low)} to {_number(value.high)}"


def _rows(rows: Sequence[BadRow]) -> str:
    numbers = ", ".join(str(row.number) for row in rows[:_ROWS])
    return f"row {numbers}" if len(rows) == 1 else f"{len(rows)} rows ({numbers}{', ...' if len(rows) > _ROWS else ''})"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"


def _worst_first(ratio: float) -> float:
    return ratio if ratio == ratio else math.inf


def _least(values: Iterable[float | None]) -> float:
    """Return the least; NaN if there is one, or nothing at all."""
    known = [value for value in values if value is not None]
    return math.nan if not known or any(value != value for value in known) else min(known)


def _plain(value: Any) -> Any:
    """Return the value with numbers that are not finite as words."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
