"""The figures of a study's report: one function for each, from results to plotly; None if there is nothing to draw.

A trace's ``meta`` has the method whose button shows or hides the trace and, if the figure has buttons of its own, the
value of the button that shows it.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from surefoot.lab.report import layers, style
from surefoot.lab.report.conclusions import fell_at
from surefoot.lab.report.folder import Results
from surefoot.lab.report.style import FLOOR, LineStyle, miss, short
from surefoot.lab.results import Method, Row

MARKS = {"healthy": "circle", "micro": "circle-open", "full": "x"}
_MERGED = 5  # steps: divergences closer than this get one mark


def quality_by_rate(results: Results, model: str) -> go.Figure | None:
    """Draw AUC and RMSE on day N - 1 over the rate, a line for each method at its best threshold."""
    looks, sweeps = style.line_styles(results.methods), {m.name: results.sweep(model, m) for m in results.methods}
    trials = [trial for sweep in sweeps.values() for trial in sweep]
    if not trials:
        return None
    rates = [trial.multiple for trial in trials]
    traces = []
    for method in results.methods:
        sweep, look = sweeps[method.name], looks[method.name]
        others = [trial for trial in results.swept(model, method) if trial not in sweep]
        for metric, axis in ((results.metric, "y"), (results.shown, "y2")):
            traces.append(_rate_line(method, look, sweep, metric, axis))
            if others:
                traces.append(_rate_line(method, look, others, metric, axis, mode="markers"))
    floors = [t.scores[results.metric] for t in results.rows if t.model == results.floor and t.until == "selection"]
    floor = max((auc for auc in floors if not math.isnan(auc)), default=None)
    if floor is not None and results.floor is not None:
        traces.append(level([min(rates), max(rates)], miss(floor), results.floor))
    swept = [trial for method in results.methods for trial in results.swept(model, method)]
    aucs = [trial.scores[results.metric] for trial in swept] + ([] if floor is None else [floor])
    rmses = [v for trial in swept if math.isfinite(v := trial.scores[results.shown]) and v > 0] or [1.0]
    scale = "log" if max(rmses) > 4 * min(rmses) else "linear"
    return go.Figure(
        traces,
        style.layout(
            480,
            **style.LEVELS,
            xaxis=style.rate_axis(
                rates, f"learning rate, multiples of the base rate; {results.selection_day}", anchor="y2"
            ),
            yaxis=style.auc_axis(
                aucs, f"AUC % of {results.summary.select_by}, {results.selection_day}", domain=[0.4, 1]
            ),
            yaxis2=style.axis(
                f"{results.shown_words} of {results.summary.show}", type=scale, domain=[0, 0.32], nticks=5
            ),
        ),
    )


def _rate_line(
    method: Method, look: LineStyle, trials: Sequence[Row], metric: str, axis: str, *, mode: str = "lines+markers"
) -> go.Scatter:
    values = [trial.scores[metric] for trial in trials]
    auc = metric.startswith("auc/")
    said = "%{fullData.name} at %{x}x, seed %{customdata[2]}: %{customdata[0]} (%{customdata[1]})"
    return go.Scatter(
        x=[trial.multiple for trial in trials],
        y=[miss(value) if auc else short(value) for value in values],
        yaxis=axis,
        name=method.name,
        showlegend=False,
        mode=mode,
        line={"color": look.color, "dash": look.dash, "width": 2},
        marker={
            "color": look.color,
            "symbol": [MARKS.get(trial.verdict, "circle") for trial in trials],
            "size": [13 if trial.multiple == method.multiple else 8 for trial in trials],
            "opacity": 1,
            "line": {"width": [2 if trial.verdict == "micro" else 0 for trial in trials], "color": look.color},
        },
        customdata=[
            [f"{100 * value:.2f}" if auc else f"{value:.4g}", trial.verdict, trial.seed]
            for value, trial in zip(values, trials, strict=True)
        ],
        hovertemplate=f"{said}<extra></extra>",
        meta={"method": method.name},
    )


def rate_choices(results: Results, model: str) -> tuple[list[float], float]:
    """Return the rates to choose from, and the first one shown: the lowest at which the plain optimizer fell off."""
    tried = [trial.multiple for method in results.methods for trial in results.sweep(model, method)]
    rates = sorted(rate for rate in set(tried) if 2 * tried.count(rate) >= len(results.methods))
    if not rates:
        return [], 0.0
    plain = [at for method in results.methods if method.plain and (at := fell_at(results, model, method))]
    fell = min(plain, default=math.inf)
    return rates, next((rate for rate in rates if rate >= fell), rates[-1])


def steps_and_days(results: Results, model: str) -> go.Figure | None:
    """Draw a run at each rate: the training loss over the steps, and below it the AUC of each next day."""
    rates, start = rate_choices(results, model)
    looks = style.line_styles(results.methods)
    traces: list[go.Scatter] = []
    for method in results.methods:
        for trial in results.sweep(model, method):
            if trial.multiple in rates:
                traces += _run(results, method, trial, looks[method.name], trial.multiple == start)
    if not traces:
        return None
    ends = [0, max(trial.steps for method in results.methods for trial in results.sweep(model, method))]
    traces.append(level(ends, 1.0, "loss of a constant prediction"))
    aucs = [1 - y / 100 for trace in traces if trace.yaxis == "y2" for y in trace.y or () if y is not None]
    task = results.summary.select_by
    return go.Figure(
        traces,
        style.layout(
            520,
            **style.LEVELS,
            xaxis=style.axis("step", anchor="y2", rangemode="tozero"),
            yaxis=style.axis(f"relative loss of {task}", type="log", domain=[0.44, 1], nticks=6, tickformat=".3~g"),
            yaxis2=style.auc_axis(aucs, f"AUC % of {task}, next day", domain=[0, 0.36]),
        ),
    )


def _run(results: Results, method: Method, trial: Row, look: LineStyle, shown: bool) -> list[go.Scatter]:
    """Return the traces of one run: its loss, its divergences, its AUC by day."""
    steps, days = results.steps(trial), results.days(trial)
    column = f"relative_loss/{results.summary.select_by}"
    common: dict[str, Any] = {
        "name": method.name,
        "showlegend": False,
        "visible": shown,
        "meta": {"method": method.name, "choice": f"{trial.multiple:g}"},
        "line": {"color": look.color, "dash": look.dash, "width": 1.6},
    }
    traces = []
    if steps is not None and column in steps.columns:
        x, y = style.thinned(steps, column)
        hover = "%{fullData.name}, step %{x}: %{y}<extra></extra>"
        traces.append(go.Scatter(x=x, y=y, mode="lines", hovertemplate=hover, **common))
        traces += _divergences(results.events(trial), x, y, look, common)
    if steps is not None and days is not None and results.metric in days.columns:
        traces.append(_next_days(results, trial, steps, days, look, common))
    return traces


def _divergences(
    events: list[dict[str, Any]], x: list[int], y: list[float | None], look: LineStyle, common: dict[str, Any]
) -> list[go.Scatter]:
    """Mark each divergence on the line of the loss, up to the first without recovery; hovering shows the reason."""
    marks: list[tuple[int, float | None, str, str]] = []
    for event in sorted(events, key=lambda event: event["step"]):
        onset, verdict = event["step"], event["verdict"]
        if marks and (marks[-1][2] == MARKS["full"] or (verdict == "micro" and onset <= marks[-1][0] + _MERGED)):
            continue
        place = min(range(len(x)), key=lambda i: abs(x[i] - onset))
        marks.append((onset, y[place], MARKS[verdict], f"{verdict} from step {onset}: {event['reason']}"))
    if not marks:
        return []
    at, height, symbol, why = (list(part) for part in zip(*marks, strict=True))
    marker = {"symbol": symbol, "size": 10, "color": look.color, "line": {"color": "#fff", "width": 1}}
    hover = "%{fullData.name}, %{customdata}<extra></extra>"
    more = {key: value for key, value in common.items() if key != "line"}
    return [go.Scatter(x=at, y=height, mode="markers", marker=marker, customdata=why, hovertemplate=hover, **more)]


def _next_days(
    results: Results, trial: Row, steps: pl.DataFrame, days: pl.DataFrame, look: LineStyle, common: dict[str, Any]
) -> go.Scatter:
    """Return the AUC of each day, drawn at the step at which the day was scored, which is before training on it."""
    rows = days.filter(pl.col("scored") == "next_day")
    names = {day: number for number, day in enumerate(results.summary.days)}
    first = dict(steps.group_by("day").agg(pl.col("step").min()).iter_rows())
    end = len(steps)
    x = [first.get(names.get(day, -1), end) for day in rows["day"]]
    aucs = [math.nan if auc is None else float(auc) for auc in rows[results.metric]]
    symbols = ["circle"] * (len(x) - 1) + ["x" if trial.diverged else "circle"]
    sizes = [4] * (len(x) - 1) + [9 if trial.diverged else 4]
    return go.Scatter(
        x=x,
        y=[miss(auc) for auc in aucs],
        yaxis="y2",
        mode="lines+markers",
        marker={"symbol": symbols, "size": sizes, "color": look.color, "opacity": 1, "line": {"width": 0}},
        customdata=[[f"{100 * auc:.2f}", day] for auc, day in zip(aucs, rows["day"], strict=True)],
        hovertemplate="%{fullData.name}, scored on %{customdata[1]}: %{customdata[0]}<extra></extra>",
        **common,
    )


def last_day_curve(results: Results, model: str) -> go.Figure | None:
    """Draw the AUC on day N after every day of training: the mean over the seeds, and a band from lowest to highest."""
    looks = style.line_styles(results.methods)
    traces: list[go.Scatter] = []
    subjects = [(model, method.name, looks[method.name]) for method in results.methods]
    if results.floor:
        subjects.append((results.floor, results.floor, FLOOR))
    for of_model, name, look in subjects:
        traces += _curve(results, of_model, name, look)
    if not traces:
        return None
    aucs = [1 - y / 100 for trace in traces for y in trace.y or () if y is not None]
    title = f"AUC % of {results.summary.select_by} on {results.last_day}"
    days = style.axis("after training to the end of", type="category", nticks=5, tickangle=0)
    days |= {"categoryorder": "array", "categoryarray": results.summary.days}
    return go.Figure(traces, style.layout(340, xaxis=days, yaxis=style.auc_axis(aucs, title)))


def _curve(results: Results, model: str, method: str, look: LineStyle) -> list[go.Scatter]:
    """Return one method's mean and band, and a thin line for each seed that diverged."""
    alive: dict[str, list[float]] = {}
    traces = []
    line = {"color": look.color, "dash": look.dash, "width": 2}
    common: dict[str, Any] = {"name": method, "meta": {"method": method}}
    for trial in results.finals(model, method):
        days = results.days(trial)
        if days is None or not {"after", results.metric} <= set(days.columns):
            continue
        rows = days.filter(pl.col("scored") == "curve").select("after", results.metric).drop_nulls().drop_nans()
        if trial.diverged:
            after, aucs = (rows[column].to_list() for column in rows.columns)
            marker = {"symbol": ["circle"] * (len(after) - 1) + ["x"], "size": [1] * (len(after) - 1) + [9]}
            hover = "%{fullData.name}, a seed that diverged<extra></extra>"
            y, thin = [miss(auc) for auc in aucs], line | {"width": 1, "dash": "dot"}
            traces.append(go.Scatter(x=after, y=y, line=thin, marker=marker, hovertemplate=hover, **common))
        else:
            for day, auc in rows.iter_rows():
                alive.setdefault(day, []).append(auc)
    if not alive:
        return traces
    means = [statistics.fmean(values) for values in alive.values()]
    said = [f"{100 * mean:.2f}" for mean in means]
    hover = "%{fullData.name} after %{x}: %{customdata}<extra></extra>"
    y = [miss(mean) for mean in means]
    mean = go.Scatter(x=list(alive), y=y, mode="lines", line=line, customdata=said, hovertemplate=hover, **common)
    return [_band(alive, look, common), *traces, mean]


