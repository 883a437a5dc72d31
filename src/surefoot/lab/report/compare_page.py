"""The page of a comparison, and its figures."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from surefoot.files import write_whole
from surefoot.lab.report import html, run_figures, style
from surefoot.lab.report.compare import Comparison, Pair, compare_runs, compare_studies, read_pair
from surefoot.lab.report.figures import MARKS, level
from surefoot.lab.report.folder import Results
from surefoot.lab.report.run_folder import RunFolder
from surefoot.lab.report.style import LineStyle, miss

SIDES = {"A": LineStyle("#0072b2"), "B": LineStyle("#d55e00")}


def write_comparison(one: Path, other: Path, out: Path) -> Comparison:
    """Write a page that compares two runs or two studies; return its text and tables.

    Raises:
        InputError: naming the file or the folder, if one cannot be read, if one is a run and the other a study, or if
            the page cannot be written.
    """
    pair = read_pair(one, other)
    found, page = compared(pair)
    write_whole(out, page)
    return found


def compared(pair: Pair) -> tuple[Comparison, str]:
    """Return a comparison's text and tables, and its page."""
    plots = html.Plots()
    a, b = pair
    if isinstance(a, RunFolder) and isinstance(b, RunFolder):
        found, looks = compare_runs(a, b), SIDES
        _place_runs(plots, a, b)
    else:
        assert isinstance(a, Results)
        assert isinstance(b, Results)
        found, looks = compare_studies(a, b), _method_looks(a, b)
        for number, model in enumerate(model for model in a.models if model in b.models):
            plots.place("curves", quality(a, b, model), model, number=number)
        plots.place("curves", None)
    return found, html.page("compare.html.j2", plots, looks, found=found)


def _place_runs(plots: html.Plots, a: RunFolder, b: RunFolder) -> None:
    common = [task for task in a.tasks if task in b.tasks]
    for number, (title, draw) in enumerate({"losses over the steps": losses, "AUC while training": scores}.items()):
        figure = draw(a, b, common)
        traces = [] if figure is None else figure.to_dict()["data"]
        tasks = list(dict.fromkeys(trace["meta"]["choice"] for trace in traces if "meta" in trace))
        choice: dict[str, Any] = {"choices": tuple((task, task) for task in tasks), "chosen": "task"}
        plots.place("curves", figure, title, number=number, choice=tasks[0] if tasks else "", **choice)


def losses(a: RunFolder, b: RunFolder, tasks: list[str]) -> go.Figure | None:
    """Draw the relative loss and the loss of both runs over the steps; a button selects the task."""
    panels = {"relative_loss": "y", "loss": "y2"}
    traces = [
        trace.update(visible=task == tasks[0])
        for task in tasks
        for side, run in (("A", a), ("B", b))
        for measure, axis in panels.items()
        if f"{measure}/{task}" in run.steps.columns
        for trace in run_figures.lines(run, f"{measure}/{task}", side, SIDES[side], axis, method=side, choice=task)
    ]
    if not traces:
        return None
    relative = any(trace.yaxis == "y" for trace in traces)
    powers = {"type": "log", "nticks": 4, "exponentformat": "power"}
    axes = {"yaxis2": style.axis("loss", domain=[0, 0.46 if relative else 1], **powers)}
    if relative:
        ends = [0, max(a.last_step or 0, b.last_step or 0)]
        traces.append(level(ends, 1.0, "loss of a constant prediction"))
        axes["yaxis"] = style.axis("relative loss", domain=[0.54, 1], **powers)
    xaxis = style.axis("step", anchor="y2", rangemode="tozero")
    return go.Figure(traces, style.layout(460 if relative else 280, **style.LEVELS, xaxis=xaxis, **axes))


def scores(a: RunFolder, b: RunFolder, tasks: list[str]) -> go.Figure | None:
    """Draw the AUC of both runs: by day if both have days, otherwise by step; a button selects the task."""
    by_day = a.days is not None and b.days is not None
    lines = {"A": run_figures.aucs(a, by_day=by_day), "B": run_figures.aucs(b, by_day=by_day)}
    scored = [task for task in tasks if any(task in found for found in lines.values())]
    traces = [
        run_figures.auc_line(*lines[side][task], side, look, method=side, choice=task).update(visible=task == scored[0])
        for task in scored
        for side, look in SIDES.items()
        if task in lines[side]
    ]
    return run_figures.auc_figure(traces, by_day=by_day)


def _method_looks(a: Results, b: Results) -> dict[str, LineStyle]:
    methods = {method.name: method for study in (b, a) for method in study.methods}
    order = list(dict.fromkeys(method.name for study in (a, b) for method in study.methods))
    return {name: LineStyle(look.color) for name, look in style.line_styles([methods[name] for name in order]).items()}


def quality(a: Results, b: Results, model: str) -> go.Figure | None:
    """Draw the AUC on day N - 1 over the learning rate: A solid, B dashed, a colour for each method."""
    looks = _method_looks(a, b)
    traces, aucs, rates = [], [], []
    for side, study, dash in (("A", a, "solid"), ("B", b, "dash")):
        for method in study.methods:
            swept = study.sweep(model, method)
            values = [trial.scores[study.metric] for trial in swept]
            aucs += values
            rates += [trial.rate for trial in swept]
            color = looks[method.name].color
            traces.append(
                go.Scatter(
                    x=[trial.rate for trial in swept],
                    y=[miss(value) for value in values],
                    name=f"{side}: {method.name}",
                    mode="lines+markers",
                    showlegend=False,
                    line={"color": color, "dash": dash, "width": 2},
                    marker={"symbol": [MARKS.get(t.verdict, "circle") for t in swept], "size": 8, "opacity": 1},
                    customdata=[[f"{100 * v:.2f}", t.verdict] for v, t in zip(values, swept, strict=True)],
                    hovertemplate="%{fullData.name} at %{x}: %{customdata[0]} (%{customdata[1]})<extra></extra>",
                    meta={"method": method.name},
                )
            )
    if not rates:
        return None
    title = f"AUC % of {a.summary.select_by}, {a.selection_day}"
    dashes = [_key(side, dash) for side, dash in (("A", "solid"), ("B", "dash"))]
    return go.Figure(
        [*traces, *dashes],
        style.layout(
            420, **style.LEVELS, xaxis=style.log_axis(rates, "learning rate"), yaxis=style.auc_axis(aucs, title)
        ),
    )


def _key(side: str, dash: str) -> go.Scatter:
    """Return an entry of the legend, without a line in the figure."""
    line = {"color": style.INK, "dash": dash, "width": 2}
    return go.Scatter(x=[None], y=[None], mode="lines", line=line, name=side, showlegend=True)
