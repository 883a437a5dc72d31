"""The journal: whole lines only, whatever happens to the process or to the disk."""

import warnings
from pathlib import Path

import pytest
from full_disk import FULL, Disk

from properties import over
from surefoot.recover import journal
from surefoot.recover.journal import Journal


def test_a_run_in_which_nothing_happened_has_no_events(tmp_path: Path):
    assert journal.read(tmp_path / "events.jsonl") == []
    assert journal.read(tmp_path / "nowhere" / "events.jsonl") == []


def test_a_line_that_a_kill_cut_off_is_replaced_by_the_next_one(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    Journal(path).write("alarm", step=1, reason="é" * 5000)
    with path.open("ab") as file:
        file.write('{"event": "looking", "reason": "é'.encode()[:-1])
    assert [event["event"] for event in journal.read(path)] == ["alarm"]
    Journal(path).write("resumed", step=2)
    assert [event["event"] for event in journal.read(path)] == ["alarm", "resumed"]


@over("full", FULL)
def test_a_full_disk_costs_no_line_and_ends_nothing(full: Disk, tmp_path: Path):
    with full(tmp_path) as (folder, disk):
        told = Journal(folder / "events.jsonl")
        told.write("first", step=0)
        disk.fill()
        with pytest.raises(OSError, match=r"No space left on device|File too large"):
            told.write("second", step=1, reason="x" * 20_000)
        with pytest.warns(UserWarning, match=r"events.jsonl cannot be written, so events wait for room: "):
            told.tell("third", step=2, reason="x" * 20_000)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told.tell("fourth", step=3, reason="x" * 20_000)
        assert [event["event"] for event in journal.read(told.path)] == ["first"]
        disk.empty()
        told.tell("fifth", step=4)
        assert [event["step"] for event in journal.read(told.path)] == [0, 2, 3, 4]
