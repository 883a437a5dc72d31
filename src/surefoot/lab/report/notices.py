"""Warnings above the scores: tasks that no method learnt, and data too small for a conclusion."""

import math
import statistics

from surefoot.lab.outcomes import Score, score_of
from surefoot.lab.report import text
from surefoot.lab.report.folder import Results
from surefoot.lab.results import Task

FEW_STEPS = 100  # of a final run: less than twice a common warm-up
FEW_SEEDS = 3  # with fewer, the interval of a difference is wider than any real difference


def notices(results: Results) -> list[str]:
    """Return the warnings of a study, one sentence each; an empty list if nothing is wrong."""
    return [*useless_tasks(results), *thinness(results)]


def useless_tasks(results: Results) -> list[str]:
    """Return a sentence for each judged task that no method predicts better than a constant prediction does."""
    judged = [(model, task) for model in results.models for task in results.summary.tasks if task.judged]
    return [said for model, task in judged if (said := _useless(results, model, task))]


def _useless(results: Results, model: str, task: Task) -> str:
    found = [score_of(results.finals(model, method.name), task.metric) for method in results.methods]
    scores = [score for score in found if score and score.values]
    constant = constant_of(results, model, task)
    if not scores or constant is None or any(beats_constant(results, model, task, score) for score in scores):
        return ""
    binary = task.kind == "binary"
    best = max(scores, key=lambda score: score.standing(least=not binary)).mean
    scale, metric = (100, "AUC %") if binary else (1, "RMSE")
    return text.useless(task.name, metric, results.last_day, model, scale * best, scale * constant)


def constant_of(results: Results, model: str, task: Task) -> float | None:
    """Return the score of the best constant prediction for a task on day N; None if the results do not hold it."""
    if task.kind == "binary":
        return text.CHANCE
    key = f"rmse_constant/{task.name}"
    values = [t.scores.get(key, math.nan) for method in results.methods for t in results.finals(model, method.name)]
    return next((value for value in values if not math.isnan(value)), None)


def beats_constant(results: Results, model: str, task: Task, score: Score) -> bool:
    """Return whether a score is better than that of a constant prediction; True if the latter is not known."""
    constant = constant_of(results, model, task)
    if constant is None or not score.values:
        return True
    return score.mean > constant if task.kind == "binary" else score.mean < constant


def thinness(results: Results) -> list[str]:
    """Return a sentence if days were left out, and for too few steps, seeds or rows of the last day."""
    summary, said = results.summary, []
    days, log_days = len(summary.days), summary.log_days
    if log_days is not None and days < log_days:
        said.append(f"Only the last {days} of the log's {log_days} days were used (data.days).")
    if summary.steps < FEW_STEPS:
        said.append(
            f"A final run has {summary.steps} steps, fewer than {FEW_STEPS}: too few to conclude what happens in "
            "longer training, or which learning rate suits it."
        )
    seeds, search_seeds = len(results.summary.seeds), len(results.summary.search_seeds)
    if search_seeds == 1:
        said.append(
            "Each setting was chosen, and each rate judged, with one seed: another seed may give another result."
        )
    if seeds < FEW_SEEDS:
        said.append(f"Final scores come from {seeds} seed{'s' if seeds > 1 else ''}: too few to compare methods.")
    return [*said, *filter(None, (_wide_interval(results, model) for model in results.models))]


def _wide_interval(results: Results, model: str) -> str:
    """Return a sentence if the interval of the last day's AUC is wider than the differences of the methods."""
    task = results.summary.select_by
    trials = [t for method in results.methods for t in results.finals(model, method.name) if not t.diverged]
    widths = [t.scores.get(f"auc_high/{task}", math.nan) - t.scores.get(f"auc_low/{task}", math.nan) for t in trials]
    widths = [width for width in widths if not math.isnan(width)]
    found = [score_of(results.finals(model, method.name), results.metric) for method in results.methods]
    means = [score.mean for score in found if score and score.values]
    if not widths or len(means) < 2:
        return ""
    half, span = statistics.fmean(widths) / 2, max(means) - min(means)
    if half <= span:
        return ""
    return (
        f"On {model}, all methods are within {100 * span:.2f} points of AUC on {results.last_day}. That day has too "
        f"few rows to measure an AUC better than ± {100 * half:.2f} (95 %): on another day the order may differ."
    )
