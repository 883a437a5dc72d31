"""Figures of the steps around a divergence of the optimizer without clipping: the paper's fig. 4, for every layer."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
import polars as pl

from surefoot.lab.report import layers, style
from surefoot.lab.report.folder import Results
from surefoot.lab.results import Method, Row

_BEFORE, _AFTER = 12, 24  # steps shown around the onset
_MEASURES = (  # measures of a layer: name in the figure, colour
    ("gradient norm", "#0072b2"),
    ("gradient norm / weight norm", "#009e73"),
    ("Clippy's ratio", "#d55e00"),
)


@dataclass(frozen=True)
class CloseUp:
    """A run that a monitor measured at every step.

    Args:
        trial: its folder's name.
        who: method and rate in words.
        onset: the step at which the divergence began.
        rows: a row for each step around the onset.
        layers: label of each monitored layer, by the layer's name, in the model's order.
    """

    trial: str
    who: str
    onset: int
    rows: pl.DataFrame
    layers: dict[str, str]

    @property
    def began(self) -> str:
        """The name of the layer with the largest ratio at the onset or one step before."""
        near = self.rows.filter(pl.col("step").is_between(self.onset - 1, self.onset))
        ratios = {name: near[f"clip_ratio/{name}"].max() for name in self.layers}
        return max(ratios, key=lambda name: _positive(ratios[name]) or 0.0)


def close_up(results: Results, model: str) -> CloseUp | None:
    """Return the close-up of a model; None if the study has none, or if its folder holds no values."""
    found = next((entry for entry in results.summary.close_ups if entry.model == model), None)
    table = None if found is None else results.watched(found.trial)
    if found is None or table is None:
        return None
    shown = layers.named(table.columns, "clip_ratio")
    onset = found.onset
    rows = table.filter(pl.col("step").is_between(onset - _BEFORE, onset + _AFTER))
    if not shown or rows.is_empty():
        return None
    return CloseUp(found.trial, f"{found.method} at {found.multiple:g}x", onset, rows, shown)


def around(results: Results, seen: CloseUp) -> go.Figure:
    """Draw the loss, three measures of a layer and the factor of each rule; a button selects the layer."""
    task = results.summary.select_by
    traces = [
        _line(seen, f"relative_loss/{task}", f"relative loss of {task}", style.INK, "y"),
        *(trace for name in seen.layers for trace in _measures(seen, name)),
        *(trace for name in seen.layers for trace in _what_if(results, seen, name)),
    ]
    kept = [trace for trace in traces if trace is not None]
    powers = {"type": "log", "nticks": 5, "exponentformat": "power"}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    onset = {"type": "line", "x0": seen.onset, "x1": seen.onset, "y0": 0, "y1": 1, "yref": "paper"}
    return go.Figure(
        kept,
        style.layout(
            620,
            showlegend=True,
            legend=legend | {"entrywidth": 0.48, "entrywidthmode": "fraction"},
            shapes=[onset | {"line": {"color": style.MUTED, "width": 1, "dash": "dot"}}],
            xaxis=style.axis("step", anchor="y3"),
            yaxis=style.axis("relative loss", type="log", domain=[0.76, 1], nticks=4, tickformat=".3~g"),
            yaxis2=style.axis("measures of the layer", domain=[0.39, 0.71], **powers),
            yaxis3=style.axis("factor of each rule", domain=[0, 0.34], **powers),
        ),
    )


def ratio_map(seen: CloseUp) -> go.Figure:
    """Draw Clippy's ratio of every layer at every step around the onset, as a heat map; Clippy clips above 1."""
    return ratios(seen.rows, seen.layers)


def ratios(rows: pl.DataFrame, called: dict[str, str]) -> go.Figure:
    """Draw Clippy's ratio of layers over steps, as a heat map."""
    names = list(called)[::-1]
    ratios = [[_positive(value) for value in rows[f"clip_ratio/{name}"]] for name in names]
    heat = go.Heatmap(
        x=rows["step"].to_list(),
        y=[called[name] for name in names],
        z=[[None if v is None else style.decades(v) for v in row] for row in ratios],
        customdata=[[style.short(v) for v in row] for row in ratios],
        zmin=-4,
        zmax=4,
        xgap=1,
        ygap=1,
        colorscale=[list(stop) for stop in style.DIVERGING],
        colorbar={
            "title": {"text": "ratio", "font": {"size": 12}},
            "tickvals": [-4, -2, 0, 2, 4],
            "ticktext": ["1e-4", "0.01", "1", "100", "1e4"],
            "thickness": 12,
        },
        hovertemplate="%{y}, step %{x}: %{customdata}<extra></extra>",
    )
    axes = {"xaxis": style.axis("step"), "yaxis": style.axis("", type="category", ticks="")}
    return go.Figure([heat], style.layout(110 + 26 * len(names), **axes))


