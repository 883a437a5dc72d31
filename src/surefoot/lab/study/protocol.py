"""The paper's protocol: search on day N - 1, repeat over seeds on day N, see where each rule falls off.

No score of day N, and no curve of it, enters any choice: searching runs never see that day, and the runs that do
are fixed before the first of them starts.

1. Every method's grid (rates x values of its threshold) on the first model with one seed, then its best setting's
   neighbours, one factor of two in the rate or ten in the threshold away, until all of them have been tried and are
   worse, or the budget is spent. The best few settings are run with the other search seeds; all of these decide.
2. The best threshold at every rate of the sweep, on every model with one seed; with the others too where it matters:
   at the lowest rate that falls off and the next lower one, or at the highest if none does.
3. The best setting, on every model, over the seeds of the final runs, scored on day N.
4. The linear floor: its best rate on day N - 1 over the search seeds, then the final ones.
5. A close-up for the report: the plain optimizer at the lowest rate at which it diverged, watched at every step.
"""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from surefoot.errors import InputError
from surefoot.files import SUMS, refuse_changed
from surefoot.lab import extensions
from surefoot.lab.outcomes import Fall, Score, fall_of_method
from surefoot.lab.result_files import write
from surefoot.lab.results import CloseUp, Floor, Method, Study, Summary, Task
from surefoot.lab.settings import dump, parse
from surefoot.lab.study.claim import claimed
from surefoot.lab.study.config import (
    RULES,
    MethodConfig,
    ModelConfig,
    MonitorConfig,
    RuleConfig,
    RunConfig,
    StudyConfig,
    rule_kind,
)
from surefoot.lab.study.engine import LocalEngine
from surefoot.lab.study.model import build_model
from surefoot.lab.study.runner import PlannedTrial, Runner, Search, Setting, planned_trial, rounded
from surefoot.lab.study.time_left import Part
from surefoot.lab.study.trial import days_of_log, load_log, total_steps
from surefoot.tasks import TaskKind

_FLOOR = ModelConfig(name="linear floor", bottom="linear")
_PACKAGES = ("surefoot", "torch", "numpy", "polars")
_FLOOR_EXTRA = 3  # rates that the floor may add to its grid until its best is inside


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    models: Mapping[str, Callable[..., nn.Module]] | None = None,
    workers: int | None = None,
    on_phase: Callable[[str, int], None] = lambda name, trials: None,
    on_trial: Callable[[dict[str, Any]], None] = lambda result: None,
    on_lost: Callable[[str], None] = lambda sentence: None,
    on_left: Callable[[float], None] = lambda seconds: None,
) -> Study:
    """Run the study, or what is left of it, into the folder ``out``; return its results, which are also written there.

    Args:
        config: what to run.
        out: the study's folder; made if it does not exist, continued if it holds this very study.
        models: the user's own, by name, in place of the configuration's: functions at the top of modules that worker
            processes can import, from a log's ``Schema`` to a model. The first is searched.
        workers: processes; by default as many as the cores allow.
        on_phase: called with a name and a number of trials before each batch of trials.
        on_trial: called with each trial's result, and its name as ``"trial"``.
        on_lost: called with a sentence about a trial whose process was killed, and that is run again.
        on_left: called after each trial that was run, with about how many seconds the whole study still takes.

    Raises:
        InputError: if the folder holds another study or is in use by another process, if the configuration does not
            fit the log, or if a process is killed in the same trial twice.
    """
    config = config if models is None else _with_models(config, models)
    log = load_log(config.data)
    for model in config.models:
        if model.factory is not None:
            build_model(model, log)  # one that does not fit the log is refused here, before anything is written
    tasks = {kind: [t.name for t in log.schema.tasks if t.kind is kind] for kind in TaskKind}
    judged = [task.name for task in log.schema.tasks if task.judged]
    select_by = _task(config.search.select_by, tasks[TaskKind.BINARY], judged, "search.select_by")
    kind = TaskKind.REGRESSION if set(tasks[TaskKind.REGRESSION]) & set(judged) else TaskKind.BINARY
    show = _task(config.search.show, tasks[kind], judged, "search.show")
    with claimed(out, config), LocalEngine(workers, config.training.threads, on_lost) as engine:
        refuse_changed(out, "trials")
        (out / SUMS).unlink(missing_ok=True)  # of files that may now be run again
        runner = Runner(config, out, engine, f"auc/{select_by}", on_phase, on_trial, on_left)
        searches = _search(runner)
        chosen = {search.method.name: search.best() or min(search.scores) for search in searches}
        _sweep(runner, searches, chosen)
        _settle_falls(runner, searches, chosen)
        for model in config.models:
            runner.run(Part.FINALS, f"{model.name}: the best settings over seeds", _finals(config, model, chosen))
        floor = _floor(runner)
        close_ups = _close_ups(runner, searches)
    methods = [_method_summary(runner, search, chosen) for search in searches]
    summary = Summary(
        name=config.name,
        data=log.name,
        notice=log.notice,
        days=log.days,
        tasks=[Task(task.name, task.kind.value, task.judged) for task in log.schema.tasks],
        select_by=select_by,
        show=show,
        show_metric="rmse" if kind is TaskKind.REGRESSION else "ne",
        fall_off=config.search.fall_off,
        searched_on=config.models[0].name,
        base_rate=config.search.base_rate,
        rates=list(config.search.rates),
        seeds=list(config.search.seeds),
        search_seeds=list(config.search.search_seeds),
        steps=total_steps(RunConfig(data=config.data, training=config.training)),
        models=[model.name for model in config.models],
        methods=methods,
        close_ups=close_ups,
        floor=floor,
        rules={name: rule_kind(name).__name__ for name in [*RULES, *(each.rule.name for each in config.methods)]},
        log_days=days_of_log(config.data),
        workers=engine.processes,
        threads=config.training.threads,
        config=dump(config),
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        machine=f"{platform.system()} {platform.machine()}",
    )
    study = Study(summary, runner.rows)
    write(out, study)
    return study


