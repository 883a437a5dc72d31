"""A run in words: a sentence on its end, a table of its events, a table of its scores."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.lab.report.journal import Event
from surefoot.lab.report.run_folder import Capsule, RunFolder
from surefoot.lab.report.tables import Cell
from surefoot.lab.report.text import listed

KINDS = {  # kind of event: its name on the page; in the order of the figure, from the top
    "alarm": "alarm",
    "skipped": "step skipped",
    "slowed": "rate lowered",
    "rate_restored": "rate restored",
    "looking": "forward passes only",
    "rolled_back": "rolled back",
    "released": "steps resumed",
    "accepted": "data accepted",
    "divergence": "diverged",
    "stopped": "stopped",
    "checkpoint_failed": "checkpoint not written",
    "resumed": "resumed",
    "never_learnt": "never learnt",
}
_COUNTED = {  # kinds that the second sentence counts: singular, plural
    "alarm": ("alarm", "alarms"),
    "skipped": ("stretch of skipped steps", "stretches of skipped steps"),
    "slowed": ("lowered rate", "lowered rates"),
    "rolled_back": ("roll-back", "roll-backs"),
}
_DETAILS = {  # what is shown of an action's details
    "count": "{} steps in a row",
    "checkpoint": "to {}",
    "batches_dropped": "{} batches dropped",
    "batches": "the next {} batches",
    "batches_held": "{} batches had a forward pass only",
    "rate_factor": "learning rate times {}",
}
MOST_LINES = 300  # of events in the table
METRICS = {  # name in the results: name on the page, factor, digits
    "auc": ("AUC %", 100.0, 2),
    "ne": ("normalised entropy", 1.0, 4),
    "calibration": ("calibration", 1.0, 3),
    "rmse": ("RMSE", 1.0, 4),
    "rmse_constant": ("RMSE of a constant", 1.0, 4),
    "of_constant": ("least error / constant's", 1.0, 3),
}


@dataclass(frozen=True)
class Happening:
    """A line of the table of events."""

    step: str
    what: Cell
    where: Cell
    why: str
    capsule: Capsule | None


def facts(run: RunFolder) -> str:
    """Return rule, rate, model and so on in one line, without the keys that the configuration does not have."""
    config, said = run.config, []
    if rule := config.get("rule", {}).get("name"):
        said.append(f"rule {rule}")
    for key, called in (("rate", "learning rate"), ("warmup_steps", "warm-up of"), ("seed", "seed")):
        if config.get(key) is not None and (key != "warmup_steps" or config[key]):
            said.append(f"{called} {config[key]}{' steps' if key == 'warmup_steps' else ''}")
    if model := config.get("model", {}).get("name"):
        said.append(f"model {model}")
    if source := config.get("data", {}).get("source"):
        said.append(f"data {source}")
    said.append(f"{len(run.steps)} steps recorded")
    return " · ".join(said)


def conclusion(run: RunFolder) -> str:
    """Say how the run ended, and how many alarms and actions it had."""
    return " ".join(filter(None, [_ending(run), _counted(run)]))


def _ending(run: RunFolder) -> str:
    result = run.result
    if result is not None:
        onset, reason, steps = result.get("onset"), result.get("reason"), result["steps"]
        since = "" if onset is None else f" from step {onset} on"
        because = f": {reason}" if reason else ""
        return {
            "full": f"Diverged{since}{because}. The run ended after {steps} steps.",
            "micro": f"Diverged{since} and recovered{because}. The run ended after {steps} steps.",
        }.get(result["verdict"], f"Healthy: {steps} steps, and no task diverged.")
    if stopped := run.of_kind("stopped"):
        return f"Stopped at step {stopped[-1].step}: {stopped[-1].reason}."
    last = "" if run.last_step is None else f" The last recorded step is {run.last_step}."
    lost = run.of_kind("divergence")
    if full := [event for event in lost if event.details["verdict"] == "full"]:
        return f"Diverged from step {full[0].step} on: {full[0].reason}.{last}"
    if run.toml is not None:
        return f"Not finished: the run is still going, or was interrupted.{last}"
    return f"This folder does not record how the run ended: only surefoot train and studies write a result.{last}"


def _counted(run: RunFolder) -> str:
    counts = Counter(event.kind for event in run.events)
    said = [f"{n} {words[n > 1]}" for kind, words in _COUNTED.items() if (n := counts[kind])]
    verb = "was" if sum(counts[kind] for kind in _COUNTED) == 1 else "were"
    return f"There {verb} {listed(said)}." if said else "There was no alarm."


def warnings(run: RunFolder) -> list[str]:
    """Return the warnings of a run, one sentence each; an empty list if nothing is wrong."""
    said = []
    if never := [str(event.details.get("task")) for event in run.of_kind("never_learnt")]:
        said.append(f"{listed(never)}: never better than a constant prediction. The model learnt nothing about it.")
    if failed := run.of_kind("checkpoint_failed"):
        said.append(f"{len(failed)} checkpoint(s) could not be written; the last time: {failed[-1].reason}.")
    if run.result is None and run.toml is not None:
        said.append("The run is not finished: this page shows what it has written so far.")
    return said


def in_a_line(event: Event) -> str:
    """Return an event as a run that is under way tells of it."""
    where = "" if event.step is None else f"step {event.step}: "
    because = f": {event.reason}" if event.reason else ""
    return f"{where}{KINDS.get(event.kind, event.kind.replace('_', ' '))}{because}"


def happenings(run: RunFolder) -> list[Happening]:
    """Return a line for each event but the result, sorted by step; events without a step come last."""
    found = [event for event in run.events if event.kind != "finished"]
    found.sort(key=lambda event: math.inf if event.step is None else event.step)
    return [_line(run, event) for event in found]


def _line(run: RunFolder, event: Event) -> Happening:
    details = event.details
    what = KINDS.get(event.kind, event.kind.replace("_", " "))
    if event.kind == "divergence" and details["verdict"] == "micro":
        what = f"diverged, recovered at step {details['end']}"
    said = [form.format(_shown(details[key])) for key, form in _DETAILS.items() if details.get(key) not in (None, 1.0)]
    if event.kind not in KINDS:
        said = [f"{key} {value}" for key, value in details.items() if key != "reason"]
    places = [str(details[key]) for key in ("task", "layer") if details.get(key)]
    return Happening(
        step="" if event.step is None else str(event.step),
        what=Cell(what, ", ".join(said)),
        where=Cell(", ".join(places), str(details.get("signal") or "").replace("_", " ")),
        why=event.reason,
        capsule=run.capsule_of(event),
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def score_table(run: RunFolder) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Return the column heads of a run's final scores, and a row for each task."""
    known = [metric for metric in METRICS if any(key.startswith(f"{metric}/") for key in run.scores)]
    tasks = list(dict.fromkeys(key.partition("/")[2] for key in run.scores))
    cells = [[score(run, m, task) if f"{m}/{task}" in run.scores else Cell("") for m in known] for task in tasks]
    return [METRICS[metric][0] for metric in known], list(zip(tasks, cells, strict=True))


def scored(runs: Sequence[RunFolder]) -> list[tuple[str, str, str]]:
    """Return the final scores that at least one of the runs has: task, metric, the metric's name on the page."""
    keys = dict.fromkeys(key for run in runs for key in run.scores)
    tasks = dict.fromkeys(key.partition("/")[2] for key in keys)
    return [(task, metric, METRICS[metric][0]) for task in tasks for metric in METRICS if f"{metric}/{task}" in keys]


def score(run: RunFolder, metric: str, task: str) -> Cell:
    """Return a score of a task; for an AUC, with its 95 % interval for the number of rows of the day."""
    value = run.scores.get(f"{metric}/{task}")
    if value is None:
        return Cell("not scored")
    if math.isnan(value):
        return Cell("undefined")
    _, scale, digits = METRICS[metric]
    ends = [run.scores.get(f"{metric}_{end}/{task}", math.nan) for end in ("low", "high")]
    interval = "" if any(map(math.isnan, ends)) else f"[{scale * ends[0]:.2f}, {scale * ends[1]:.2f}]"
    return Cell(f"{scale * value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}", interval)
