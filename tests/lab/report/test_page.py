"""The page: made from a real study, from studies with something missing, and refused where it cannot be right."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lab.report.conftest import Change, resum
from lab.report.small_study import SECTIONS
from surefoot.errors import InputError
from surefoot.lab.report.conclusions import conclusions
from surefoot.lab.report.folder import read
from surefoot.lab.report.page import write_report
from surefoot.lab.report.tables import main_table, task_tables


def page(folder: Path) -> str:
    """Return the report without the library that it carries."""
    text = write_report(folder).read_text(encoding="utf-8")
    before, library, after = re.split(r"(?<=<script>)(?=/\*\*)|(?=</script>\s*<script type=)", text, maxsplit=2)
    assert "plotly.js" in library[:200]
    return before + after


def figures_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_stands_alone(study: Path) -> None:
    html = page(study)
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w/.:]+""", html) == []
    assert "default-src 'none'" in html
    assert not list(study.glob("*.draft"))


def test_the_page_says_what_was_found(study: Path) -> None:
    html = page(study)
    results = read(study)
    for finding in conclusions(results):
        assert finding.headline in html
        assert all(line in html for line in finding.details)
    for line in results.table():
        assert line.auc is not None
        assert line.auc.text(2, 100) in html
    for word in (
        "naive",
        "GC",
        "Clippy",
        "linear floor",
        "small",
        "large",
        "not judged",
        "No choice was based on this figure",
    ):
        assert word in html
    assert "rows_per_day = 256" in html


def test_writing_twice_gives_the_same_bytes(study: Path) -> None:
    assert write_report(study).read_bytes() == write_report(study).read_bytes()


def test_every_figure_of_every_model_is_there(study: Path) -> None:
    assert set(figures_of(page(study))) == {f"{section}-{i}" for section in SECTIONS for i in (0, 1)}


def test_rates_are_judged_by_the_day_before_the_last(study: Path) -> None:
    rows = pl.read_parquet(study / "results.parquet").filter(
        (pl.col("model") == "small") & (pl.col("method") == "naive") & (pl.col("until") == "selection")
    )
    rows = rows.filter(pl.col("seed") == 0).sort("multiple")
    line = figures_of(page(study))["rate-0"]["data"][0]
    assert line["x"] == rows["multiple"].to_list()
    assert line["y"] == pytest.approx([100 * (1 - auc) for auc in rows["auc/click"]], rel=1e-3)
    assert [mark == "x" for mark in line["marker"]["symbol"]] == [verdict == "full" for verdict in rows["verdict"]]
    assert "x" in line["marker"]["symbol"]


def test_the_run_shown_first_is_where_the_plain_optimizer_fell_off(study: Path) -> None:
    summary = json.loads((study / "summary.json").read_text())
    fell = summary["methods"][0]["falls_off"]["large"]
    traces = figures_of(page(study))["steps-1"]["data"]
    shown = {t["meta"]["choice"] for t in traces if "meta" in t and t.get("visible", True)}
    assert shown == {f"{fell:g}"}
    assert {"1", "64"} <= {t["meta"]["choice"] for t in traces if "meta" in t}


def test_the_curve_is_the_mean_of_the_seeds(study: Path) -> None:
    results = read(study)
    tables = [results.days(trial) for trial in results.finals("small", "GC")]
    aucs = [t.filter(pl.col("scored") == "curve")["auc/click"].to_list() for t in tables if t is not None]
    assert len(aucs) == 2
    line = next(t for t in figures_of(page(study))["curve-0"]["data"] if t["name"] == "GC" and "fill" not in t)
    assert line["y"] == pytest.approx([100 * (1 - sum(pair) / 2) for pair in zip(*aucs, strict=True)], rel=1e-3)


def test_the_map_counts_the_steps_that_were_clipped(study: Path) -> None:
    results = read(study)
    heat = figures_of(page(study))["share-1"]["data"][0]
    assert heat["y"] == ["GC", "Clippy"]
    assert heat["x"][:4] == ["cross 1", "layer norm", "bottom 1", "bottom 2"]
    tables = [t for trial in results.finals("large", "Clippy") if (t := results.steps(trial)) is not None]
    clipped = pl.concat(tables).filter(pl.col("clip_factor/bottom.layers.0.weight") != 1)
    assert heat["z"][1][2] == pytest.approx(100 * len(clipped) / sum(map(len, tables)), rel=1e-3)


def test_the_tables_mark_the_best_and_the_edge(study: Path) -> None:
    results = read(study)
    groups = main_table(results)
    assert [group.model for group in groups] == ["small", "large", "linear floor"]
    assert [[line.tag for line in group.lines].count("best") for group in groups] == [1, 1, 0]
    assert any(line.at_edge and "edge" not in line.setting.text + line.setting.small for line in groups[0].lines)
    for table in task_tables(results):
        assert [name for name, _ in table.rows][-3:] == ["linear floor", "best constant", "best against the floor"]
        for i, task in enumerate(results.summary.tasks):
            learnt = any("no better" not in cells[i].small for _, cells in table.rows[:-3])
            assert sum(cells[i].best for _, cells in table.rows) == (task.judged and learnt)


