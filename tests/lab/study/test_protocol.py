"""The protocol: the search ends inside or says that it did not, day N is touched once, a study can be resumed."""

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import surefoot
from properties import over
from surefoot.errors import InputError
from surefoot.files import read_sums
from surefoot.lab.outcomes import Score
from surefoot.lab.result_files import read
from surefoot.lab.results import Study
from surefoot.lab.settings import load, parse
from surefoot.lab.study.config import RunConfig, StudyConfig, load_study, presets
from surefoot.lab.study.protocol import run_study
from surefoot.lab.study.runner import Search, Setting, planned_trial
from surefoot.lab.study.trial import assemble, load_log, read_result

CONFIG = {
    "name": "tiny",
    "data": {"days": 5, "rows_per_day": 128},
    "training": {"batch_size": 64, "initial_accumulator_value": 0.1},
    "search": {"extra_trials": 2, "sweep": [1, 8], "search_seeds": [0, 3], "seeds": [1, 2], "floor_rates": [0.1]},
    "models": [{"name": "small", "hidden": [4]}, {"name": "large", "hidden": [8], "cross_layers": 1}],
    "methods": [
        {"name": "naive", "rule": {"name": "naive"}},
        {"name": "GC", "rule": {"name": "gc"}, "vary": "threshold", "values": [0.1, 1.0]},
    ],
}


