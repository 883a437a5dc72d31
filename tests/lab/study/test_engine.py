"""Processes: none outlives its study, a lost one is told, two studies do not meet in one folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from surefoot.lab.study.config import RunConfig
from surefoot.lab.study.engine import LocalEngine, Trial, _Worker
from surefoot.lab.study.trial import run_trial

STUDY = """
name = "long"
data = {days = 4, rows_per_day = 200000}
training = {batch_size = 16}
search = {extra_trials = 0, seeds = [1, 2], floor_rates = [0.1]}
models = [{hidden = [4]}]
methods = [{name = "naive", rule.name = "naive"}, {name = "Clippy", rule.name = "clippy"}]
"""
TINY = RunConfig.model_validate({"data": {"days": 3, "rows_per_day": 64}, "model": {"hidden": [4]}})
BETWEEN_MOMENTS = 0.4  # seconds: a study is ended while its workers start, while they load, while they train


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A study that would run for long, in a session of its own."""
    (tmp_path / "study.toml").write_text(STUDY)
    process = started(tmp_path)
    yield process
    for one in (process.pid, *children_of(process)):
        if psutil.pid_exists(one):
            os.kill(one, signal.SIGKILL)
    process.wait()


def started(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "surefoot", "study", str(folder / "study.toml"), "--out", str(folder / "out")]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "80"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )


def children_of(process: subprocess.Popen[str]) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Wait for the two workers; return their processes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(found := children_of(process)) >= 2:
            return found
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    raise AssertionError("no workers after a minute")


def left_of(pids: list[int], seconds: float) -> list[int]:
    """Return which processes are alive after so many seconds at most."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and not is_dead(pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return alive


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_no_process_outlives_its_study(number: signal.Signals, times: int, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    for i in range(times):
        process = started(tmp_path)
        children = workers_of(process)
        time.sleep(BETWEEN_MOMENTS * i)
        os.kill(process.pid, number)
        left = left_of(children, 5)
        print(f"{number.name} after {BETWEEN_MOMENTS * i:.1f} s: {len(left)} of {len(children)} processes left")
        assert left == []
        errors = process.communicate()[1]
        assert process.returncode == (-9 if number is signal.SIGKILL else 128 + number)
        if number is not signal.SIGKILL:
            said = f"surefoot: ended by {number.name}; the same command goes on from the finished trials\n"
            assert errors == said


def test_a_worker_that_is_killed_is_told_and_its_trial_run_again(running: subprocess.Popen[str]) -> None:
    assert running.stderr is not None
    first = workers_of(running)
    kill_a_worker(running, first)
    line = running.stderr.readline()
    assert line.startswith("surefoot: trial small_")
    assert line.endswith("its worker process was killed by SIGKILL; the trial is run again\n")
    assert running.poll() is None
    kill_a_worker(running, first)  # the other one; then the one that has the first trial again
    running.stderr.readline()
    for _ in range(2):
        if running.poll() is None:
            kill_a_worker(running, first)
    errors = running.communicate(timeout=60)[1]
    assert running.returncode == 2
    (last,) = [line for line in errors.splitlines() if "2 times" in line]
    assert "killed by SIGKILL, 2 times, for want of memory perhaps; expected it to finish" in last
    assert "Traceback" not in errors


def kill_a_worker(process: subprocess.Popen[str], first: list[int]) -> None:
    """Kill the oldest worker, unless the study ends before there are two."""
    deadline = time.monotonic() + 60
    while len(alive := [pid for pid in children_of(process) if not is_dead(pid)]) < 2:
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return
        time.sleep(0.02)
    os.kill(alive[0], signal.SIGKILL)


def test_a_trial_that_starts_from_the_papers_accumulator_does_so_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Whoever trains with it by themselves is told once that it slows the weights."""
    config = RunConfig.model_validate(
        {
            "data": {"days": 4, "rows_per_day": 1024},
            "model": {"hidden": [4]},
            "training": {"batch_size": 8, "initial_accumulator_value": 100.0},
        }
    )
    with LocalEngine(workers=1, threads=1) as engine:
        (result,) = engine.run([Trial(config, tmp_path / "in a study")])
    assert result["steps"] > 300
    assert capfd.readouterr().err == ""
    with pytest.warns(UserWarning, match="expected a lower initial_accumulator_value"):
        run_trial(config, tmp_path / "alone")


def test_a_worker_whose_parent_reads_no_more_ends_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = _Worker.start()
    worker.pipe.send(Trial(TINY, tmp_path / "trial"))
    worker.pipe.close()
    assert worker.process.wait(timeout=60) == 0
    os.close(worker.life)
    assert capfd.readouterr().err == ""


def test_a_worker_whose_answer_is_being_read_ends_with_an_interrupted_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pipe: Connection) -> None:
        raise KeyboardInterrupt

    before = set(psutil.Process().children())
    monkeypatch.setattr(Connection, "recv", interrupted)
    with pytest.raises(KeyboardInterrupt), LocalEngine(workers=1, threads=1) as engine:
        engine.run([Trial(TINY, tmp_path / "trial")])
    assert set(psutil.Process().children()) == before