MISSING = ("summary.json", "results.parquet", "SHA256SUMS")
BROKEN: dict[str, Callable[[Path], Any]] = {
    "summary.json cut short": lambda p: (p / "summary.json").write_text('{"name": '),
    "summary.json not an object": lambda p: (p / "summary.json").write_text("[]"),
    "summary.json of something else": lambda p: (p / "summary.json").write_text('{"config": "a = 1"}'),
    "summary.json nested": lambda p: (p / "summary.json").write_text(100_000 * "["),
    "summary.json not text": lambda p: (p / "summary.json").write_bytes(b"\xff\xfe\x00"),
    "results.parquet cut short": lambda p: (p / "results.parquet").write_bytes(b"PAR1"),
    "results.parquet of something else": lambda p: pl.DataFrame({"a": [1]}).write_parquet(p / "results.parquet"),
    "metrics.parquet": lambda p: next(p.glob("trials/small_naive_x1_s0_selection*/metrics.parquet")).write_text("no"),
    "days.parquet": lambda p: next(p.glob("trials/small_naive*/days.parquet")).write_text("no"),
    "results.parquet of other columns": lambda p: (
        pl.read_parquet(p / "results.parquet")
        .with_columns(pl.lit("x").alias("auc/click"))
        .write_parquet(p / "results.parquet")
    ),
    "results.parquet without seeds": lambda p: (
        pl.read_parquet(p / "results.parquet")
        .with_columns(pl.lit(7).alias("seed"))
        .write_parquet(p / "results.parquet")
    ),
    "events.jsonl nested": lambda p: next(p.glob("trials/small_naive_x1_s0_selection*/events.jsonl")).write_text(
        100_000 * "["
    ),
    "events.jsonl of another kind": lambda p: next(
        p.glob("trials/small_naive_x64_s0_selection*/events.jsonl")
    ).write_text('{"event": "divergence"}\n'),
    "metrics.parquet of other columns": lambda p: pl.DataFrame({"step": ["a"], "day": [1]}).write_parquet(
        next(p.glob("trials/small_naive_x1_s0_selection*/metrics.parquet"))
    ),
    "days.parquet of other columns": lambda p: pl.DataFrame({"auc/click": ["a"], "scored": [1]}).write_parquet(
        next(p.glob("trials/small_naive_x1_s0_selection*/days.parquet"))
    ),
    "events.jsonl": lambda p: next(p.glob("trials/small_naive_x1_s0_selection*/events.jsonl")).write_text("no"),
}


