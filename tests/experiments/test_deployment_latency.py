"""The command that times replies on a real SuperLink, with little to send."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.faults
def test_every_reply_is_timed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    out = tmp_path / "figures.json"

    command = importlib.import_module("deployment_latency")
    assert command.main(["--megabytes", "1", "--out", str(out)]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))
    assert [sorted(start) for start in figures["starts"]] == [["pushed", "replied"]] * 3
    assert all(0 < start["pushed"] < start["replied"] for start in figures["starts"])
    told = Counter((reply["size"], reply["loop"]) for reply in figures["replies"])
    assert told == dict.fromkeys(
        [
            (size, loop)
            for size in ("small", "large")
            for loop in ("flower", "flower-ext")
        ],
        4,
    )
    assert all(reply["got-after"] > 0 for reply in figures["replies"])
    assert "noticed after (ms)" in capsys.readouterr().out
