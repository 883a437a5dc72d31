"""The steps around a divergence: which run is watched, what is drawn of it, what is said of none."""

import shutil
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl
import pytest

from lab.report.conftest import resum
from lab.report.test_page import page
from surefoot.lab.report.closeup import around, close_up, ratio_map, timeline
from surefoot.lab.report.folder import Results, read
from surefoot.lab.study.config import RULES
from surefoot.rules import NoClip


def data(figure: go.Figure) -> list[dict[str, Any]]:
    return figure.to_dict()["data"]


@pytest.fixture
def results(study: Path) -> Results:
    return read(study)


def test_the_lowest_rate_at_which_the_plain_optimizer_diverged_is_watched(results: Results) -> None:
    assert results.summary.close_ups
    for entry in results.summary.close_ups:
        fell = [t for t in results.rows if (t.model, t.method, t.until) == (entry.model, "naive", "selection")]
        fell = [t for t in fell if t.diverged]
        lowest = min(fell, key=lambda trial: trial.multiple)
        assert (entry.multiple, entry.onset, entry.method) == (lowest.multiple, lowest.onset, "naive")
        assert entry.trial not in {trial.trial for trial in results.rows}  # it has no row: nothing is scored by it


def test_a_watched_run_is_the_run_that_diverged(results: Results) -> None:
    for entry in results.summary.close_ups:
        trial = next(t for t in results.rows if t.diverged and t.model == entry.model and t.multiple == entry.multiple)
        rows, steps = results.watched(entry.trial), results.steps(trial)
        assert rows is not None
        assert steps is not None
        both, loss = min(len(rows), len(steps)), f"loss/{results.summary.select_by}"
        assert rows[loss][:both].to_list() == steps[loss][:both].to_list()


def test_every_layer_can_be_chosen_and_is_in_the_map(results: Results) -> None:
    for entry in results.summary.close_ups:
        seen = close_up(results, entry.model)
        assert seen is not None
        traces, (heat,) = data(around(results, seen)), data(ratio_map(seen))
        of_layers = [trace for trace in traces if "meta" in trace]
        assert {t["meta"]["choice"] for t in of_layers} == set(seen.layers.values()) == set(heat["y"])
        assert len(heat["z"]) == len(seen.layers)
        assert len(heat["z"][0]) == len(seen.rows)
        shown = [t for t in of_layers if t["visible"]]
        assert {t["meta"]["choice"] for t in shown} == {seen.layers[seen.began]}
        names = [t["name"] for t in shown]
        assert names[:3] == ["gradient norm", "gradient norm / weight norm", "Clippy's ratio"]
        assert {"GC would give", "Clippy would give"} <= set(names)


def test_the_timeline_has_a_line_for_each_run_that_diverged(results: Results) -> None:
    for model in results.models:
        figure = timeline(results, model)
        diverged = {
            f"{method.name} {trial.multiple:g}x"
            for method in results.methods
            for trial in results.sweep(model, method)
            if results.events(trial)
        }
        drawn = {label for trace in data(figure) for label in trace["y"]} if figure else set()
        assert drawn == diverged


def test_a_run_that_was_not_watched_leaves_a_sentence(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    for entry in read(copy).summary.close_ups:
        shutil.rmtree(copy / "trials" / entry.trial)
    assert all(close_up(read(copy), model) is None for model in read(copy).models)
    assert "did not diverge, or its run was not monitored" in page(copy)


def test_every_rule_that_was_asked_is_drawn_a_new_one_too(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    entry = read(copy).summary.close_ups[0]
    path = copy / "trials" / entry.trial / "monitor" / "metrics.parquet"
    rows = pl.read_parquet(path)
    first = next(name for name in rows.columns if name.startswith("what_if/Clippy/"))
    rows.with_columns(pl.col(first).alias(first.replace("Clippy", "NewRule"))).write_parquet(path)
    resum(copy)
    results = read(copy)
    seen = close_up(results, entry.model)
    assert seen is not None
    layer = seen.layers[first.removeprefix("what_if/Clippy/")]
    traces = data(around(results, seen))
    drawn = [t["name"] for t in traces if t.get("meta") == {"choice": layer} and "would give" in t["name"]]
    asked = [name for name, kind in RULES.items() if kind is not NoClip]
    assert len(asked) >= 5
    assert len(drawn) == len(asked) + 1  # rules.ALL but the one that clips nothing, and the new one
    assert drawn[-1] == "NewRule would give"