def _with_models(config: StudyConfig, models: Mapping[str, Callable[..., nn.Module]]) -> StudyConfig:
    tables = []
    for name, build in models.items():
        try:
            tables.append({"name": name, "factory": extensions.name_of(build)})
        except InputError as error:
            raise InputError(f"models[{name!r}] {error}") from None
    return parse(StudyConfig, config.model_dump(exclude_none=True) | {"models": tables}, "models")


def _search(runner: Runner) -> list[Search]:
    """Run every method's grid on the first model and extend it until the best is inside or the budget is spent."""
    config, seeds = runner.config, runner.config.search.search_seeds
    searches = [Search(method) for method in config.methods]
    wanted = {s.method.name: s.grid(config.search.rates) for s in searches}
    part, phase = Part.GRID, f"{config.models[0].name}: the paper's grid"
    while any(wanted.values()):
        _try(runner, part, phase, [(s, setting) for s in searches for setting in wanted[s.method.name]], seeds[:1])
        for s in searches:
            wanted[s.method.name] = s.untried()[: config.search.extra_trials - s.extra]
            s.extra += len(wanted[s.method.name])
        part, phase = Part.BEYOND_GRID, f"{config.models[0].name}: beyond the grid's edges"
    phase = f"{config.models[0].name}: the best settings over the search seeds"
    while unsure := [(s, setting) for s in searches for setting in s.unsure(config.search.rates, len(seeds))]:
        _try(runner, Part.SEARCH_SEEDS, phase, unsure, seeds)
    return searches


def _try(runner: Runner, part: Part, phase: str, wanted: list[tuple[Search, Setting]], seeds: Sequence[int]) -> None:
    """Run settings on the first model with some seeds, and note their scores."""
    config = runner.config
    plans = [
        planned_trial(config, config.models[0], s.method, setting, seed, "selection")
        for s, setting in wanted
        for seed in seeds
    ]
    rows = iter(runner.run(part, phase, plans))
    for s, setting in wanted:
        s.scores[setting] = runner.score([next(rows) for _ in seeds])


def _sweep(runner: Runner, searches: list[Search], chosen: dict[str, Setting]) -> None:
    """Run every method's best threshold at every rate of the sweep, on every model."""
    config = runner.config
    for model in config.models:
        plans = [
            planned_trial(
                config,
                model,
                s.method,
                Setting(rounded(multiple), chosen[s.method.name].value),
                config.search.search_seeds[0],
                "selection",
            )
            for s in searches
            for multiple in sorted({*config.search.sweep, chosen[s.method.name].multiple})
        ]
        runner.run(Part.SWEEP, f"{model.name}: every rate", plans)


def _settle_falls(runner: Runner, searches: list[Search], chosen: dict[str, Setting]) -> None:
    """Run all search seeds at the rates between which each method falls off, until more runs no longer move them."""
    config = runner.config
    plain = _plain(searches)
    known = set[str]()
    while True:
        plans = []
        for model in config.models:
            fell = _fall(runner, model.name, plain.method, chosen).at if plain else None
            for s in searches:
                rates = _uncertain(_fall(runner, model.name, s.method, chosen))
                if fell is not None and _warmed_up(s.method):
                    rates.append(fell.multiple)  # does a warm-up cure it there?
                plans += [
                    planned_trial(
                        config, model, s.method, Setting(rate, chosen[s.method.name].value), seed, "selection"
                    )
                    for rate in rates
                    for seed in config.search.search_seeds
                ]
        if {plan.trial for plan in plans} <= known:
            return
        known |= {plan.trial for plan in plans}
        runner.run(Part.FALLS, "where each method falls off, over the search seeds", plans)


