"""What documents say is so: links, keys, options, code, names and metrics."""

import argparse
import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from flower_ext.edge.counters import Counters
from flower_ext.edgeprompt.totals import EdgePromptTotals
from flower_ext.speculative.totals import DSSDTotals

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
APPS = ("two_stage_coded", "device_edge_llm")
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *DOCS.glob("*.md"),
        ROOT / "experiments" / "README.md",
        *(ROOT / "experiments" / app / "README.md" for app in APPS),
    ]
)
ROOMS = sorted(
    path.parent.name
    for folder in (ROOT / "flower_ext", ROOT)
    for path in folder.glob("*/__init__.py")
    if folder != ROOT or path.parent.name in ("clients", "strategies")
)
# Pages whose Python blocks are parts of programs, and are compiled only.
FRAGMENTS = ("faults.md", "corrupt-replies.md")
NEEDS = re.compile(r"<!-- needs .* -->\n$")

FENCE = re.compile(r"^(?P<indent> *)```(\w*)\n(.*?)^(?P=indent)```$", re.M | re.S)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Return what comes before each fenced block, and the block."""
    text = text_of(page)
    for found in FENCE.finditer(text):
        if found[2] in languages:
            yield text[: found.start()], found[3]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- links -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        count = sum(a == anchor or a.startswith(f"{anchor}--") for a in found)
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text_of(page)))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_the_index_leads_to_every_page(page: Path) -> None:
    assert page.name == "README.md" or f"({page.name})" in text_of(DOCS / "README.md")


# -- commands --------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Return the commands of a page's shell blocks and of the code in its text."""
    text = text_of(page)
    lines = [
        line
        for _, block in blocks(page, "bash", "shell")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = r"`(python experiments/[^`]*|flower-ext (?:edge|federation|report)[^`]*)`"
    lines += re.findall(inline, text)
    for line in lines:
        words = shlex.split(line, comments=True)
        current: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", ";", "|", ">", ">>"):
                if current:
                    yield current
                current = []
            else:
                current.append(word)


def options_of(script: Path) -> set[str]:
    """Return the options that a script's parsers add, read from its source."""
    found = re.findall(r"[\"'](--[a-z][a-z-]*)[\"']", text_of(script))
    return {*found, "--help"}


def command_parser(command: str) -> argparse.ArgumentParser:
    from flower_ext.cli import _COMMANDS  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    importlib.import_module(_COMMANDS[command].module).add_arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_and_take_their_options(page: Path) -> None:
    for words in commands(page):
        given = {w.split("=")[0] for w in words if w.startswith("--")}
        if words[0] == "flower-ext":
            known = set(command_parser(words[1])._option_string_actions)
            assert given <= known, f"{shlex.join(words)}: no {given - known}"
        elif words[0].startswith("python") and len(words) > 1:
            script = ROOT / words[1]
            if words[1].startswith("-"):
                continue
            assert script.is_file(), f"{words[1]} is not there"
            sources = [script, *script.with_suffix("").glob("*.py")]
            parts = {"dssd_speed": "dssd", "edgeprompt_speed": "edgeprompt"}
            for stem, folder in parts.items():
                if script.stem == stem:
                    sources += (script.parent / folder).glob("*.py")
            known = {o for source in sources for o in options_of(source)}
            assert given <= known, f"{shlex.join(words)}: no {given - known}"
        elif words[:2] == ["flwr", "run"] and words[2].startswith("experiments/"):
            assert (ROOT / words[2] / "pyproject.toml").is_file(), words[2]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_run_configs_of_commands_have_keys_of_the_app(page: Path) -> None:
    for words in commands(page):
        for app in APPS:
            if f"experiments/{app}" not in words:
                continue
            keys = set(run_config(app))
            for option, value in itertools.pairwise(words):
                if option in ("-c", "--run-config"):
                    given = re.findall(r"(?:^| )([\w-]+)=", value)
                    assert given, value
                    assert set(given) <= keys, f"{app}: no {set(given) - keys}"


# -- Python ----------------------------------------------------------------------------


PROGRAMS = [
    pytest.param(page, before, block, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, (before, block) in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize(("page", "before", "block"), PROGRAMS)
def test_programs_run_and_print_what_they_say(
    page: Path,
    before: str,
    block: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = compile(block, name_of(page), "exec")
    if page.name in FRAGMENTS or NEEDS.search(before):
        return
    monkeypatch.chdir(tmp_path)  # some of them keep files

    exec(code, {"__name__": "__main__"})

    printed = capsys.readouterr().out.splitlines()
    for said in re.findall(r"^print\(.*\)  # (.*)$", block, re.M):
        assert any(line and said.startswith(line) for line in printed), said


# -- run-config ------------------------------------------------------------------------


def run_config(app: str) -> dict[str, Any]:
    project = tomllib.loads(text_of(ROOT / "experiments" / app / "pyproject.toml"))
    config: dict[str, Any] = project["tool"]["flwr"]["app"]["config"]
    return config


@pytest.mark.parametrize("app", APPS)
def test_the_page_has_every_key_with_its_type_and_default(app: str) -> None:
    section = text_of(DOCS / "run-config.md").split(f"## {app}\n")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\w+) \| `([^`]*)` \| (.+) \|$", section, re.M
    )
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}

    config = run_config(app)

    assert [row[0] for row in rows] == list(config)
    for key, kind, default, _ in rows:
        assert kind == names[type(config[key])], key
        assert tomllib.loads(f"value = {default}")["value"] == config[key], key


def test_the_page_has_every_key_of_the_node_config() -> None:
    section = text_of(DOCS / "run-config.md").split("## Node-config\n")[1]
    told = re.findall(r"^\| `([\w-]+)` \|", section.split("\n## ")[0], re.M)
    sources = [
        *(ROOT / "clients").glob("*.py"),
        *(ROOT / "experiments" / app / app / "client_app.py" for app in APPS),
    ]
    reads = r"node_config(?:\.get\(|\[)\"([\w-]+)\""

    assert set(told) == {k for s in sources for k in re.findall(reads, text_of(s))}


# -- names and metrics -----------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    reference = text_of(DOCS / "reference.md")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", reference, re.M | re.S))
    public = ["flower_ext", *(f"flower_ext.{room}" for room in ROOMS)]
    assert set(sections) == set(public)
    for room in public:
        listed = re.findall(r"^\| `(\w+)` \| .+ \|$", sections[room], re.M)
        assert listed == list(importlib.import_module(room).__all__), room


def metrics_of(heading: str) -> set[str]:
    page = text_of(DOCS / "metrics.md")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("heading", "totals"),
    [("Of DSSD", DSSDTotals), ("Of EdgePrompt", EdgePromptTotals)],
)
def test_the_page_has_the_metrics_of_inference(
    heading: str, totals: type[DSSDTotals] | type[EdgePromptTotals]
) -> None:
    sums = {field.name.replace("_", "-") for field in fields(totals)}

    assert metrics_of(heading) == sums | set(totals().rates())


def test_the_page_has_the_metrics_of_coded_rounds() -> None:
    told = metrics_of("Of a coded round")
    sources = "".join(
        text_of(ROOT / "strategies" / name)
        for name in (
            "coded_strategy.py",
            "coded_round.py",
            "two_stage_coded.py",
            "energy.py",
        )
    )
    # Keys of dict displays that have a hyphen, and the few that have none.
    written = set(re.findall(r"\"([a-z]+(?:-[a-z]+)+)\"\]?(?::| =)", sources))
    plain = {"redundancy", "coverage", "residual", "skipped", "liars", "verified"}
    plain |= {"admitted", "fairness"}

    assert all(f'"{name}"' in sources for name in plain)
    assert told == (written | plain) - {"server-round"}  # a key of the train config


def test_the_page_has_the_counters_of_an_edge() -> None:
    counters = {
        metric._name
        for metric in vars(Counters()).values()
        if isinstance(metric, Counter | Gauge | Histogram)
    }

    assert metrics_of("Of an edge") == counters
