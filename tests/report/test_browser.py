"""The page in Chromium: it draws its figures, and asks no network for anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flower_ext.report import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)

ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=1000,900"
)

Browser = Any  # selenium's Chrome, whose module may be missing


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser that logs what pages ask for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS.split():
        options.add_argument(argument)
    profile = tmp_path_factory.mktemp("profile")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.chrome.service.Service(DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


@pytest.fixture
def browse(chromium: Browser) -> Callable[..., Browser]:
    """Return a function that opens a page, as wide and dark as it is told."""

    def opened(path: Path, width: int = 1000, scheme: str = "light") -> Browser:
        for kind in ("browser", "performance"):
            chromium.get_log(kind)
        scheme_is = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [scheme_is]}
        )
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get(path.as_uri())
        return chromium

    return opened


def requested(browser: Browser) -> set[str]:
    """Return the kinds of addresses that the page asked for."""
    events = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        # Not for the tab that the browser itself began with.
        and event["params"]["documentURL"] == browser.current_url
    ]
    assert browser.current_url in asked
    return {url.partition(":")[0] for url in asked}


def plots(browser: Browser) -> dict[str, list[float]]:
    """Return every plot's width and height as drawn, and how many marks it has."""
    found: dict[str, list[float]] = browser.execute_script(
        """
        return Object.fromEntries([...document.querySelectorAll('.plot')].map((p) => {
          const box = p.querySelector('svg.main-svg').getBoundingClientRect();
          const marks = p.querySelectorAll('.trace path, .point path').length;
          return [p.id, [box.width, box.height, marks]];
        }));
        """
    )
    return found


def cells(browser: Browser, table: str) -> list[list[str]]:
    """Return the text of a table's body; numbers as the JSON has them."""
    found: list[list[str]] = browser.execute_script(
        """
        return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((row) =>
          [...row.cells].map((c) => c.querySelector('data')?.value ?? c.textContent));
        """,
        table,
    )
    return found


def test_coded_training_is_drawn(coded: Path, browse: Callable[..., Browser]) -> None:
    page = write_page(coded)
    browser = browse(page)

    assert browser.get_log("browser") == []
    assert requested(browser) <= {"file", "data"}
    found = plots(browser)
    assert len(found) == 8 + 2
    for name, (width, height, marks) in found.items():
        assert width > 300, name
        assert height > 200, name
        assert marks > 0, name
    # Others of plotly's buttons send the figure to a server.
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('#plot-loss .modebar-btn')]"
        ".map((button) => button.dataset.title)"
    )
    assert len(buttons) == 6
    assert not any("cloud" in title.lower() for title in buttons)
    content = json.loads((coded / "results.json").read_text())
    rows = cells(browser, "#table-summary")
    assert [row[0] for row in rows] == [s["strategy"] for s in content["summary"]]
    assert [float(row[1]) for row in rows] == [
        s["accuracy"] for s in content["summary"]
    ]


def test_rounds_are_chosen_by_their_controls(
    coded: Path, browse: Callable[..., Browser]
) -> None:
    browser = browse(write_page(coded))
    timelines = json.loads((coded / "results.json").read_text())["timelines"]

    def shown() -> list[list[str]]:
        return [[row[0], row[1], row[5]] for row in cells(browser, "#rounds-table")]

    def written(strategy: str, index: int) -> list[list[str]]:
        return [
            [str(d["worker"]), str(d["stage"]), d["fate"]]
            for d in timelines[strategy][index]["dispatches"]
        ]

    before = browser.find_element("id", "rounds-before")
    after = browser.find_element("id", "rounds-after")
    assert shown() == written("two-stage", 0)
    assert not before.is_enabled()
    after.click()
    assert shown() == written("two-stage", 1)
    told = browser.find_element("id", "rounds-told").text
    assert "answered after the round was over" in told
    bars = "return document.querySelectorAll('#plot-rounds .point path').length"
    assert browser.execute_script(bars) == len(shown())
    after.send_keys("\n")  # as from a keyboard
    after.send_keys("\n")
    assert shown() == written("two-stage", 3)
    assert not after.is_enabled()
    browser.find_element("id", "rounds-strategy").send_keys("uncoded")
    assert shown() == written("uncoded", 0)
    fates = cells(browser, "#fates-table")
    assert [row[0] for row in fates] == [str(worker) for worker in range(6)]
    assert {row[1] for row in fates} == {"4"}  # used, in each round
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1000, "light")])
def test_drafting_is_drawn_and_fits(
    drafting: Path, browse: Callable[..., Browser], width: int, scheme: str
) -> None:
    browser = browse(write_page(drafting), width, scheme)

    assert browser.get_log("browser") == []
    assert requested(browser) <= {"file", "data"}
    assert all(w and h and marks for w, h, marks in plots(browser).values())
    assert len(plots(browser)) == 8 + 2
    root = "return document.documentElement.scrollWidth"
    assert browser.execute_script(root) <= width
    back = browser.execute_script("return getComputedStyle(document.body).background")
    assert ("rgb(255, 255, 255)" in back) == (scheme == "light")
    content = json.loads((drafting / "results.json").read_text())
    for row, when in zip(
        cells(browser, "#table-summary"), ("before", "after"), strict=True
    ):
        assert float(row[1]) == content["summary"][when]["acceptance"]
    text = browser.find_element("css selector", ".sample .text").text
    kept = [t["text"] for t in content["samples"][0]["tokens"]]
    assert "".join(kept[:3]).split()[0] in text
