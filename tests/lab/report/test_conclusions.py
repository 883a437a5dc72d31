"""From trials to conclusions: what is said follows from the numbers alone."""

from pathlib import Path
from typing import Any

import pytest

from surefoot.lab.report.conclusions import conclusions, entries, final_score, searching
from surefoot.lab.report.folder import Results
from surefoot.lab.report.notices import notices
from surefoot.lab.report.tables import main_table, task_tables
from surefoot.lab.results import Floor, Method, Row, Summary, Task

RATES = (1.0, 4.0, 16.0)
METRIC = "auc/click"


def method(name: str, rule: str, *, warmup_steps: int = 0, edge: bool = False) -> Method:
    vary, value = ("threshold", 0.1) if rule == "gc" else (None, None)
    return Method(name, rule, warmup_steps, vary, 1, value, True, edge, 1, 0.9, 1, value, 0.9, {})


Auc = float | int  # a whole number is the step at which that run diverged


def trials(
    of: Method,
    model: str,
    aucs: tuple[Auc | tuple[Auc, ...], ...],
    finals: tuple[Auc, ...],
    rmses: tuple[float, ...] = (),
) -> list[Row]:
    """Return a sweep over the rates, of several seeds where a rate has several, and the final runs."""

    def trial(multiple: float, seed: int, until: str, auc: Auc, rmse: float = 1.0) -> Row:
        onset = auc if isinstance(auc, int) else None
        scores = {METRIC: 0.5 if onset else auc, "rmse/time": rmse, "rmse_constant/time": 1.5}
        verdict = "full" if onset else "healthy"
        name = f"{of.name} x{multiple:g} s{seed} {until}"
        result = {"verdict": verdict, "onset": onset, "steps": 100, **scores}
        return Row(name, model, of.name, multiple, 0.1, of.value, seed, until, result)

    sweep = [
        trial(rate, 100 + seed, "selection", auc)
        for rate, several in zip(RATES, aucs, strict=True)
        for seed, auc in enumerate(several if isinstance(several, tuple) else (several,))
    ]
    rmses = rmses or (1.0,) * len(finals)
    return sweep + [trial(1, seed, "final", *scores) for seed, scores in enumerate(zip(finals, rmses, strict=True))]


def study(*runs: Any, floors: tuple[float, ...] = (), judged: bool = False, **changes: Any) -> Results:
    known = {
        "name": "study",
        "data": "log",
        "notice": "",
        "models": list(dict.fromkeys(run[1] for run in runs)),
        "methods": list({run[0].name: run[0] for run in runs}.values()),
        "days": ("day-05", "day-06", "day-07"),
        "log_days": None,
        "steps": 1000,
        "tasks": [Task("click", "binary", True), Task("time", "regression", judged)],
        "select_by": "click",
        "show": "time",
        "show_metric": "rmse",
        "searched_on": runs[0][1],
        "floor": Floor(0.1, at_edge=False),
        "fall_off": 0.02,
        "base_rate": 0.1,
        "rates": [1.0, 2.0],
        "seeds": [0, 1, 2],
        "search_seeds": [100, 101, 102],
        "close_ups": [],
        "rules": {},
        "workers": 1,
        "threads": 1,
        "config": "",
        "versions": {},
        "machine": "",
    }
    done = [trial for run in runs for trial in trials(*run)]
    for seed, auc in enumerate(floors):
        result = {"verdict": "healthy", "onset": None, "steps": 100, METRIC: auc, "rmse/time": 1.0}
        done.append(Row("l", "floor", "floor", 1, 0.1, None, seed, "final", result))
    return Results(Summary(**known | changes), done, Path(), {})


NAIVE = method("naive", "naive")
WARM = method("naive + warm-up", "naive", warmup_steps=60)
GC = method("GC", "gc")
CLIPPY = method("Clippy", "clippy")