def test_a_flipped_bit_is_seen_wherever_it_is(changed: Change) -> None:
    folder = changed()
    for path in (
        folder / "results.parquet",
        folder / "summary.json",
        next(folder.glob("trials/small_naive_x1_s0_selection*/metrics.parquet")),
        next(folder.glob("trials/small_naive_x1_s0_selection*/events.jsonl")),
    ):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=f"{path.name} has changed since it was written: its bytes do not fit"):
            write_report(folder)
        path.write_bytes(whole)
    write_report(folder)


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named(study: Path, tmp_path: Path, name: str) -> None:
    for other in set(MISSING) - {name}:
        shutil.copy(study / other, tmp_path)
    with pytest.raises(InputError, match=f"holds no {name}; expected the folder of a finished study"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("seen", ["by its checksum", "by what it holds"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_and_nothing_is_written(changed: Change, what: str, seen: str) -> None:
    folder = changed()
    (folder / "report.html").unlink(missing_ok=True)
    BROKEN[what](folder)
    if seen == "by what it holds":
        resum(folder)
    with pytest.raises(InputError) as caught:
        write_report(folder)
    sentence = str(caught.value)
    assert what.split()[0] in sentence
    assert str(folder) in sentence
    assert "; expected " in sentence
    assert "\n" not in sentence
    assert not (folder / "report.html").exists()


def remove(document: Any, key: str, *inside: str) -> None:
    if inside:
        remove(document[int(key) if key.isdigit() else key], *inside)
    else:
        del document[key]


@pytest.mark.parametrize("key", ["days", "methods", "methods.0.rule", "machine", "select_by"])
def test_a_missing_key_is_named(changed: Change, key: str) -> None:
    with pytest.raises(InputError, match=f"summary.json has no '{key}'"):
        write_report(changed(lambda document: remove(document, *key.split("."))))


def test_a_missing_score_is_named(changed: Change) -> None:
    with pytest.raises(InputError, match="has no column 'auc/share'"):
        write_report(changed(rows=lambda frame: frame.drop("auc/share")))


def test_one_model(changed: Change) -> None:
    def alone(document: dict[str, Any]) -> None:
        document["models"] = ["small"]

    html = page(changed(alone, lambda frame: frame.filter(pl.col("model") != "large")))
    assert "On small, naive Adagrad" in html
    assert set(figures_of(html)) == {f"{section}-0" for section in SECTIONS}


def test_a_method_that_diverged_everywhere(changed: Change) -> None:
    def lost(document: dict[str, Any]) -> None:
        method = next(method for method in document["methods"] if method["name"] == "Clippy")
        method |= {"survived": False, "score": None, "paper_score": None, "paper_multiple": None}
        method["falls_off"] = dict.fromkeys(document["models"], 1.0)

    broken = pl.when(pl.col("method") == "Clippy").then(pl.lit("full")).otherwise(pl.col("verdict"))
    html = page(changed(lost, lambda frame: frame.with_columns(broken.alias("verdict"))))
    assert "Clippy, untuned, diverges" in html
    assert "All final runs of Clippy diverged: no score on day-04." in html
    assert '<td data-label="click, AUC %"><span>diverged</span></td>' in html


def test_everything_diverged(changed: Change) -> None:
    html = page(changed(rows=lambda frame: frame.with_columns(pl.lit("full").alias("verdict"))))
    assert "No method has a score on day-04: all final runs diverged." in html


def test_a_score_that_is_undefined(changed: Change) -> None:
    gone = [pl.lit(math.nan).alias(f"{name}/share") for name in ("auc", "auc_low", "auc_high")]
    html = page(changed(rows=lambda frame: frame.with_columns(gone)))
    assert "undefined (one class)" in html
    assert "nan" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL).lower().split()


def test_the_selecting_score_undefined(changed: Change) -> None:
    html = page(changed(rows=lambda frame: frame.with_columns(pl.lit(math.nan).alias("auc/click"))))
    assert "undefined (one class)" in html


def test_a_single_seed(changed: Change) -> None:
    def single(document: dict[str, Any]) -> None:
        document["seeds"] = [1]

    html = page(changed(single, lambda frame: frame.filter(pl.col("seed") != 2)))
    assert "with too few seeds to know whether that is significant" in html
    assert "over 1 seed." in html
    assert "Final scores come from 1 seed: too few to compare methods." in html


def test_trials_that_were_cleared_away(changed: Change) -> None:
    folder = changed()
    shutil.rmtree(folder / "trials")
    html = page(folder)
    assert set(figures_of(html)) == {"rate-0", "rate-1"}
    assert "The trials&#39; folders hold no steps to draw." in html


def test_no_curve_and_no_clipping(changed: Change) -> None:
    folder = changed()
    for path in folder.glob("trials/*/days.parquet"):
        rows = pl.read_parquet(path).filter(pl.col("scored") == "next_day")
        rows.select(pl.exclude("after")).write_parquet(path)
    for path in folder.glob("trials/*/metrics.parquet"):
        factors = pl.selectors.starts_with("clip_factor/")
        pl.read_parquet(path).with_columns(factors * 0 + 1).write_parquet(path)
    resum(folder)
    html = page(folder)
    assert "hold no curve to draw" in html
    assert "No final run clipped any of these layers." in html


def test_names_are_not_markup(changed: Change) -> None:
    evil = "<img src=x onerror=alert(1)></script>"

    def rename(document: dict[str, Any]) -> None:
        for entry in document["methods"]:
            entry["name"] = entry["name"].replace("GC", evil)

    renamed = pl.col("method").str.replace("GC", evil, literal=True)
    html = page(changed(rename, lambda frame: frame.with_columns(renamed)))
    assert "<img" not in html
    assert "&lt;img" in html
    assert evil in {trace["name"] for trace in figures_of(html)["rate-0"]["data"] if "name" in trace}


def test_a_span_of_weeks_is_written_from_its_first_day_to_its_last(changed: Change) -> None:
    def weeks(document: dict[str, Any]) -> None:
        document["days"] = ["2013-02-28 to 2013-03-10", *document["days"][1:-1], "2013-08-26 to 2013-09-01"]

    folder = changed(weeks)
    assert read(folder).span == "5 periods, 2013-02-28 to 2013-09-01"
    assert "2013-03-10 to 2013-08-26" not in page(folder)
    assert read(changed_back(folder)).span == "5 days, day-00 to day-04"


def changed_back(folder: Path) -> Path:
    document = json.loads((folder / "summary.json").read_text())
    document["days"] = [f"day-{i:02d}" for i in range(5)]
    (folder / "summary.json").write_text(json.dumps(document))
    resum(folder)
    return folder


def test_names_of_levels_stand_beside_the_curves_and_omitted_layers_are_told(study: Path) -> None:
    html = page(study)
    drawn = figures_of(html)
    for name, level in (("rate-0", "linear floor"), ("steps-0", "loss of a constant prediction")):
        layout = drawn[name]["layout"]
        assert "annotations" not in layout
        assert (layout["legend"]["y"], layout["legend"]["yanchor"]) == (1, "bottom")  # above the figure
        assert [t["name"] for t in drawn[name]["data"] if t.get("showlegend", True)] == [level]
    assert "The heat map shows all layers" in html
