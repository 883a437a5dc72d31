"""The figures of one run: one function for each, from its folder to plotly; None if there is nothing to draw."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from surefoot.lab.report import closeup, layers, style
from surefoot.lab.report.figures import level
from surefoot.lab.report.happened import KINDS
from surefoot.lab.report.run_folder import RunFolder
from surefoot.lab.report.style import LineStyle, miss

_COLUMNS = 160  # most columns of a heat map
_BAD, _ALARM, _DONE = "#a4320b", "#c77f00", style.MUTED  # colours of events
_MARKS = {"alarm": ("triangle-up", _ALARM), "divergence": ("x", _BAD), "stopped": ("square", _BAD)}
_MEASURES = (  # measures of a layer: column, name, colour, axis
    ("l2_norm/grad", "gradient norm", "#0072b2", "y"),
    ("l2_norm/weight", "weight norm", "#009e73", "y"),
    ("l2_norm/update", "norm of the step", "#cc79a7", "y"),
    ("clip_ratio", "Clippy's ratio", "#d55e00", "y2"),
    ("clip_factor", "clipping factor", "#56b4e9", "y2"),
)


def task_looks(tasks: Sequence[str]) -> dict[str, LineStyle]:
    """Return the line style of each task."""
    return {task: style.other(number) for number, task in enumerate(tasks)}


def losses(run: RunFolder) -> go.Figure | None:
    """Draw the relative loss and the loss of each task over the steps, and below them the marks of events."""
    if not run.named("loss") or run.steps.is_empty():
        return None
    relative = run.named("relative_loss")
    happened = _happened(run)
    kinds = [str(trace.name) for trace in happened]
    strip, panel = 30 * len(kinds), 230
    height = 60 + strip + panel * (2 if relative else 1)
    cut = (strip + 20) / height if kinds else 0.0
    middle = cut + (1 - cut) / 2 if relative else cut
    traces: list[go.Scatter] = []
    for task, look in task_looks(run.tasks).items():
        for measure, axis in (("relative_loss", "y"), ("loss", "y2" if relative else "y")):
            if f"{measure}/{task}" in run.steps.columns:
                traces += lines(run, f"{measure}/{task}", task, look, axis, method=task)
    if relative:
        traces.append(level([0, run.last_step or 0], 1.0, "loss of a constant prediction"))
    bottom = "y3" if kinds else ("y2" if relative else "y")
    powers = {"type": "log", "nticks": 4, "exponentformat": "power"}
    axes: dict[str, Any] = {"xaxis": style.axis("step", anchor=bottom, rangemode="tozero")}
    axes["yaxis"] = style.axis(f"{'relative ' if relative else ''}loss", domain=[middle + 0.03, 1], **powers)
    if relative:
        axes["yaxis2"] = style.axis("loss", domain=[cut + 0.02, middle - 0.02], **powers)
    if kinds:
        side = {"type": "category", "categoryorder": "array", "categoryarray": kinds[::-1], "ticks": ""}
        axes["yaxis3"] = style.axis("", domain=[0, (strip - 4) / height], range=[-0.6, len(kinds) - 0.4], **side)
    return go.Figure([*traces, *happened], style.layout(height, **style.LEVELS, **axes))


def lines(run: RunFolder, column: str, name: str, look: LineStyle, axis: str, **meta: str) -> list[go.Scatter]:
    """Return a line of a value over the steps; in a long run, also a thin line of the largest value in each stretch.

    Args:
        run: its folder.
        column: column of ``run.steps``.
        name: name of the line.
        look: colour and dash of the line.
        axis: y axis of the figure.
        meta: the button that shows or hides the line.
    """
    known = run.steps.drop_nulls(column)
    found = [_line(*style.thinned(known, column), column, name, look, axis, meta)]
    if style.stretch(known) > 1:
        largest = _line(*style.peaks(known, column), f"largest {column}", name, look, axis, meta)
        found.append(largest.update(line={"width": 0.7}, opacity=0.5))
    return found


def _line(
    x: list[int], y: list[float | None], column: str, name: str, look: LineStyle, axis: str, meta: dict[str, str]
) -> go.Scatter:
    measure = column.partition("/")[0].replace("_", " ")
    return go.Scatter(
        x=x,
        y=y,
        yaxis=axis,
        name=name,
        mode="lines" if len(x) > 1 else "markers",
        showlegend=False,
        line={"color": look.color, "dash": look.dash, "width": 1.6},
        meta=meta,
        hovertemplate=f"{measure} of %{{fullData.name}}, step %{{x}}: %{{y}}<extra></extra>",
    )


def _happened(run: RunFolder) -> list[go.Scatter]:
    """Return a row of marks for each kind of event."""
    traces = []
    for kind, called in KINDS.items():
        found = [event for event in run.of_kind(kind) if event.step is not None]
        if found:
            symbol, color = _MARKS.get(kind, ("circle", _DONE))
            traces.append(
                go.Scatter(
                    x=[event.step for event in found],
                    y=[called] * len(found),
                    yaxis="y3",
                    name=called,
                    mode="markers",
                    showlegend=False,
                    marker={"symbol": symbol, "size": 9, "color": color, "opacity": 0.85},
                    customdata=[f": {event.reason}" if event.reason else "" for event in found],
                    hovertemplate="%{fullData.name}, step %{x}%{customdata}<extra></extra>",
                )
            )
    return traces


def scores(run: RunFolder) -> go.Figure | None:
    """Draw the AUC of each task: of each day, scored before training on it, or else of the last rows at each step."""
    looks = task_looks(run.tasks)
    found = aucs(run, by_day=run.days is not None)
    traces = [auc_line(*found[task], task, looks.get(task, style.FLOOR), method=task) for task in found]
    return auc_figure(traces, by_day=run.days is not None)


def aucs(run: RunFolder, *, by_day: bool) -> dict[str, tuple[list[Any], list[float | None]]]:
    """Return days or steps, and AUCs, of each task that has an AUC."""
    if by_day and run.days is not None:
        rows = run.days.filter(pl.col("scored") == "next_day")
        tasks, at = [c.removeprefix("auc/") for c in rows.columns if c.startswith("auc/")], "day"
    else:
        rows, tasks, at = run.steps, [] if by_day else run.named("auc"), "step"
    seen = {task: rows.select(at, f"auc/{task}").drop_nulls() for task in tasks}
    return {task: (found[at].to_list(), found[f"auc/{task}"].to_list()) for task, found in seen.items() if len(found)}


def auc_figure(traces: Sequence[go.Scatter], *, by_day: bool) -> go.Figure | None:
    """Return the figure of AUC lines; None if no line has a point."""
    heights = [1 - y / 100 for trace in traces for y in trace.y or () if y is not None]
    if not heights:
        return None
    xaxis = style.axis("step", rangemode="tozero")
    if by_day:
        days = sorted({day for trace in traces for day in trace.x or ()})
        kind = {"type": "category", "nticks": 6, "tickangle": 0, "categoryorder": "array", "categoryarray": days}
        xaxis = style.axis("day, scored before training on it", **kind)
    return go.Figure(traces, style.layout(300, xaxis=xaxis, yaxis=style.auc_axis(heights, "AUC %")))


def auc_line(x: list[Any], values: list[float | None], name: str, look: LineStyle, **meta: str) -> go.Scatter:
    """Return a line of AUC over days or steps; ``meta`` names the button that shows or hides it."""
    every = max(1, math.ceil(len(x) / 300))
    x, values = x[::every], values[::every]
    return go.Scatter(
        x=x,
        y=[miss(auc) for auc in values],
        name=name,
        mode="lines+markers",
        line={"color": look.color, "dash": look.dash, "width": 1.6},
        marker={"size": 4},
        customdata=["undefined" if auc is None or math.isnan(auc) else f"{100 * auc:.2f}" for auc in values],
        hovertemplate="%{fullData.name}, %{x}: %{customdata}<extra></extra>",
        meta=meta,
    )


def layer_names(run: RunFolder) -> dict[str, str]:
    """Return the label of each layer with a measure, by the layer's name."""
    found: dict[str, str] = {}
    for measure in ("clip_ratio", "clip_factor", "l2_norm/grad"):
        found = layers.named(run.steps.columns, measure) | found
    return found


