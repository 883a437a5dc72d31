"""From a study's results to its findings: where each method falls, who is best, what may be said about it."""

import math
from dataclasses import dataclass

from surefoot.report import text
from surefoot.report.folder import Method, Results, Trial
from surefoot.report.text import Entry, Fall, Score


@dataclass(frozen=True)
class Finding:
    """What the report says about one model."""

    model: str
    headline: str
    details: list[str]


def findings(results: Results) -> list[Finding]:
    """Return what is to be said on each model; first the one that shows the difference best.

    That is the model on which the plain optimizer falls off at the lowest rate; the later one, which is the larger, if
    two do, or if it falls off on none.
    """
    plain = _first(results, "plain")

    def telling(model: str) -> tuple[float, int]:
        at = plain.falls_off[model] if plain else None
        return (math.inf if at is None else at, -results.models.index(model))

    return [_finding(results, model) for model in sorted(results.models, key=telling)]


def final_score(results: Results, model: str, method: str, metric: str) -> Score | None:
    """Return a score of day N over the seeds that survived; None if none did or the score is undefined."""
    trials = results.finals(model, method)
    values = [t.scores[metric] for t in trials if not t.diverged and not math.isnan(t.scores[metric])]
    return Score.over(values, len(values) + sum(t.diverged for t in trials)) if values else None


def entries(results: Results, model: str) -> list[Entry]:
    """Return the methods of which a seed survived on a model, best first."""
    found = [
        Entry(method.name, method.setting, score)
        for method in results.methods
        if (score := final_score(results, model, method.name, results.metric))
    ]
    return sorted(found, key=lambda entry: -entry.score.mean)


def fall(results: Results, model: str, method: Method, who: str) -> Fall:
    """Return where a method falls off on a model."""
    trials = results.sweep(model, method)
    at = method.falls_off[model]
    top = max((trial.multiple for trial in trials), default=method.multiple)
    if at is None:
        return Fall(who, None, top)
    limit = _limit(results, trials)
    spared = tuple(trial.multiple for trial in trials if trial.multiple > at and _auc(results, trial) >= limit)
    return Fall(who, at, top, any(trial.diverged for trial in trials if trial.multiple == at), spared)


def _finding(results: Results, model: str) -> Finding:
    points = 100 * results.config["search"]["fall_off"]
    plain, clippy = _first(results, "plain"), _clippy(results)
    leads = [(plain, _plain_name(plain))] if plain else []
    leads += [(clippy, _clippy_name(clippy))] if clippy else []
    falls = [fall(results, model, method, who) for method, who in leads]
    rest = [method for method in results.methods if method not in (plain, clippy) and not method.warmed_up]
    ranked = entries(results, model)
    headline = [
        text.stability(model, falls, points),
        text.quality(results.last_day, ranked, clippy.name if clippy else None),
    ]
    floor = final_score(results, results.floor, results.floor, results.metric) if results.floor else None
    against = text.against_floor(ranked[0], floor) if ranked and floor else ""
    if against.startswith("No "):
        headline.append(against)
        against = ""
    details = [
        *_falling(results, model),
        text.rest([fall(results, model, method, method.name) for method in rest], points),
        text.ties(ranked[0], ranked[1:]) if ranked else "",
        text.lost(
            [m.name for m in results.methods if ranked and m.name not in {e.who for e in ranked}], results.last_day
        ),
        against,
    ]
    return Finding(model, " ".join(filter(None, headline)), [line for line in details if line])


def _falling(results: Results, model: str) -> list[str]:
    """Say where in training the plain optimizer falls, and whether a warm-up cures it."""
    plain, warm = _first(results, "plain"), _first(results, "warmed_up")
    if plain is None:
        return []
    fell = fall(results, model, plain, _plain_name(plain))
    if fell.at is None:
        return []
    trials = results.sweep(model, plain)
    onsets = {t.multiple: t.onset for t in trials if t.diverged and t.onset is not None}
    said = [text.onset(fell, onsets, max(trial.steps for trial in trials))]
    if warm:
        warmed = results.sweep(model, warm)
        there = [trial for trial in warmed if trial.multiple == fell.at]
        holds = any(_auc(results, trial) >= _limit(results, warmed) for trial in there)
        after = fall(results, model, warm, warm.name)
        if there:
            said.append(text.cure(warm.name, warm.warmup_steps, fell.at, holds=holds, fall=after))
    return said


def searching(results: Results) -> list[str]:
    """Say what the search itself says: the paper's grid alone, and the edges."""
    alive = [method for method in results.methods if not math.isnan(method.score)]
    if not alive:
        return []
    chosen = max(alive, key=lambda method: method.score)
    paper = [method for method in alive if method.paper_multiple is not None and not math.isnan(method.paper_score)]
    winner = max(paper, key=lambda method: method.paper_score, default=None)
    first = Entry(winner.name, winner.paper_setting, Score.over([winner.paper_score])) if winner else None
    return [
        text.paper_grid(
            results.selection_day,
            results.config["search"]["rates"],
            first,
            Entry(chosen.name, chosen.setting, Score.over([chosen.score])),
        ),
        *filter(None, [text.edges([method.name for method in results.methods if method.at_edge])]),
    ]


def _first(results: Results, quality: str) -> Method | None:
    return next((method for method in results.methods if getattr(method, quality)), None)


def _clippy(results: Results) -> Method | None:
    return next((method for method in results.methods if method.rule == "clippy"), None)


def _plain_name(method: Method) -> str:
    return "naive Adagrad" if method.name == "naive" else method.name


def _clippy_name(method: Method) -> str:
    return f"{method.name}, untuned," if method.vary is None else method.name


def _auc(results: Results, trial: Trial) -> float:
    """Return what the protocol compares: NaN, which is above no limit, if the run diverged."""
    return math.nan if trial.diverged else trial.scores[results.metric]


def _limit(results: Results, trials: list[Trial]) -> float:
    """Return the AUC below which a method's run counts as fallen off."""
    alive = [auc for trial in trials if not math.isnan(auc := _auc(results, trial))]
    return max(alive, default=math.inf) - results.config["search"]["fall_off"]