def _band(alive: dict[str, list[float]], look: LineStyle, common: dict[str, Any]) -> go.Scatter:
    days = list(alive)
    lower, upper = ([miss(pick(values)) for values in alive.values()] for pick in (min, max))
    return go.Scatter(
        x=days + days[::-1],
        y=upper + lower[::-1],
        mode="lines",
        fill="toself",
        fillcolor=look.faded(0.12),
        line={"width": 0},
        hoverinfo="skip",
        **common,
    )


def factors(results: Results, model: str) -> tuple[str, go.Figure] | None:
    """Draw the clip factors of the layers of the paper's fig. 6 over a final run; return the run's name and the figure.

    The run is the first seed of Clippy if it clipped one of these layers, or else of the last method that did.
    """
    ordered = [m for m in results.methods if m.rule == "clippy"] + [m for m in results.methods[::-1] if m.clipping]
    for method in ordered:
        for trial in results.finals(model, method.name)[:1]:
            steps = results.steps(trial)
            if steps is None:
                continue
            shown = layers.telling(steps.columns, [results.summary.select_by, results.summary.show])
            if any((steps[layer.column] != 1).any() for layer in shown):
                return f"{method.name} at {method.setting}, seed {trial.seed}", _factor_lines(steps, shown)
    return None


def _factor_lines(steps: pl.DataFrame, shown: list[layers.Layer]) -> go.Figure:
    traces = []
    for column, label, role in shown:
        x, y = style.thinned(steps, column)
        hover = f"{label}, step %{{x}}: %{{y}}<extra></extra>"
        line = {"color": style.LAYERS[role], "width": 1.6}
        traces.append(go.Scatter(x=x, y=y, name=label, mode="lines", line=line, hovertemplate=hover))
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    return go.Figure(
        traces,
        style.layout(
            360,
            showlegend=True,
            legend=legend,
            xaxis=style.axis("step", rangemode="tozero"),
            yaxis=style.log_axis([v for t in traces for v in t.y or () if v], "clipping factor (1: not clipped)"),
        ),
    )


