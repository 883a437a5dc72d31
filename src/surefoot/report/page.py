"""The report: one page that stands alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surefoot.files import write_whole
from surefoot.report import closeup, figures, style
from surefoot.report.findings import findings, searching
from surefoot.report.folder import Results, read
from surefoot.report.notices import notices
from surefoot.report.tables import main_table, task_tables


@dataclass(frozen=True)
class Plot:
    """A figure's place on the page."""

    id: str
    title: str
    height: int
    choices: tuple[tuple[str, str], ...] = ()  # values and what to call them
    choice: str = ""
    chosen: str = ""  # what there is to choose


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a study's folder, from what the folder holds; return its path.

    The file stands alone: it asks no network for anything, and its content security policy forbids it to.

    Raises:
        InputError: naming the file, if one of the results is missing, has changed or cannot be read, or if the report
            cannot be written.
    """
    results = read(folder)
    return write_whole(folder / "report.html", render(results))


def render(results: Results) -> str:
    """Return the page of a study."""
    sections, drawn = _plots(results)
    seeds = results.summary.search_seeds
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("surefoot.report") / "page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        results=results,
        summary=results.summary,
        looks=style.looks(results.methods),
        floor=style.FLOOR,
        font=Markup(style.FONT),
        notices=notices(results),
        findings=findings(results),
        searching=searching(results),
        table=main_table(results),
        tasks=task_tables(results),
        seeds_words="it alone" if len(seeds) == 1 else f"{len(seeds)} seeds",
        points=100 * results.summary.fall_off,
        diverged=sum(trial.diverged for trial in results.rows),
        sections=sections,
        figures=_script_safe(json.dumps(drawn, allow_nan=False, separators=(",", ":"))),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


def _plots(results: Results) -> tuple[dict[str, list[Plot]], dict[str, Any]]:
    """Draw every figure of every model; return where they go, by section, and what they are, by id."""
    sections: dict[str, list[Plot]] = {}
    drawn: dict[str, Any] = {}

    def place(section: str, number: int, figure: go.Figure | None, title: str, **choice: Any) -> None:
        if figure is not None:
            name = f"{section}-{number}"
            drawn[name] = json.loads(str(figure.to_json()))
            sections[section].append(Plot(name, title, drawn[name]["layout"]["height"], **choice))

    plain: dict[str, Callable[[Results, str], go.Figure | None]] = {
        "rate": figures.quality_by_rate,
        "curve": figures.last_day_curve,
        "share": figures.clipped_share,
    }
    for section in (*plain, "steps", "factors", "around", "ratios", "timeline"):
        sections[section] = []
    for number, model in enumerate(results.models):
        for section, draw in plain.items():
            place(section, number, draw(results, model), model)
        rates, start = figures.rate_choices(results, model)
        choices = tuple((f"{rate:g}", f"{rate:g}x") for rate in rates)
        figure = figures.steps_and_days(results, model)
        place("steps", number, figure, model, choices=choices, choice=f"{start:g}", chosen="rate")
        whose, figure = figures.factors(results, model) or ("", None)
        place("factors", number, figure, f"{model}: {whose}")
        place("timeline", number, closeup.timeline(results, model), model)
        seen = closeup.close_up(results, model)
        if seen is not None:
            title, began = f"{model}: {seen.who}", seen.layers[seen.began]
            choices = tuple((label, label) for label in seen.layers.values())
            place("around", number, closeup.around(results, seen), title, choices=choices, choice=began, chosen="layer")
            place("ratios", number, closeup.ratio_map(seen), title)
    return sections, drawn


def _script_safe(document: str) -> Markup:
    """Return JSON that may stand inside a script element: names in it come from the user's files."""
    return Markup(document.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