def first_layer(run: RunFolder) -> str:
    """Return the label of the first layer shown: the layer of the first alarm, or else that of the largest ratio."""
    called = layer_names(run)
    for event in run.of_kind("alarm"):
        layer = str(event.details.get("layer"))
        for name in (layer, layer.removesuffix(".bias") + ".weight"):
            if name in called:
                return called[name]
    largest = {name: run.steps[f"clip_ratio/{name}"].max() for name in called if name in run.named("clip_ratio")}
    finite = {name: value for name, value in largest.items() if isinstance(value, float) and math.isfinite(value)}
    return called[max(finite, key=lambda name: finite[name])] if finite else next(iter(called.values()))


def layers_over_time(run: RunFolder) -> go.Figure | None:
    """Draw the norms, Clippy's ratio and the clip factor of a layer over the steps; a button selects the layer."""
    called = layer_names(run)
    if not called:
        return None
    shown = first_layer(run)
    traces = [
        _measure(run, f"{measure}/{name}", title, color, axis, label, visible=label == shown)
        for name, label in called.items()
        for measure, title, color, axis in _MEASURES
        if f"{measure}/{name}" in run.steps.columns
    ]
    norms = any(trace.yaxis == "y" for trace in traces)
    powers = {"type": "log", "nticks": 4, "exponentformat": "power"}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    axes: dict[str, Any] = {"yaxis2": style.axis("ratio, factor", domain=[0, 0.4 if norms else 1], **powers)}
    if norms:
        axes["yaxis"] = style.axis("norms", domain=[0.48, 1], **powers)
    return go.Figure(
        traces,
        style.layout(
            480 if norms else 300,
            showlegend=True,
            legend=legend | {"entrywidth": 0.48, "entrywidthmode": "fraction"},
            xaxis=style.axis("step", anchor="y2", rangemode="tozero"),
            **axes,
        ),
    )


