"""What is damaged, full, nested, piped or coloured around the command line: one sentence, exit code 2, no traceback."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w

from full_disks import nothing_can_be_written
from lab.study.recorded_run import TINY, capsule_of
from lab.test_cli import TINY_RUN, TINY_STUDY
from surefoot.lab import cli
from surefoot.lab.settings import dump

DEEP = 100_000


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process, as ``surefoot`` calls it."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["surefoot", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with warnings.catch_warnings(action="default"), pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(int(end.value.code or 0), out, err)

    return run


def told(done: Done) -> str:
    """Return the one sentence of a refusal."""
    assert done.code == 2, done
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def capsule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return capsule_of(TINY, tmp_path_factory.mktemp("capsules"), alarm=4, after=1).folder


@pytest.fixture
def mine(capsule: Path, tmp_path: Path) -> Path:
    """A copy of the capsule, to damage."""
    return shutil.copytree(capsule, tmp_path / "capsule")


# Files that say something else


def test_brackets_without_end(run: Callable[..., Done], mine: Path, tmp_path: Path):
    toml = tmp_path / "deep.toml"
    toml.write_text("x = " + "[" * DEEP + "]" * DEEP)
    for command in (("train", toml), ("study", toml), ("data", "check", tmp_path, "--schema", toml, "--source", "log")):
        assert told(run(*command)).endswith("deep.toml is not TOML: it is nested too deeply")
    (mine / "capsule.json").write_text("[" * DEEP)
    assert told(run("replay", mine)).endswith("capsule.json is not JSON: it is nested too deeply")
    log = tmp_path / "log"
    log.mkdir()
    (log / "prepared.json").write_text('{"a":' * DEEP)
    assert told(run("study", "smoke", "--data", f"{log}")).endswith(
        "prepared.json is not JSON: it is nested too deeply"
    )


def change(folder: Path, *keys: str | int, value: Any) -> None:
    document = json.loads((folder / "capsule.json").read_text())
    inside = document
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    (folder / "capsule.json").write_text(json.dumps(document))


DAMAGE: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "threads": (("facts", "threads"), 10**9),
    "no threads": (("facts", "threads"), 0),
    "threads in words": (("facts", "threads"), "four"),
    "threads half": (("facts", "threads"), 1.5),
    "precision": (("facts", "matmul_precision"), "\x1b[31mlow"),
    "deterministic": (("facts", "deterministic"), "no"),
    "versions": (("facts", "versions"), 3),
    "facts": (("facts",), []),
    "no facts": (("facts",), None),
    "alarm": (("alarm",), "loud"),
    "the alarm's step": (("alarm", "step"), [1]),
    "an endless step": (("alarm", "step"), 1e999),
    "snapshots": (("snapshots",), []),
    "another snapshot": (("snapshots",), [3]),
    "snapshots in words": (("snapshots",), "all"),
    "digests": (("digests",), 5),
    "record": (("record",), {}),
    "no steps": (("record", "steps"), []),
    "a step": (("record", "steps", 2, "step"), 99),
    "losses": (("record", "steps", 2, "losses"), [1]),
    "names": (("record", "losses"), 7),
    "note": (("record", "steps", 2, "note"), 7),
    "files": (("files",), {"state-00000000.pt": 3}),
    "a size": (("files", "state-00000000.pt"), [1, "x"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_capsule_whose_facts_are_damaged(run: Callable[..., Done], mine: Path, damage: str):
    keys, value = DAMAGE[damage]
    change(mine, *keys, value=value)
    assert "capsule" in told(run("replay", mine))


def test_a_state_that_fits_no_training(run: Callable[..., Done], mine: Path, capsule: Path, tmp_path: Path):
    other = TINY.model_copy(update={"model": TINY.model.model_copy(update={"hidden": (8,)})})
    foreign = capsule_of(TINY, tmp_path / "foreign", alarm=2, written=dump(other)).folder
    assert "cannot be replayed: model does not fit the capsule" in told(run("replay", foreign))


PIPES = ("capsule.json", "config.toml", "state-00000000.pt", "steps-00000000.pt")


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_a_capsule_is_not_waited_for(run: Callable[..., Done], mine: Path, name: str):
    (mine / name).unlink()
    os.mkfifo(mine / name)
    assert told(run("replay", mine)).endswith(f"{name} is a folder, a pipe or a device; expected a file")


def test_a_pipe_in_a_log_is_not_waited_for(run: Callable[..., Done], tmp_path: Path):
    log = tmp_path / "log"
    log.mkdir()
    os.mkfifo(log / "prepared.json")
    assert "prepared.json is a folder, a pipe or a device" in told(run("study", "smoke", "--data", log))
    os.mkfifo(log / "a.csv")
    assert "a.csv" in told(run("data", "check", log))


NUMBERS = {
    "threads": (
        "training",
        "threads",
        10**9,
        "threads is 1000000000; input should be less than or equal to 1024",
    ),
    "seed": ("data", "seed", 2**63, "data.seed is 9223372036854775808; expected a whole number of at most 64 bits"),
    "digits": ("data", "seed", 10**4000, "data.seed is 1000"),
    "rate": ("", "rate", float("inf"), "rate is inf; input should be a finite number"),
    "no number": ("", "rate", float("nan"), "rate is nan; input should be"),
    "a layer": ("model", "hidden", [2**62], "this machine has not enough memory"),
    "rows": ("data", "rows_per_day", 10**13, "this machine has not enough memory"),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_no_run_can_have(run: Callable[..., Done], tmp_path: Path, number: str):
    section, key, value, words = NUMBERS[number]
    table: dict[str, Any] = {section: {key: value}} if section else {key: value}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    assert words in told(run("train", tmp_path / "run.toml", "--out", tmp_path / "out"))


# What reaches the terminal

COLOURED = "\x1b[31mred\x1b]2title\x07\u202e[bold]x[/nope]"


def test_no_control_character_and_no_markup_of_a_name_reaches_the_terminal(run: Callable[..., Done], tmp_path: Path):
    folder = tmp_path / COLOURED.replace("/", "")
    folder.mkdir()
    header = f"{COLOURED},click,day"
    rows = "\n".join(f"{i % 3},{i % 2},2024-05-0{1 + i // 40}" for i in range(120))
    (folder / "log.csv").write_text(f"{header}\n{rows}\n", newline="")
    (tmp_path / "run.toml").write_text(f"{json.dumps(COLOURED)} = 1")
    for command in (
        ("data", "check", folder),
        ("data", "prepare", COLOURED, folder),
        ("train", folder / "none.toml"),
        ("train", tmp_path / "run.toml"),
        ("study", COLOURED),
        ("replay", folder),
        ("report", folder),
    ):
        done = run(*command)
        shown = done.stdout + done.stderr
        assert not [each for each in shown if each != "\n" and not each.isprintable()]
        assert done.code == 0 or "\\x1b[31mred" in done.stderr or COLOURED not in str(command)
    (folder / "log.csv").write_text((folder / "log.csv").read_text().replace(COLOURED, "[bold]x[/nope]"))
    assert "\n[bold]x[/nope]  " in run("data", "check", folder).stdout  # in the table of columns


def test_a_name_that_is_no_text(run: Callable[..., Done], tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/no\xfftext"
    os.mkdir(folder)
    assert "no\\udcfftext" in told(run("replay", os.fsdecode(folder)))


# Disks and folders


@pytest.fixture
def commands(capsule: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Everything that writes a folder, but for the folder."""
    (tmp_path / "run.toml").write_text(TINY_RUN)
    (tmp_path / "watched.toml").write_text(f"{TINY_RUN}[monitor]\n[recovery]\nevery = 2\n")
    (tmp_path / "study.toml").write_text(TINY_STUDY)
    rows = "\n".join(f"{i % 3},{i % 2},2024-05-0{1 + i // 40}" for i in range(120))
    (tmp_path / "log.csv").write_text(f"user,click,day\n{rows}\n")
    described = 'name = "log"\ncategorical = ["user"]\nlabel = ["click"]\nday.column = "day"\n'
    (tmp_path / "schema.toml").write_text(described)
    return {
        "train": ("train", tmp_path / "run.toml"),
        "watched": ("train", tmp_path / "watched.toml"),
        "study": ("study", tmp_path / "study.toml", "--workers", 1),
        "replay": ("replay", capsule),
        "prepare": ("data", "prepare", "log", tmp_path / "log.csv", "--schema", tmp_path / "schema.toml"),
    }


COMMANDS = ("train", "watched", "study", "replay", "prepare")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_used(
    run: Callable[..., Done], commands: dict[str, tuple[object, ...]], name: str, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in ("file", "file/below", "loop", "loop/below", "x" * 300):
        words = told(run(*commands[name], "--out", tmp_path / out))
        assert "expected" in words or "cannot be used" in words, words
        assert str(tmp_path / out)[:100] in words


@pytest.mark.parametrize("name", [each for each in COMMANDS if each != "study"])
def test_a_disk_on_which_nothing_can_be_written(
    run: Callable[..., Done], commands: dict[str, tuple[object, ...]], name: str, tmp_path: Path
):
    with nothing_can_be_written():
        done = run(*commands[name], "--out", tmp_path / "out")
    assert done.code == 2
    *before, last = done.stderr.splitlines()
    assert "cannot be" in last
    assert all(line.startswith("surefoot: warning: ") for line in before)


def surefoot_to(stdout: Any, *arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "surefoot", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, done.stderr.splitlines()


def test_a_full_output(run: Callable[..., Done]):
    with Path("/dev/full").open("w") as full:
        done = surefoot_to(full, "study", "--help")
    assert done == (2, ["surefoot: what is read or written cannot be used: No space left on device"])
