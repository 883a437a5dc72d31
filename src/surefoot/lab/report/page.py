"""The report of a study."""

from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go

from surefoot.files import write_whole
from surefoot.lab.report import closeup, figures, html, style
from surefoot.lab.report.conclusions import conclusions, searching
from surefoot.lab.report.folder import Results, read
from surefoot.lab.report.notices import notices
from surefoot.lab.report.tables import main_table, task_tables


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a study's folder, from what the folder holds; return its path.

    Raises:
        InputError: naming the file, if one of the results is missing, has changed or cannot be read, or if the report
            cannot be written.
    """
    results = read(folder)
    return write_whole(folder / "report.html", render(results))


def render(results: Results) -> str:
    """Return the page of a study."""
    seeds = results.summary.search_seeds
    return html.page(
        "study.html.j2",
        _plots(results),
        style.line_styles(results.methods),
        results=results,
        summary=results.summary,
        notices=notices(results),
        findings=conclusions(results),
        searching=searching(results),
        table=main_table(results),
        tasks=task_tables(results),
        seeds_words="that seed alone" if len(seeds) == 1 else f"{len(seeds)} seeds",
        points=100 * results.summary.fall_off,
        diverged=sum(trial.diverged for trial in results.rows),
    )


def _plots(results: Results) -> html.Plots:
    """Draw every figure of every model."""
    plots = html.Plots({section: [] for section in ("around", "ratios")})
    plain: dict[str, Callable[[Results, str], go.Figure | None]] = {
        "rate": figures.quality_by_rate,
        "curve": figures.last_day_curve,
        "share": figures.clipped_share,
        "timeline": closeup.timeline,
    }
    for number, model in enumerate(results.models):
        for section, draw in plain.items():
            plots.place(section, draw(results, model), model, number=number)
        rates, start = figures.rate_choices(results, model)
        choices = tuple((f"{rate:g}", f"{rate:g}x") for rate in rates)
        figure = figures.steps_and_days(results, model)
        plots.place("steps", figure, model, number=number, choices=choices, choice=f"{start:g}", chosen="rate")
        whose, figure = figures.factors(results, model) or ("", None)
        plots.place("factors", figure, f"{model}: {whose}", number=number)
        seen = closeup.close_up(results, model)
        if seen is not None:
            title, began = f"{model}: {seen.who}", seen.layers[seen.began]
            choices = tuple((label, label) for label in seen.layers.values())
            figure = closeup.around(results, seen)
            plots.place("around", figure, title, number=number, choices=choices, choice=began, chosen="layer")
            plots.place("ratios", closeup.ratio_map(seen), title, number=number)
    return plots
