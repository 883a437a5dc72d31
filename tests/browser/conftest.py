"""A report in a real browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from selenium import webdriver

from lab.report.conftest import resum
from lab.report.small_study import FOLDER, run
from surefoot.lab.report.page import write_report

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run(tmp_path_factory.getbasetemp() / FOLDER))


@pytest.fixture(scope="session")
def shaky_report(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the same study, had one seed of each final pair diverged: the longest texts that cells can hold."""
    folder = tmp_path_factory.mktemp("shaky") / "study"
    shutil.copytree(report.parent, folder)
    lost = (pl.col("until") == "final") & (pl.col("seed") == 1)
    rows = pl.read_parquet(folder / "results.parquet")
    rows = rows.with_columns(pl.when(lost).then(pl.lit("full")).otherwise("verdict").alias("verdict"))
    rows.write_parquet(folder / "results.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    for method in summary["methods"]:
        method |= {"multiple": 0.125, "at_edge": True}
    (folder / "summary.json").write_text(json.dumps(summary))
    resum(folder)
    return write_report(folder)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver; expected Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
