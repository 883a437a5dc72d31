"""A comparison: what differs, the scores side by side, and what cannot be compared."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from lab.report.conftest import Change, resum
from lab.report.small_runs import KINDS
from lab.report.test_page import figures_of
from surefoot.errors import InputError
from surefoot.lab.report.compare import (
    Table,
    compare_runs,
    compare_studies,
    differences,
    interval,
    read_pair,
    signed,
)
from surefoot.lab.report.compare_page import quality, write_comparison
from surefoot.lab.report.folder import Results, read
from surefoot.lab.report.run_folder import read_run

Copied = Callable[[str], Path]


def page(one: Path, other: Path, out: Path) -> str:
    write_comparison(one, other, out)
    return re.sub(r"<script>/\*\*.*?</script>", "", out.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)


def cells(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


def test_what_differs_in_the_configuration_is_what_was_configured_differently(runs: dict[str, Path]) -> None:
    found = compare_runs(read_run(runs["healthy"]), read_run(runs["diverged"]))
    differing = {key for key in ("rate", "rule") if KINDS["healthy"][key] != KINDS["diverged"][key]}
    assert differing == {"rate", "rule"}
    assert cells(found.tables[0]) == [("rate", "0.2", "6.4"), ("rule.name", "clippy", "naive")]


def test_entries_of_a_list_go_by_their_names() -> None:
    one = '[[methods]]\nname = "GC"\nvalues = [0.1]\n[[methods]]\nname = "Clippy"\n'
    other = '[[methods]]\nname = "Clippy"\n[[methods]]\nname = "GC"\nvalues = [0.1, 0.2]\n'
    assert differences(one, other) == [("methods.GC.values", "[0.1]", "[0.1, 0.2]")]
    assert differences(one, one) == []


def test_scores_of_runs_stand_side_by_side_with_their_difference(runs: dict[str, Path]) -> None:
    a, b = read_run(runs["diverged"]), read_run(runs["healthy"])
    found = compare_runs(a, b)
    rows = found.tables[2].rows
    at = next(i for i, row in enumerate(rows) if row[0].text == "click")
    assert len(rows[at]) == 1  # the head of its metrics
    _, of_a, of_b, lead = rows[at + 1]
    key = "auc/click"
    assert (of_a.text, of_b.text) == (f"{100 * a.scores[key]:.2f}", f"{100 * b.scores[key]:.2f}")
    assert lead.text == signed(100 * (b.scores[key] - a.scores[key]), 2)
    halves = [100 * (run.scores["auc_high/click"] - run.scores["auc_low/click"]) / 2 for run in (a, b)]
    half, mean = (halves[0] ** 2 + halves[1] ** 2) ** 0.5, 100 * (b.scores[key] - a.scores[key])
    assert lead.small.startswith(interval(mean - half, mean + half, 2))
    assert ("not significant" in lead.small) == (mean - half <= 0 <= mean + half)
    counted = {row[0].text: [cell.text for cell in row[1:]] for row in found.tables[1].rows}
    assert counted["verdict"] == ["diverged and recovered (micro)", "healthy"]
    assert counted["alarm"] == [str(len(a.of_kind("alarm"))), "0"]
    same = compare_runs(b, read_run(runs["unwatched"])).tables[2].rows  # watching changes nothing
    assert {row[-1].text.strip("0.") for row in same if len(row) > 1} == {""}
    assert "not significant" in same[1][-1].small


def test_both_runs_are_on_every_figure_and_tasks_without_an_auc_are_not_offered(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    html = page(runs["healthy"], runs["diverged"], tmp_path / "out.html")
    losses, scores = (figures_of(html)[f"curves-{number}"]["data"] for number in (0, 1))
    for traces, measures in ((losses, 2), (scores, 1)):
        shown = [trace for trace in traces if "meta" in trace and trace["visible"]]
        assert [trace["name"] for trace in shown].count("A") == measures
        assert [trace["name"] for trace in shown].count("B") == measures
        assert len({trace["meta"]["choice"] for trace in shown}) == 1
    offered = set(re.findall(r'data-plot="curves-1" data-choice="(\w+)"', html))
    assert offered == {trace["meta"]["choice"] for trace in scores}
    assert "rating" not in offered  # a regression
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w/.:]+""", html) == []