def test_the_model_that_shows_most_comes_first_and_gets_its_own_numbers() -> None:
    results = study(
        (NAIVE, "small", (0.9, 2, 2), (0.900, 0.902)),
        (CLIPPY, "small", (0.9, 0.9, 0.9), (0.95, 0.952)),
        (NAIVE, "large", (2, 2, 2), (0.90, 0.902)),
        (CLIPPY, "large", (0.9, 0.9, 0.9), (0.91, 0.913)),
    )
    large, small = conclusions(results)
    assert (large.model, small.model) == ("large", "small")
    assert large.headline == (
        "On large, naive Adagrad diverges at 1x and above (3 of 5 runs); Clippy, untuned, trains well at every rate "
        "up to 16x (none of 5 runs diverged). Best on day-07: Clippy at 1x, AUC 91.15 ± 0.21; next, naive at 1x: "
        "90.10 ± 0.14, 1.05 lower (95 % interval 0.41 to 1.69 over 2 seeds)."
    )
    assert small.headline.startswith("On small, naive Adagrad diverges at 4x and above (2 of 2 runs);")


def test_a_rule_other_than_clippy_may_win() -> None:
    results = study(
        (NAIVE, "small", (0.9, 0.7, 2), (0.90, 0.902)),
        (GC, "small", (0.9, 0.9, 0.9), (0.96, 0.962)),
        (CLIPPY, "small", (0.9, 0.9, 0.9), (0.91, 0.912)),
        floors=(0.97, 0.972),
    )
    (found,) = conclusions(results)
    assert "naive Adagrad loses more than 2 points of AUC at 4x and above (1 of 2 runs diverged);" in found.headline
    assert "Best on day-07: GC at 1x, threshold 0.1, AUC 96.10 ± 0.14; Clippy at 1x: 91.10" in found.headline
    assert found.headline.endswith("No method beats the linear floor (97.10 ± 0.14).")
    assert "GC is significantly better than all others: no 95 % interval of a difference includes 0." in found.details
    assert "GC with threshold 0.1 trains well at every rate up to 16x (none of 5 runs diverged)." in found.details


def test_every_clippy_of_a_study_is_in_the_headline_and_the_better_one_compared() -> None:
    other = method("Clippy from 0.1", "clippy")
    results = study(
        (other, "small", (0.9, 0.9, 7), (0.91, 0.912)),
        (CLIPPY, "small", (0.9, 0.9, 0.9), (0.92, 0.922)),
        (GC, "small", (0.9, 0.9, 0.9), (0.96, 0.962)),
    )
    headline = conclusions(results)[0].headline
    assert (
        "Clippy from 0.1, untuned, diverges at 16x (1 of 1 run); Clippy, untuned, trains well at every rate" in headline
    )
    assert "Best on day-07: GC at 1x, threshold 0.1, AUC 96.10 ± 0.14; Clippy at 1x: 92.10" in headline


@pytest.mark.parametrize(
    ("warmed", "said"),
    [
        ((0.9, (0.9, 0.9), 30), "prevents this at 4x (none of 2 runs diverged) but falls off at 16x."),
        ((0.9, 0.85, 30), "does not prevent this at 4x (none of 1 run diverged)."),
        ((0.9, (0.9, 30, 0.9), 30), "does not prevent this at 4x (1 of 3 runs diverged)."),
    ],
)
def test_warm_up_cures_where_the_plain_optimizer_fell_or_it_does_not(warmed: tuple[Any, ...], said: str) -> None:
    runs = ((NAIVE, "small", (0.9, (2, 3), 40), (0.9, 0.9)), (WARM, "small", warmed, (0.9, 0.9)))
    (found,) = conclusions(study(*runs))
    assert found.details[0] == (
        "Naive Adagrad diverges in its first steps (at steps 2 to 3 of 100) at 4x, "
        "after a healthy start (at step 40 of 100) at 16x."
    )
    assert found.details[1] == f"A warm-up of 60 steps (naive + warm-up) {said}"


