"""The page holds what the JSON files hold, and nothing that runs or is fetched."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.report import write_page
from flower_ext.report.answering import answering_sections
from flower_ext.report.drafting import drafting_sections
from flower_ext.report.timelines import MOST_ROUNDS, rounds_of, told
from flower_ext.report.training import coded_sections
from flower_ext.strategies.timeline import Fate

Change = Callable[[Path, Callable[[dict[str, Any]], None]], None]


class Page(HTMLParser):
    """What a browser would make of the page, by tags and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, Any] = {}
        self._in: str | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        json_script = attributes.get("type") == "application/json"
        self._in = attributes["id"] if json_script else None

    def handle_data(self, data: str) -> None:
        if self._in:
            self.data[self._in] = json.loads(data)
            self._in = None

    def numbers(self) -> list[float]:
        """Return the values of all cells."""
        return [float(a["value"] or "") for t, a in self.tags if t == "data"]


def test_the_page_of_coded_training_has_its_numbers(coded: Path) -> None:
    page = Page(write_page(coded))
    content = json.loads((coded / "results.json").read_text())

    numbers = set(page.numbers())
    for line in content["summary"]:
        assert {v for v in line.values() if isinstance(v, float)} <= numbers
    for each in content["rounds"]:
        assert {each["accuracy"], each["loss"], each["round_seconds"]} <= numbers
    assert page.data["rounds-data"].keys() == {"two-stage", "uncoded"}
    for strategy, rounds in page.data["rounds-data"].items():
        for shown, written in zip(rounds, content["timelines"][strategy], strict=True):
            assert shown == {**written, "told": shown["told"]}
    assert set(page.data["plots-data"]) >= {"accuracy", "loss", "backlog", "fairness"}
    assert len(page.source) < 6e6


def test_the_page_of_drafting_has_its_texts(drafting: Path) -> None:
    page = Page(write_page(drafting))
    content = json.loads((drafting / "results.json").read_text())

    shown = [each for each in content["samples"] if each["shown"]]
    assert len(shown) == 2
    for origin in ("accepted", "rejected", "corrected", "bonus"):
        wanted = sum(t["origin"] == origin for s in shown for t in s["tokens"])
        found = sum(a.get("class") == f"token {origin}" for _, a in page.tags)
        assert found == wanted + 1  # the legend's
        assert wanted
    assert set(page.data["plots-data"]) == {
        *("acceptance", "train-loss", "traffic", "protocol-bytes"),
        *("protocol-latency", "blocks", "first-token", "fetched"),
    }
    up = page.data["plots-data"]["protocol-bytes"]["traces"][0]
    for protocol, value in zip(up["x"], up["y"], strict=True):
        sample = next(s for s in content["samples"][1:] if s["protocol"] == protocol)
        assert value == sample["uplink_bytes"] / sample["length"]


def test_nothing_on_the_page_comes_from_elsewhere(coded: Path, drafting: Path) -> None:
    for folder in (coded, drafting):
        for tag, attributes in Page(write_page(folder)).tags:
            assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
            assert not attributes.get("src")
            assert (attributes.get("href") or "data:").startswith("data:")


def test_what_a_run_says_is_never_run(coded: Path, change: Change) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

    def rename(content: dict[str, Any]) -> None:
        content["settings"]["dataset"] = evil
        for each in (*content["summary"], *content["rounds"]):
            each["strategy"] = each["strategy"].replace("uncoded", evil)
        content["timelines"][evil] = content["timelines"].pop("uncoded")

    change(coded / "results.json", rename)
    page = Page(write_page(coded))
    scripts = [a for t, a in page.tags if t == "script"]

    assert len(scripts) == 4
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "<script>alert" not in page.source
    assert evil in page.data["rounds-data"]


def test_texts_are_escaped_too(drafting: Path, change: Change) -> None:
    def speak(content: dict[str, Any]) -> None:
        for sample in content["samples"]:
            sample["tokens"][0]["text"] = "<script>alert(1)</script>"
            sample["prompt"] = "<b>"

    change(drafting / "results.json", speak)
    page = Page(write_page(drafting))

    assert "<script>alert" not in page.source
    assert "&lt;script&gt;alert(1)" in page.source
    assert not any(tag == "b" for tag, _ in page.tags)


