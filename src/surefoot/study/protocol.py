"""The paper's protocol: search on day N - 1, repeat over seeds on day N, see where each rule falls off.

No score of day N, and no curve of it, enters any choice: searching runs never see that day, and the runs that do
are fixed before the first of them starts.

1. Every method's grid (rates x values of its threshold) on the first model, then its best setting's neighbours,
   one factor of two in the rate or ten in the threshold away, until all of them have been tried and are worse, or
   the budget is spent.
2. The best threshold at every rate of the sweep, on every model.
3. The best setting, on every model, over the seeds, scored on day N.
4. The linear floor: its best rate on day N - 1, then the seeds.
5. A close-up for the report: the plain optimizer at the lowest rate at which it diverged, watched at every step.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.data.schema import TaskKind
from surefoot.errors import InputError
from surefoot.study.claim import claimed
from surefoot.study.config import (
    MethodConfig,
    ModelConfig,
    MonitorConfig,
    RuleConfig,
    RunConfig,
    StudyConfig,
)
from surefoot.study.engine import LocalEngine, Trial
from surefoot.study.results import CloseUp, MethodSummary, Study, Summary, write
from surefoot.study.runner import Plan, Runner, Search, Setting, plan_of, rounded
from surefoot.study.trial import load_log, total_steps

_FLOOR = ModelConfig(name="linear floor", bottom="linear")
_SEARCH_SEED = 0


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    workers: int | None = None,
    on_phase: Callable[[str, int], None] = lambda name, trials: None,
    on_trial: Callable[[dict[str, Any]], None] = lambda result: None,
    on_lost: Callable[[str], None] = lambda sentence: None,
) -> Study:
    """Run the study, or what is left of it, into the folder ``out``; return its results, which are also written there.

    Args:
        config: what to run.
        out: the study's folder; made if it does not exist, continued if it holds this very study.
        workers: processes; by default as many as the cores allow.
        on_phase: called with a name and a number of trials before each batch of trials.
        on_trial: called with each trial's result.
        on_lost: called with a sentence about a trial whose process was killed, and that is run again.

    Raises:
        InputError: if the folder holds another study or is in use by another process, if the configuration does not
            fit the log, or if a process is killed in the same trial twice.
    """
    log = load_log(config.data)
    tasks = {kind: [t.name for t in log.schema.tasks if t.kind is kind] for kind in TaskKind}
    judged = [task.name for task in log.schema.tasks if task.judged]
    select_by = _task(config.search.select_by, tasks[TaskKind.BINARY], judged, "search.select_by")
    kind = TaskKind.REGRESSION if set(tasks[TaskKind.REGRESSION]) & set(judged) else TaskKind.BINARY
    show = _task(config.search.show, tasks[kind], judged, "search.show")
    with claimed(out, config), LocalEngine(workers, config.training.threads, on_lost) as engine:
        runner = Runner(config, out, engine, f"auc/{select_by}", on_phase, on_trial)
        searches = _search(runner)
        chosen = {search.method.name: search.best() or min(search.scores) for search in searches}
        _sweep(runner, searches, chosen)
        for model in config.models:
            runner.run(f"{model.name}: the best settings over seeds", _finals(config, model, chosen))
        _floor(runner)
        close_ups = _close_ups(runner, searches)
    methods = [_method_summary(runner, search, chosen[search.method.name]) for search in searches]
    summary = Summary(
        name=config.name,
        data=log.name,
        notice=log.notice,
        days=log.days,
        tasks=[(task.name, task.kind.value, task.judged) for task in log.schema.tasks],
        select_by=select_by,
        show=show,
        show_metric="rmse" if kind is TaskKind.REGRESSION else "ne",
        searched_on=config.models[0].name,
        base_rate=config.search.base_rate,
        steps=total_steps(RunConfig(data=config.data, training=config.training)),
        models=[model.name for model in config.models],
        methods=methods,
        close_ups=close_ups,
        workers=engine.processes,
        threads=config.training.threads,
    )
    return write(out, summary, runner.rows, config)


def _search(runner: Runner) -> list[Search]:
    """Run every method's grid on the first model and extend it until the best is inside or the budget is spent."""
    config = runner.config
    searches = [Search(method) for method in config.methods]
    wanted = {s.method.name: s.grid(config.search.rates) for s in searches}
    phase = f"{config.models[0].name}: the paper's grid"
    while any(wanted.values()):
        plans = [
            plan_of(config, config.models[0], s.method, setting, _SEARCH_SEED, "selection")
            for s in searches
            for setting in wanted[s.method.name]
        ]
        rows = iter(runner.run(phase, plans))
        for s in searches:
            for setting in wanted[s.method.name]:
                s.scores[setting] = runner.score(next(rows))
            wanted[s.method.name] = s.untried()[: config.search.extra_trials - s.extra]
            s.extra += len(wanted[s.method.name])
        phase = f"{config.models[0].name}: beyond the grid's edges"
    return searches


