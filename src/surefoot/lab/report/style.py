"""Common to all figures: the methods' colours, axes, rounding, smoothing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from surefoot.lab.results import Method

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, LINE, WASH = "#1b2330", "#5a6473", "#e2e6eb", "#f5f6f8"

_POINTS = 300  # most points of a line
_PLAIN, _WARMED_UP, _CLIPPY = "#333333", "#8a8a8a", "#d55e00"
OTHERS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")  # Okabe and Ito, and a wine red
_DASHES = ("solid", "dash", "dot", "dashdot")
LAYERS = ("#440154", "#3b6ea5", "#1f9e89", "#7ab51d", "#c2a500")  # from purple to yellow: not a method's colours
DIVERGING = ((0.0, "#e8edf2"), (0.35, "#dfe7ef"), (0.5, "#fbe3c0"), (0.75, "#e8853b"), (1.0, "#8c1d04"))  # 0.5: one
HEAT = ((0.0, "#f5f6f8"), (0.25, "#c9d9ea"), (0.5, "#8fb2d6"), (0.75, "#4a7fb5"), (1.0, "#1c4e80"))


@dataclass(frozen=True)
class LineStyle:
    """Colour and dash of a method's lines in all figures."""

    color: str
    dash: str = "solid"

    @property
    def border(self) -> str:
        """The nearest style that CSS has for a border."""
        return {"dot": "dotted", "solid": "solid"}.get(self.dash, "dashed")

    def faded(self, alpha: float) -> str:
        """Return the colour with an opacity, 0 to 1."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


FLOOR = LineStyle(MUTED, "dot")
LEVELS: dict[str, Any] = {  # layout of a figure whose legend has horizontal lines only
    "showlegend": True,
    "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "font": {"size": 11}},
}


def line_styles(methods: Sequence[Method]) -> dict[str, LineStyle]:
    """Return each method's line style: no clipping, warm-up and Clippy have the same colours in every study."""
    found: dict[str, LineStyle] = {}
    others = 0
    for method in methods:
        used = {look.color for look in found.values()}
        if method.plain and _PLAIN not in used:
            found[method.name] = LineStyle(_PLAIN)
        elif method.warmed_up and _WARMED_UP not in used:
            found[method.name] = LineStyle(_WARMED_UP, "dash")
        elif method.rule == "clippy" and _CLIPPY not in used:
            found[method.name] = LineStyle(_CLIPPY)
        else:
            found[method.name] = other(others)
            others += 1
    return found


def other(number: int) -> LineStyle:
    """Return the line style number ``number``, from 0, of those without a fixed use."""
    round_, place = divmod(number, len(OTHERS))
    return LineStyle(OTHERS[place], _DASHES[round_ % len(_DASHES)])


def short(value: float | None) -> float | None:
    """Return the number with four significant digits; None, which leaves a gap, if it is not finite.

    >>> short(0.123456), short(float("inf"))
    (0.1235, None)
    """
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def decades(value: float) -> float:
    """Return the decimal logarithm of a positive number, rounded to two digits."""
    return round(math.log10(value), 2)


def miss(auc: float | None) -> float | None:
    """Return 100 % - AUC in points: the height at which an AUC is drawn.

    >>> miss(0.975), miss(float("nan"))
    (2.5, None)
    """
    return None if auc is None or math.isnan(auc) else short(max(100 * (1 - auc), 1e-3))


def stretch(steps: pl.DataFrame) -> int:
    """Return how many steps one point of a line stands for."""
    return max(1, math.ceil(len(steps) / _POINTS))


def smoothing(steps: pl.DataFrame) -> int:
    """Return the number of steps over which a line is smoothed."""
    return max(3, stretch(steps))


def thinned(steps: pl.DataFrame, column: str) -> tuple[list[int], list[float | None]]:
    """Return some of the steps, and the column's values there: geometric means over ``smoothing`` steps.

    A value that is not finite or not positive leaves a gap.
    """
    smooth = _positive(column).log().rolling_mean(smoothing(steps), center=True, min_samples=1).exp()
    kept = steps.select(pl.col("step"), smooth.alias("value")).gather_every(stretch(steps))
    return kept["step"].to_list(), [short(v) for v in kept["value"].to_list()]


def peaks(steps: pl.DataFrame, column: str) -> tuple[list[int], list[float | None]]:
    """Return the first step and the largest value of each stretch of steps that one point of a line stands for."""
    every = stretch(steps)
    parts = steps.group_by((pl.int_range(pl.len()) // every).alias("part"))
    kept = parts.agg(pl.col("step").first(), _positive(column).max().alias("value")).sort("part")
    return kept["step"].to_list(), [short(v) for v in kept["value"].to_list()]


def _positive(column: str) -> pl.Expr:
    value = pl.col(column).cast(pl.Float64)
    return pl.when(value.is_finite() & (value > 0)).then(value)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with its title, with light lines."""
    plain = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "ticks": "outside", "tickcolor": LINE}
    return plain | {"title": {"text": title, "font": {"size": 12}}, "automargin": True} | more


def rate_axis(multiples: Iterable[float], title: str, **more: Any) -> dict[str, Any]:
    """Return a logarithmic axis with a tick at each multiple of the base rate."""
    ticks = sorted(set(multiples))
    text = [f"{tick:g}x" for tick in ticks]
    return axis(title, type="log", tickvals=ticks, ticktext=text) | more


def log_axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """Return a logarithmic axis with ticks at 1, 2 and 5 of each decade; at 1 alone if there are many decades."""
    low, high = (math.floor(math.log10(pick(values, default=1.0))) for pick in (min, max))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [float(f"{digit}e{power}") for power in range(low, high + 2) for digit in digits]
    return axis(title, type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def auc_axis(aucs: Iterable[float], title: str, **more: Any) -> dict[str, Any]:
    """Return an axis for the heights of ``miss``: logarithmic in 100 % - AUC, with the higher AUC on top."""
    heights = [height for auc in aucs if (height := miss(auc)) is not None] or [1.0, 50.0]
    low, high = math.log10(min(heights)), math.log10(max(heights))
    pad = max(0.06 * (high - low), 0.02)
    ticks = _auc_ticks(low - pad, high + pad)
    return axis(
        title,
        type="log",
        range=[round(high + pad, 4), round(low - pad, 4)],
        tickvals=[short(100 - tick) for tick in ticks],
        ticktext=[f"{tick:g}" for tick in ticks],
    ) | dict(more)


def _auc_ticks(low: float, high: float) -> list[float]:
    """Return round AUCs for ticks: log10(100 - AUC) lies between the bounds, and no two are too close."""
    series = [[50, 80, 90, 95, 98, 99, 99.5, 99.9], [97, 70, 99.7]]
    series += [[i * step for i in range(round(100 / step))] for step in (10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)]
    ticks: dict[float, float] = {}
    for level in series:
        for tick in level:
            place = math.log10(100 - tick)
            if low <= place <= high and all(abs(place - other) >= (high - low) / 8 for other in ticks.values()):
                ticks[tick] = place
        if len(ticks) >= 5:
            break
    return sorted(ticks)


def layout(height: int, **more: Any) -> dict[str, Any]:
    """Return a figure's layout; the page sets its width."""
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "template": {},
    } | more