def timeline(results: Results, model: str) -> go.Figure | None:
    """Draw one line for each run in which a task diverged: from where to where, and whether it recovered."""
    looks = style.line_styles(results.methods)
    rows: list[tuple[Method, Row, list[dict[str, Any]]]] = []
    for method in results.methods:
        for trial in results.sweep(model, method):
            events = results.events(trial)
            if events:
                rows.append((method, trial, events))
    if not rows:
        return None
    traces = []
    for method, trial, events in rows:
        label, color = f"{method.name} {trial.multiple:g}x", looks[method.name].color
        for verdict, symbol in (("micro", "circle-open"), ("full", "x")):
            of_kind = [event for event in events if event["verdict"] == verdict]
            spans = [x for event in of_kind for x in (event["step"], event["end"], None)]
            marks = [size for _ in of_kind for size in (9, 0, 0)]
            why = [f"{e['task']}: {verdict} from step {e['step']}, {e['reason']}" for e in of_kind for _ in range(3)]
            if of_kind:
                traces.append(
                    go.Scatter(
                        x=spans,
                        y=[label] * len(spans),
                        mode="lines+markers",
                        line={"color": color, "width": 3 if verdict == "full" else 1.5},
                        marker={"symbol": symbol, "size": marks, "color": color, "opacity": 1},
                        customdata=why,
                        hovertemplate="%{customdata}<extra></extra>",
                        name=method.name,
                        meta={"method": method.name},
                    )
                )
    labels = list(dict.fromkeys(f"{method.name} {trial.multiple:g}x" for method, trial, _ in rows))
    lines = style.axis("", type="category", categoryorder="array", categoryarray=labels[::-1], ticks="")
    steps = style.axis("step", range=[-0.02 * results.summary.steps, 1.02 * results.summary.steps])
    return go.Figure(traces, style.layout(90 + 20 * len(labels), xaxis=steps, yaxis=lines))


def _measures(seen: CloseUp, layer: str) -> list[go.Scatter | None]:
    grad, weight, ratio = (f"{kind}/{layer}" for kind in ("l2_norm/grad", "l2_norm/weight", "clip_ratio"))
    if not {grad, weight, ratio} <= set(seen.rows.columns):
        return []
    rows = seen.rows.with_columns((pl.col(grad) / pl.col(weight)).alias("grad/weight"))
    columns = (grad, "grad/weight", ratio)
    return [
        _line(seen, column, name, color, "y2", rows=rows, layer=layer)
        for column, (name, color) in zip(columns, _MEASURES, strict=True)
    ]


def _what_if(results: Results, seen: CloseUp, layer: str) -> list[go.Scatter | None]:
    """Return a trace for each rule whose factor the monitor computed; a rule of the study has its method's name."""
    looks = style.line_styles(results.methods)
    used = {look.color for look in looks.values()}
    names = {label: name for name, label in results.summary.rules.items()}
    asked = [column.split("/") for column in seen.rows.columns if column.startswith("what_if/")]
    labels = list(dict.fromkeys(label for _, label, *_ in asked))
    labels.sort(key=lambda label: list(names).index(label) if label in names else len(names))
    spare = cycle([color for color in style.OTHERS if color not in used] or style.OTHERS)
    traces = []
    for label in labels:
        rule = names.get(label, label)
        method = next((method for method in results.methods if method.rule == rule), None)
        color = next(spare) if method is None else looks[method.name].color
        name = f"{rule.replace('_', ' ') if method is None else method.name} would give"
        traces.append(_line(seen, f"what_if/{label}/{layer}", name, color, "y3", layer=layer, dash="dot"))
    return traces


def _line(
    seen: CloseUp,
    column: str,
    name: str,
    color: str,
    axis: str,
    *,
    rows: pl.DataFrame | None = None,
    layer: str | None = None,
    dash: str = "solid",
) -> go.Scatter | None:
    rows = seen.rows if rows is None else rows
    if column not in rows.columns:
        return None
    chosen: dict[str, Any] = {} if layer is None else {"meta": {"choice": seen.layers[layer]}}
    return go.Scatter(
        x=rows["step"].to_list(),
        y=[style.short(_positive(value)) for value in rows[column]],
        yaxis=axis,
        name=name,
        mode="lines+markers",
        line={"color": color, "width": 1.6, "dash": dash},
        marker={"size": 4},
        visible=layer is None or layer == seen.began,
        hovertemplate="%{fullData.name}, step %{x}: %{y}<extra></extra>",
        **chosen,
    )


def _positive(value: Any) -> float | None:
    """Return the value if a logarithmic axis can show it; None otherwise."""
    return float(value) if value is not None and value == value and 0 < value < float("inf") else None
