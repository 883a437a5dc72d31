"""One finished study for all tests here, and copies of it with something changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lab.report import small_runs
from lab.report.small_study import FOLDER, run
from surefoot.files import SUMS, write_sums

Change = Callable[..., Path]


def resum(folder: Path) -> None:
    """Take the checksums of a study's files anew, as if it had written them as they are."""
    write_sums(
        folder, [path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, "report.html")]
    )


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.getbasetemp() / FOLDER)


@pytest.fixture
def changed(study: Path, tmp_path: Path) -> Change:
    """Return a function that copies the study and changes its summary and its rows."""

    def change(
        summary: Callable[[dict[str, Any]], None] = lambda document: None,
        rows: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame,
    ) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(study, copy)
        document = json.loads((copy / "summary.json").read_text())
        summary(document)
        (copy / "summary.json").write_text(json.dumps(document))
        rows(pl.read_parquet(copy / "results.parquet")).write_parquet(copy / "results.parquet")
        resum(copy)
        return copy

    return change


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a run of each kind, and of a loop that only the library's parts have watched."""
    base = tmp_path_factory.mktemp("runs")
    found = {kind: small_runs.run(kind, base / kind) for kind in small_runs.KINDS}
    return found | {"own": small_runs.own_loop(base / "own"), "supervised": small_runs.supervised(base / "supervised")}


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a run's folder, to change something in it."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(runs[kind], tmp_path / f"copy-{kind}"))

    return copy
