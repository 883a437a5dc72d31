"""From trials to findings: what is said follows from the numbers alone."""

from pathlib import Path

import pytest

from surefoot.report.findings import entries, fall, final_score, findings, searching
from surefoot.report.folder import Method, Results, Task, Trial

RATES = (1.0, 4.0, 16.0)
METRIC = "auc/click"


def method(
    name: str, rule: str, falls: dict[str, float | None], *, warmup_steps: int = 0, edge: bool = False
) -> Method:
    vary, value = ("threshold", 0.1) if rule == "gc" else (None, None)
    return Method(name, rule, warmup_steps, vary, 1, value, edge, 0.9, 1, value, 0.9, falls)


def trials(of: Method, model: str, aucs: tuple[float | int, ...], finals: tuple[float, ...]) -> list[Trial]:
    """Return a sweep over the rates, a whole number being the step at which that run diverged, and the final runs."""

    def trial(name: str, multiple: float, seed: int, until: str, auc: float) -> Trial:
        onset = auc if isinstance(auc, int) else None
        scores = {METRIC: 0.5 if onset else auc, "rmse/time": 1.0}
        verdict = "full" if onset else "healthy"
        return Trial(name, model, of.name, multiple, 0.1, of.value, seed, until, verdict, onset, 100, scores)

    sweep = [trial("s", rate, 0, "selection", auc) for rate, auc in zip(RATES, aucs, strict=True)]
    return sweep + [trial("f", 1, seed, "final", auc) for seed, auc in enumerate(finals)]


def study(
    *runs: tuple[Method, str, tuple[float | int, ...], tuple[float, ...]], floor: tuple[float, ...] = ()
) -> Results:
    summary = {
        "models": list(dict.fromkeys(run[1] for run in runs)),
        "days": ["day-05", "day-06", "day-07"],
        "select_by": "click",
        "show": "time",
        "show_metric": "rmse",
        "searched_on": runs[0][1],
    }
    methods = list({run[0].name: run[0] for run in runs}.values())
    done = [trial for run in runs for trial in trials(*run)]
    for seed, auc in enumerate(floor):
        scores = {METRIC: auc, "rmse/time": 1.0}
        done.append(Trial("l", "floor", "floor", 1, 0.1, None, seed, "final", "healthy", None, 100, scores))
    config = {"search": {"fall_off": 0.02, "rates": [1.0, 2.0], "seeds": [0, 1]}}
    return Results(Path(), summary, config, [Task("click", "binary", True)], methods, done)


NAIVE = method("naive", "naive", {"small": 4.0, "large": 1.0})
WARM = method("naive + warm-up", "naive", {"small": 16.0, "large": 4.0}, warmup_steps=60)
GC = method("GC", "gc", {"small": None, "large": 16.0})
CLIPPY = method("Clippy", "clippy", {"small": None, "large": None})


def test_the_model_that_shows_most_comes_first_and_gets_its_own_numbers() -> None:
    results = study(
        (NAIVE, "small", (0.9, 2, 2), (0.900, 0.902)),
        (CLIPPY, "small", (0.9, 0.9, 0.9), (0.95, 0.952)),
        (NAIVE, "large", (2, 2, 2), (0.90, 0.902)),
        (CLIPPY, "large", (0.9, 0.9, 0.9), (0.91, 0.912)),
    )
    large, small = findings(results)
    assert (large.model, small.model) == ("large", "small")
    assert large.headline == (
        "On large, naive Adagrad diverges at 1x; Clippy, untuned, holds at every rate up to 16x. Best on day-07: "
        "Clippy at 1x, AUC 91.10 ± 0.14; next, naive at 1x has 90.10 ± 0.14, 1.00 less, beyond the spread of the seeds."
    )
    assert small.headline.startswith("On small, naive Adagrad diverges at 4x;")


def test_a_rule_other_than_clippy_may_win() -> None:
    results = study(
        (NAIVE, "small", (0.9, 0.7, 2), (0.90, 0.902)),
        (GC, "small", (0.9, 0.9, 0.9), (0.96, 0.962)),
        (CLIPPY, "small", (0.9, 0.9, 0.9), (0.91, 0.912)),
        floor=(0.97, 0.972),
    )
    (found,) = findings(results)
    assert "naive Adagrad loses over 2 points of AUC at 4x;" in found.headline
    assert "Best on day-07: GC at 1x, threshold 0.1, AUC 96.10 ± 0.14; Clippy at 1x has 91.10" in found.headline
    assert found.headline.endswith("No method beats the linear floor (97.10 ± 0.14).")
    assert "GC is ahead of all others beyond the spread of the seeds." in found.details
    assert "GC holds at every rate up to 16x." in found.details


@pytest.mark.parametrize(
    ("warmed", "said"),
    [
        ((0.9, 0.9, 30), "cures it at 4x and itself falls off at 16x."),
        ((0.9, 0.85, 30), "does not cure it at 4x."),
        ((0.9, 30, 30), "does not cure it at 4x."),
    ],
)
def test_warm_up_cures_where_the_plain_optimizer_fell_or_it_does_not(
    warmed: tuple[float | int, ...], said: str
) -> None:
    runs = ((NAIVE, "small", (0.9, 2, 40), (0.9, 0.9)), (WARM, "small", warmed, (0.9, 0.9)))
    (found,) = findings(study(*runs))
    assert found.details[0] == (
        "Naive Adagrad diverges in its first steps (at step 2 of 100) at 4x, "
        "after a healthy stretch (at step 40 of 100) at 16x."
    )
    assert found.details[1] == f"A warm-up of 60 steps (naive + warm-up) {said}"


def test_rates_above_a_fall_that_held_are_told() -> None:
    results = study((NAIVE, "small", (0.9, 2, 0.89), (0.9, 0.9)))
    assert fall(results, "small", NAIVE, "naive").spared == (16.0,)
    assert "(yet not at 16x)" in findings(results)[0].headline


def test_diverged_seeds_and_undefined_scores_are_no_part_of_a_mean() -> None:
    results = study((GC, "small", (0.9, 0.9, 0.9), (0.9, 7, float("nan"), 0.92)))
    score = final_score(results, "small", "GC", METRIC)
    assert score is not None
    assert (score.mean, score.alive, score.tried) == (pytest.approx(0.91), 2, 3)
    assert final_score(study((GC, "small", (0.9, 0.9, 0.9), (7, 8))), "small", "GC", METRIC) is None


def test_without_a_plain_optimizer_and_without_clippy_the_best_is_still_named() -> None:
    agc = method("AGC", "agc", {"small": None}, edge=True)
    results = study((GC, "small", (0.9, 0.9, 0.9), (0.9, 0.91)), (agc, "small", (0.9, 0.9, 0.9), (0.95, 0.96)))
    (found,) = findings(results)
    assert found.headline.startswith("Best on day-07: AGC at 1x")
    assert [entry.who for entry in entries(results, "small")] == ["AGC", "GC"]
    assert searching(results)[1] == (
        "The best setting of AGC lies at the edge of what was tried: a wider search may still find better."
    )
