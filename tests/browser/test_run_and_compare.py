"""A run's report and comparisons in a real browser: no error, nothing asked of the network, nothing cut off."""

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from browser.test_report import CUT_OR_COVERED, visible
from lab.report import small_runs
from surefoot.lab.report.compare_page import write_comparison
from surefoot.lab.report.run_page import write_run_report

PAGES = ("healthy", "diverged", "unwatched", "own", "supervised", "two runs", "two studies", "events alone")
TABLES = "#happened td, #happened th, .compared td, .compared th, #scores td, #scores th"


@pytest.fixture(scope="session")
def pages(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("pages")
    runs = {kind: small_runs.run(kind, base / kind) for kind in small_runs.KINDS}
    runs |= {"own": small_runs.own_loop(base / "own"), "supervised": small_runs.supervised(base / "supervised")}
    alone = base / "alone"
    alone.mkdir()
    (alone / "events.jsonl").write_bytes((runs["own"] / "events.jsonl").read_bytes())
    write_comparison(runs["healthy"], runs["diverged"], base / "runs.html")
    write_comparison(report.parent, report.parent, base / "studies.html")
    found = {kind: write_run_report(folder) for kind, folder in (runs | {"events alone": alone}).items()}
    return found | {"two runs": base / "runs.html", "two studies": base / "studies.html"}


def opened(browser: Chrome, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    drawn = "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.trace, .hm'))"
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn))


@pytest.mark.parametrize("width", [1400, 400])
def test_every_page_opens_without_an_error_and_nothing_is_cut_off(
    browser: Chrome, pages: dict[str, Path], width: int
) -> None:
    assert set(pages) == set(PAGES)
    try:
        for name, page in pages.items():
            opened(browser, page, width)
            assert browser.get_log("browser") == [], name
            messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
            sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
            assert [url for url in sent if not url.startswith(("data:", "blob:"))] == [page.as_uri()], name
            root = "document.documentElement"
            assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), name
            script = CUT_OR_COVERED.replace("#scores td, #scores th, .tasks td, .tasks th", TABLES)
            assert script != CUT_OR_COVERED
            assert browser.execute_script(script) == [], name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_buttons_choose_a_layer_and_a_task_and_hide_one(browser: Chrome, pages: dict[str, Path]) -> None:
    try:
        opened(browser, pages["own"], 1400)
        browser.find_element(By.CSS_SELECTOR, '[data-plot="layers-0"][data-choice="0"]').click()
        assert {meta["choice"] for meta in visible(browser, "layers-0")} == {"0"}
        browser.find_element(By.CSS_SELECTOR, '[data-method="like"]').click()
        assert visible(browser, "losses-0") == []
        opened(browser, pages["two runs"], 1400)
        browser.find_element(By.CSS_SELECTOR, '[data-plot="curves-0"][data-choice="dwell"]').click()
        browser.find_element(By.CSS_SELECTOR, '[data-method="A"]').click()
        assert visible(browser, "curves-0") == [{"method": "B", "choice": "dwell"}] * 2
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_capsule_can_be_reached(browser: Chrome, pages: dict[str, Path]) -> None:
    opened(browser, pages["diverged"], 1400)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    links = [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "#happened a")]
    assert links
    for link in links:
        assert (pages["diverged"].parent / "capsules" / str(link).rstrip("/").rsplit("/", 1)[1]).is_dir()
