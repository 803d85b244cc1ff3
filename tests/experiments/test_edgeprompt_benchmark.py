"""The experiments on spliced prompts: what they compare, and their command lines."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flower_ext.edgeprompt import Level, PromptHierarchy, Segment
from flower_ext.errors import InvalidInputError
from flower_ext.models import default_pair
from flower_ext.models.cache_argument import forward_cache
from flower_ext.network import Link

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHAPE = {"heads": 4, "key_heads": 2, "head_dim": 16, "feed_forward": 64}


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"edgeprompt.{name}")


def small_model(longest: int = 1024) -> Any:
    return module("systems").random_model(
        2, 64, vocabulary=500, longest=longest, **SHAPE
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Yield a function that runs an experiment's command in this process."""
    threads = torch.get_num_threads()

    def run(script: str, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        return importlib.import_module(script).main()

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Return a folder with a file of Spec-Bench's form."""
    entries = [
        {"category": "writing", "turns": ["Compose."]},
        {"category": "rag", "turns": ["Hark, a doc.\nOf kings and" + " war" * 900]},
        {"category": "rag", "turns": ["Speak.\nRome and its citizens.\nWho speaks?"]},
    ]
    lines = "\n".join(map(json.dumps, entries))
    (tmp_path / "spec_bench_question.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_memory_is_that_of_the_tensors() -> None:
    systems = module("systems")
    model = small_model()
    prompts = systems.random_prompts(100, 10, 3, 500)
    compared = systems.Systems(model, default_pair().tokenizer)
    token = 2 * 2 * 2 * 16 * 4  # Layers, keys and values, heads, dim, bytes.
    found = {
        name: compared.run(name, prompts, 5)
        for name in (
            systems.EDGEPROMPT,
            systems.DYNAMIC,
            systems.STATIC,
            systems.COPIED,
            systems.STATIC_COPIED,
        )
    }
    # The last token is not processed any more.
    assert found[systems.DYNAMIC].kv_bytes == 3 * (100 + 10 + 4) * token
    assert found[systems.COPIED].kv_bytes == 3 * (100 + 10 + 4) * token
    assert found[systems.STATIC].kv_bytes == 3 * (100 + 10 + 4) * token
    assert found[systems.STATIC_COPIED].kv_bytes == 3 * (100 + 10 + 5) * token
    assert found[systems.EDGEPROMPT].kv_bytes >= (100 + 3 * (10 + 4)) * token
    assert all(timing.first > 0 and timing.rate > 0 for timing in found.values())


def test_copied_prefixes_are_the_prefix() -> None:
    systems = module("systems")
    model = small_model()
    compared = systems.Systems(model, default_pair().tokenizer)
    (prompt,) = systems.random_prompts(40, 5, 1, 500)
    compared._keep(prompt)
    with torch.inference_mode():
        whole = model(torch.tensor([prompt.tokens])).logits[0, -1]
        for longest in (None, 64):
            logits = model(
                torch.tensor([prompt.private_tokens] * 2),
                **forward_cache(model, compared._copies(2, longest)),
            ).logits[:, -1]
            torch.testing.assert_close(logits, whole.expand(2, -1))


def test_systems_take_prompts_of_one_length() -> None:
    systems = module("systems")
    shared = Segment((1, 2, 3), Level.PUBLIC)
    prompts = [
        PromptHierarchy([shared, Segment((4,) * length, Level.PRIVATE)])
        for length in (1, 2)
    ]
    compared = systems.Systems(small_model(), default_pair().tokenizer)
    with pytest.raises(InvalidInputError, match=r"one length, got \[4, 5\]"):
        compared.run(systems.DYNAMIC, prompts, 2)
    with pytest.raises(InvalidInputError, match="no system 'none'"):
        compared.run("none", prompts[:1], 2)


def test_the_question_is_private_and_documents_are_cut(questions: Path) -> None:
    documents, tokenizer = module("documents"), default_pair().tokenizer
    long, short = documents.read_retrievals(questions)

    assert (short.documents, short.question) == (
        "Speak.\nRome and its citizens.\n",
        "Who speaks?",
    )
    prompt, cut = documents.as_prompt(short, tokenizer, 1000)
    assert cut == 0
    assert tokenizer.decode(prompt.tokens) == short.documents + short.question
    assert str(tokenizer.decode(prompt.private_tokens)).strip() == short.question
    whole, private = prompt.tokens, len(prompt.private_tokens)
    prompt, cut = documents.as_prompt(short, tokenizer, len(whole) - 3)
    assert cut == 3
    assert prompt.tokens == whole[: -private - 3] + whole[-private:]
    assert str(tokenizer.decode(prompt.private_tokens)).strip() == short.question
    with pytest.raises(InvalidInputError, match="does not go into 50 tokens"):
        documents.as_prompt(long, tokenizer, 50)


def test_what_comes_over_a_link() -> None:
    systems, fetching = module("systems"), module("fetching")
    (prompt,) = systems.random_prompts(300, 8, 1, 500)
    cold = fetching.Cold(small_model(), default_pair().tokenizer, prompt)
    # Ten million bytes in a second, two seconds away.
    link = Link(up=1e7, rtt=2.0)
    found = {way: cold.first_token(way, link) for way in fetching.WAYS}

    exact, eighth = found["fetch exact"], found["fetch int8"]
    layers = 2 * 300 * 2 * 2 * 16 * 4
    assert layers < exact.nbytes < 1.02 * layers + 1000
    assert layers / 4 < eighth.nbytes < layers / 3
    assert (exact.fetched, exact.computed) == (2, 0)
    assert exact.seconds >= 2.0 + exact.nbytes / 1e7
    recomputed = found["recompute"]
    assert (recomputed.fetched, recomputed.computed, recomputed.nbytes) == (0, 2, 0)
    assert recomputed.seconds < 2.0
    adaptive = found["EdgePrompt, adaptive"]
    assert adaptive.computed + adaptive.fetched >= 2
    assert adaptive.seconds < exact.seconds


def test_a_small_benchmark(
    command: Callable[..., Any],
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The short question alone: the long one is cut, which is tested above.
    entries = (questions / "spec_bench_question.jsonl").read_text(encoding="utf-8")
    (questions / "spec_bench_question.jsonl").write_text(entries.splitlines()[2])
    traces = tmp_path / "walk.jsonl"
    traces.write_text('{"name": "walk", "t": [0, 1, 2], "mbps": [8, 4, 8]}')
    out = [tmp_path / "out" / f"figure.{kind}" for kind in ("csv", "png")]
    command(
        "edgeprompt_benchmark",
        *("--quick", "--threads", "1", "--prompts", str(questions)),
        *("--traces", str(traces), "--csv", str(out[0]), "--png", str(out[1])),
    )

    printed = capsys.readouterr().out
    assert "1 of 1 retrieval questions; the documents of 0 are cut" in printed
    with out[0].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    systems, ways = module("systems"), module("fetching").WAYS
    four = {systems.EDGEPROMPT, systems.DYNAMIC, systems.STATIC, systems.COPIED}
    for part, cases, names in (
        ("grid", 2, four),
        ("documents", 1, four),
        ("links", 2, set(ways)),
    ):
        own = [row for row in rows if row["part"] == part]
        assert {row["system"] for row in own} == names
        assert len(own) == cases * 4
    assert all(float(row["first_token_seconds"]) > 0 for row in rows)
    assert out[1].stat().st_size > 10_000


def test_promises_are_judged(
    command: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = tmp_path / "verdicts.json"
    assert (
        command(
            "edgeprompt_speed", "--quick", "--threads", "1", "--json", str(verdicts)
        )
        == 0
    )

    printed = capsys.readouterr().out
    found = json.loads(verdicts.read_text(encoding="utf-8"))
    assert len(found) == 6
    for entry in found:
        figure, bar = entry["figure"], entry["bar"]
        kept = figure >= bar if "tokens/s" in entry["what"] else figure <= bar
        assert entry["kept"] is kept
        assert f"{'kept' if kept else 'missed'} {entry['what']}" in printed


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "benchmark",
            ["--prompts", "absent", "--only", "documents"],
            "There is no file",
        ),
        (
            "benchmark",
            ["--traces", "absent.gz", "--only", "links", "--quick"],
            "Traces",
        ),
        (
            "benchmark",
            ["--model", "absent/model"],
            "'absent/model' is neither a folder",
        ),
        ("benchmark", ["--tokens", "1"], "--tokens must be at least 2"),
        ("benchmark", ["--links", "0"], "--links are rates above 0"),
        ("speed", ["none"], "there is no 'none': choose from first, batch, one"),
        ("speed", ["--batch", "0"], "--batch must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(
    command: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(f"edgeprompt_{script}", *arguments)

    assert message in f"{stopped.value} {capsys.readouterr().err}"
