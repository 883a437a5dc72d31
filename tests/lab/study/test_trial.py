"""A run folder: whole, reproducible, refused where it cannot be."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
import torch

from properties import over
from surefoot.detect.detector import Detector
from surefoot.errors import InputError
from surefoot.lab.data.schema import Log
from surefoot.lab.settings import load
from surefoot.lab.study.config import ModelConfig, MonitorConfig, RecoveryConfig, RunConfig
from surefoot.lab.study.trial import assemble, claim, load_log, read_result, run_trial, total_steps
from surefoot.lab.training.loop import Run, train
from surefoot.recover import journal
from surefoot.recover.policy import RollBack

TINY = RunConfig.model_validate(
    {
        "data": {"days": 4, "rows_per_day": 128},
        "model": {"hidden": [8], "cross_layers": 1},
        "training": {"batch_size": 64},
    }
)


def test_the_folder(tmp_path: Path):
    steps: list[int] = []
    result = run_trial(TINY, tmp_path / "run", on_step=steps.append)
    assert steps == list(range(total_steps(TINY))) == list(range(6))
    assert load(RunConfig, tmp_path / "run" / "config.toml") == TINY
    assert pl.read_parquet(tmp_path / "run" / "metrics.parquet")["step"].to_list() == steps
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["verdict"], last["scored_day"]) == ("finished", "healthy", "day-03")
    assert read_result(tmp_path / "run") == result


def test_the_same_seed_and_threads_give_the_same_result_and_another_seed_another(tmp_path: Path):
    first, again, other = (
        run_trial(TINY.model_copy(update={"seed": seed}), tmp_path / name)
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    for result in (first, again, other):
        del result["seconds"], result["peak_memory_mib"]
    assert first == again
    assert first != other
    metrics = [pl.read_parquet(tmp_path / name / "metrics.parquet") for name in ("first", "again", "other")]
    assert metrics[0].equals(metrics[1])
    assert not metrics[0].equals(metrics[2])


@pytest.mark.parametrize("bottom", ["experts", "linear"])
def test_other_bottoms(bottom: str, tmp_path: Path):
    config = TINY.model_copy(update={"model": TINY.model.model_copy(update={"bottom": bottom})})
    assert run_trial(config, tmp_path / "run")["verdict"] == "healthy"


def in_units(scale: float, shift: float) -> Log:
    """Return the tiny log with its regressions' labels in other units."""
    log = load_log(TINY.data)
    assert isinstance(log, Log)
    labels = log.rows.labels.clone()
    labels[:, 3:] = labels[:, 3:] * scale + shift
    return replace(log, rows=log.rows._replace(labels=labels))


def trained_on(log: Log, model: ModelConfig = TINY.model) -> Run:
    parts = assemble(TINY.model_copy(update={"model": model}), log)
    return train(parts.model, parts.window, parts.optimizers, days=3, detector=Detector(), layers=parts.layers)


@over("bottom", ["shared", "experts", "linear"])
def test_the_unit_of_a_regressions_label_does_not_matter(bottom: Literal["shared", "experts", "linear"]):
    """Log play time in milliseconds has a mean of 9: the first steps need not be spent on it."""
    model = TINY.model.model_copy(update={"bottom": bottom})
    plain, shifted = trained_on(in_units(1.0, 0.0), model), trained_on(in_units(8.0, 1000.0), model)
    for task in ("watch_time", "rating", "dwell"):
        assert float(shifted.final[f"rmse/{task}"]) == pytest.approx(8 * float(plain.final[f"rmse/{task}"]), rel=0.01)
    assert float(shifted.final["auc/click"]) == pytest.approx(float(plain.final["auc/click"]), abs=0.005)


def test_a_run_begins_at_each_tasks_constant():
    first = trained_on(in_units(8.0, 1000.0)).steps[0]
    relative = {key: value for key, value in first.items() if key.startswith("relative_loss/")}
    assert len(relative) == 6
    assert all(float(value) < 1.5 for value in relative.values()), relative


