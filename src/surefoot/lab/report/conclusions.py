"""The conclusions of a study: at which rate each method falls off, and which method is best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.lab.outcomes import Score, score_of
from surefoot.lab.report import text
from surefoot.lab.report.folder import Results
from surefoot.lab.report.text import Entry, Falling
from surefoot.lab.results import Method


@dataclass(frozen=True)
class Conclusion:
    """The report's sentences about one model."""

    model: str
    headline: str
    details: list[str]


def conclusions(results: Results) -> list[Conclusion]:
    """Return the conclusion of each model, the most interesting model first.

    That is the model on which the optimizer without clipping falls off at the lowest rate; of several, the last one,
    which is the largest.
    """
    plain = _first(results, "plain")

    def telling(model: str) -> tuple[float, int]:
        fell = fell_at(results, model, plain) if plain else None
        return (math.inf if fell is None else fell, -results.models.index(model))

    return [_conclusion(results, model) for model in sorted(results.models, key=telling)]


def fell_at(results: Results, model: str, method: Method) -> float | None:
    """Return the lowest multiple at which a method fell off on a model; None if there is none, or no run."""
    fall = results.fall(model, method)
    return fall.at.multiple if fall and fall.at else None


def final_score(results: Results, model: str, method: str, metric: str) -> Score | None:
    """Return a score on day N over the seeds; None if there is no final run, or the score is undefined."""
    return score_of(results.finals(model, method), metric)


def entries(results: Results, model: str) -> list[Entry]:
    """Return the methods with a seed that did not diverge, best first: fewest diverged seeds, then the mean."""
    found = [
        Entry(method.name, method.setting, score)
        for method in results.methods
        if (score := final_score(results, model, method.name, results.metric)) and score.values
    ]
    return sorted(found, key=lambda entry: entry.score.standing(), reverse=True)


def _conclusion(results: Results, model: str) -> Conclusion:
    points = 100 * results.summary.fall_off
    plain, clippies = _first(results, "plain"), [method for method in results.methods if method.rule == "clippy"]
    leads = [(plain, _plain_name(plain))] if plain else []
    leads += [(clippy, _clippy_name(clippy)) for clippy in clippies]
    rest = [method for method in results.methods if method not in (plain, *clippies) and not method.warmed_up]
    ranked = entries(results, model)
    reference = next((entry.who for entry in ranked if entry.who in {clippy.name for clippy in clippies}), None)
    headline = [
        text.stability(model, _fallings(results, model, leads), points),
        text.quality(results.last_day, ranked, reference),
    ]
    floor = final_score(results, results.floor, results.floor, results.metric) if results.floor else None
    against = text.against_floor(ranked[0], floor) if ranked and floor and floor.values else ""
    if against.startswith("No "):
        headline.append(against)
        against = ""
    gone = [
        method.name
        for method in results.methods
        if (trials := results.finals(model, method.name)) and all(trial.diverged for trial in trials)
    ]
    details = [
        *_falling(results, model),
        text.rest(_fallings(results, model, [(method, method.setting_name) for method in rest]), points),
        text.ties(ranked[0], ranked[1:]) if ranked else "",
        text.lost(gone if ranked else [], results.last_day),
        against,
    ]
    return Conclusion(model, " ".join(filter(None, headline)), [line for line in details if line])


def _fallings(results: Results, model: str, methods: Sequence[tuple[Method, str]]) -> list[Falling]:
    return [Falling(who, fall) for method, who in methods if (fall := results.fall(model, method))]


def _falling(results: Results, model: str) -> list[str]:
    """Return sentences on when the optimizer without clipping diverges, and whether a warm-up prevents it."""
    plain, warm = _first(results, "plain"), _first(results, "warmed_up")
    fall = results.fall(model, plain) if plain else None
    if plain is None or fall is None or fall.at is None:
        return []
    trials = results.swept(model, plain)
    onsets: dict[float, list[int]] = {}
    for trial in trials:
        if trial.diverged and trial.onset is not None:
            onsets.setdefault(trial.multiple, []).append(trial.onset)
    said = [text.onset(Falling(_plain_name(plain), fall), onsets, max((t.steps for t in trials), default=0))]
    warmed = results.fall(model, warm) if warm else None
    if warm and warmed:
        there = next((rate for rate in warmed.rates if rate.multiple == fall.at.multiple), None)
        if there:
            runs = (there.diverged, there.tried)
            said.append(
                text.cure(warm.name, warm.warmup_steps, there.multiple, runs, holds=not there.fell, fall=warmed)
            )
    return said


def searching(results: Results) -> list[str]:
    """Return sentences on the search: the result of the paper's grid alone, and best settings at the edge."""
    chosen = [
        Entry(method.name, method.setting, score)
        for method in results.methods
        if (score := results.selected(method, method.multiple, method.value)) and score.values
    ]
    best = _leader(chosen)
    if best is None:
        return []
    paper = [
        Entry(method.name, method.paper_setting, score)
        for method in results.methods
        if method.paper_multiple is not None
        and (score := results.selected(method, method.paper_multiple, method.paper_value))
        and score.values
    ]
    edges = [method.name for method in results.methods if method.at_edge]
    edges += [results.floor] if results.floor and results.summary.floor.at_edge else []
    return [
        text.paper_grid(results.selection_day, results.summary.rates, _leader(paper), best),
        *filter(None, [text.edges(edges)]),
    ]


def _leader(found: Sequence[Entry]) -> Entry | None:
    return max(found, key=lambda entry: entry.score.standing(), default=None)


def _first(results: Results, quality: str) -> Method | None:
    return next((method for method in results.methods if getattr(method, quality)), None)


def _plain_name(method: Method) -> str:
    return "naive Adagrad" if method.name == "naive" else method.name


def _clippy_name(method: Method) -> str:
    return f"{method.name}, untuned," if method.vary is None else method.name