def _uncertain(fall: Fall) -> list[float]:
    """Return the rates that decide where a method falls off: the one that does, and its neighbours that do not."""
    held = [rate.multiple for rate in fall.rates if not rate.fell]
    if fall.at is None:
        return held[-1:]
    below = [multiple for multiple in held if multiple < fall.at.multiple]
    return [*below[-1:], fall.at.multiple, *fall.spared[:1]]


def _fall(runner: Runner, model: str, method: MethodConfig, chosen: dict[str, Setting]) -> Fall:
    found = fall_of_method(
        runner.rows,
        model,
        method.name,
        chosen[method.name].value,
        metric=runner.metric,
        allowed=runner.config.search.fall_off,
    )
    assert found is not None, "the sweep has run"
    return found


def _plain(searches: list[Search]) -> Search | None:
    """Return the search of the optimizer left alone: no rule, no warm-up."""
    return next((s for s in searches if s.method.rule.name == "naive" and not s.method.warmup_steps), None)


def _warmed_up(method: MethodConfig) -> bool:
    return method.rule.name == "naive" and bool(method.warmup_steps)


def _finals(config: StudyConfig, model: ModelConfig, chosen: dict[str, Setting]) -> list[PlannedTrial]:
    return [
        planned_trial(config, model, method, chosen[method.name], seed, "final")
        for method in config.methods
        for seed in config.search.seeds
    ]


def _floor(runner: Runner) -> Floor:
    """Train the linear model: its rate by day N - 1, then the seeds; return what was chosen."""
    config = runner.config

    def plan(rate: float, seed: int, until: str) -> PlannedTrial:
        training = config.training.model_copy(update={"embedding_rate": rate})  # one rate for all its weights
        changed = config.model_copy(update={"training": training})
        method = MethodConfig(name=_FLOOR.name, rule=RuleConfig(name="naive"))
        return planned_trial(changed, _FLOOR, method, Setting(rounded(rate / config.search.base_rate)), seed, until)

    seeds, scores = config.search.search_seeds, dict[float, Score]()

    def tried(rates: Sequence[float]) -> float:
        plans = [plan(rate, seed, "selection") for rate in rates for seed in seeds]
        rows = iter(runner.run(Part.FLOOR, "the linear floor", plans))
        scores.update({rate: runner.score([next(rows) for _ in seeds]) for rate in rates})
        return max(scores, key=lambda rate: _defined(scores[rate]))

    best = tried(config.search.floor_rates)
    for _ in range(_FLOOR_EXTRA):
        if best == max(scores):
            best = tried([rounded(2 * best)])
        elif best == min(scores):
            best = tried([rounded(best / 2)])
    finals = [plan(best, seed, "final") for seed in config.search.seeds]
    runner.run(Part.FLOOR_FINALS, "the linear floor over seeds", finals)
    return Floor(rate=best, at_edge=best in (min(scores), max(scores)))


def _defined(score: Score) -> tuple[float, float]:
    """Return a score's standing, the lowest if it is undefined."""
    return (0.0, -math.inf) if math.isnan(score.mean) else score.standing()


def _close_ups(runner: Runner, searches: list[Search]) -> list[CloseUp]:
    """Run the plain optimizer again where it first diverged, on every model, with a monitor; it has no row."""
    config = runner.config
    found: list[CloseUp] = []
    search = _plain(searches)
    if search is None:
        return found
    plain = search.method
    for model in config.models:
        fell = [r for r in runner.rows if (r.model, r.method, r.until) == (model.name, plain.name, "selection")]
        fell = sorted((row for row in fell if row.diverged), key=lambda row: (row.multiple, row.seed))
        if not fell:
            continue
        plan = planned_trial(config, model, plain, Setting(fell[0].multiple), fell[0].seed, "selection")
        watched = plan.run.model_copy(update={"monitor": MonitorConfig(every=1, capsules=False)})
        plan = PlannedTrial(watched, f"close-up {plain.name}", plan.setting)
        runner.run_without_rows(Part.CLOSE_UPS, f"{model.name}: a close look at {plain.name}", [plan])
        found.append(CloseUp(model.name, plan.trial, plain.name, fell[0].multiple, fell[0].result["onset"]))
    return found


def _method_summary(runner: Runner, search: Search, chosen: dict[str, Setting]) -> Method:
    method, best = search.method, chosen[search.method.name]
    paper = search.best(search.grid(runner.config.search.rates))
    falls = {model.name: _fall(runner, model.name, method, chosen).at for model in runner.config.models}
    return Method(
        name=method.name,
        rule=method.rule.name,
        warmup_steps=method.warmup_steps,
        vary=method.vary,
        multiple=best.multiple,
        value=best.value,
        survived=search.best() is not None,
        at_edge=bool(search.untried()),
        tried=len(search.scores),
        score=search.scores[best].mean,
        paper_multiple=paper.multiple if paper else None,
        paper_value=paper.value if paper else None,
        paper_score=search.scores[paper].mean if paper else math.nan,
        falls_off={model: rate.multiple if rate else None for model, rate in falls.items()},
    )


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
