"""From figures and words to one page that stands alone."""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surefoot.lab.report import style


@dataclass(frozen=True)
class Plot:
    """A figure's place on the page."""

    id: str
    title: str
    height: int
    choices: tuple[tuple[str, str], ...] = ()  # values and what to call them
    choice: str = ""
    chosen: str = ""  # what there is to choose


@dataclass
class Plots:
    """The figures of a page: where they go, by section, and what they are, by id."""

    sections: dict[str, list[Plot]] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)

    def place(self, section: str, figure: go.Figure | None, title: str = "", *, number: int = 0, **choice: Any) -> None:
        """Put a figure into a section, under a number; of None the section is noted, and stays empty."""
        plots = self.sections.setdefault(section, [])
        if figure is not None:
            name = f"{section}-{number}"
            self.drawn[name] = json.loads(str(figure.to_json()))
            plots.append(Plot(name, title, self.drawn[name]["layout"]["height"], **choice))


def page(template: str, plots: Plots, looks: dict[str, style.LineStyle], **more: Any) -> str:
    """Return a page of a template: it asks no network for anything, and its content security policy forbids it to."""
    loader = FunctionLoader(lambda name: (files(__name__.rpartition(".")[0]) / name).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        looks=looks,
        floor=style.FLOOR,
        font=Markup(style.FONT),
        sections=plots.sections,
        figures=_script_safe(json.dumps(plots.drawn, allow_nan=False, separators=(",", ":"))),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        **more,
    )


def _script_safe(document: str) -> Markup:
    """Return JSON that may stand inside a script element: names in it come from the user's files."""
    return Markup(document.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