def config(**changes: Any) -> StudyConfig:
    return parse(StudyConfig, CONFIG | changes, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run_study(config(), out)


def search(quality: Any, rates: tuple[float, ...], values: tuple[float, ...], budget: int) -> Search:
    """Run the search's own steps on a known quality instead of trials."""
    method = config(methods=[{"name": "x", "rule": {"name": "gc"}, "vary": "threshold", "values": values}]).methods[0]
    s = Search(method)
    wanted = s.grid(rates)
    while wanted:
        for setting in wanted:
            score = quality(setting)
            s.scores[setting] = Score({}, 1) if math.isnan(score) else Score({0: score})
        wanted = s.untried()[: budget - s.extra]
        s.extra += len(wanted)
    return s


def test_a_best_outside_the_grid_is_walked_to_and_shown_to_be_inside():
    def quality(s: Setting) -> float:
        return -abs(math.log2(s.multiple) - 4) - abs(math.log10(s.value or 1) - 1)

    result = search(quality, (1, 2), (0.1, 0.01), budget=20)
    assert result.best() == Setting(16, 10)
    assert not result.untried()


def test_a_spent_budget_leaves_the_best_at_the_edge():
    result = search(lambda s: s.multiple, (1, 2), (0.1,), budget=3)
    assert result.extra == 3
    assert result.untried()


def test_diverged_settings_are_never_best_and_lower_rates_are_tried():
    result = search(lambda s: math.nan if s.multiple > 0.25 else -s.multiple, (1, 2), (0.1,), budget=9)
    best = result.best()
    assert best is not None
    assert best.multiple <= 0.25


def test_nothing_survives():
    result = search(lambda s: math.nan, (1, 2), (0.1,), budget=3)
    assert result.best() is None
    assert min(result.scores).multiple == 0.125


def known(**scores: Score) -> Search:
    """Return a search over rates by name, ``x2`` for two times the base rate."""
    s = Search(config().methods[0])
    s.scores = {Setting(float(name[1:])): score for name, score in scores.items()}
    return s


def test_the_two_best_and_the_best_of_the_papers_grid_are_run_with_all_seeds():
    one = {f"x{rate}": Score({0: 0.9 - abs(4 - rate) / 100}) for rate in (1, 2, 4, 8)}
    assert known(**one).unsure((1, 2), 3) == [Setting(4), Setting(2)]
    assert known(**one).unsure((1,), 3) == [Setting(4), Setting(2), Setting(1)]
    assert known(**one, x16=Score({}, 1)).unsure((16,), 3) == [Setting(4), Setting(2)]
    assert known(**one).unsure((1, 2), 1) == []


def test_a_setting_of_which_a_seed_diverged_gives_way_to_the_next():
    s = known(x1=Score({0: 0.8}), x2=Score({0: 0.85}), x4=Score({0: 0.9, 1: 0.9}, 1), x8=Score({0: 0.89}, 2))
    assert s.unsure((1, 2), 3) == [Setting(2)]
    s.scores[Setting(2)] = Score({0: 0.85, 1: 0.84, 2: 0.86})
    assert s.unsure((1, 2), 3) == []
    assert s.best() == Setting(2)


def test_what_one_seed_liked_best_is_not_chosen_if_the_others_do_not():
    s = known(x1=Score({0: 0.90, 1: 0.90, 2: 0.90}), x8=Score({0: 0.95, 1: 0.80, 2: 0.80}), x4=Score({0: 0.93}))
    assert s.best() == Setting(1)
    assert s.best([Setting(8)]) == Setting(8)


def test_neighbours_are_exact_numbers():
    assert Setting(1, 0.1).neighbours() == [Setting(0.5, 0.1), Setting(2, 0.1), Setting(1, 0.01), Setting(1, 1)]


def test_the_files_of_a_study(finished: tuple[Path, Study]):
    out, study = finished
    files = {"study.toml", "results.parquet", "summary.json", "SHA256SUMS", "trials"}
    assert {path.name for path in out.iterdir()} == files
    assert load(StudyConfig, out / "study.toml") == config()
    table = pl.read_parquet(out / "results.parquet")
    watched = {close_up.trial for close_up in study.summary.close_ups}  # for the report's eyes only
    assert set(table["trial"]) | watched == {path.name for path in (out / "trials").iterdir()}
    assert watched.isdisjoint(table["trial"])
    assert len(table) == len(study.rows)
    whole = {"config.toml", "metrics.parquet", "days.parquet", "events.jsonl"}
    for trial in (out / "trials").iterdir():
        assert {path.name for path in trial.iterdir()} == whole | ({"monitor"} if trial.name in watched else set())


def test_day_n_is_scored_by_the_finals_alone_and_selection_never_sees_it(finished: tuple[Path, Study]):
    out, study = finished
    for row in study.rows:
        days = pl.read_parquet(out / "trials" / row.trial / "days.parquet")
        steps = pl.read_parquet(out / "trials" / row.trial / "metrics.parquet")
        if row.until == "selection":
            assert row.result["scored_day"] == "day-03"
            assert "day-04" not in days["day"].to_list()
            assert steps["day"].max() == 2
        else:
            assert row.result["scored_day"] == "day-04"
            assert days.filter(scored="next_day")["day"].to_list().count("day-04") == 1


def test_the_finals_are_the_best_settings_over_the_seeds_on_every_model(finished: tuple[Path, Study]):
    _, study = finished
    for model in ("small", "large"):
        for method in study.summary.methods:
            finals = study.finals(model, method.name)
            assert [row.seed for row in finals] == [1, 2]
            assert {(row.multiple, row.value) for row in finals} == {(method.multiple, method.value)}
    assert len(study.finals("linear floor", "linear floor")) == 2


def test_the_table_has_a_line_for_each_model_and_method_and_the_floor(finished: tuple[Path, Study]):
    lines = finished[1].table()
    assert [(line.model, line.method.name) for line in lines[:-1] if line.method] == [
        (model, method) for model in ("small", "large") for method in ("naive", "GC")
    ]
    assert lines[-1].model == "linear floor"
    score = r"\d+\.\d\d( ± \d+\.\d\d)?( \(1 of 2 seeds diverged\))?|diverged"
    said = [line.words()["auc"] for line in lines]
    assert all(re.fullmatch(score, auc) for auc in said)
    assert any("±" in auc for auc in said)


def test_what_is_read_is_what_was_written(finished: tuple[Path, Study]):
    out, study = finished
    again, sums = read(out)
    assert repr(again.summary) == repr(study.summary)  # NaN included
    assert repr(again.table()) == repr(study.table())
    assert [repr(row.scores) for row in again.rows] == [repr(row.scores) for row in study.rows]
    assert sums == read_sums(out)


def test_what_chooses_and_where_a_method_falls_rest_on_all_search_seeds(finished: tuple[Path, Study]):
    _, study = finished
    for method in study.summary.methods:
        chosen = (method.name, method.multiple, method.value, "selection")
        for model in ("small", "large"):
            rows = [r for r in study.rows if (r.model, r.method, r.until) == (model, method.name, "selection")]
            if model == "small":
                assert {r.seed for r in rows if (r.method, r.multiple, r.value, r.until) == chosen} == {0, 3}
            fall = study.fall(model, method)
            assert fall is not None
            held = [rate.multiple for rate in fall.rates if not rate.fell]
            decide = held[-1:] if fall.at is None else [fall.at.multiple]
            for multiple in decide:
                assert {r.seed for r in rows if (r.multiple, r.value) == (multiple, method.value)} == {0, 3}
    floor = [row for row in study.rows if row.model == "linear floor" and row.until == "selection"]
    assert {row.seed for row in floor} == {0, 3}
    assert len({row.rate for row in floor}) > 1  # its grid had one rate; it looked beyond


def test_every_file_has_its_checksum(finished: tuple[Path, Study]):
    out, _ = finished
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(read_sums(out)) == files - {"SHA256SUMS"}
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=False).returncode == 0