def test_a_run_without_configuration_and_scores_can_be_compared_and_says_so(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    html = page(runs["own"], runs["own"], tmp_path / "out.html")
    for side in "AB":
        assert f"{side} has no final scores: the run has not ended, or its training loop writes none." in html
        assert f"{side} has no config.toml: the differences of the configurations are not known." in html
    assert "Not known: at least one run has no config.toml." in html
    assert "Neither of the two has final scores." in html
    assert set(figures_of(html)) == {"curves-0", "curves-1"}


def test_runs_of_other_tasks_and_days_say_so(runs: dict[str, Path], copied: Copied, tmp_path: Path) -> None:
    html = page(runs["own"], runs["healthy"], tmp_path / "out.html")
    assert {trace["meta"]["choice"] for trace in figures_of(html)["curves-0"]["data"] if "meta" in trace} == {"like"}
    folder = copied("healthy")
    journal = folder / "events.jsonl"
    journal.write_text(journal.read_text().replace("day-04", "day-09"))
    found = compare_runs(read_run(runs["healthy"]), read_run(folder))
    assert found.notices == ["A is scored on day-04 and B on day-09: their scores come from different rows."]


@pytest.fixture
def other(study: Path, tmp_path: Path) -> Path:
    """The same study, had it been 1 point of AUC better in every final run, with another batch size."""
    folder = Path(shutil.copytree(study, tmp_path / "other"))
    final = pl.when(pl.col("until") == "final").then(pl.col("auc/click") + 0.01).otherwise(pl.col("auc/click"))
    rows = pl.read_parquet(folder / "results.parquet").with_columns(final.alias("auc/click"))
    rows.write_parquet(folder / "results.parquet")
    document = json.loads((folder / "summary.json").read_text())
    document["config"] = document["config"].replace("batch_size = 64", "batch_size = 65")
    (folder / "summary.json").write_text(json.dumps(document))
    resum(folder)
    return folder


def test_studies_are_compared_seed_by_seed(study: Path, other: Path) -> None:
    a, b = read(study), read(other)
    found = compare_studies(a, b)
    assert cells(found.tables[0]) == [("training.batch_size", "64", "65")]
    assert found.notices == []
    for side, results in zip(found.sides, (a, b), strict=True):
        assert f"{len(results.rows)} trials" in side.facts
    lines = {(line.model, line.method.name if line.method else ""): line for line in a.table()}
    model, seen = None, 0
    for row in found.tables[1].rows:
        if len(row) == 1:
            model = row[0].text
            continue
        name = row[0].text
        line = lines.get((str(model), name)) or lines[(name, "")]
        if line.auc is not None and len(line.auc.values) == 2:
            assert row[-1].text == "+1.00"
            assert row[-1].small.startswith("[+1.00, +1.00], 2 seeds")
            assert row[-1].tone == ("" if line.auc.diverged else "good")
            seen += 1
    assert seen >= 3


def test_a_study_and_itself_cannot_be_told_apart(study: Path, tmp_path: Path) -> None:
    html = page(study, study, tmp_path / "out.html")
    assert "None: the two configurations are the same." in html
    assert "[0.00, 0.00], 2 seeds: not significant" in html
    figures = figures_of(html)
    assert set(figures) == {"curves-0", "curves-1"}
    traces = figures["curves-0"]["data"]
    for name in ("naive", "GC", "Clippy"):
        a, b = (next(t for t in traces if t["name"] == f"{side}: {name}") for side in "AB")
        assert (a["x"], a["y"], a["line"]["color"]) == (b["x"], b["y"], b["line"]["color"])
        assert (a["line"]["dash"], b["line"]["dash"]) == ("solid", "dash")


def test_the_rates_are_those_of_the_optimizer_not_multiples(study: Path) -> None:
    results = read(study)
    found = read_pair(study, study)
    assert all(isinstance(each, Results) for each in found)
    figure = quality(results, results, "small")
    assert figure is not None
    line = next(t for t in figure.to_dict()["data"] if t["name"] == "A: naive")
    assert list(line["x"]) == [row.rate for row in results.sweep("small", results.methods[0])]


def test_studies_selected_otherwise_say_so(study: Path, changed: Change) -> None:
    def elsewhere(document: dict) -> None:
        document["select_by"], document["seeds"], document["days"] = "like", [7, 8], ["a", "b", "c", "d", "e"]

    seeds = pl.when(pl.col("until") == "final").then(pl.col("seed") + 6).otherwise(pl.col("seed"))
    folder = changed(elsewhere, lambda rows: rows.with_columns(seeds.alias("seed")))
    found = compare_studies(read(study), read(folder))
    said = " ".join(found.notices)
    assert "A was selected by the AUC of click, B was selected by the AUC of like" in said
    assert "A is scored on day-04, B is scored on e" in said
    assert "have no seed in common: their differences have no interval." in said
    assert found.tables[1].title == "Final scores: AUC of click and of like"
    leads = {row[-1].small for row in found.tables[1].rows if len(row) > 1 and row[-1].text}
    assert leads == {"too few common seeds for an interval"}


def test_a_method_that_only_one_study_has(study: Path, changed: Change) -> None:
    def fewer(document: dict) -> None:
        document["methods"] = [method for method in document["methods"] if method["name"] != "GC"]

    found = compare_studies(read(study), read(changed(fewer, lambda rows: rows.filter(pl.col("method") != "GC"))))
    rows = [row for row in found.tables[1].rows if row[0].text == "GC"]
    assert [[cell.text for cell in row[4:]] for row in rows] == [["not run", "", "", ""]] * 2


def test_a_run_and_a_study_are_not_compared(study: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    for pair in ((study, runs["own"]), (runs["own"], study)):
        with pytest.raises(InputError, match="is a run and .* is a study; expected two runs or two studies"):
            write_comparison(*pair, out)
    with pytest.raises(
        InputError, match="nowhere is not a folder; expected the folder of a run or of a finished study"
    ):
        write_comparison(study, tmp_path / "nowhere", out)
    with pytest.raises(InputError, match=r"holds no summary\.json; expected the folder of a finished study"):
        write_comparison(runs["own"], tmp_path, out)
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_comparison(study, study, tmp_path)
    broken = Path(shutil.copytree(runs["own"], tmp_path / "broken"))
    (broken / "metrics.parquet").write_text("no")
    with pytest.raises(InputError, match=r"metrics\.parquet cannot be read"):
        write_comparison(runs["own"], broken, out)
    assert not out.exists()
