"""What is shown of a long command while it runs."""

import io
import re

import pytest
from rich.console import Console

from surefoot.lab import progress_display
from surefoot.lab.progress_display import LINE_EVERY, ProgressDisplay
from surefoot.lab.terminal import Loudness


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with ProgressDisplay(Loudness.USUAL, unit="steps", all_at_once=True, clock=clock) as progress:
        progress.begin("training", 4000)
        for step in range(1000, 1100):  # gone on with
            progress.update(step + 1)
            clock.now += 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == int(100 // LINE_EVERY)
    assert lines[0] == "surefoot: training: 1,031 of 4,000 steps after 30 s, about 49 min 29 s left"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with ProgressDisplay(Loudness.QUIET, clock=clock) as progress:
        progress.begin("reading")
        clock.now += 10 * LINE_EVERY
        progress.update(0.5)
    assert capsys.readouterr() == ("", "")


def test_a_study_tells_what_is_left_in_all_and_nothing_of_a_part(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with ProgressDisplay(Loudness.USUAL, unit="trials", clock=clock) as progress:
        progress.begin("the grid", 24)
        progress.advance()
        clock.now += LINE_EVERY
        progress.advance()
        clock.now += LINE_EVERY
        progress.set_left(600)
    assert capsys.readouterr().err.splitlines() == [
        "surefoot: the grid: 2 of 24 trials after 30 s",
        "surefoot: the grid: 2 of 24 trials after 1 min, about 10 min left in all",
    ]


def test_on_a_terminal_the_bar_fits_its_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    monkeypatch.setattr(progress_display, "errors", terminal)
    with ProgressDisplay(Loudness.USUAL, unit="trials") as progress:
        progress.begin("small: the best settings over the search seeds, [all] of them", 130)
        progress.set_left(100_000)
        progress.advance()
        progress._bar.refresh()
    drawn = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", terminal.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line for line in re.split(r"[\r\n]+", drawn) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("small: the best") and "1 of 130, about 1 d 3 h left in all" in line for line in lines)
    assert capsys.readouterr() == ("", "")