def _measure(
    run: RunFolder, column: str, title: str, color: str, axis: str, label: str, *, visible: bool
) -> go.Scatter:
    known = run.steps.drop_nulls(column)
    sparse = 2 * len(known) <= len(run.steps)  # measured at some steps only; otherwise a gap is a step without a change
    x, y = style.thinned(known if sparse else run.steps, column)
    return go.Scatter(
        x=x,
        y=y,
        yaxis=axis,
        name=title,
        mode="lines+markers" if sparse else "lines",
        line={"color": color, "width": 1.6},
        marker={"size": 5},
        visible=visible,
        meta={"choice": label},
        hovertemplate="%{fullData.name}, step %{x}: %{y}<extra></extra>",
    )


def ratio_map(run: RunFolder) -> go.Figure | None:
    """Draw Clippy's ratio of every layer over the steps as a heat map; a column of several steps has the largest."""
    called = layers.named(run.steps.columns, "clip_ratio")
    if not called or run.steps.is_empty():
        return None
    every = math.ceil(len(run.steps) / _COLUMNS)
    stretch = pl.int_range(pl.len()) // every
    columns = [f"clip_ratio/{name}" for name in called]
    largest = [pl.col(c).filter(pl.col(c).cast(pl.Float64).is_finite()).max() for c in columns]
    rows = run.steps.group_by(stretch.alias("stretch")).agg(pl.col("step").first(), *largest).sort("stretch")
    return closeup.ratios(rows, called)
