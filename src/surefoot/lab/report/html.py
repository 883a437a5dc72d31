"""Builds one self-contained HTML page out of figures and text."""

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
    """One figure on the page."""

    id: str
    title: str
    height: int
    choices: tuple[tuple[str, str], ...] = ()  # buttons: value and label
    choice: str = ""  # the value at first
    chosen: str = ""  # what the buttons select: "rate", "layer" or "task"


@dataclass
class Plots:
    """The figures of a page: their places by section, their content by id."""

    sections: dict[str, list[Plot]] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)

    def place(self, section: str, figure: go.Figure | None, title: str = "", *, number: int = 0, **choice: Any) -> None:
        """Put a figure into a section; ``number`` makes its id unique there. With None, only create the section."""
        plots = self.sections.setdefault(section, [])
        if figure is not None:
            name = f"{section}-{number}"
            self.drawn[name] = json.loads(str(figure.to_json()))
            plots.append(Plot(name, title, self.drawn[name]["layout"]["height"], **choice))


def page(template: str, plots: Plots, looks: dict[str, style.LineStyle], **more: Any) -> str:
    """Return the HTML of a template; the page loads nothing, and its content security policy forbids it."""
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
    """Escape JSON for a script element, since names in it come from the user's files."""
    return Markup(document.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
