"""Results folders of two small runs, as the apps have written them.

The files in ``runs`` are those of::

    flwr run experiments/two_stage_coded --federation-config num-supernodes=6 -c '
        num-server-rounds=4 strategies="two-stage,uncoded" num-nodes=6 num-partitions=8
        stragglers=1 straggler-probability=0.4 link-trace="synthetic" train-examples=400
        device-profile="synthetic" battery-joules=2000.0 harvest-watts=0.5
        scheduler="lyapunov"'
    flwr run experiments/device_edge_llm --federation-config num-supernodes=4 -c '
        num-server-rounds=2 num-nodes=4 num-partitions=4 inference="both"
        max-new-tokens=12 weakening=1.5'
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="needs flower-ext[report]")

RUNS = Path(__file__).parent / "runs"

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """Return the results folder of coded training."""
    return Path(shutil.copytree(RUNS / "coded", tmp_path / "coded"))


@pytest.fixture
def drafting(tmp_path: Path) -> Path:
    """Return the results folder of a drafter's training, and of EdgePrompt."""
    return Path(shutil.copytree(RUNS / "drafting", tmp_path / "drafting"))


@pytest.fixture
def change() -> Callable[[Path, Change], None]:
    """Return a function that changes a JSON file."""

    def changed(path: Path, how: Change) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        how(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return changed
