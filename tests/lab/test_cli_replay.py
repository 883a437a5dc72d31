"""``surefoot replay`` as a person meets it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab.study.recorded_run import TINY, capsule_of
from lab.test_cli import sentence, surefoot
from surefoot.errors import InputError
from surefoot.lab.cli import app
from surefoot.lab.data.schema import Batch


@pytest.fixture(scope="module")
def capsule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def spoil(step: int, batch: Batch) -> None:
        if step == 20:
            batch.dense[[5, 40]] *= 1e3

    return capsule_of(TINY, tmp_path_factory.mktemp("capsules"), alarm=20, spoil=spoil).folder


def test_a_replay_says_what_happened_and_what_the_rules_would_have_done(capsule: Path, tmp_path: Path):
    done = surefoot("replay", capsule, "--rule", "naive", "--steps", 8, "--bisect-batch", "--out", tmp_path / "out")
    assert "Alarm at step 20: the relative loss of rating rose." in done.stdout
    assert "Replayed the steps 0 to 24: " in done.stdout
    assert "bit for bit" in done.stdout
    for words in ("> 20", "at step 20", "least of steps 14 to 24", "global_gc", "bottom.layers.0.weight", "clippy,"):
        assert words in done.stdout
    assert "Under naive it cannot be told: there are too few steps after the event." in done.stdout
    assert "Without 2 rows (5, 40) of 64 it is " in done.stdout
    assert "dense_" in done.stdout
    tables = [line for line in done.stdout.splitlines() if not line.endswith((".", "replay.json"))]
    assert max(map(len, tables)) <= 80
    numbers = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert numbers["equal"] is True
    assert [step["step"] for step in numbers["steps"]] == list(range(25))
    assert set(numbers["went_on"]) == {"clippy", "naive"}
    assert [row["number"] for row in numbers["bisection"]["rows"]] == [5, 40]


def test_a_plain_replay_writes_nothing(capsule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["replay", str(capsule)])
    assert done.exit_code == 0
    assert "bit for bit" in done.stdout
    assert "Under" not in done.stdout
    assert "Without" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_capsule_is_one_sentence_and_exit_code_2(capsule: Path, tmp_path: Path):
    damaged = shutil.copytree(capsule, tmp_path / "damaged")
    (damaged / "state-00000000.pt").write_bytes(b"")
    done = surefoot("replay", damaged, expect=2)
    assert "state-00000000.pt is damaged: it has 0 bytes" in sentence(done)
    assert done.stdout == ""


def test_a_full_folder_is_refused_before_anything_runs(capsule: Path):
    done = CliRunner().invoke(app, ["replay", str(capsule), "--out", str(capsule)])
    assert isinstance(done.exception, InputError)
    assert "exists and is not empty; expected a new or an empty folder" in str(done.exception)


def test_of_a_loop_of_ones_own_it_shows_what_was_recorded(tmp_path: Path):
    folder = capsule_of(TINY, tmp_path / "capsules", alarm=5, written=None).folder
    done = CliRunner().invoke(app, ["replay", str(folder), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "> 5" in done.stdout
    assert "Missing without your model and step function: " in done.stdout
    assert json.loads((tmp_path / "out" / "replay.json").read_text())["equal"] is None
