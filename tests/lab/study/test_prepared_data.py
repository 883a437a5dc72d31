"""Runs and studies on a prepared log: as on the same log in memory, from disk too, and whatever its labels are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from properties import over
from surefoot.errors import InputError
from surefoot.lab.data import prepared
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Batch, Log
from surefoot.lab.report.page import write_report
from surefoot.lab.settings import dump, load, parse
from surefoot.lab.sources import synthetic
from surefoot.lab.study.config import RunConfig, StudyConfig, load_study, with_changes
from surefoot.lab.study.protocol import run_study
from surefoot.lab.study.trial import load_log, run_trial
from surefoot.tasks import TaskKind

DAYS, ROWS = 6, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepared.write(synthetic.make(days=DAYS, rows_per_day=ROWS), out, row_group=64)
    return str(out)


def config(data: dict[str, Any], **training: Any) -> RunConfig:
    table = {"model": {"hidden": [8]}, "training": {"batch_size": 64, **training}, "data": data}
    return RunConfig.model_validate(table)


def result(data: dict[str, Any], out: Path, **training: Any) -> dict[str, Any]:
    found = run_trial(config(data, **training), out)
    return {key: value for key, value in found.items() if key not in ("seconds", "peak_memory_mib")}


def test_a_run_is_the_same_as_on_the_log_that_was_prepared(folder: str, tmp_path: Path):
    from_folder = result({"source": folder, "days": DAYS}, tmp_path / "a")
    assert from_folder == result({"source": "synthetic", "days": DAYS, "rows_per_day": ROWS}, tmp_path / "b")
    last = result({"source": folder, "days": 4}, tmp_path / "c")
    assert (last["scored_day"], last["steps"]) == (from_folder["scored_day"], 12)


def test_a_log_too_large_for_memory_is_read_as_it_is_needed(folder: str, tmp_path: Path):
    data = {"source": folder, "days": 5, "memory_mib": 0, "cache_mib": 1}
    assert isinstance(load_log(config(data).data), PreparedLog)
    first, again, other = (result(data, tmp_path / name, draw=draw) for name, draw in NAMES)
    assert first == again
    assert first != other  # other draws
    in_memory = result({"source": folder, "days": 5}, tmp_path / "memory")
    assert (first["scored_day"], first["steps"]) == (in_memory["scored_day"], in_memory["steps"])
    assert first["auc/click"] == pytest.approx(in_memory["auc/click"], abs=0.1)


NAMES = (("first", "replaced"), ("again", "replaced"), ("once", "once"))


@over("data, days", {"pairs of days": ({"partition_days": 2}, 3), "blocks": ({"partition_rows": 300}, 5)})
def test_other_partitions(data: dict[str, int], days: int, folder: str):
    log = load_log(config({"source": folder, "days": 3, **data}).data)
    whole = load_log(config({"source": folder, "days": days, **data}).data)
    assert (len(log.days), whole.starts[-1] - whole.starts[0]) == (3, DAYS * ROWS)


@over(
    "data, sentence",
    {
        "not there": ({"source": "no/such/folder"}, "no/such/folder does not exist; expected a folder that"),
        "more days than it has": ({"days": 9}, "days is 9; expected 1 to 6, the day partitions of synthetic"),
    },
)
def test_what_cannot_be_is_one_sentence(data: dict[str, Any], sentence: str, folder: str):
    with pytest.raises(InputError, match=sentence):
        load_log(config({"source": folder, **data}).data)


def test_a_preset_takes_as_many_days_as_there_are(folder: str):
    assert with_changes(load_study("quick"), source=folder).data.days == DAYS
    assert with_changes(load_study("smoke"), source="synthetic").data.days == 8


def test_a_study_of_a_log_without_regressions_shows_the_entropy(tmp_path: Path):
    log = synthetic.make(days=5, rows_per_day=ROWS)
    keep = [i for i, task in enumerate(log.schema.tasks) if task.kind is TaskKind.BINARY]
    tasks = tuple(log.schema.tasks[i] for i in keep)
    rows = Batch(log.rows.categorical, log.rows.dense, log.rows.labels[:, keep])
    prepared.write(Log(log.name, replace(log.schema, tasks=tasks), log.days, log.starts, rows), tmp_path / "prepared")
    table = {
        "name": "binary",
        "data": {"source": str(tmp_path / "prepared"), "days": 5},
        "training": {"batch_size": 64, "initial_accumulator_value": 0.1},
        "search": {"rates": [1], "extra_trials": 0, "sweep": [1, 64], "seeds": [1], "floor_rates": [0.1]},
        "models": [{"name": "small", "hidden": [8]}],
        "methods": [{"name": "naive", "rule": {"name": "naive"}}],
    }
    study = run_study(parse(StudyConfig, table, "test"), tmp_path / "out", workers=1)
    assert (study.summary.show, study.summary.show_metric) == ("click", "ne")
    line = study.table()[0]
    final = study.finals("small", "naive")[0]
    assert line.words()["rmse"].startswith(f"{final.scores['ne/click']:.3f}")
    page = write_report(tmp_path / "out").read_text()
    assert "NE of click" in page
    assert "RMSE of" not in page


def test_only_regressions_are_refused(tmp_path: Path):
    log = synthetic.make(days=4, rows_per_day=ROWS)
    tasks = tuple(replace(task, judged=task.kind is not TaskKind.BINARY) for task in log.schema.tasks)
    prepared.write(replace(log, schema=replace(log.schema, tasks=tasks)), tmp_path / "prepared")
    study = with_changes(load_study("smoke"), source=str(tmp_path / "prepared"))
    with pytest.raises(InputError, match="the log has no judged binary label; expected at least one"):
        run_study(study, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_metrics_of_a_run_tell_the_grouped_auc(tmp_path: Path):
    log = synthetic.make(days=4, rows_per_day=ROWS)
    grouped = replace(log, schema=replace(log.schema, group="user"), groups=log.rows.categorical[:, 0].long())
    prepared.write(grouped, tmp_path / "prepared")
    found = result({"source": str(tmp_path / "prepared"), "days": 4}, tmp_path / "run")
    assert 0 <= found["gauc/click"] <= 1
    assert "gauc/click" in pl.read_parquet(tmp_path / "run" / "days.parquet").columns
    assert json.loads((tmp_path / "prepared" / "prepared.json").read_text())["schema"]["group"] == "user"


def test_a_relative_path_means_the_same_folder_wherever_the_configuration_is_read(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(folder).parent)
    for relative in ("prepared", "./prepared", f"../{Path(folder).parent.name}/prepared"):
        kept = dump(parse(RunConfig, {"data": {"source": relative, "days": 4}}, "test"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "config.toml").write_text(kept)
        found = load(RunConfig, tmp_path / "config.toml")
        assert found.data.source == folder
        assert len(load_log(found.data).days) == found.data.days
        monkeypatch.chdir(Path(folder).parent)
    study = with_changes(load_study("smoke"), source="prepared")
    monkeypatch.chdir(tmp_path)
    assert study.data.source == folder
    with pytest.raises(InputError, match=f"data.source is 'prepared'.*{tmp_path}/prepared is none"):
        parse(RunConfig, {"data": {"source": "prepared"}}, "test")


def test_urls_and_our_own_logs_stay_as_they_are():
    for source in ("s3://bucket/log", "file:///tmp/log", "synthetic", "completejourney"):
        assert parse(RunConfig, {"data": {"source": source}}, "test").data.source == source
