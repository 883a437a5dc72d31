"""A run that is looked after: one broken day in its log, and it ends well."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from full_disks import nothing_can_be_written
from properties import over
from surefoot.capsule import storage
from surefoot.capsule.ring import Ring
from surefoot.detect.detector import Alarm, Detector, Event, Verdict
from surefoot.errors import InputError
from surefoot.lab.data.schema import Log
from surefoot.lab.settings import dump, load, parse
from surefoot.lab.sources import synthetic
from surefoot.lab.study import trial
from surefoot.lab.study.config import MonitorConfig, RecoveryConfig, RunConfig
from surefoot.lab.study.trial import assemble, make_supervisor
from surefoot.lab.training.loop import Run, train
from surefoot.recover import journal
from surefoot.recover.policy import RollBack

CONFIG = RunConfig.model_validate(
    {
        "rate": 0.1,
        "model": {"hidden": [16]},
        "training": {"batch_size": 128, "window_days": 1, "initial_accumulator_value": 0.1},
        "rule": {"name": "naive"},
        "recovery": {"every": 10, "confirm": 10},
    }
)
BROKEN_DAY = 10
A_DAY = 4  # steps


@pytest.fixture(scope="module")
def log() -> Log:
    """A log in which the features of one day have another unit."""
    log = synthetic.make(days=17, rows_per_day=512)
    dense = log.rows.dense.clone()
    dense[log.starts[BROKEN_DAY] : log.starts[BROKEN_DAY + 1]] *= 1e4
    return replace(log, rows=log.rows._replace(dense=dense))


def run(log: Log, config: RunConfig, folder: Path) -> Run:
    return train_watched(log, config, folder)[0]


def train_watched(log: Log, config: RunConfig, folder: Path) -> tuple[Run, list[Event], list[Alarm]]:
    """Return the run, its divergences and its alarms."""
    parts, detector = assemble(config, log), Detector()
    supervisor, progress = make_supervisor(config, parts, folder) or (None, None)
    found = train(
        parts.model,
        parts.window,
        parts.optimizers,
        days=len(log.days) - 1,
        detector=detector,
        layers=parts.layers,
        schedulers=[parts.scheduler],
        supervisor=supervisor,
        progress=progress,
    )
    if supervisor is None or supervisor.monitor is None:
        return found, detector.events, []
    return found, supervisor.events, supervisor.monitor.detector.alarms


def test_with_recovery_a_run_survives_a_broken_day_that_ruins_it_without(log: Log, tmp_path: Path):
    lost = run(log, CONFIG.model_copy(update={"recovery": None}), tmp_path / "lost")
    saved = run(log, CONFIG, tmp_path / "saved")
    assert (lost.verdict, float(lost.final["auc/like"]) < 0.6) == (Verdict.FULL, True)
    assert float(saved.final["auc/like"]) > 0.7
    assert (saved.verdict, saved.stopped_early, len(saved.steps)) == (Verdict.MICRO, False, 16 * A_DAY)
    events = journal.read(tmp_path / "saved" / "events.jsonl")
    told = [event["event"] for event in events]
    assert told[:2] == ["alarm", "rolled_back"]  # at once: the accumulators have learnt the broken day
    assert "times as large as before" in events[1]["reason"]
    assert 0 <= events[0]["step"] - A_DAY * BROKEN_DAY <= 2
    (rolled_back, *_) = [event for event in events if event["event"] == "rolled_back"]
    assert rolled_back["steps"] <= A_DAY * BROKEN_DAY < rolled_back["step"]


def test_the_steps_before_the_alarm_can_be_replayed(log: Log, tmp_path: Path):
    run(log, CONFIG, tmp_path)
    alarm = journal.read(tmp_path / "events.jsonl")[0]
    capsule = storage.read(tmp_path / "capsules" / f"step-{alarm['step']:08d}")
    (record,) = [record for record in capsule.steps if record.step == alarm["step"]]
    assert (record.note["day"], record.note["index"]) == (BROKEN_DAY, alarm["step"] - A_DAY * BROKEN_DAY)
    assert (record.note["rate_factor"], record.note["held"]) == (1.0, 0)
    assert record.rows is not None
    assert record.rows.equal(assemble(CONFIG, log).window.rows_of(BROKEN_DAY, alarm["step"] - A_DAY * BROKEN_DAY))


def test_watched_without_recovery_it_tells_and_stops(log: Log, tmp_path: Path):
    config = RunConfig.model_validate({**CONFIG.model_dump(exclude={"recovery"}), "monitor": {"capsules": False}})
    lost = run(log, config, tmp_path)
    assert (lost.verdict, lost.stopped_early) == (Verdict.FULL, False)
    assert {event["event"] for event in journal.read(tmp_path / "events.jsonl")} == {"alarm", "divergence"}
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "capsules").exists()
    assert "loss/click" in pl.read_parquet(tmp_path / "monitor" / "metrics.parquet").columns


def test_the_configured_policy_is_the_one_that_is_used(log: Log, tmp_path: Path):
    given = {"slow": False, "roll_back": {"factor": 0.7, "at_most": 5}, "stop": False, "patience": 9, "every": 7}
    config = RunConfig.model_validate({"recovery": given})
    (tmp_path / "config.toml").write_text(dump(config))
    assert load(RunConfig, tmp_path / "config.toml") == config
    roll_back = RollBack(factor=0.7, at_most=5)
    expected = RecoveryConfig(slow=None, roll_back=roll_back, stop=False, patience=9, every=7)
    assert config.recovery == expected
    supervisor, _ = make_supervisor(config, assemble(config, log), tmp_path / "run") or (None, None)
    assert supervisor is not None
    assert supervisor.recovery is not None
    assert (supervisor.recovery.policy, supervisor.recovery.every) == (expected, 7)
    whole = RunConfig.model_validate({"recovery": {"slow": True, "roll_back": True}}).recovery
    assert whole == RecoveryConfig()


@over(
    "recovery",
    [
        ({"slow": {"steps": 0}}, "recovery.slow: steps is 0; expected a finite number above 0"),
        ({"roll_back": {"facter": 0.5}}, "recovery.roll_back.facter is not a known key; the closest is 'factor'"),
        ({"patient": 5}, "recovery.patient is not a known key; the closest is 'patience'"),
        ({"every": 0}, "recovery.every is 0; input should be greater than or equal to 1"),
        ({"slow": "no"}, "recovery.slow is 'no'; "),
    ],
)
def test_what_no_policy_has_is_refused_by_its_key(recovery: tuple[dict[str, Any], str]):
    with pytest.raises(InputError, match=re.escape(recovery[1])):
        parse(RunConfig, {"recovery": recovery[0]}, "run.toml")


# Full disks


def test_a_full_disk_under_monitor_ring_and_journal_ends_no_run(log: Log, tmp_path: Path):
    """What only watches is told and left out; the run is the same as with room."""
    config = CONFIG.model_copy(update={"recovery": None, "monitor": MonitorConfig()})
    room = run(log, config, tmp_path / "room")
    (tmp_path / "full").mkdir()
    supervisor, progress = make_supervisor(config, parts := assemble(config, log), tmp_path / "full") or (None, None)
    assert supervisor is not None
    options: Any = {"days": len(log.days) - 1, "detector": Detector(), "layers": parts.layers}
    options |= {"schedulers": [parts.scheduler], "supervisor": supervisor, "progress": progress}
    with nothing_can_be_written(), pytest.warns() as told:
        full = train(parts.model, parts.window, parts.optimizers, **options)
    assert (full.steps, full.verdict) == (room.steps, room.verdict)
    words = [str(warning.message) for warning in told]
    for said in (
        "writing to TensorBoardSink",
        f"{tmp_path / 'full' / 'events.jsonl'} cannot be written, so events wait for room",
        "the capsule step-",
        "close of ParquetSink",
    ):
        assert sum(said in each for each in words) == 1


def test_a_ring_that_is_too_small_is_told_and_left_out(log: Log, tmp_path: Path):
    config = CONFIG.model_copy(update={"recovery": None, "monitor": MonitorConfig()})
    parts = assemble(config, log)
    watched = make_supervisor(config, parts, tmp_path)
    assert watched is not None
    options: Any = {"days": 1, "detector": Detector(), "layers": parts.layers, "supervisor": watched[0]}
    watched[0].ring = Ring(parts.model, parts.optimizers, max_bytes=100)
    with pytest.warns(RuntimeWarning, match="keeping the last steps for capsules failed, .*max_bytes is 100"):
        train(parts.model, parts.window, parts.optimizers, **options)


@pytest.mark.parametrize("rate", [0.1, 3.0, 30.0])
def test_a_run_has_the_onset_that_it_has_unwatched(rate: float, log: Log, tmp_path: Path):
    """An alarm may come before a task leaves the road: it is no onset."""
    told = []
    for monitor in (None, MonitorConfig(capsules=False)):
        config = CONFIG.model_copy(update={"recovery": None, "rate": rate, "monitor": monitor})
        found, events, alarms = train_watched(log, config, tmp_path)
        told.append([found.verdict, *((event.task, event.onset, event.verdict, event.reason) for event in events)])
        if monitor is not None and rate > 1:
            assert min(alarm.step for alarm in alarms) < min(event.onset for event in events)
    assert told[0] == told[1]
    assert len(told[0]) > 1


@pytest.mark.parametrize("watched", [True, False])
def test_the_journal_names_a_task_that_never_learns(watched: bool, tmp_path: Path, monkeypatch: Any):
    log = synthetic.make(days=20, rows_per_day=1024)
    labels = log.rows.labels.clone()
    labels[:, 0] = (torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) < 0.2).float()
    noise = replace(log, rows=log.rows._replace(labels=labels))
    monkeypatch.setattr(trial, "load_log", lambda _: noise)
    monitor = MonitorConfig(capsules=False) if watched else None
    config = CONFIG.model_copy(update={"recovery": None, "monitor": monitor})
    result = trial.run_trial(config, tmp_path)
    told = [event["task"] for event in journal.read(tmp_path / "events.jsonl") if event["event"] == "never_learnt"]
    assert told == [noise.schema.tasks[0].name]
    assert result["verdict"] == "healthy"