def test_a_study_goes_on_from_its_finished_trials_to_the_same_results(finished: tuple[Path, Study]):
    out, study = finished
    lost = sorted((out / "trials").iterdir())[:3]
    kept = {path: (path / "events.jsonl").stat().st_mtime_ns for path in (out / "trials").iterdir() if path not in lost}
    for path in lost:
        (path / "events.jsonl").unlink()  # as after an interruption
    again = run_study(config(), out)
    assert again.summary == study.summary
    assert [repr(row.scores) for row in again.rows] == [repr(row.scores) for row in study.rows]  # NaN included
    assert kept == {path: (path / "events.jsonl").stat().st_mtime_ns for path in kept}


def test_a_damaged_trial_is_named_and_run_again_once_its_folder_is_gone(finished: tuple[Path, Study], tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    trial = next((out / "trials").glob("*_s0_selection_*"))
    table = trial / "metrics.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=f"{table} has changed since it was written"):
        run_study(config(), out)
    shutil.rmtree(trial)
    assert repr(run_study(config(), out).table()) == repr(finished[1].table())
    assert trial.exists()


DAMAGED = {
    "not an object": "[]\n",
    "nested": 100_000 * "[" + "\n",
    "without a result": '{"event": "finished"}\n',
    "not text": "\xff\n",
    "cut short": '{"event": "finished", "verdict": \n',
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_journal_of_an_unfinished_study_is_named(what: str, tmp_path: Path):
    (tmp_path / "events.jsonl").write_bytes(DAMAGED[what].encode("latin-1"))
    with pytest.raises(InputError, match=f"{tmp_path}/events.jsonl .*delete the run's folder to have it") as caught:
        read_result(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_journal_that_a_kill_cut_off_is_of_a_run_to_be_run_again(tmp_path: Path):
    (tmp_path / "events.jsonl").write_text("{")
    assert read_result(tmp_path) is None


def test_another_study_in_the_folder_is_refused(finished: tuple[Path, Study]):
    with pytest.raises(InputError, match="holds another study"):
        run_study(config(name="other"), finished[0])


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a study's folder"):
        run_study(config(), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match="search.select_by is 'clik'; expected one of click, like, share"):
        run_study(config(search={"select_by": "clik"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_may_have_its_own_accumulators_start():
    study = config(
        methods=[
            {"name": "from the study's", "rule": {"name": "naive"}},
            {"name": "its own", "rule": {"name": "naive"}, "initial_accumulator_value": 0.0},
        ]
    )
    plans = [planned_trial(study, study.models[0], method, Setting(1.0), 0, "final") for method in study.methods]
    assert [plan.run.training.initial_accumulator_value for plan in plans] == [0.1, 0.0]
    assert plans[0].trial != plans[1].trial
    optimizer = assemble(plans[1].run, load_log(study.data)).dense
    assert optimizer.param_groups[0]["initial_accumulator_value"] == 0.0


@over("name", presets())
def test_presets_say_where_accumulators_start(name: str):
    """The paper's 0.1, but for Clippy, which does not need it."""
    study = load_study(name)
    assert study.training.initial_accumulator_value == 0.1
    own = {method.name: method.initial_accumulator_value for method in study.methods}
    expected = {"Clippy": 1e-6} if name != "paper" else {}
    expected |= {"naive from 1e-6": 1e-6} if name == "quick" else {}
    assert {method: start for method, start in own.items() if start is not None} == expected


def test_a_run_starts_as_clippy_adagrad_does():
    optimizer = surefoot.ClippyAdagrad([torch.nn.Parameter(torch.ones(1))], 0.1)
    assert RunConfig().training.initial_accumulator_value == optimizer.defaults["initial_accumulator_value"]
