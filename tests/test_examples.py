"""Every example runs and says something."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


def test_a_plain_loop_takes_five_lines():
    """The lines that a supervisor adds are marked, and it is named in no other."""
    (text,) = [path.read_text() for path in EXAMPLES if path.stem == "recovery"]
    added = [line for line in text.splitlines() if line.endswith("# surefoot")]
    assert 1 <= len(added) <= 5
    unmarked = [line for line in text.splitlines() if line not in added]
    assert not [line for line in unmarked if "supervisor" in line.lower()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [str(path)])  # pytest's own arguments are not the example's
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