def test_figures_are_what_plotly_takes(coded: Path, drafting: Path) -> None:
    objects = importlib.import_module("plotly.graph_objects")

    def plain(value: Any) -> Any:
        """Return a trace with a colour in place of the page's variables."""
        return json.loads(re.sub(r'"var\(--[a-z0-9-]+\)"', '"red"', json.dumps(value)))

    training = json.loads((coded / "results.json").read_text())
    drafted = json.loads((drafting / "results.json").read_text())
    answered = json.loads((drafting / "edgeprompt.json").read_text())
    sections = [
        *coded_sections(training),
        *drafting_sections(drafted),
        *answering_sections(answered),
    ]
    figures = [figure for section in sections for figure in section.figures]
    assert len(figures) == 8 + 8
    for figure in figures:
        found = objects.Figure(plain(figure.traces), plain(figure.layout))
        assert len(found.data) == len(figure.traces) > 0
        assert figure.table.rows


def test_the_css_has_every_colour(coded: Path, drafting: Path) -> None:
    for folder in (coded, drafting):
        page = Page(write_page(folder))
        css = page.source.partition("</style>")[0]
        used = set(re.findall(r"var\(--([a-z0-9-]+)\)", json.dumps(page.data)))
        assert used
        for name in used | set(get_args(Fate)):
            assert len(re.findall(f"--{name}:", css)) == 2, name  # light, and dark


def test_a_round_in_words(coded: Path) -> None:
    found = json.loads((coded / "results.json").read_text())["timelines"]["two-stage"]
    line = dict(found[0], stage_two_at=1.25, decoded_at=2.5, end=2.5)
    fates = ("late", "used", "late", "failed")
    line["dispatches"] = [
        {**found[0]["dispatches"][0], "worker": 10 - i, "fate": fate}
        for i, fate in enumerate(fates)
    ]
    assert told(line) == (
        "Decoded after 2.50 s. Stage two began at 1.25 s. Nodes 8, 10 answered after "
        "the round was over. Node 7 failed."
    )
    line |= {"decoded_at": None, "skipped": True, "stage_two_at": None}
    line["dispatches"] = []
    assert told(line) == (
        "Ended after 2.50 s without decoding. Too little had come back: the model was "
        "kept. No node straggled."
    )


def test_long_runs_show_their_first_and_longest_rounds() -> None:
    lines: list[dict[str, Any]] = [
        {
            "server_round": i,
            "stage_two_at": None,
            "decoded_at": 1.0,
            "end": 9.0 if i in {500, 700} else 1.0,
            "skipped": False,
            "dispatches": [],
        }
        for i in range(1, 1001)
    ]
    found = rounds_of({"two-stage": lines})
    shown = [each["server_round"] for each in found.rounds["two-stage"]]

    assert found.left_out == 1000 - MOST_ROUNDS
    assert shown == sorted(shown)
    assert len(shown) == MOST_ROUNDS
    assert {1, MOST_ROUNDS // 2, 500, 700} <= set(shown)


def test_files_of_two_runs_are_not_mixed(drafting: Path, change: Change) -> None:
    def reseed(content: dict[str, Any]) -> None:
        content["settings"]["seed"] = 7

    change(drafting / "edgeprompt.json", reseed)
    os.utime(drafting / "results.json", (1, 1))
    page = Page(write_page(drafting))
    assert set(page.data["plots-data"]) == {"blocks", "first-token", "fetched"}
    assert "<code>results.json</code> in the same folder" in page.source

    os.utime(drafting / "edgeprompt.json", (0, 0))
    page = Page(write_page(drafting))
    assert "blocks" not in page.data["plots-data"]
    assert "<code>edgeprompt.json</code> in the same folder" in page.source


def test_a_missing_library_is_named(
    coded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, *package: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(FlowerExtError, match=r"needs plotly.*flower-ext\[report\]"):
        write_page(coded)


def test_incomplete_results_are_refused(coded: Path, change: Change) -> None:
    change(coded / "results.json", lambda content: content["rounds"][0].pop("loss"))
    with pytest.raises(InvalidInputError, match="KeyError: 'loss'"):
        write_page(coded)