def _sweep(runner: Runner, searches: list[Search], chosen: dict[str, Setting]) -> None:
    """Run every method's best threshold at every rate of the sweep, on every model."""
    config = runner.config
    for model in config.models:
        plans = [
            plan_of(
                config,
                model,
                s.method,
                Setting(rounded(multiple), chosen[s.method.name].value),
                _SEARCH_SEED,
                "selection",
            )
            for s in searches
            for multiple in sorted({*config.search.sweep, chosen[s.method.name].multiple})
        ]
        runner.run(f"{model.name}: every rate", plans)


def _finals(config: StudyConfig, model: ModelConfig, chosen: dict[str, Setting]) -> list[Plan]:
    return [
        plan_of(config, model, method, chosen[method.name], seed, "final")
        for method in config.methods
        for seed in config.search.seeds
    ]


def _floor(runner: Runner) -> None:
    """Train the linear model: its rate by day N - 1, then the seeds."""
    config = runner.config

    def plan(rate: float, seed: int, until: str) -> Plan:
        training = config.training.model_copy(update={"embedding_rate": rate})  # one rate for all its weights
        changed = config.model_copy(update={"training": training})
        method = MethodConfig(name=_FLOOR.name, rule=RuleConfig(name="naive"))
        return plan_of(changed, _FLOOR, method, Setting(rounded(rate / config.search.base_rate)), seed, until)

    rates = config.search.floor_rates
    rows = runner.run("the linear floor", [plan(rate, _SEARCH_SEED, "selection") for rate in rates])
    scores = [-math.inf if math.isnan(score := runner.score(row)) else score for row in rows]
    best = rates[scores.index(max(scores))]
    runner.run("the linear floor over seeds", [plan(best, seed, "final") for seed in config.search.seeds])


def _close_ups(runner: Runner, searches: list[Search]) -> list[CloseUp]:
    """Run the plain optimizer again where it first diverged, on every model, with a monitor; it has no row."""
    config = runner.config
    found: list[CloseUp] = []
    plain = next((s.method for s in searches if s.method.rule.name == "naive" and not s.method.warmup_steps), None)
    if plain is None:
        return found
    for model in config.models:
        fell = [r for r in runner.rows if (r.model, r.method, r.until) == (model.name, plain.name, "selection")]
        fell = sorted((row for row in fell if row.diverged), key=lambda row: row.multiple)
        if not fell:
            continue
        plan = plan_of(config, model, plain, Setting(fell[0].multiple), _SEARCH_SEED, "selection")
        watched = plan.run.model_copy(update={"monitor": MonitorConfig(every=1, capsules=False)})
        plan = Plan(watched, f"close-up {plain.name}", plan.setting)
        runner.on_phase(f"{model.name}: a close look at {plain.name}", 1)
        runner.engine.run([Trial(plan.run, runner.out / "trials" / plan.trial)], on_done=runner.on_trial)
        found.append(CloseUp(model.name, plan.trial, plain.name, fell[0].multiple, fell[0].result["onset"]))
    return found


def _method_summary(runner: Runner, search: Search, best: Setting) -> MethodSummary:
    grid = search.grid(runner.config.search.rates)
    paper = search.best(grid)
    return MethodSummary(
        name=search.method.name,
        vary=search.method.vary,
        multiple=best.multiple,
        value=best.value,
        survived=search.best() is not None,
        at_edge=bool(search.untried()),
        tried=len(search.scores),
        score=search.scores[best],
        paper_multiple=paper.multiple if paper else None,
        paper_value=paper.value if paper else None,
        paper_score=search.scores[paper] if paper else math.nan,
        falls_off={
            model.name: _fall_off(runner, model.name, search.method.name, best) for model in runner.config.models
        },
    )


def _fall_off(runner: Runner, model: str, method: str, best: Setting) -> float | None:
    """Return the lowest multiple, above the model's best one, that diverged or lost too much; None if none did."""
    rows = [
        row
        for row in runner.rows
        if (row.model, row.method, row.value, row.until) == (model, method, best.value, "selection")
    ]
    scores = {row.multiple: runner.score(row) for row in rows}
    alive = {multiple: score for multiple, score in scores.items() if not math.isnan(score)}
    if not alive:
        return min(scores)
    top = max(alive, key=lambda multiple: alive[multiple])
    limit = alive[top] - runner.config.search.fall_off
    return min((m for m, score in scores.items() if m > top and not score >= limit), default=None)


def _task(name: str | None, of_kind: list[str], judged: list[str], key: str) -> str:
    if name is None:
        first = next((task for task in of_kind if task in judged), None)
        if first is None:
            raise InputError(
                f"{key} has no task to name: the log has no judged binary label; expected at least one (of a "
                "number, as a rating is, at_least makes one in the log's schema: at_least = 4)"
            )
        return first
    if name not in of_kind:
        raise InputError(f"{key} is {name!r}; expected one of {', '.join(of_kind)}")
    return name