class TestHeadlinesThatTheTableWouldContradict:
    """A headline counts all trials; a run that diverged is the worst there is, never left out."""

    def test_nothing_holds_at_every_rate_that_diverged_below_its_best(self) -> None:
        results = study((CLIPPY, "small", (7, 0.9, 0.9), (0.9, 0.9)))
        assert "holds" not in conclusions(results)[0].headline
        assert (
            "Clippy, untuned, diverges at 1x (1 of 3 runs), but not at 4x and 16x." in conclusions(results)[0].headline
        )

    def test_nothing_holds_whose_final_run_diverged(self) -> None:
        results = study((CLIPPY, "small", (0.9, 0.9, 0.9), (0.9, 0.9, 7)))
        assert (
            "Clippy, untuned, diverges at 1x (1 of 4 runs), but not at 4x and 16x." in conclusions(results)[0].headline
        )

    def test_the_best_is_not_crowned_on_its_survivors(self) -> None:
        results = study(
            (GC, "small", (0.9, 0.9, 0.9), (0.99, 7)),
            (CLIPPY, "small", (0.9, 0.9, 0.9), (0.91, 0.912)),
        )
        assert [entry.who for entry in entries(results, "small")] == ["Clippy", "GC"]
        headline = conclusions(results)[0].headline
        assert "Best on day-07: Clippy at 1x, AUC 91.10 ± 0.14; next, GC at 1x, threshold 0.1:" in headline
        assert "99.00 (1 of 2 seeds diverged), with more diverged seeds." in headline
        (group,) = main_table(results)
        assert {line.method: line.tag for line in group.lines} == {"GC": "", "Clippy": "best"}
        (tasks,) = task_tables(results)
        assert {name: cells[0].best for name, cells in tasks.rows} == {
            "GC": False,
            "Clippy": True,
            "best constant": False,
        }
        assert tasks.rows[0][1][0].small == "1 of 2 seeds diverged"

    def test_only_is_not_said_of_a_rate_above_which_it_holds(self) -> None:
        results = study((NAIVE, "small", (7, 7, 7), (7, 8)), (CLIPPY, "small", (0.9, (0.9, 7, 0.9), 0.9), (0.9, 0.9)))
        headline = conclusions(results)[0].headline
        assert "naive Adagrad diverges at 1x and above (5 of 5 runs); " in headline
        assert "Clippy, untuned, diverges at 4x (1 of 3 runs), but not at 16x." in headline
        assert "only" not in headline

    def test_a_floor_worse_than_a_constant_makes_nothing_good(self) -> None:
        results = study((CLIPPY, "small", (0.9, 0.9, 0.9), (0.6, 0.6), (1.2, 1.2)), floors=(0.45, 0.46), judged=True)
        assert (
            "above the linear floor (45.50 ± 0.71); the floor itself is no better than a constant prediction."
            in str(conclusions(results)[0].details)
        )
        (table,) = task_tables(results)
        cell = dict(table.rows)["best against the floor"][0]
        assert cell.tone == ""
        assert cell.small == "the floor is no better than a constant prediction"

    def test_a_method_worse_than_a_constant_is_not_good_either(self) -> None:
        results = study((CLIPPY, "small", (0.9, 0.9, 0.9), (0.4, 0.4)), floors=(0.3, 0.3))
        rows = dict(task_tables(results)[0].rows)
        assert (rows["best against the floor"][0].tone, rows["Clippy"][0].tone) == ("bad", "bad")
        assert not rows["Clippy"][0].best


def test_diverged_seeds_are_counted_and_undefined_scores_are_no_score() -> None:
    score = final_score(study((GC, "small", (0.9, 0.9, 0.9), (0.9, 7, 0.92))), "small", "GC", METRIC)
    assert score is not None
    assert (score.mean, score.diverged, score.tried) == (pytest.approx(0.91), 1, 3)
    undefined = study((GC, "small", (0.9, 0.9, 0.9), (0.9, float("nan"))))
    assert final_score(undefined, "small", "GC", METRIC) is None
    lost = final_score(study((GC, "small", (0.9, 0.9, 0.9), (7, 8))), "small", "GC", METRIC)
    assert lost is not None
    assert lost.text(2, 100) == "diverged"


