"""A study's folder: one study, one process at a time, and a sentence for whatever else is there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import InputError
from surefoot.lab.settings import dump, load, parse
from surefoot.lab.study import trial
from surefoot.lab.study.claim import RUN_LOCK, claimed, held
from surefoot.lab.study.config import StudyConfig

TABLE = {
    "name": "tiny",
    "search": {"base_rate": 0.1},
    "models": [{"name": "small", "hidden": [4]}],
    "methods": [{"name": "naive", "rule": {"name": "naive"}}],
}


def config(**changes: Any) -> StudyConfig:
    return parse(StudyConfig, TABLE | changes, "test")


def test_it_holds_the_study_and_nothing_else_once_it_is_let_go(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with claimed(out, config()):
        assert (out / "study.lock").read_text() == str(os.getpid())
    assert [path.name for path in out.iterdir()] == ["study.toml"]
    assert load(StudyConfig, out / "study.toml") == config()
    with claimed(out, config()):
        pass


def test_a_second_study_in_the_folder_is_told_who_is_there(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, config()),
        pytest.raises(InputError, match=f"is in use: process {os.getpid()} runs a study"),
        claimed(tmp_path, config()),
    ):
        pass
    with claimed(tmp_path, config()):  # the first has let go, the second has broken nothing
        assert (tmp_path / "study.lock").exists()


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    (tmp_path / "asked.toml").write_text(dump(config()))
    program = (
        "import os, sys; from pathlib import Path; from surefoot.lab.settings import load\n"
        "from surefoot.lab.study.claim import claimed; from surefoot.lab.study.config import StudyConfig\n"
        "with claimed(Path(sys.argv[2]), load(StudyConfig, Path(sys.argv[1]))): os.kill(os.getpid(), 9)"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "asked.toml", out], check=False)
    assert done.returncode == -9
    assert (out / "study.lock").exists()
    with claimed(out, config()):
        pass


def test_a_second_training_in_the_folder_is_told_who_is_there(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(InputError, match=f"is in use: process {os.getpid()} runs a training there"),
        held(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / RUN_LOCK).write_text("4194304")  # of a process that was killed
    assert trial.claim(tmp_path, parse(trial.RunConfig, {"model": {"name": "small"}}, "test")) == ""
    with held(tmp_path):
        pass


def test_another_study_is_told_by_the_key_in_which_it_differs(tmp_path: Path) -> None:
    with claimed(tmp_path, config()):
        pass
    for changes, words in (
        ({"search": {"base_rate": 0.2}}, "search.base_rate is 0.1, and 0.2 is asked for"),
        ({"models": [{"name": "small", "hidden": [8]}]}, "models.0.hidden.0 is 4, and 8 is asked for"),
        ({"name": "other"}, "name is 'tiny', and 'other' is asked for"),
    ):
        said = f"holds another study: in its study.toml {words}"
        with pytest.raises(InputError, match=said), claimed(tmp_path, config(**changes)):
            pass


def a_file(out: Path) -> None:
    out.write_text("mine")


def a_loop(out: Path) -> None:
    out.symlink_to(out)


def below_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_text("mine")


def other_files(out: Path) -> None:
    out.mkdir()
    (out / "precious.txt").write_text("mine")


def damaged(out: Path) -> None:
    out.mkdir()
    (out / "study.toml").write_bytes(b"name = \xff")


def nested(out: Path) -> None:
    out.mkdir()
    (out / "study.toml").write_text("name = " + 100_000 * "[")


def a_folder_in_its_place(out: Path) -> None:
    (out / "study.toml").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (a_file, "exists and is not a study's folder; expected a new or an empty one"),
        (a_loop, "cannot be used: Too many levels of symbolic links; expected a folder"),
        (below_a_file, "cannot be used: Not a directory; expected a folder"),
        (other_files, "exists and is not a study's folder"),
        (damaged, "study.toml is not TOML"),
        (nested, "study.toml is not TOML: it is nested too deeply"),
        (a_folder_in_its_place, "study.toml cannot be read: Is a directory; expected a TOML file"),
    ],
)
def test_what_is_no_folder_of_this_study_is_named(prepare: Any, words: str, tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    out.parent.mkdir()
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words) as caught, claimed(out, config()):
        pass
    assert "\n" not in str(caught.value)
    assert str(out) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
