"""The command line, until a signal ends it, and by its errors."""

from __future__ import annotations

import io
import os
import queue
import signal
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flower_ext.cli import main
from flower_ext.edge import load_tokens
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair
from flower_ext.speculative import Generation
from tests.edge.conftest import Connect


class Lines(io.StringIO):
    """Standard output, as another thread waits for its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def write(self, text: str) -> int:
        self.queue.put(text)
        return len(text)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(
    connect: Connect,
    generate: Callable[..., Generation],
    prompts: list[list[int]],
    pair: ModelPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: signal.Signals,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ann:a-secret\n")
    options = ["--plaintext", "--port", "0", "--token-file", str(tokens)]
    lines = Lines()
    monkeypatch.setattr(sys, "stdout", lines)
    handler = signal.getsignal(end)

    def device() -> tuple[str, Generation, str]:
        try:
            ready = lines.queue.get(timeout=60)
            words = ready.split()
            address = words[words.index("at") + 1].strip(",")
            with connect(address, token="a-secret") as edge:
                text = generate(edge, prompts[0], max_new_tokens=8)
            url = next(word for word in words if word.startswith("http://"))
            return ready, text, urllib.request.urlopen(url).read().decode()
        finally:
            os.kill(os.getpid(), end)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(device)
        assert main(["edge", *options, "--metrics-port", "0"]) == 0
        ready, there, counters = found.result()

    assert ready.startswith(f"flower-ext edge: default ({pair.vocab_size} ids) at ")
    assert there.tokens == generate(None, prompts[0], max_new_tokens=8).tokens
    assert f"flower_ext_edge_rounds_total {float(there.rounds)}" in counters
    assert signal.getsignal(end) is handler


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "--tls-cert and --tls-key), or plaintext (--plaintext)"),
        ("--plaintext --token-file /nowhere/tokens", "'/nowhere/tokens'"),
        ("--plaintext --model /nowhere/model", "'/nowhere/model'"),
        ("--tls-cert /nowhere/pem --tls-key /nowhere/key", "'/nowhere/pem'"),
        ("--plaintext --vocab-size 5000", "got 5000"),
        ("--plaintext --tls-cert /nowhere/pem", "choose one of them"),
    ],
)
def test_errors_name_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: str, text: str
) -> None:
    assert main(["edge", *arguments.split()]) == 1
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]  # After those of the model that is loaded.
    assert line.startswith("flower-ext edge: ")
    assert text in line
    assert not captured.out


def test_a_command_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "edge" in capsys.readouterr().err


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# Ours.\nann:a:secret\n\n  b-secret  \ncid : c-secret\n")
    assert load_tokens(path) == {
        "ann": "a:secret",
        "line 4": "b-secret",
        "cid": "c-secret",
    }

    for content, text in (
        ("# None.\n", "has no tokens"),
        ("a:1\na:2\n", "comes twice"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidInputError, match=text):
            load_tokens(path)
