"""What a reader of the report sees, and what the report asks of the network: nothing."""

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from lab.report.small_study import SECTIONS

FIGURES = [f"{section}-{i}" for section in SECTIONS for i in (0, 1)]


def opened(browser: Chrome, report: Path, width: int = 1280) -> None:
    browser.set_window_size(width, 900)
    browser.get(report.as_uri())
    drawn = "return [...document.querySelectorAll('.plot')].filter(p => p.querySelector('.trace, .hm')).length"
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn) == len(FIGURES))


def visible(browser: Chrome, figure: str) -> list[dict[str, str]]:
    """Return what the visible traces of a figure say of themselves."""
    script = f"return document.getElementById('{figure}').data.filter(t => t.visible !== false && t.meta)"
    return browser.execute_script(f"{script}.map(t => t.meta)")


def test_it_opens_without_an_error_and_without_the_network(browser: Chrome, report: Path) -> None:
    opened(browser, report)
    assert browser.get_log("browser") == []
    entries = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in entries if not name.startswith(("data:", "blob:"))] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in sent if request["documentURL"] == report.as_uri()]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def test_every_figure_is_drawn(browser: Chrome, report: Path) -> None:
    opened(browser, report)
    for figure in FIGURES:
        place = browser.find_element(By.ID, figure)
        drawing = place.find_element(By.CSS_SELECTOR, "svg.main-svg")
        assert drawing.size["width"] > 400, figure
        assert abs(drawing.size["height"] - place.size["height"]) < 2, figure
        assert place.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace path, .heatmaplayer image"), figure


def test_the_verdict_and_every_method_can_be_seen(browser: Chrome, report: Path) -> None:
    opened(browser, report)
    verdict = browser.find_element(By.ID, "verdict")
    assert verdict.is_displayed()
    assert verdict.location["y"] + verdict.size["height"] < 900  # without scrolling
    assert verdict.text.startswith("On ")
    assert "Best on day-04: " in verdict.text
    for place in (".chips", "#scores", ".tasks"):
        found = browser.find_element(By.CSS_SELECTOR, place)
        assert found.is_displayed()
        assert all(name in found.text for name in ("naive", "GC", "Clippy")), place


def test_a_button_chooses_the_rate_and_a_chip_hides_a_method(browser: Chrome, report: Path) -> None:
    opened(browser, report)
    for rate in ("64", "1"):
        browser.find_element(By.CSS_SELECTOR, f'[data-plot="steps-0"][data-choice="{rate}"]').click()
        assert {meta["choice"] for meta in visible(browser, "steps-0")} == {rate}
    for names in ({"naive", "Clippy"}, {"naive", "GC", "Clippy"}):
        browser.find_element(By.CSS_SELECTOR, '[data-method="GC"]').click()
        for figure in ("rate-0", "rate-1", "steps-0", "curve-1"):
            shown = {meta["method"] for meta in visible(browser, figure)} - {"linear floor"}
            assert shown == names, figure
        assert {meta["choice"] for meta in visible(browser, "steps-0")} == {"1"}
    assert browser.get_log("browser") == []


def test_a_button_chooses_the_layer_of_the_steps_around_a_divergence(browser: Chrome, report: Path) -> None:
    opened(browser, report)
    for layer in ("bottom 1", "head click"):
        browser.find_element(By.CSS_SELECTOR, f'[data-plot="around-1"][data-choice="{layer}"]').click()
        assert {meta["choice"] for meta in visible(browser, "around-1")} == {layer}
    assert browser.get_log("browser") == []


def test_nothing_runs_over_the_side_of_a_narrow_window(browser: Chrome, report: Path) -> None:
    for width in (1280, 700):
        opened(browser, report, width)
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), width
        for figure in FIGURES:
            place = browser.find_element(By.ID, figure)
            assert place.find_element(By.CSS_SELECTOR, "svg.main-svg").size["width"] <= place.size["width"] + 1, figure


CUT_OR_COVERED = """
const cells = [...document.querySelectorAll("#scores td, #scores th, .tasks td, .tasks th")];
const seen = cells.filter(cell => cell.offsetParent !== null && cell.textContent.trim());
const wrong = [];
for (const cell of seen) {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const text = range.getBoundingClientRect(), box = cell.getBoundingClientRect();
  if (text.right > document.documentElement.clientWidth + 1) wrong.push(["cut", cell.textContent]);
  if (text.right > box.right + 1) wrong.push(["over its neighbour", cell.textContent]);
}
return wrong;
"""


@pytest.mark.parametrize("width", [1400, 1000, 420, 400])
def test_every_cell_of_every_table_can_be_read_without_scrolling_sideways(
    browser: Chrome, report: Path, shaky_report: Path, width: int
) -> None:
    for page in (report, shaky_report):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            browser.get(page.as_uri())
            assert browser.execute_script("return window.innerWidth") == width
            assert browser.execute_script(CUT_OR_COVERED) == []
            for label in ("AUC % click", "falls off at"):
                shown = browser.execute_script("return document.getElementById('scores').innerText")
                if width < 760:
                    said = browser.execute_script(
                        "return [...document.querySelectorAll('#scores td')].map(td => "
                        "getComputedStyle(td, '::before').content)"
                    )
                    assert f'"{label}"' in said
                else:
                    assert label in shown
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