def test_without_a_plain_optimizer_and_without_clippy_the_best_is_still_named() -> None:
    agc = method("AGC", "agc", edge=True)
    results = study((GC, "small", (0.9, 0.9, 0.9), (0.9, 0.91)), (agc, "small", (0.9, 0.9, 0.9), (0.95, 0.96)))
    (found,) = conclusions(results)
    assert found.headline.startswith("Best on day-07: AGC at 1x")
    assert [entry.who for entry in entries(results, "small")] == ["AGC", "GC"]
    assert searching(results)[1] == (
        "The best setting of AGC lies at the edge of the search: a wider search may find a better one."
    )


def test_the_floor_too_is_at_an_edge() -> None:
    runs = (GC, "small", (0.9, 0.9, 0.9), (0.9, 0.91))
    results = study(runs, floors=(0.8, 0.8), floor=Floor(0.1, at_edge=True))
    assert searching(results)[1].startswith("The best setting of floor lies at the edge")


class TestNotices:
    """What stands above all conclusions."""

    RUNS = (GC, "small", (0.9, 0.9, 0.9), (0.9, 0.91, 0.92))

    def test_nothing_is_said_of_a_study_that_is_enough(self) -> None:
        assert notices(study(self.RUNS, judged=True)) == []

    def test_a_task_that_never_beats_its_constant(self) -> None:
        runs = (GC, "small", (0.9, 0.9, 0.9), (0.9, 0.91, 7), (1.6, 1.7, 1.0))
        (said,) = notices(study(runs, judged=True))
        assert said == (
            "On small, no method predicts time on day-07 better than a constant does (best RMSE 1.65, constant 1.5): "
            "no model learnt anything about it, and its scores say nothing about the methods."
        )
        assert notices(study(runs)) == []  # a task that is not judged

    def test_chance_is_the_constant_of_an_auc(self) -> None:
        runs = (GC, "small", (0.9, 0.9, 0.9), (0.5, 0.49, 0.5))
        (said,) = notices(study(runs))
        assert "no method predicts click on day-07 better than a constant does (best AUC % 49.67, constant 50)" in said

    def test_few_days_few_steps_few_seeds(self) -> None:
        results = study(self.RUNS, days=("a", "b", "c"), log_days=186, steps=35, seeds=[0], search_seeds=[100])
        days, steps, search, finals = notices(results)
        assert days == "Only the last 3 of the log's 186 days were used (data.days)."
        assert steps.startswith("A final run has 35 steps, fewer than 100: too few to conclude")
        assert search.startswith("Each setting was chosen, and each rate judged, with one seed")
        assert finals == "Final scores come from 1 seed: too few to compare methods."

    def test_an_interval_wider_than_all_differences(self) -> None:
        results = study(self.RUNS, (CLIPPY, "small", (0.9, 0.9, 0.9), (0.91, 0.92, 0.93)))
        for trial in results.rows:
            trial.result.update({"auc_low/click": 0.85, "auc_high/click": 0.95})
        (said,) = notices(results)
        assert "all methods are within 1.00 points of AUC on day-07. That day has too few rows" in said
        assert "to measure an AUC better than ± 5.00" in said
        for trial in results.rows:
            trial.result.update({"auc_low/click": 0.899, "auc_high/click": 0.901})
        assert notices(results) == []


@pytest.mark.parametrize(("finals", "gone"), [((20, 30, 40), True), ((0.7, 30, 40), False)])
def test_a_method_has_no_score_if_all_of_its_final_runs_diverged(finals: tuple[Auc, ...], gone: bool):
    runs = (NAIVE, "small", (0.7, 30, 30), finals), (CLIPPY, "small", (0.7, 0.72, 0.7), (0.71, 0.72, 0.73))
    (found,) = conclusions(study(*runs))
    assert ("All final runs of naive diverged: no score on day-07." in found.details) is gone