def test_the_result_tells_whether_a_task_ever_beat_its_constant(tmp_path: Path):
    data, linear = TINY.data.model_copy(update={"days": 8}), TINY.model.model_copy(update={"bottom": "linear"})
    config = TINY.model_copy(update={"data": data, "model": linear})
    frozen = config.model_copy(
        update={"rate": 1e-9, "training": config.training.model_copy(update={"embedding_rate": 1e-9})}
    )
    learnt, not_learnt = run_trial(config, tmp_path / "learnt"), run_trial(frozen, tmp_path / "frozen")
    assert learnt["of_constant/rating"] < 0.95
    assert learnt["of_constant/click"] < 0.98
    assert not_learnt["of_constant/rating"] > 0.98
    days = pl.read_parquet(tmp_path / "learnt" / "days.parquet").filter(pl.col("scored") == "next_day")
    assert learnt["of_constant/rating"] == (days["rmse/rating"] / days["rmse_constant/rating"]).min()


def test_an_unfinished_folder_has_no_result(tmp_path: Path):
    run_trial(TINY, tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").rename(tmp_path / "run" / "events.jsonl.draft")
    assert read_result(tmp_path / "run") is None


def test_data_that_cannot_be(tmp_path: Path):
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"drift_day": 7})})
    with pytest.raises(InputError, match="data: drift_day is 7; expected 0 to 3"):
        run_trial(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device whose lack is told")
def test_a_missing_device(tmp_path: Path):
    config = TINY.model_copy(update={"training": TINY.training.model_copy(update={"device": "cuda"})})
    with pytest.raises(InputError, match="training.device is 'cuda' and no CUDA device is found"):
        run_trial(config, tmp_path / "run")


LONGER = RunConfig.model_validate(
    {
        "rate": 0.1,
        "data": {"days": 40, "rows_per_day": 128},
        "model": {"hidden": [8]},
        "training": {"batch_size": 64},
        "rule": {"name": "naive"},
        "recovery": {"every": 20},
    }
)


def test_a_run_that_can_recover_keeps_checkpoints_and_is_watched(tmp_path: Path):
    result = run_trial(LONGER, tmp_path / "run")
    assert result["verdict"] == "healthy"
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    healthy = {f"step-0000000{step}.healthy.pt" for step in (10, 20, 40)}  # an early one, then every 20 steps
    assert names == healthy | {"step-000000060.pt"}
    assert pl.read_parquet(tmp_path / "run" / "metrics.parquet")["step"].to_list() == list(range(78))
    assert (tmp_path / "run" / "monitor" / "metrics.parquet").exists()


def test_looking_after_a_run_changes_none_of_its_numbers(tmp_path: Path):
    plain = run_trial(LONGER.model_copy(update={"recovery": None}), tmp_path / "plain")
    cared = run_trial(LONGER, tmp_path / "cared")
    assert {key: value for key, value in plain.items() if "/" in key} == {
        key: value for key, value in cared.items() if "/" in key
    }
    metrics = [pl.read_parquet(tmp_path / name / "metrics.parquet") for name in ("plain", "cared")]
    assert metrics[0].equals(metrics[1])


def test_a_run_beyond_help_goes_through_all_stages_stops_and_keeps_its_backups(tmp_path: Path):
    recovery = RecoveryConfig(roll_back=RollBack(look=0, hold=1), patience=3)
    config = LONGER.model_copy(update={"rate": 1e6, "recovery": recovery})
    result = run_trial(config, tmp_path / "run")
    assert result["verdict"] == "full"
    assert result["steps"] < total_steps(config)
    events = journal.read(tmp_path / "run" / "events.jsonl")
    told = [event["event"] for event in events]
    assert told.count("rolled_back") == 3
    assert [event["rate_factor"] for event in events if event["event"] == "rolled_back"] == [0.5, 0.25, 0.125]
    assert told.index("alarm") < told.index("rolled_back") < told.index("stopped") < told.index("finished")
    assert events[told.index("stopped")]["checkpoints"] == ["step-000000000.healthy.pt", "step-000000010.suspect.pt"]
    assert (tmp_path / "run" / "checkpoints" / "step-000000000.healthy.pt").exists()
    assert list((tmp_path / "run" / "capsules").iterdir())


def test_a_journal_without_its_last_line_is_of_an_unfinished_run(tmp_path: Path):
    run_trial(LONGER, tmp_path / "run")
    path = tmp_path / "run" / "events.jsonl"
    for cut in (path.read_text()[:-5], '{"event": "alarm", "step": 3}\n', ""):
        path.write_text(cut)
        assert read_result(tmp_path / "run") is None


# Going on after an interruption

CAREFUL = TINY.model_copy(
    update={
        "data": TINY.data.model_copy(update={"days": 6, "rows_per_day": 512}),
        "monitor": MonitorConfig(),
        "recovery": RecoveryConfig(every=5, confirm=5),
    }
)  # 40 steps, a checkpoint every 5


class Killed(BaseException):
    """The process ends here."""


def killed_at(stop: int) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step == stop:
            raise Killed

    return on_step


@pytest.mark.parametrize("stops", [(0,), (4,), (7, 8, 21), (38,)])
def test_a_run_that_is_interrupted_goes_on_as_if_it_had_not_been(stops: tuple[int, ...], tmp_path: Path):
    whole = run_trial(CAREFUL, tmp_path / "whole")
    folder = tmp_path / "cut"
    for stop in stops:
        with pytest.raises(Killed):
            run_trial(CAREFUL, folder, on_step=killed_at(stop))
        assert read_result(folder) is None
        assert claim(folder, CAREFUL) == f"{folder} holds this run, interrupted: going on from its last checkpoint"
    taken: list[int] = []
    result = run_trial(CAREFUL, folder, on_step=taken.append)
    assert taken[0] == stops[-1] + 1 - (stops[-1] + 1) % 5
    for key in ("seconds", "peak_memory_mib"):
        del whole[key], result[key]
    assert result == whole
    for name in ("metrics.parquet", "days.parquet", "config.toml"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    watched = pl.read_parquet(folder / "monitor" / "metrics.parquet")
    assert watched["step"].to_list() == list(range(40))
    assert watched["loss/click"].equals(pl.read_parquet(tmp_path / "whole/monitor/metrics.parquet")["loss/click"])
    told = [event["event"] for event in journal.read(folder / "events.jsonl")]
    assert (told.count("resumed"), told[-1]) == (len(stops), "finished")


def test_what_was_seen_until_an_interruption_is_on_the_disk(tmp_path: Path):
    config = CAREFUL.model_copy(update={"recovery": None})
    with pytest.raises(Killed):
        run_trial(config, tmp_path, on_step=killed_at(12))
    assert pl.read_parquet(tmp_path / "monitor/metrics.parts/*.parquet")["step"].to_list() == list(range(13))
    assert claim(tmp_path, config).startswith(f"{tmp_path} holds this run, interrupted: starting anew, as only a run")
    run_trial(config, tmp_path)
    assert pl.read_parquet(tmp_path / "monitor" / "metrics.parquet")["step"].to_list() == list(range(40))


def test_a_folder_is_gone_on_with_by_its_own_run_alone(tmp_path: Path):
    assert claim(tmp_path / "new", TINY) == claim(tmp_path, TINY) == ""
    with pytest.raises(Killed):
        run_trial(CAREFUL, tmp_path / "run", on_step=killed_at(3))
    differs = "holds another run: in its config.toml .* is asked for; expected a new or an empty folder, or this run's"
    with pytest.raises(InputError, match=differs):
        claim(tmp_path / "run", TINY)
    run_trial(CAREFUL, tmp_path / "run")
    with pytest.raises(
        InputError, match="holds this run, finished, and is not empty; expected a new or an empty folder"
    ):
        claim(tmp_path / "run", CAREFUL)
    with pytest.raises(InputError, match="exists and is not empty"):
        claim(tmp_path / "run" / "monitor", CAREFUL)


def a_file(out: Path) -> None:
    out.write_text("mine")


def a_loop(out: Path) -> None:
    out.symlink_to(out)


def below_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_text("mine")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [(a_file, "File exists"), (a_loop, "Too many levels of symbolic links"), (below_a_file, "Not a directory")],
)
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(
    prepare: Callable[[Path], None], reason: str, tmp_path: Path
):
    out = tmp_path / "parent" / "out"
    out.parent.mkdir()
    prepare(out)
    steps: list[int] = []
    with pytest.raises(InputError, match=f"{out} cannot be used: {reason}; expected a folder that can be made"):
        run_trial(TINY, out, on_step=steps.append)
    assert steps == []


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_no_half_of_a_file(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        with pytest.raises(InputError, match="metrics.parquet cannot be written: File too large; expected"):
            run_trial(TINY, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.toml"]
    assert read_result(tmp_path / "out") is None