def clipped_share(results: Results, model: str) -> go.Figure | None:
    """Draw how often each method clipped each layer in its final runs, as a heat map."""
    names, shares = [], []
    for method in results.methods:
        share = _share(results, model, method) if method.clipping else {}
        if share:
            names.append(method.name)
            shares.append(share)
    called = list(dict.fromkeys(label for share in shares for label in share))
    if not called:
        return None
    z = [[short(100 * share[label]) if label in share else None for label in called] for share in shares]
    heat = go.Heatmap(
        x=called,
        y=names,
        z=z,
        zmin=0,
        zmax=100,
        xgap=2,
        ygap=2,
        colorscale=[list(stop) for stop in style.HEAT],
        showscale=False,
        texttemplate="%{z:.0f}",
        hovertemplate="%{y} clipped %{x} in %{z:.1f} % of the steps<extra></extra>",
    )
    side = {"showgrid": False, "ticks": ""}
    yaxis = style.axis("", type="category", autorange="reversed") | side
    xaxis = style.axis("", type="category", tickangle=-40) | side
    return go.Figure(heat, style.layout(max(220, 120 + 44 * len(names)), xaxis=xaxis, yaxis=yaxis))


def _share(results: Results, model: str, method: Method) -> dict[str, float]:
    """Return the share of steps in which each layer's factor was not 1, over all seeds."""
    tables = [steps for t in results.finals(model, method.name) if (steps := results.steps(t)) is not None]
    called = layers.labels(tables[0].columns) if tables else {}
    total = sum(len(steps) for steps in tables)
    return {label: sum(len(steps.filter(pl.col(c) != 1)) for steps in tables) / total for c, label in called.items()}


def level(x: Sequence[float], height: float | None, name: str) -> go.Scatter:
    """Return a dotted horizontal line; its name is in the legend above the figure."""
    line = {"color": FLOOR.color, "dash": FLOOR.dash, "width": 1.2}
    return go.Scatter(
        x=list(x), y=[height] * len(x), mode="lines", line=line, hoverinfo="skip", name=name, showlegend=True
    )
