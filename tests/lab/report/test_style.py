"""Looks, axes and smoothing."""

import math

import polars as pl
import pytest

from surefoot.lab.report import style
from surefoot.lab.results import Method


def method(name: str, rule: str, warmup_steps: int = 0) -> Method:
    return Method(name, rule, warmup_steps, None, 1, None, True, False, 1, 0.9, 1, None, 0.9, {})


def test_every_method_looks_different_and_the_same_wherever_it_stands() -> None:
    methods = [method("naive", "naive"), method("warm", "naive", 60), method("Clippy", "clippy")]
    methods += [method(f"GC {i}", "gc") for i in range(12)] + [method("Clippy 2", "clippy")]
    looks = style.line_styles(methods)
    assert len({(look.color, look.dash) for look in looks.values()}) == len(methods)
    assert {name: style.line_styles(methods[::-1])[name] for name in ("naive", "warm")} == {
        name: looks[name] for name in ("naive", "warm")
    }


@pytest.mark.parametrize("steps", [1, 7, 299, 300, 301, 5000])
def test_a_line_has_few_points_and_keeps_its_level(steps: int) -> None:
    frame = pl.DataFrame({"step": range(steps), "loss": [0.25] * steps})
    x, y = style.thinned(frame, "loss")
    assert len(x) == len(y) <= 300
    assert x[0] == 0
    assert set(y) == {0.25}


def test_what_is_not_finite_or_not_positive_leaves_no_trace_on_its_neighbours() -> None:
    frame = pl.DataFrame({"step": range(9), "loss": [1.0, 1, 1, math.nan, math.inf, 0, -1, 1, 1]})
    _, y = style.thinned(frame, "loss")
    assert set(y) == {1.0, None}


@pytest.mark.parametrize("aucs", [[0.5, 0.98], [0.97, 0.971], [0.2, 0.9999], [0.5], [], [math.nan], [1.0, 0.4]])
def test_the_auc_axis_has_a_few_distinct_ticks_inside_its_range(aucs: list[float]) -> None:
    axis = style.auc_axis(aucs, "AUC")
    low, high = sorted(axis["range"])
    assert all(low <= math.log10(tick) <= high for tick in axis["tickvals"])
    assert 1 <= len(axis["tickvals"]) <= 9
    assert len(set(axis["ticktext"])) == len(axis["tickvals"])


@pytest.mark.parametrize("values", [[0.1, 1.0], [1e-6, 1.0], [3.0], []])
def test_the_log_axis_has_ticks_around_its_values(values: list[float]) -> None:
    ticks = style.log_axis(values, "factor")["tickvals"]
    assert 2 <= len(ticks) <= 16
    assert all(min(ticks) <= value <= max(ticks) for value in values)
