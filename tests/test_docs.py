"""The code blocks of README.md and docs/ run, and the commands they name exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from surefoot.lab.cli import app
from surefoot.lab.settings import parse
from surefoot.lab.study.config import DataConfig, MethodConfig, ModelConfig, RunConfig, SearchConfig, TrainingConfig
from surefoot.lab.study.trial import run_trial

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_blocks_to_run():
    assert sum(len(blocks(page, "python")) for page in PAGES) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_and_console_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A block after ``<!-- file: NAME -->`` is written to that file first."""
    monkeypatch.chdir(tmp_path)  # a block may write files
    monkeypatch.syspath_prepend(tmp_path)  # and import them
    names: dict[str, object] = {}
    for file, language, block in re.findall(
        r"(?:^<!-- file: (\S+) -->\n+)?^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        if file:
            Path(file).write_text(block)
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
        for line in re.findall(r"^\$ (.*)", block, re.MULTILINE) if language == "console" else ():
            command, *arguments = shlex.split(line)
            assert command == "surefoot", line
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_blocks_are_toml(page: Path):
    for block in blocks(page, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda path: path.name)
def test_the_library_is_imported_by_its_public_names(path: Path):
    """``surefoot``, its integrations and contracts; the laboratory has its own modules."""
    text = path.read_text() if path.suffix == ".py" else "\n".join(blocks(path, r"python[^\n]*"))
    named = re.findall(r"^\s*(?:from|import) surefoot\.(\w+)", text, re.MULTILINE)
    assert set(named) <= {"integrations", "lab", "testing"}


def test_make_targets_that_documents_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"\bmake ([a-z-]+)\b", page.read_text())}
    assert named
    assert named <= targets


def told_in(page: str, head: str) -> dict[str, str]:
    """Return what the first column of a table names, each name with the default behind it, "" if it has none."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    assert table is not None, head
    cells = [line.split(" | ")[0] for line in table[0].splitlines()[2:]]
    words = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    return {key: default for key, _, default in (word.partition(" = ") for word in words)}


SECTIONS = {
    "`[data]`": DataConfig,
    "`[training]`": TrainingConfig,
    "`[search]`": SearchConfig,
    "`[[models]]`": ModelConfig,
    "`[[methods]]`": MethodConfig,
}


def test_the_study_page_names_every_key_and_column(tmp_path: Path):
    """Each key of the configuration stands in its table, with its default where it has a plain one."""
    page = (ROOT / "docs" / "study.md").read_text()
    for head, section in SECTIONS.items():
        told = told_in(page, head)
        assert told.keys() == section.model_fields.keys()
        for key, field in section.model_fields.items():
            if told[key] and key != "rule":  # whose default is a table
                written = getattr(field.default, "value", field.default)  # an enum's
                written = list(written) if isinstance(written, tuple) else written
                assert tomllib.loads(f"default = {told[key]}")["default"] == written, f"{head} {key}"
    config = parse(RunConfig, {"data": {"days": 3, "rows_per_day": 64}, "model": {"hidden": [4]}}, "run.toml")
    columns = told_in(page, "column of `results.parquet`")
    for column in run_trial(config, tmp_path / "run"):
        assert (f"{column.partition('/')[0]}/TASK" if "/" in column else column) in columns, column
